//go:build unix

package main

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format/dtype"
)

// shape describes a generated model, and an adapter for all its linear layers.
type shape struct {
	layers, hidden, mlp, kv, vocabulary int
	experts                             int // per layer, replacing MLP and attention: one mlp×hidden linear each
	shards                              int // number of files; 1 makes a model without an index
	rank                                int
	factors                             dtype.Type // of the adapter
	dtype                               dtype.Type
}

// shapes are the shapes of the tables, by name. The main one has the shape of TinyLlama 1.1B.
var shapes = map[string]shape{
	"main":   {layers: 22, hidden: 2048, mlp: 5632, kv: 256, vocabulary: 32000},
	"layer":  {layers: 1, hidden: 2048, mlp: 5632, kv: 256, vocabulary: 8000},
	"small":  {layers: 8, hidden: 1024, mlp: 2816, kv: 256, vocabulary: 8000},
	"large":  {layers: 21, hidden: 4096, mlp: 11008, kv: 1024, vocabulary: 32000},
	"tiny":   {layers: 160, experts: 384, hidden: 256, mlp: 64, vocabulary: 8000, rank: 4},
	"single": {layers: 1, experts: 1, hidden: 32768, mlp: 32768, vocabulary: 8},
	"shards": {layers: 72, hidden: 1024, mlp: 2816, kv: 256, vocabulary: 32000, shards: 500},
	"7b":     {layers: 32, hidden: 4096, mlp: 11008, kv: 4096, vocabulary: 32000},
}

// entry is a tensor to write.
type entry struct {
	name  string
	shape []int
	dtype dtype.Type // Invalid for that of the file
}

func (t *entry) elements() int {
	n := 1
	for _, x := range t.shape {
		n *= x
	}
	return n
}

// tensors lists the tensors of the base and of the adapter.
func (s *shape) tensors() (base, adapter []entry) {
	linear := func(name string, m, n int) {
		base = append(base, entry{name: name + ".weight", shape: []int{m, n}})
		adapter = append(adapter, entry{name: "base_model.model." + name + ".lora_A.weight", shape: []int{s.rank, n}},
			entry{name: "base_model.model." + name + ".lora_B.weight", shape: []int{m, s.rank}})
	}
	base = append(base, entry{name: "model.embed_tokens.weight", shape: []int{s.vocabulary, s.hidden}})
	for i := range s.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		base = append(base, entry{name: p + "input_layernorm.weight", shape: []int{s.hidden}}, entry{name: p + "post_attention_layernorm.weight", shape: []int{s.hidden}})
		if s.experts > 0 {
			for e := range s.experts {
				linear(fmt.Sprintf("%smlp.experts.%d.up_proj", p, e), s.mlp, s.hidden)
			}
			continue
		}
		linear(p+"self_attn.q_proj", s.hidden, s.hidden)
		linear(p+"self_attn.k_proj", s.kv, s.hidden)
		linear(p+"self_attn.v_proj", s.kv, s.hidden)
		linear(p+"self_attn.o_proj", s.hidden, s.hidden)
		linear(p+"mlp.gate_proj", s.mlp, s.hidden)
		linear(p+"mlp.up_proj", s.mlp, s.hidden)
		linear(p+"mlp.down_proj", s.hidden, s.mlp)
	}
	base = append(base, entry{name: "model.norm.weight", shape: []int{s.hidden}}, entry{name: "lm_head.weight", shape: []int{s.vocabulary, s.hidden}})
	return base, adapter
}

// writeBase makes the base, unless it exists, and returns its size.
func (s *shape) writeBase(dir string) (int64, error) {
	tensors, _ := s.tensors()
	config := map[string]any{
		"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "hidden_size": s.hidden, "intermediate_size": s.mlp,
		"num_hidden_layers": s.layers, "num_attention_heads": max(1, s.hidden/64), "num_key_value_heads": max(1, s.kv/64), "vocab_size": s.vocabulary,
		"tie_word_embeddings": false, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu",
		"torch_dtype": map[dtype.Type]string{dtype.BF16: "bfloat16", dtype.F16: "float16", dtype.F32: "float32"}[s.dtype],
	}
	return writeShards(dir, tensors, s.shards, s.dtype, 0.02, config)
}

