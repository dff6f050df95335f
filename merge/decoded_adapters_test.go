package merge_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// tameMXFP4 writes the experts of gpt-oss without the two rows that are beyond F32 on purpose.
func tameMXFP4(t *testing.T) (path string) {
	t.Helper()
	var tensors []testkit.Tensor
	for name, x := range readModel(t, quantFixtures+"gptoss_mxfp4", true) {
		for i, scale := range x.Data {
			if strings.HasSuffix(name, "_scales") {
				x.Data[i] = min(scale, 130)
			}
		}
		tensors = append(tensors, x)
	}
	slices.SortFunc(tensors, func(a, b testkit.Tensor) int { return strings.Compare(a.Name, b.Name) })
	path = t.TempDir()
	testkit.Write(t, filepath.Join(path, "model.safetensors"), testkit.Encode(nil, tensors...))
	config, err := os.ReadFile(quantFixtures + "gptoss_mxfp4/config.json")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(path, "config.json"), config)
	return path
}

// TestExpertsOfUnslothMergeIntoMXFP4: unsloth trains gpt-oss with a linear module for each expert,
// out×in as torch.nn.Linear. gate_up_proj is square here, so that shapes do not tell the
// orientation. Every element is the number of BF16 that is nearest to the exact value, those of
// other experts too.
func TestExpertsOfUnslothMergeIntoMXFP4(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 32))
	base, adapter := tameMXFP4(t), t.TempDir()
	const r, prefix = 3, "model.layers.0.mlp.experts."
	exact := readModel(t, base, false)
	var factors []testkit.Tensor
	type product struct{ a, b testkit.Tensor }
	of := make(map[string]product)
	for _, module := range []string{"gate_up_projs.0", "gate_up_projs.2", "down_projs.0", "down_projs.1"} {
		parameter, expert, _ := strings.Cut(module, "s.")
		shape := exact[prefix+parameter].Shape // expert, in, out
		p := product{
			testkit.Random(rng, "base_model.model."+prefix+module+".lora_A.weight", dtype.F32, 0.05, r, shape[1]),
			testkit.Random(rng, "base_model.model."+prefix+module+".lora_B.weight", dtype.F32, 0.05, shape[2], r),
		}
		of[parameter+expert] = p
		factors = append(factors, p.a, p.b)
	}
	testkit.WriteAdapter(t, adapter, r, 2*r, factors...)
	out, report := runMerge(t, base, adapter, merge.Options{})
	if len(report.Layers) != 2 || report.Layers[0].Scheme != "MXFP4" {
		t.Errorf("the report has %+v, want two tensors of MXFP4", report.Layers)
	}
	got := readModel(t, out, true)
	rat := func(x testkit.Tensor, i int) *big.Rat { return new(big.Rat).SetFloat64(dtype.Load(x.DType, x.Data, i)) }
	for _, parameter := range []string{"gate_up_proj", "down_proj"} {
		w, x := exact[prefix+parameter], got[prefix+parameter]
		if x.DType != dtype.BF16 || !slices.Equal(x.Shape, w.Shape) {
			t.Fatalf("%s is %v of shape %d, want BF16 of %d", parameter, x.DType, x.Shape, w.Shape)
		}
		in, out := int(w.Shape[1]), int(w.Shape[2])
		for i := range int(w.Shape[0]) * in * out {
			expert, row, col := i/(in*out), i/out%in, i%out
			sum := rat(w, i)
			if p, ok := of[fmt.Sprint(parameter, expert)]; ok {
				for k := range r {
					y := new(big.Rat).Mul(rat(p.b, col*r+k), rat(p.a, k*in+row))
					sum.Add(sum, y.Add(y, y))
				}
			}
			var want [2]byte
			storeNearest(dtype.BF16, want[:], sum)
			if have := x.Data[2*i : 2*i+2]; string(have) != string(want[:]) && sum.Sign() != 0 {
				t.Fatalf("%s: element (%d, %d, %d) is %x, want %x", parameter, expert, row, col, have, want)
			}
		}
	}
}

