package merge_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// stackedAdapter writes an adapter of two nested parameters of model.experts, for two experts of
// rank 1.
func stackedAdapter(t *testing.T, parameters string, inner, outer []testkit.Tensor, ranks string) merge.Adapter {
	t.Helper()
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "adapter_config.json"),
		[]byte(`{"peft_type":"LORA","peft_version":"0.21.2","r":1,"lora_alpha":1,"target_modules":[],"target_parameters":[`+parameters+`]`+ranks+`}`))
	testkit.Write(t, filepath.Join(dir, "adapter_model.safetensors"), testkit.Encode(nil, append(inner, outer...)...))
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return merge.Adapter{Source: src, Name: dir, Weight: 1}
}

// expertFactors returns factors of two experts of rank 1 for a 2×d1×d2 parameter. Expert e adds a
// at (e, i, j).
func expertFactors(path string, d1, d2 int, at [2]int, a float64) []testkit.Tensor {
	fa, fb := make([]float64, 2*d2), make([]float64, d1*2)
	for e := range 2 {
		fa[e*d2+at[1]] = a
		fb[at[0]*2+e] = 1
	}
	prefix := "base_model.model." + path
	return []testkit.Tensor{
		testkit.Values(prefix+".lora_A.weight", dtype.F32, []uint64{2, uint64(d2)}, fa...),
		testkit.Values(prefix+".lora_B.weight", dtype.F32, []uint64{uint64(d1), 2}, fb...),
	}
}

