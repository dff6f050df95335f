package merge_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// projections says which rows of a fused module are those of each projection, as the code of the
// models has them (testdata/divided/make.py).
type projections struct {
	Config json.RawMessage `json:"config"`
	Fused  string          `json:"fused"`
	Size   int             `json:"size"`
	Parts  [][2]any        `json:"parts"`
}

func (p *projections) part(i int) (module string, rows []int) {
	for _, row := range p.Parts[i][1].([]any) {
		rows = append(rows, int(row.(float64)))
	}
	return p.Parts[i][0].(string), rows
}

// ofModels reads the rows of all models, by the names of the kinds.
func ofModels(t *testing.T) (all map[string]*projections) {
	t.Helper()
	text, err := os.ReadFile("../testdata/divided/rows.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

const (
	dividedInputs = 8
	dividedRank   = 2
	dividedLayer  = "model.layers.0."
)

// dividedWeight is a weight with rows that differ, of 8 bits.
func dividedWeight(name string, seed, rows, columns int) testkit.Tensor {
	var v []float64
	for i := range rows {
		for j := range columns {
			v = append(v, small(seed, i, j, 1)/8)
		}
	}
	return testkit.Values(name, dtype.BF16, []uint64{uint64(rows), uint64(columns)}, v...)
}

// dividedFactors are the factors of one module of an adapter.
func dividedFactors(module string, seed, rows int) []testkit.Tensor {
	prefix := "base_model.model." + module
	return []testkit.Tensor{
		flat(matrices(prefix+".lora_A.weight", seed, 1, dividedRank, dividedInputs)),
		flat(matrices(prefix+".lora_B.weight", seed+1, 1, rows, dividedRank)),
	}
}

// dividedDelta is element (i, j) of s·B·A of these factors: the test's adapters have the scale 2.
func dividedDelta(seed, i, j int) (x float64) {
	for k := range dividedRank {
		x += 2 * small(seed+1, 0, i, k) * small(seed, 0, k, j)
	}
	return x
}

// mergeDivided merges an adapter into a base and returns the directories of base and output.
func mergeDivided(t *testing.T, config string, base, factors []testkit.Tensor) (before, after string, err error) {
	t.Helper()
	adapter := filepath.Join(t.TempDir(), "adapter")
	testkit.WriteAdapter(t, adapter, dividedRank, 2*dividedRank, factors...)
	return mergeOpened(t, config, base, adapter, convert.Options{})
}

// mergeOpened is mergeDivided for the file of an adapter.
func mergeOpened(t *testing.T, config string, base []testkit.Tensor, adapter string, o convert.Options) (before, after string, err error) {
	t.Helper()
	dir := t.TempDir()
	before, after = filepath.Join(dir, "base"), filepath.Join(dir, "out")
	if config != "" {
		testkit.Write(t, filepath.Join(before, "config.json"), []byte(config))
	}
	testkit.Write(t, filepath.Join(before, "model.safetensors"), testkit.Encode(nil, base...))
	src, err := convert.Open(t.Context(), adapter, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(context.Background(), before, []merge.Adapter{{Source: src, Name: "adapter", Weight: 1}}, merge.Options{})
	if err != nil {
		return "", "", err
	}
	defer p.Close()
	_, err = p.Run(context.Background(), after)
	return before, after, err
}

// compareDivided compares a weight of 8 columns with its value before and the sum of the updates,
// rounded once.
func compareDivided(t *testing.T, before, after, name string, transposed bool, delta func(i, j int) float64) {
	t.Helper()
	was, got := openCheckpoint(t, before), openCheckpoint(t, after)
	old, now := read(t, was, name), read(t, got, name)
	rows := len(old) / dtype.BF16.Size() / dividedInputs
	want := make([]byte, dtype.BF16.Size())
	for i := range rows {
		for j := range dividedInputs {
			at := i*dividedInputs + j
			if transposed {
				at = j*rows + i
			}
			dtype.Store(dtype.BF16, want, 0, dtype.Load(dtype.BF16, old, at)+delta(i, j))
			if x := dtype.Load(dtype.BF16, now, at); x != dtype.Load(dtype.BF16, want, 0) {
				t.Fatalf("%s has %v at (%d, %d), want %v", name, x, i, j, dtype.Load(dtype.BF16, want, 0))
			}
		}
	}
}

// TestProjectionsMergeIntoFusedWeights merges adapters of all projections of a fused weight, and of
// each one alone.
func TestProjectionsMergeIntoFusedWeights(t *testing.T) {
	models := ofModels(t)
	delete(models, "megatron") // no model of transformers has it
	for kind, model := range models {
		t.Run(kind, func(t *testing.T) {
			transposed := strings.HasPrefix(kind, "gpt2")
			module := dividedLayer + "attn." + model.Fused
			weight := dividedWeight(module+".weight", 3, model.Size, dividedInputs)
			if transposed {
				weight = dividedWeight(module+".weight", 3, dividedInputs, model.Size)
			}
			base := []testkit.Tensor{weight, dividedWeight(dividedLayer+"attn.o_proj.weight", 4, dividedInputs, dividedInputs)}
			for only := -1; only < len(model.Parts); only++ {
				var factors []testkit.Tensor
				owner := make(map[int][2]int) // of a row: the seed, and the row of the part
				for i := range model.Parts {
					if only >= 0 && only != i {
						continue
					}
					part, rows := model.part(i)
					factors = append(factors, dividedFactors(dividedLayer+"attn."+part, 10*i+20, len(rows))...)
					for k, row := range rows {
						owner[row] = [2]int{10*i + 20, k}
					}
				}
				before, after, err := mergeDivided(t, string(model.Config), base, factors)
				if err != nil {
					t.Fatal(err)
				}
				compareDivided(t, before, after, module+".weight", transposed, func(i, j int) float64 {
					if o, ok := owner[i]; ok {
						return dividedDelta(o[0], o[1], j)
					}
					return 0
				})
				compareDivided(t, before, after, dividedLayer+"attn.o_proj.weight", false, func(int, int) float64 { return 0 })
			}
		})
	}
}

// TestFusedFactorsMergeIntoProjections is the reverse: every projection gets its rows of B.
func TestFusedFactorsMergeIntoProjections(t *testing.T) {
	const llama = dividedLayer
	models, attention := ofModels(t), []string{llama + "self_attn.q_proj", llama + "self_attn.k_proj", llama + "self_attn.v_proj"}
	for kind, x := range map[string]struct {
		config, fused string
		parts         []string
		other         [2]string // a further module of the adapter and its name in the base
	}{
		"phi3":       {`{"model_type":"mistral"}`, llama + "self_attn.qkv_proj", attention, [2]string{llama + "self_attn.o_proj", llama + "self_attn.o_proj"}},
		"phi3 gates": {"", llama + "mlp.gate_up_proj", []string{llama + "mlp.gate_proj", llama + "mlp.up_proj"}, [2]string{llama + "mlp.down_proj", llama + "mlp.down_proj"}},
		"baichuan":   {`{"model_type":"llama"}`, llama + "self_attn.W_pack", attention, [2]string{llama + "self_attn.o_proj", llama + "self_attn.o_proj"}},
		"chatglm": {`{"model_type":"glm"}`, "transformer.encoder.layers.0.self_attention.query_key_value", attention,
			[2]string{"transformer.encoder.layers.0.mlp.dense_h_to_4h", llama + "mlp.gate_up_proj"}},
		"qwen": {`{"model_type":"llama"}`, "transformer.h.0.attn.c_attn", attention, [2]string{"transformer.h.0.mlp.w2", llama + "mlp.gate_proj"}},
		"internlm2": {`{"model_type":"llama","hidden_size":8,"num_attention_heads":4,"num_key_value_heads":2}`, llama + "attention.wqkv",
			attention, [2]string{llama + "feed_forward.w1", llama + "mlp.gate_proj"}},
	} {
		t.Run(kind, func(t *testing.T) {
			model := models[kind]
			var base []testkit.Tensor
			for i, part := range x.parts {
				_, rows := model.part(i)
				base = append(base, dividedWeight(part+".weight", i, len(rows), dividedInputs))
			}
			base = append(base, dividedWeight(x.other[1]+".weight", 9, 6, dividedInputs))
			factors := slices.Concat(dividedFactors(x.fused, 20, model.Size), dividedFactors(x.other[0], 30, 6))
			before, after, err := mergeDivided(t, x.config, base, factors)
			if err != nil {
				t.Fatal(err)
			}
			for i, part := range x.parts {
				_, rows := model.part(i)
				compareDivided(t, before, after, part+".weight", false, func(k, j int) float64 {
					return dividedDelta(20, rows[k], j)
				})
			}
			compareDivided(t, before, after, x.other[1]+".weight", false, func(i, j int) float64 { return dividedDelta(30, i, j) })
		})
	}
}

// TestProjectionsMergeUnderOtherNames merges an adapter of a Llama into InternLM2, which it is
// under other names.
func TestProjectionsMergeUnderOtherNames(t *testing.T) {
	model := ofModels(t)["internlm2"]
	_, k := model.part(1)
	base := []testkit.Tensor{dividedWeight(dividedLayer+"attention.wqkv.weight", 1, model.Size, dividedInputs),
		dividedWeight(dividedLayer+"feed_forward.w3.weight", 2, 6, dividedInputs)}
	factors := slices.Concat(dividedFactors(dividedLayer+"self_attn.k_proj", 20, len(k)), dividedFactors(dividedLayer+"mlp.up_proj", 30, 6))
	before, after, err := mergeDivided(t, string(model.Config), base, factors)
	if err != nil {
		t.Fatal(err)
	}
	compareDivided(t, before, after, base[0].Name, false, func(i, j int) float64 {
		if at := slices.Index(k, i); at >= 0 {
			return dividedDelta(20, at, j)
		}
		return 0
	})
	compareDivided(t, before, after, base[1].Name, false, func(i, j int) float64 { return dividedDelta(30, i, j) })
}

// TestAdaptersOfMegatronMergeIntoTransformers merges one adapter under the names of Megatron-Bridge
// and of NeMo 1, and one that CanonicalLoRA divides as transformers does.
func TestAdaptersOfMegatronMergeIntoTransformers(t *testing.T) {
	const layer = dividedLayer
	model := ofModels(t)["megatron"]
	weights := map[string]int{"self_attn.o_proj": 8, "mlp.gate_proj": 6, "mlp.up_proj": 6, "mlp.down_proj": 8}
	own := make(map[string][]int) // rows of linear_qkv
	for i := range model.Parts {
		part, rows := model.part(i)
		own["self_attn."+part], weights["self_attn."+part] = rows, len(rows)
	}
	var base []testkit.Tensor
	for name, rows := range weights {
		base = append(base, dividedWeight(layer+name+".weight", len(name), rows, dividedInputs))
	}
	factors := func(module string, seed, rows int) []testkit.Tensor {
		all := dividedFactors("", seed, rows)
		all[0].Name, all[1].Name = module+".linear_in.weight", module+".linear_out.weight"
		return all
	}
	whole := func(qkv, proj, fc1, fc2 string) []testkit.Tensor {
		return slices.Concat(factors(qkv, 20, model.Size), factors(proj, 30, 8), factors(fc1, 40, 12), factors(fc2, 50, 8))
	}
	const bridge, nemo = "decoder.layers.0.", "model.language_model.encoder.layers.0."
	for name, file := range map[string][]testkit.Tensor{
		"Megatron-Bridge": whole(bridge+"self_attention.linear_qkv.adapter", bridge+"self_attention.linear_proj.adapter",
			bridge+"mlp.linear_fc1.adapter", bridge+"mlp.linear_fc2.adapter"),
		"NeMo 1": whole(nemo+"self_attention.adapter_layer.lora_kqv_adapter", nemo+"self_attention.adapter_layer.lora_dense_attention_adapter",
			nemo+"mlp.adapter_layer.lora_hto4h_adapter", nemo+"mlp.adapter_layer.lora_4htoh_adapter"),
	} {
		path := filepath.Join(t.TempDir(), "adapter.safetensors")
		testkit.Write(t, path, testkit.Encode(nil, file...))
		before, after, err := mergeOpened(t, string(model.Config), base, path, convert.Options{Alpha: 2 * dividedRank})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for weight := range weights {
			compareDivided(t, before, after, layer+weight+".weight", false, func(i, j int) float64 {
				switch weight {
				case "self_attn.o_proj":
					return dividedDelta(30, i, j)
				case "mlp.gate_proj":
					return dividedDelta(40, i, j)
				case "mlp.up_proj":
					return dividedDelta(40, 6+i, j)
				case "mlp.down_proj":
					return dividedDelta(50, i, j)
				}
				return dividedDelta(20, own[weight][i], j)
			})
		}
	}
	path := filepath.Join(t.TempDir(), "adapter.safetensors")
	testkit.Write(t, path, testkit.Encode(nil, slices.Concat(factors(bridge+"self_attention.linear_qkv.adapter.adapter_k", 20, 4),
		factors(bridge+"mlp.linear_fc1.adapter.adapter_up", 30, 6))...))
	if _, err := convert.Open(t.Context(), path, convert.Options{}); err == nil || !strings.Contains(err.Error(), "does not say its scale") {
		t.Errorf("without an alpha: %v", err)
	}
	before, after, err := mergeOpened(t, string(model.Config), base, path, convert.Options{Alpha: 2 * dividedRank})
	if err != nil {
		t.Fatal(err)
	}
	compareDivided(t, before, after, layer+"self_attn.k_proj.weight", false, func(i, j int) float64 { return dividedDelta(20, i, j) })
	compareDivided(t, before, after, layer+"mlp.up_proj.weight", false, func(i, j int) float64 { return dividedDelta(30, i, j) })
}

// TestDivisionsThatNothingTells refuses adapters where neither the type of the base nor its sizes
// say which rows are meant.
func TestDivisionsThatNothingTells(t *testing.T) {
	const attention = dividedLayer + "self_attn."
	fused := []testkit.Tensor{dividedWeight(attention+"qkv_proj.weight", 1, 16, dividedInputs)}
	interleaved := []testkit.Tensor{dividedWeight(attention+"query_key_value.weight", 1, 24, dividedInputs)}
	apart := func(k, v int) []testkit.Tensor {
		return []testkit.Tensor{dividedWeight(attention+"q_proj.weight", 1, 8, dividedInputs),
			dividedWeight(attention+"k_proj.weight", 1, k, dividedInputs), dividedWeight(attention+"v_proj.weight", 1, v, dividedInputs)}
	}
	q := dividedFactors(attention+"q_proj", 1, 8)
	dora := slices.Concat(q, []testkit.Tensor{testkit.Values("base_model.model."+attention+"q_proj.lora_magnitude_vector.weight", dtype.F32, []uint64{8}, 1, 1, 1, 1, 1, 1, 1, 1)})
	const phi = `{"model_type":"phi3","hidden_size":8,"num_attention_heads":4}`
	for name, x := range map[string]struct {
		config        string
		base, factors []testkit.Tensor
		words         string
	}{
		"no config.json":         {"", fused, q, "fuses"},
		"another type":           {`{"model_type":"minimax","hidden_size":8,"num_attention_heads":4}`, fused, q, "fuses"},
		"an old ChatGLM":         {`{"model_type":"chatglm","hidden_size":8,"num_attention_heads":4}`, interleaved, q, "fuses"},
		"no heads":               {`{"model_type":"phi3","hidden_size":8}`, fused, q, "no config.json that says"},
		"other rows than config": {phi, fused, dividedFactors(attention+"q_proj", 1, 10), "is 8 of the 16 rows"},
		"rows of q for k":        {phi, fused, dividedFactors(attention+"k_proj", 1, 8), "is 4 of the 16 rows"},
		"DoRA":                   {phi, fused, dora, "fused with others"},
		"no whole heads": {`{"model_type":"bloom","hidden_size":8,"n_head":4}`,
			[]testkit.Tensor{dividedWeight(attention+"query_key_value.weight", 1, 14, dividedInputs)}, q, "whole heads"},
		"a part is missing":   {phi, apart(4, 4)[:2], dividedFactors(attention+"qkv_proj", 1, 16), "apart"},
		"too many rows":       {phi, apart(4, 4), dividedFactors(attention+"qkv_proj", 1, 20), "have 16 rows together"},
		"no type with wqkv":   {`{"model_type":"mistral"}`, apart(4, 4), dividedFactors(dividedLayer+"attention.wqkv", 1, 16), "apart"},
		"Megatron on Qwen3.5": {`{"model_type":"qwen3_5"}`, apart(4, 4), dividedFactors("decoder.layers.0.self_attention.linear_qkv", 1, 16), "apart"},
		"no heads with wqkv":  {`{"model_type":"llama"}`, apart(4, 4), dividedFactors(dividedLayer+"attention.wqkv", 1, 16), "no config.json that says"},
		"k of another number": {`{"model_type":"llama","hidden_size":8,"num_attention_heads":4}`, apart(4, 6), dividedFactors(dividedLayer+"attention.wqkv", 1, 18), "whole heads"},
	} {
		_, _, err := mergeDivided(t, x.config, x.base, x.factors)
		if err == nil || !strings.Contains(err.Error(), x.words) {
			t.Errorf("%s: %v, want an error with %q", name, err, x.words)
		}
	}
}