// TestPrincipalPartsAreThoseOfDecodedValues: PiSSA and OLoRA subtract a part of the base. Of a
// quantised one it is a part of the exact values, also where the output rounds them to 16 bits.
func TestPrincipalPartsAreThoseOfDecodedValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(41, 42))
	var tensors []testkit.Tensor
	for name, rows := range map[string]uint64{"q": 32, "v": 16} {
		name = "model.layers.0.self_attn." + name + "_proj.weight"
		codes := testkit.Tensor{Name: name, DType: dtype.F8E4M3, Shape: []uint64{rows, 32}, Data: make([]byte, 32*rows)}
		for i := range codes.Data {
			codes.Data[i] = byte(rng.IntN(0x70)) | byte(rng.IntN(2)<<7)
		}
		tensors = append(tensors, codes, testkit.Random(rng, name+"_scale", dtype.BF16, 0.001, rows, 1))
	}
	slices.SortFunc(tensors, func(a, b testkit.Tensor) int { return strings.Compare(a.Name, b.Name) })
	base := filepath.Join(t.TempDir(), "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, tensors...))
	plain := plainOf(t, base, dtype.F32)
	for _, name := range []string{"pissa", "olora", "pissa-rslora", "pissa-dora"} {
		adapter := filepath.Join(fixtures, "merge", name, "adapter")
		options := merge.Options{Reading: merge.Reading{RecomputeResidual: true}, OutDType: dtype.F32}
		got, _ := runMerge(t, base, adapter, options)
		options.OutDType = dtype.Invalid
		want, _ := runMerge(t, plain, adapter, options)
		wide := readModel(t, want, true)
		checkSameModel(t, name, readModel(t, got, true), wide)
		rounded, _ := runMerge(t, base, adapter, options) // to BF16
		for tensor, x := range readModel(t, rounded, true) {
			if x.DType != dtype.BF16 {
				t.Fatalf("%s: %q is %v", name, tensor, x.DType)
			}
			for i := range len(x.Data) / 2 {
				v, w := dtype.Load(dtype.BF16, x.Data, i), dtype.Load(dtype.F32, wide[tensor].Data, i)
				_, exponent := math.Frexp(w)
				if math.Abs(v-w) > math.Ldexp(1, exponent-9)*(1+0x1p-10) { // half a step of BF16, and the rounding to F32
					t.Fatalf("%s: element %d of %q is %v in BF16, and %v in F32", name, i, tensor, v, w)
				}
			}
		}
	}
}

// TestMergesOfMixedOutputsAreUndone: a weight that an earlier merge has decoded is a plain one, and
// a merge into it can be undone. One whose codes it kept is decoded by the next merge, which has no
// undo record. Without a record, a merge into a decoded weight can be subtracted, but the codes do
// not come back.
func TestMergesOfMixedOutputsAreUndone(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	base := mixedFP8(t, rng, `{"model_type":"llama","quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`)
	open := func(weight string) merge.Adapter {
		dir, _, _ := adapterFor(t, rng, weight, []uint64{130, 130})
		src, err := convert.Open(t.Context(), dir, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		return merge.Adapter{Source: src, Name: dir, Weight: 1}
	}
	merged := func(base string, a merge.Adapter, o merge.Options) string {
		p, err := merge.Open(t.Context(), base, []merge.Adapter{a}, o)
		return run(t, p, err)
	}
	const decoded, kept = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"
	first := open(decoded)
	mixed := merged(base, first, merge.Options{})

	second := open(decoded)
	var undo bytes.Buffer
	twice := merged(mixed, second, merge.Options{Undo: &undo})
	p, err := merge.OpenUnmerge(t.Context(), twice, merge.Removal{Adapters: []merge.Adapter{second}, Records: []*merge.Record{record(t, "r", undo.Bytes())}}, merge.Options{})
	if got, want := tree(t, run(t, p, err)), tree(t, mixed); !maps.Equal(got, want) {
		t.Error("unmerge of a merge into a decoded weight does not restore the mixed output")
	}

	_, err = merge.Open(t.Context(), mixed, []merge.Adapter{open(kept)}, merge.Options{Undo: io.Discard})
	if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "cannot bring the codes back") {
		t.Errorf("an undo record of kept codes: %v, want a refusal", err)
	}

	p, err = merge.OpenUnmerge(t.Context(), mixed, merge.Removal{Adapters: []merge.Adapter{first}, Approximate: true}, merge.Options{})
	back := readModel(t, run(t, p, err), true)
	exact, before := readModel(t, base, false), readModel(t, mixed, true)
	for name, x := range back {
		if name != decoded {
			if string(x.Data) != string(before[name].Data) {
				t.Errorf("a subtraction changes %q", name)
			}
			continue
		}
		for i := range len(x.Data) / 2 {
			v, w, sum := dtype.Load(x.DType, x.Data, i), dtype.Load(dtype.F64, exact[name].Data, i), dtype.Load(x.DType, before[name].Data, i)
			if step := 0x1p-8 * (math.Abs(sum) + math.Abs(w)); math.Abs(v-w) > step { // both roundings to BF16
				t.Fatalf("element %d is %v after the subtraction, want %v within %v", i, v, w, step)
			}
		}
	}

	_, err = merge.OpenUnmerge(t.Context(), mixed, merge.Removal{Adapters: []merge.Adapter{open(kept)}, Approximate: true}, merge.Options{})
	if err == nil || !strings.Contains(err.Error(), "stamps do not list") {
		t.Errorf("the removal of an adapter of kept codes: %v, want a refusal", err)
	}
}
