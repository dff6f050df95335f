package merge_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// Sizes of the tests below.
const hidden, inner, nExperts, expertRank = 5, 3, 3, 2

// small returns a whole number, so that every sum in these tests is exact.
func small(seed, i, j, k int) float64 { return float64((seed*31+i*17+j*7+k*5)%11 - 5) }

// matrices returns a tensor of n rows×cols matrices with small values.
func matrices(name string, seed, n, rows, cols int) testkit.Tensor {
	var v []float64
	for e := range n {
		for i := range rows {
			for j := range cols {
				v = append(v, small(seed, e, i, j))
			}
		}
	}
	return testkit.Values(name, dtype.F32, []uint64{uint64(n), uint64(rows), uint64(cols)}, v...)
}

// flat removes the first dimension, which is 1.
func flat(t testkit.Tensor) testkit.Tensor {
	t.Shape = t.Shape[1:]
	return t
}

// expertProduct returns element (i, j) of B·A of expert e, from the seeds of both factors. An nA or
// nB of 1 shares one matrix.
func expertProduct(seedA, nA, seedB, nB, e, i, j int) (x float64) {
	for k := range expertRank {
		x += small(seedB, min(e, nB-1), i, k) * small(seedA, min(e, nA-1), k, j)
	}
	return x
}

// expertAdapters lists the ways in which factors of all experts are exported. delta is an element
// of an expert's update: of the gate and up projection, one below the other, or of the down
// projection.
var expertAdapters = []struct {
	name    string
	tensors func(prefix string) []testkit.Tensor
	delta   func(parameter string, e, i, j int) float64
}{
	{"a matrix for each expert (Megatron-Bridge)",
		func(prefix string) []testkit.Tensor {
			return []testkit.Tensor{
				matrices(prefix+"gate_up_proj.lora_A.weight", 1, nExperts, expertRank, hidden),
				matrices(prefix+"gate_up_proj.lora_B.weight", 2, nExperts, 2*inner, expertRank),
				matrices(prefix+"down_proj.lora_A.weight", 3, nExperts, expertRank, inner),
				matrices(prefix+"down_proj.lora_B.weight", 4, nExperts, hidden, expertRank),
			}
		},
		func(parameter string, e, i, j int) float64 {
			if parameter == "down_proj" {
				return expertProduct(3, nExperts, 4, nExperts, e, i, j)
			}
			return expertProduct(1, nExperts, 2, nExperts, e, i, j)
		}},
	{"one side shared by all experts (Tinker)",
		func(prefix string) []testkit.Tensor {
			return []testkit.Tensor{
				matrices(prefix+"w1.lora_A.weight", 1, 1, expertRank, hidden),
				matrices(prefix+"w1.lora_B.weight", 2, nExperts, inner, expertRank),
				matrices(prefix+"w3.lora_A.weight", 3, 1, expertRank, hidden),
				matrices(prefix+"w3.lora_B.weight", 4, nExperts, inner, expertRank),
				matrices(prefix+"w2.lora_A.weight", 5, nExperts, expertRank, inner),
				matrices(prefix+"w2.lora_B.weight", 6, 1, hidden, expertRank),
			}
		},
		func(parameter string, e, i, j int) float64 {
			switch {
			case parameter == "down_proj":
				return expertProduct(5, nExperts, 6, 1, e, i, j)
			case i < inner:
				return expertProduct(1, 1, 2, nExperts, e, i, j)
			}
			return expertProduct(3, 1, 4, nExperts, e, i-inner, j)
		}},
	{"a module for each expert (unsloth)",
		func(prefix string) (all []testkit.Tensor) {
			for e := range nExperts {
				gate, down := fmt.Sprintf("%sgate_up_projs.%d.", prefix, e), fmt.Sprintf("%sdown_projs.%d.", prefix, e)
				all = append(all,
					flat(matrices(gate+"lora_A.weight", 10+e, 1, expertRank, hidden)),
					flat(matrices(gate+"lora_B.weight", 20+e, 1, 2*inner, expertRank)),
					flat(matrices(down+"lora_A.weight", 30+e, 1, expertRank, inner)),
					flat(matrices(down+"lora_B.weight", 40+e, 1, hidden, expertRank)))
			}
			return all
		},
		func(parameter string, e, i, j int) float64 {
			if parameter == "down_proj" {
				return expertProduct(30+e, 1, 40+e, 1, e, i, j)
			}
			return expertProduct(10+e, 1, 20+e, 1, e, i, j)
		}},
}

