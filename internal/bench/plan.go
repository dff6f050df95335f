//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// planned is a base of very many tensors and an adapter for it.
type planned struct {
	base, adapter     string
	tensors, adapters func() []entry
	shards            int
	config            map[string]any
}

var planning = []planned{
	{"deepseek-v3", "attention", deepSeekV3, attentionAdapter, 163, deepSeekConfig},
	{"deepseek-v3", "experts", deepSeekV3, expertAdapter, 163, deepSeekConfig},
	{"many", "few", manyTensors, fewAdapter, 1, plainConfig},
	{"many", "half", manyTensors, halfAdapter, 1, plainConfig},
}

// plan times merge --dry-run for bases of very many tensors. The files are headers, and their data
// holes. A process of its own makes them: a child starts with the peak memory of its parent.
func (s *setting) plan() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if out, err := exec.Command(self, "-dir", s.dir, "headers").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var contenders []contender
	for _, p := range planning {
		base, adapter := s.planned(&p)
		contenders = append(contenders, contender{p.base + ", " + p.adapter, []string{s.loratool, "merge", "-q", "--dry-run", base, adapter}, ""})
	}
	results, err := race(contenders, s.runs)
	if err != nil {
		return err
	}
	table(contenders, results, 0)
	return nil
}

// planned returns the paths of a base and an adapter.
func (s *setting) planned(p *planned) (base, adapter string) {
	base = s.path("headers-" + p.base)
	return base, base + "-" + p.adapter
}

// headers makes the files of plan.
func (s *setting) headers() error {
	for _, p := range planning {
		base, adapter := s.planned(&p)
		_, err := writeShards(base, p.tensors(), p.shards, dtype.BF16, 0, p.config)
		if _, err2 := writePEFT(adapter, p.adapters(), dtype.BF16, 0, 1); errors.Join(err, err2) != nil {
			return errors.Join(err, err2)
		}
	}
	return nil
}

var deepSeekConfig = map[string]any{
	"architectures": []string{"DeepseekV3ForCausalLM"}, "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
	"quantization_config": map[string]any{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": []int{128, 128}},
}

var plainConfig = map[string]any{"architectures": []string{"MixtralForCausalLM"}, "model_type": "mixtral", "torch_dtype": "bfloat16"}

// deepSeekV3 lists the tensors of DeepSeek-V3 without its multi-token prediction: 90,427, the
// weights of linear layers in FP8 with scales of blocks of 128×128.
func deepSeekV3() (base []entry) {
	const hidden, latent, head = 7168, 512, 64
	add := func(name string, d dtype.Type, shape ...int) { base = append(base, entry{name, shape, d}) }
	linear := func(module string, m, n int) {
		add(module+".weight", dtype.F8E4M3, m, n)
		add(module+".weight_scale_inv", dtype.F32, (m+127)/128, (n+127)/128)
	}
	mlp := func(module string, width int) {
		linear(module+".gate_proj", width, hidden)
		linear(module+".up_proj", width, hidden)
		linear(module+".down_proj", hidden, width)
	}
	add("model.embed_tokens.weight", dtype.BF16, 129280, hidden)
	for i := range 61 {
		p := fmt.Sprintf("model.layers.%d.", i)
		add(p+"input_layernorm.weight", dtype.BF16, hidden)
		add(p+"self_attn.q_a_layernorm.weight", dtype.BF16, 1536)
		add(p+"self_attn.kv_a_layernorm.weight", dtype.BF16, latent)
		linear(p+"self_attn.q_a_proj", 1536, hidden)
		linear(p+"self_attn.q_b_proj", 128*(128+head), 1536)
		linear(p+"self_attn.kv_a_proj_with_mqa", latent+head, hidden)
		linear(p+"self_attn.kv_b_proj", 128*(128+128), latent)
		linear(p+"self_attn.o_proj", hidden, 128*128)
		add(p+"post_attention_layernorm.weight", dtype.BF16, hidden)
		if i < 3 {
			mlp(p+"mlp", 18432)
			continue
		}
		add(p+"mlp.gate.weight", dtype.BF16, 256, hidden)
		add(p+"mlp.gate.e_score_correction_bias", dtype.F32, 256)
		mlp(p+"mlp.shared_experts", 2048)
		for e := range 256 {
			mlp(fmt.Sprintf("%smlp.experts.%d", p, e), 2048)
		}
	}
	add("model.norm.weight", dtype.BF16, hidden)
	add("lm_head.weight", dtype.BF16, 129280, hidden)
	return base
}

// manyTensors lists 700,000 tiny weights of experts.
func manyTensors() (base []entry) {
	for i := range 700_000 {
		base = append(base, entry{name: fmt.Sprintf("model.layers.%d.mlp.experts.%d.w%d.weight", i/3000, i%3000/3, i%3+1), shape: []int{64, 64}})
	}
	return base
}

func attentionAdapter() []entry { return adapterOf(deepSeekV3(), isNamed(".self_attn.")) }
func expertAdapter() []entry    { return adapterOf(deepSeekV3(), isNamed(".experts.")) }
func fewAdapter() []entry       { return adapterOf(manyTensors(), isNamed(".experts.7.w1.")) }
func halfAdapter() []entry {
	i := 0
	return adapterOf(manyTensors(), func(string) bool { i++; return i%2 == 0 })
}

func isNamed(part string) func(string) bool {
	return func(name string) bool { return strings.Contains(name, part) }
}

// adapterOf lists the factors, of rank 1, of the matrices that is accepts.
func adapterOf(base []entry, is func(name string) bool) (factors []entry) {
	for _, t := range base {
		if module, ok := strings.CutSuffix(t.name, ".weight"); ok && len(t.shape) == 2 && is(t.name) {
			name := "base_model.model." + module
			factors = append(factors, entry{name: name + ".lora_A.weight", shape: []int{1, t.shape[1]}}, entry{name: name + ".lora_B.weight", shape: []int{t.shape[0], 1}})
		}
	}
	return factors
}