// writeShards makes a model of as many files, unless they exist, and returns their size.
func writeShards(dir string, tensors []entry, shards int, d dtype.Type, sigma float64, config map[string]any) (int64, error) {
	if shards <= 1 {
		n, err := writeFile(filepath.Join(dir, "model.safetensors"), tensors, d, sigma)
		return n, errors.Join(err, writeJSON(filepath.Join(dir, "config.json"), config))
	}
	var total int64
	where := make(map[string]string)
	for i := range shards {
		part := tensors[i*len(tensors)/shards : (i+1)*len(tensors)/shards]
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, shards)
		n, err := writeFile(filepath.Join(dir, name), part, d, sigma)
		if err != nil {
			return 0, err
		}
		total += n
		for _, t := range part {
			where[t.name] = name
		}
	}
	index := map[string]any{"metadata": map[string]any{"total_size": total}, "weight_map": where}
	return total, errors.Join(writeJSON(filepath.Join(dir, "config.json"), config), writeJSON(filepath.Join(dir, "model.safetensors.index.json"), index))
}

// writeAdapter makes the adapter, unless it exists, and returns its size.
func (s *shape) writeAdapter(dir string) (int64, error) {
	_, factors := s.tensors()
	// ‖ΔW‖/‖W‖ is about 0.05 for r = 16.
	return writePEFT(dir, factors, s.factors, 0.011, s.rank)
}

// writePEFT makes an adapter of PEFT, unless it exists, and returns its size.
func writePEFT(dir string, factors []entry, d dtype.Type, sigma float64, rank int) (int64, error) {
	targets := []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
	peft := map[string]any{"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "task_type": "CAUSAL_LM", "bias": "none", "target_modules": targets}
	n, err := writeFile(filepath.Join(dir, "adapter_model.safetensors"), factors, d, sigma)
	return n, errors.Join(err, writeJSON(filepath.Join(dir, "adapter_config.json"), peft))
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o666)
}

// writeFile writes a safetensors file of normal numbers, unless it exists, and returns its size. A
// file of zeros, with sigma 0, takes no space on disk.
func writeFile(path string, tensors []entry, d dtype.Type, sigma float64) (int64, error) {
	if info, err := os.Stat(path); err == nil {
		return info.Size(), nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return 0, err
	}
	header, off := headerOf(tensors, d)
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) // Flush reports the first error of a bufio.Writer
	w.Write(header)
	if sigma == 0 {
		size := off + 8 + int64(len(header))
		return size, errors.Join(w.Flush(), f.Truncate(size), f.Close())
	}
	rng := rand.New(rand.NewPCG(1, uint64(off)))
	// Draw from a table of normal numbers: fast, and as incompressible as the numbers themselves.
	table := make([]byte, (1<<16)*d.Size())
	for i := range 1 << 16 {
		dtype.Store(d, table, i, sigma*rng.NormFloat64())
	}
	size := d.Size()
	for n := off / int64(size); n > 0; n -= 4 {
		bits := rng.Uint64()
		for k := range min(n, 4) {
			at := int(bits>>(16*k)&0xffff) * size
			w.Write(table[at : at+size])
		}
	}
	return off + 8 + int64(len(header)), errors.Join(w.Flush(), f.Close())
}

// headerOf returns the text of a header and the size of the data.
func headerOf(tensors []entry, d dtype.Type) (header []byte, off int64) {
	header = []byte(`{"__metadata__":{"format":"pt"}`)
	for _, t := range tensors {
		d := cmp.Or(t.dtype, d)
		size := int64(t.elements()) * int64(d.Size())
		shape := strings.ReplaceAll(fmt.Sprint(t.shape), " ", ",")
		header = fmt.Appendf(header, `,%q:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, t.name, d.String(), shape, off, off+size)
		off += size
	}
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	return header, off
}