// expertBases lists the ways in which bases store experts. at returns the tensor with an element of
// an expert's matrix, and the element's index there.
var expertBases = []struct {
	name, modelType string
	tensors         func() []testkit.Tensor
	at              func(parameter string, e, i, j int) (tensor string, k int)
}{
	{"stacked", "qwen3_5_moe_text",
		func() []testkit.Tensor {
			return []testkit.Tensor{
				matrices("model.layers.0.mlp.experts.gate_up_proj", 7, nExperts, 2*inner, hidden),
				matrices("model.layers.0.mlp.experts.down_proj", 8, nExperts, hidden, inner),
			}
		},
		func(parameter string, e, i, j int) (string, int) {
			rows, cols := shapeOfExpert(parameter)
			return "model.layers.0.mlp.experts." + parameter, (e*rows+i)*cols + j
		}},
	{"stacked and transposed", "gpt_oss",
		func() []testkit.Tensor {
			return []testkit.Tensor{
				matrices("model.layers.0.mlp.experts.gate_up_proj", 7, nExperts, hidden, 2*inner),
				matrices("model.layers.0.mlp.experts.down_proj", 8, nExperts, inner, hidden),
			}
		},
		func(parameter string, e, i, j int) (string, int) {
			rows, cols := shapeOfExpert(parameter)
			return "model.layers.0.mlp.experts." + parameter, (e*cols+j)*rows + i
		}},
	{"one by one", "qwen3_moe",
		func() (all []testkit.Tensor) {
			for e := range nExperts {
				prefix := fmt.Sprintf("model.layers.0.mlp.experts.%d.", e)
				all = append(all,
					flat(matrices(prefix+"gate_proj.weight", 50+e, 1, inner, hidden)),
					flat(matrices(prefix+"up_proj.weight", 60+e, 1, inner, hidden)),
					flat(matrices(prefix+"down_proj.weight", 70+e, 1, hidden, inner)))
			}
			return all
		},
		func(parameter string, e, i, j int) (string, int) {
			_, cols := shapeOfExpert(parameter)
			leaf := "down_proj"
			if parameter == "gate_up_proj" {
				leaf = []string{"gate_proj", "up_proj"}[i/inner]
				i %= inner
			}
			return fmt.Sprintf("model.layers.0.mlp.experts.%d.%s.weight", e, leaf), i*cols + j
		}},
}

func shapeOfExpert(parameter string) (rows, cols int) {
	if parameter == "down_proj" {
		return hidden, inner
	}
	return 2 * inner, hidden
}

// TestFactorsOfExpertsAsTheyAreExported merges the exports of libraries other than PEFT into bases
// with stacked experts, and into bases with one tensor per expert.
func TestFactorsOfExpertsAsTheyAreExported(t *testing.T) {
	refused := map[string]string{
		"one side shared by all experts (Tinker), stacked and transposed": "interleave the rows",
		"a module for each expert (unsloth), one by one":                  "has none of", // for gpt-oss, whose experts are always stacked
	}
	for _, a := range expertAdapters {
		for _, b := range expertBases {
			name := a.name + ", " + b.name
			dir := t.TempDir()
			base, adapter, out := filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), filepath.Join(dir, "out")
			testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type":"`+b.modelType+`"}`))
			testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, b.tensors()...))
			testkit.WriteAdapter(t, adapter, expertRank, 2*expertRank, a.tensors("base_model.model.model.layers.0.mlp.experts.")...)
			src, err := convert.Open(t.Context(), adapter, convert.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
			if word := refused[name]; word != "" {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %v, want a refusal with %q", name, err, word)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			defer p.Close()
			if _, err := p.Run(context.Background(), out); err != nil {
				t.Fatal(err)
			}
			before, after := openCheckpoint(t, base), openCheckpoint(t, out)
			for _, parameter := range []string{"gate_up_proj", "down_proj"} {
				rows, cols := shapeOfExpert(parameter)
				for e := range nExperts {
					for i := range rows {
						for j := range cols {
							tensor, k := b.at(parameter, e, i, j)
							want := dtype.Load(dtype.F32, read(t, before, tensor), k) + 2*a.delta(parameter, e, i, j)
							if got := dtype.Load(dtype.F32, read(t, after, tensor), k); got != want {
								t.Fatalf("%s: %s of expert %d has %v at (%d, %d), want %v", name, parameter, e, got, i, j, want)
							}
						}
					}
				}
			}
		}
	}
}

// TestGateAndUpMergeInTurns merges Tinker's factors into gpt-oss, whose gate and up projections lie
// in turns: gate_up_proj[..., ::2] is the gate in transformers, and [..., 1::2] the other one.
func TestGateAndUpMergeInTurns(t *testing.T) {
	a, b, dir := expertAdapters[1], expertBases[1], t.TempDir()
	base, adapter, out := filepath.Join(dir, "base"), filepath.Join(dir, "adapter"), filepath.Join(dir, "out")
	testkit.Write(t, filepath.Join(base, "config.json"), []byte(`{"model_type":"`+b.modelType+`"}`))
	testkit.Write(t, filepath.Join(base, "model.safetensors"), testkit.Encode(nil, b.tensors()...))
	testkit.WriteAdapter(t, adapter, expertRank, 2*expertRank, a.tensors("base_model.model.model.layers.0.mlp.experts.")...)
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	options := merge.Options{Reading: merge.Reading{ExpertTurns: true}}
	p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, options)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	before, after := openCheckpoint(t, base), openCheckpoint(t, out)
	for _, parameter := range []string{"gate_up_proj", "down_proj"} {
		rows, cols := shapeOfExpert(parameter)
		for at := range nExperts * rows * cols {
			e, i, j := at/(rows*cols), at/cols%rows, at%cols
			own := i // row of the adapter's parts, one below the other
			if parameter == "gate_up_proj" {
				own = i%2*inner + i/2
			}
			tensor, k := b.at(parameter, e, i, j)
			want := dtype.Load(dtype.F32, read(t, before, tensor), k) + 2*a.delta(parameter, e, own, j)
			if got := dtype.Load(dtype.F32, read(t, after, tensor), k); got != want {
				t.Fatalf("%s of expert %d has %v at (%d, %d), want %v", parameter, e, got, i, j, want)
			}
		}
	}
}