// TestUnknownParametersAreToldApartByShape: PEFT nests the factors of a module's parameters in the
// order of the model's class. Without known names, only the shapes can tell them apart.
func TestUnknownParametersAreToldApartByShape(t *testing.T) {
	zero := func(name string, shape ...uint64) testkit.Tensor {
		n, _ := dtype.NElements(shape)
		return testkit.Values(name, dtype.F32, shape, make([]float64, n)...)
	}
	for _, c := range []struct {
		name  string
		beta  []uint64 // the second parameter's shape; the first is 2×4×6
		ranks string
		word  string // in the refusal
	}{
		{"shapes tell", []uint64{2, 5, 3}, "", ""},
		{"shapes do not tell", []uint64{2, 4, 6}, "", "2 orders fit"},
		{"shapes tell, and the scale depends on the name", []uint64{2, 5, 3}, `,"alpha_pattern":{"alpha":3}`, "cannot tell"},
	} {
		base := filepath.Join(t.TempDir(), "model.safetensors")
		testkit.Write(t, base, testkit.Encode(nil, zero("model.experts.alpha", 2, 4, 6), zero("model.experts.beta", c.beta...)))
		inner := expertFactors("model.experts.base_layer", int(c.beta[1]), int(c.beta[2]), [2]int{1, 2}, 5) // beta comes first, though the config names alpha first
		outer := expertFactors("model.experts", 4, 6, [2]int{3, 0}, 7)
		a := stackedAdapter(t, `"experts.alpha","experts.beta"`, inner, outer, c.ranks)
		p, err := merge.Open(context.Background(), base, []merge.Adapter{a}, merge.Options{})
		if c.word != "" {
			if !errors.Is(err, fault.Mismatch) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%s: %v, want a refusal with %q", c.name, err, c.word)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if w := strings.Join(p.Warnings(), "\n"); !strings.Contains(w, "in the order beta, alpha") {
			t.Errorf("%s: the warnings do not say the order: %s", c.name, w)
		}
		out := filepath.Join(t.TempDir(), "out.safetensors")
		if _, err := p.Run(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		merged := openCheckpoint(t, out)
		for _, want := range []struct {
			name    string
			i, j, d int // index of an expert with d elements and w columns
			w       int
			x       float64
		}{{"model.experts.alpha", 3, 0, 24, 6, 7}, {"model.experts.beta", 1, 2, 15, 3, 5}} {
			got := read(t, merged, want.name)
			for e := range 2 {
				if x := dtype.Load(dtype.F32, got, e*want.d+want.i*want.w+want.j); x != want.x {
					t.Errorf("%s: expert %d of %s has %v at (%d, %d), want %v", c.name, e, want.name, x, want.i, want.j, want.x)
				}
			}
		}
	}
}

// madeUp is an adapter that no reader has checked.
type madeUp struct{ manifest format.Manifest }

func (s *madeUp) Manifest() *format.Manifest                { return &s.manifest }
func (s *madeUp) ReadBlobAt(p []byte, _ int, _ int64) error { clear(p); return nil }
func (s *madeUp) Close() error                              { return nil }

// TestLayersOfAnyShapeAreMergedOrRefused: layers of every kind, requirement and factor shape never
// cause an internal error.
func TestLayersOfAnyShapeAreMergedOrRefused(t *testing.T) {
	base := filepath.Join(t.TempDir(), "model.safetensors")
	rng := rand.New(rand.NewPCG(5, 6))
	testkit.Write(t, base, testkit.Encode(nil,
		testkit.Random(rng, "m.a.weight", dtype.F32, 1, 4, 6), testkit.Random(rng, "m.b.weight", dtype.F32, 1, 4, 4),
		testkit.Random(rng, "m.c.weight", dtype.BF16, 1, 4, 2, 3), testkit.Random(rng, "m.experts.gate_up_proj", dtype.F32, 1, 2, 4, 6),
		testkit.Random(rng, "m.d.in_proj_weight", dtype.F32, 1, 12, 4), testkit.Random(rng, "m.d.out_proj.weight", dtype.F32, 1, 4, 4),
		testkit.Random(rng, "m.a.bias", dtype.F32, 1, 4)))
	modules := []string{"m.a", "m.b", "m.c", "m.experts", "m.experts.base_layer", "m.experts.1.w1", "m.d", "m.d.base_layer.out_proj"}
	kinds := []format.Kind{format.Linear, format.Embedding, format.Conv, format.Expert, format.ExpertInputs, format.Other}
	features := []format.Feature{
		format.FeatureBDLoRA, format.FeatureQALoRA, format.FeatureMergedLinear, format.FeatureDoRA, format.FeatureExperts, format.FeatureConvolution,
		format.FeatureMultiheadAttention, format.FeaturePiSSA, format.FeatureOLoRA, format.FeatureVeLoRA, format.FeatureLoRABias,
	}
	merged := 0
	for range 8_000 {
		s := new(madeUp)
		tensor := func(nDims int) int {
			shape := make([]uint64, nDims)
			for i := range shape {
				shape[i] = []uint64{0, 1, 2, 3, 4, 6, 8, 12}[rng.IntN(8)]
			}
			s.manifest.Tensors = append(s.manifest.Tensors, format.Tensor{Name: fmt.Sprint(len(s.manifest.Tensors)), DType: dtype.F32, Shape: shape})
			return len(s.manifest.Tensors) - 1
		}
		dims := func() int { return []int{2, 2, 2, 2, 3, 1, 0}[rng.IntN(7)] }
		l := format.Layer{Module: modules[rng.IntN(len(modules))], Kind: kinds[rng.IntN(len(kinds))], Rank: 1 + rng.IntN(4), Alpha: 2, Scaling: format.AlphaOverR, Roles: map[format.Role]int{}}
		if l.Kind == format.Linear || l.Kind == format.Embedding { // required by R39 and R40
			l.Roles[format.RoleA], l.Roles[format.RoleB] = tensor(2), tensor(2)
			s.manifest.Tensors[0].Shape[0], s.manifest.Tensors[1].Shape[1] = uint64(l.Rank), uint64(l.Rank)
		} else if l.Kind != format.Other || rng.IntN(4) > 0 {
			l.Roles[format.RoleA], l.Roles[format.RoleB] = tensor(dims()), tensor(dims())
		}
		if rng.IntN(4) == 0 {
			l.Roles[format.RoleMagnitude] = tensor(dims())
		}
		a := format.Adapter{Dialect: "peft", Method: "lora", Layers: []format.Layer{l}}
		for _, f := range features {
			if rng.IntN(6) == 0 {
				where := []string{"m", "m.experts.gate_up_proj", "use_dora", "enable_lora = [true,false]", "enable_lora = [true,true,true]"}[rng.IntN(5)]
				a.Requires = append(a.Requires, format.Requirement{Feature: f, Where: where})
			}
		}
		s.manifest.Adapters = []format.Adapter{a}
		p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: s, Name: "made up", Weight: 1}}, merge.Options{Reading: merge.Reading{RecomputeResidual: rng.IntN(2) == 0, ExpertInput: rng.IntN(3)}})
		if err != nil {
			if !errors.As(err, new(*fault.Error)) {
				t.Fatalf("%+v with %v: %v, which has no kind", l, a.Requires, err)
			}
			continue
		}
		_, err = p.Run(context.Background(), filepath.Join(t.TempDir(), "out.safetensors"))
		p.Close()
		if err != nil && !errors.As(err, new(*fault.Error)) {
			t.Fatalf("%+v with %v: %v, which has no kind", l, a.Requires, err)
		}
		merged++
	}
	if merged < 10 {
		t.Errorf("only %d of the adapters could be merged, which tests little", merged)
	}
	t.Logf("%d merged", merged)
}
