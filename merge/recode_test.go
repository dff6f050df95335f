package merge_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// requantised merges with new codes, however much is lost.
func requantised(t *testing.T, base, adapter string) (out string, report *merge.Report) {
	t.Helper()
	return runMerge(t, base, adapter, merge.Options{Requantise: true, AcceptLoss: true, BlockBytes: 5000})
}

// valuesOfCodes returns the values that a weight has if all elements have the same code, for each
// code of 4 or 8 bits.
func valuesOfCodes(t *testing.T, base, weight, codes string, bits int) (all []testkit.Tensor) {
	t.Helper()
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(base, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		testkit.Write(t, filepath.Join(dir, e.Name()), text)
	}
	ref, _ := checkpoint.Stored(openModel(t, base)).Lookup(codes)
	file := filepath.Join(dir, filepath.Base(ref.Tensor.Path()))
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for code := range 1 << bits {
		pattern := byte(code)
		if bits == 4 {
			pattern |= pattern << 4
		}
		copy(text[ref.Tensor.Off:][:ref.Tensor.NBytes], bytes.Repeat([]byte{pattern}, int(ref.Tensor.NBytes)))
		testkit.Write(t, file, text)
		all = append(all, readWeight(t, dir, weight))
	}
	return all
}

// readWeight reads the values of a weight.
func readWeight(t *testing.T, path, name string) testkit.Tensor {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return readTensor(t, c, name)
}

// TestNewCodesAreTheNearest: with Requantise every element has the code whose value is nearest to
// the exact w + s·B·A, and everything but the codes is as before. The values of all codes are those
// of a weight that has one code everywhere.
func TestNewCodesAreTheNearest(t *testing.T) {
	for i, c := range []struct {
		fixture string
		bits    int
	}{
		{"fp8_block_128", 8}, {"fp8_block_ragged_192x256", 8}, {"fp8_block_ue8m0", 8}, {"ct_fp8_block", 8}, {"ct_fp8_channel", 8}, {"ct_fp8_tensor", 8},
		{"ct_mxfp4", 4}, {"ct_mxfp8", 8}, {"ct_nvfp4", 4}, {"modelopt_nvfp4", 4}, {"ct_w4_sym_g128", 4}, {"ct_w4_asym_g32", 4}, {"ct_w4_actorder_g16", 4},
		{"ct_w4_asym_channel_37x45", 4}, {"ct_w8_sym_g128", 8}, {"ct_w8_asym_g32_10x64", 8}, {"ct_w8a8_channel", 8}, {"ct_w8a8_asym_channel", 8}, {"bnb_int8", 8},
		{"torchao_int8", 8}, {"torchao_float8", 8}, {"quanto_int8", 8},
	} {
		t.Run(c.fixture, func(t *testing.T) {
			base := quantFixtures + c.fixture
			rng := rand.New(rand.NewPCG(17, uint64(i)))
			before := readModel(t, base, true)
			for _, q := range checkpoint.QuantisedOf(openModel(t, base)) {
				w := readModel(t, base, false)[q.Name]
				if len(w.Shape) != 2 {
					continue
				}
				adapter, a, b := adapterFor(t, rng, q.Name, w.Shape)
				out, report := requantised(t, base, adapter)
				after := readModel(t, out, true)
				for name, x := range before {
					if y := after[name]; name != q.Parts[0] && (y.DType != x.DType || !bytes.Equal(x.Data, y.Data)) {
						t.Fatalf("%q has changed", name)
					}
				}
				if len(after) != len(before) || report.Recoded == nil || len(report.Recoded.Layers) != 1 {
					t.Fatalf("%d tensors of %d, and the report %+v", len(after), len(before), report.Recoded)
				}
				x := nearest{weight: q.Name, w: w, a: a, b: b, values: valuesOfCodes(t, base, q.Name, q.Parts[0], c.bits)}
				x.check(t, readModel(t, out, false)[q.Name], report.Recoded)
				break // the other weights of a fixture are alike
			}
		})
	}
}

// nearest checks the new values of a weight.
type nearest struct {
	weight  string
	w, a, b testkit.Tensor
	values  []testkit.Tensor // by code
}

func (n *nearest) check(t *testing.T, got testkit.Tensor, report *merge.RecodedReport) {
	t.Helper()
	rows, cols, r := int(n.w.Shape[0]), int(n.w.Shape[1]), int(n.a.Shape[0])
	at := func(x testkit.Tensor, i int) *big.Rat {
		if x := dtype.Load(x.DType, x.Data, i); x-x == 0 {
			return new(big.Rat).SetFloat64(x)
		}
		return nil
	}
	var inner, squares float64
	moved := 0
	for i := range rows * cols {
		delta := n.float(i, cols, r)
		step := dtype.Load(got.DType, got.Data, i) - dtype.Load(n.w.DType, n.w.Data, i)
		squares, inner = squares+delta*delta, inner+step*delta
		if step != 0 {
			moved++
		}
	}
	if kept := inner / squares; moved == 0 || math.Abs(kept-float64(report.Kept)) > 1e-4 {
		t.Errorf("%q: %d elements moved, and the codes keep %v of ΔW, the report says %v", n.weight, moved, kept, report.Kept)
	}
	for i := 0; i < rows*cols; i += 1 + rows*cols/700 {
		exact := n.delta(i, cols, r)
		exact.Add(exact, at(n.w, i))
		have := at(got, i)
		distance := new(big.Rat).Sub(have, exact)
		distance.Abs(distance)
		isValue := false
		for code := range n.values {
			v := at(n.values[code], i)
			if v == nil {
				continue
			}
			isValue = isValue || v.Cmp(have) == 0
			if d := v.Sub(v, exact); d.Abs(d).Cmp(distance) < 0 {
				t.Fatalf("%q: element %d is %s, and code %d is nearer to %s", n.weight, i, have.FloatString(20), code, exact.FloatString(20))
			}
		}
		if !isValue {
			t.Fatalf("%q: no code of element %d has the value %s", n.weight, i, have.FloatString(20))
		}
	}
}

// float is delta in float64.
func (n *nearest) float(i, cols, r int) (sum float64) {
	for k := range r {
		sum += 2 * dtype.Load(n.a.DType, n.a.Data, k*cols+i%cols) * dtype.Load(n.b.DType, n.b.Data, i/cols*r+k)
	}
	return sum
}

// delta returns 2·B·A of an element.
func (n *nearest) delta(i, cols, r int) *big.Rat {
	sum := new(big.Rat)
	for k := range r {
		a, b := dtype.Load(n.a.DType, n.a.Data, k*cols+i%cols), dtype.Load(n.b.DType, n.b.Data, i/cols*r+k)
		x := new(big.Rat).SetFloat64(a)
		sum.Add(sum, x.Mul(x, new(big.Rat).SetFloat64(2*b)))
	}
	return sum
}

// TestTiesTakeTheEvenCode: sums that lie in the middle between two codes, and sums so near to one
// that float64 does not tell them apart.
func TestTiesTakeTheEvenCode(t *testing.T) {
	const name = "model.layers.0.mlp.down_proj.weight"
	code := testkit.Tensor{Name: name, DType: dtype.F8E4M3, Shape: []uint64{1, 8}, Data: []byte{0x38, 0x38, 0x38, 0x39, 0x39, 0x39, 0x80, 0xb8}} // 1, 1.125, −0, −1
	scale := testkit.Values(name+"_scale_inv", dtype.F32, []uint64{1, 1}, 1)
	base := writeModel(t, nil, []testkit.Tensor{code, scale}, map[string]string{"config.json": `{"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}`})
	const half, little = 1.0 / 32, 0x1p-60 // s is 2
	a := testkit.Values("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", dtype.F32, []uint64{2, 8},
		half, half, half, half, half, half, 0, -half, 0, little, -little, 0, little, -little, 0, -little)
	b := testkit.Values("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight", dtype.F32, []uint64{1, 2}, 1, 1)
	adapter := t.TempDir()
	testkit.WriteAdapter(t, adapter, 2, 4, a, b)
	out, _ := requantised(t, base, adapter)
	want := []byte{0x38, 0x39, 0x38, 0x3a, 0x3a, 0x39, 0x80, 0xb9}
	if got := readModel(t, out, true)[name].Data; !bytes.Equal(got, want) {
		t.Errorf("the codes are %x, want %x", got, want)
	}
}

// TestExpertsOfGPTOSSGetNewCodes: the matrices are stored transposed.
func TestExpertsOfGPTOSSGetNewCodes(t *testing.T) {
	base, adapter := gptOSS(t), quantFixtures+"gptoss_peft_adapter"
	out, report := requantised(t, base, adapter)
	sums := readModel(t, first(runMerge(t, base, adapter, merge.Options{OutDType: dtype.F32})), true)
	before, after := readModel(t, base, false), readModel(t, out, false)
	moved := 0
	for _, l := range report.Recoded.Layers {
		values := valuesOfCodes(t, base, l.Tensor, l.Tensor+"_blocks", 4)
		for i := range sums[l.Tensor].Data[:len(sums[l.Tensor].Data)/4] {
			sum, got := dtype.Load(dtype.F32, sums[l.Tensor].Data, i), dtype.Load(dtype.F64, after[l.Tensor].Data, i)
			least := math.Inf(1)
			for _, x := range values {
				least = min(least, math.Abs(dtype.Load(dtype.F64, x.Data, i)-sum))
			}
			if math.Abs(got-sum) > least+0x1p-23*math.Abs(sum) {
				t.Fatalf("%q: element %d is %v, which is not nearest to %v", l.Tensor, i, got, sum)
			}
			if got != dtype.Load(dtype.F64, before[l.Tensor].Data, i) {
				moved++
			}
		}
	}
	if moved == 0 || len(report.Recoded.Layers) != 2 {
		t.Errorf("%d elements of %d weights moved", moved, len(report.Recoded.Layers))
	}
}

func first(out string, _ *merge.Report) string { return out }

// TestNewCodesThatLoseTooMuchAreRefused: the guard, its hint, and an output that is not there.
func TestNewCodesThatLoseTooMuchAreRefused(t *testing.T) {
	base := quantFixtures + "ct_w4_sym_g128"
	rng := rand.New(rand.NewPCG(18, 1))
	name := checkpoint.QuantisedOf(openModel(t, base))[0].Name
	adapter, _, _ := adapterFor(t, rng, name, readModel(t, base, false)[name].Shape)
	src := opened(t, adapter)
	plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "adapter", Weight: 1e-3}}, merge.Options{Requantise: true})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	if !slices.ContainsFunc(plan.Warnings(), func(w string) bool { return strings.Contains(w, "requantises 1 weight") }) {
		t.Errorf("the warnings are %q", plan.Warnings())
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err = plan.Run(t.Context(), out)
	if !errors.Is(err, format.ErrCheck) || !strings.Contains(format.Hint(err), "Options.AcceptLoss") || !strings.Contains(format.Hint(err), "BF16") {
		t.Errorf("the error is %v, with the hint %q", err, format.Hint(err))
	}
	if left, _ := os.ReadDir(filepath.Dir(out)); len(left) > 0 {
		t.Errorf("the refused merge left %v", left)
	}
}

// TestCodesAreRestored: merges with a record, one on top of another, and a swap; the base comes
// back byte for byte.
func TestCodesAreRestored(t *testing.T) {
	for i, base := range []string{quantFixtures + "fp8_block_128", quantFixtures + "ct_w4_asym_g32", gptOSS(t), ggufBases + "quantised/base.gguf"} {
		rng := rand.New(rand.NewPCG(19, uint64(i)))
		adapters := make([]string, 2)
		for k := range adapters {
			switch {
			case strings.HasSuffix(base, ".gguf"):
				adapters[k], _, _ = adapterFor(t, rng, "model.layers.0.self_attn.v_proj.weight", readModel(t, base, false)["blk.0.attn_v.weight"].Shape)
			case i == 2:
				adapters[k] = rescaled(t, quantFixtures+"gptoss_peft_adapter", 1+k)
			default:
				name := checkpoint.QuantisedOf(openModel(t, base))[0].Name
				adapters[k], _, _ = adapterFor(t, rng, name, readModel(t, base, false)[name].Shape)
			}
		}
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name+filepath.Ext(base)) }
		given := func(path string, weight float64) merge.Adapter {
			return merge.Adapter{Source: opened(t, path), Name: path, Weight: weight}
		}
		options := func(record string) merge.Options {
			return merge.Options{Requantise: true, AcceptLoss: true, BlockBytes: 5000, UndoFile: filepath.Join(dir, record), Again: true}
		}
		one, two := given(adapters[0], 1), given(adapters[1], 0.5)
		run := func(plan *merge.Plan, err error, out string) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", base, err)
			}
			defer plan.Close()
			if _, err := plan.Run(t.Context(), out); err != nil {
				t.Fatalf("%s: %v", base, err)
			}
		}
		plan, err := merge.Open(t.Context(), base, []merge.Adapter{one}, options("one.undo"))
		run(plan, err, at("first"))
		plan, err = merge.Open(t.Context(), at("first"), []merge.Adapter{two}, options("two.undo"))
		run(plan, err, at("second"))
		saved := func(name string) *merge.Record {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return record(t, name, text)
		}
		later, earlier := saved("two.undo"), saved("one.undo")
		plan, err = merge.OpenUnmerge(t.Context(), at("second"), merge.Removal{Adapters: []merge.Adapter{two, one}, Records: []*merge.Record{later, earlier}}, merge.Options{})
		run(plan, err, at("base"))
		checkSameFiles(t, base, at("base"))
		plan, err = merge.OpenSwap(t.Context(), at("first"), merge.Removal{Adapters: []merge.Adapter{one}, Records: []*merge.Record{earlier}}, []merge.Adapter{two}, merge.Options{Requantise: true, AcceptLoss: true})
		run(plan, err, at("swapped"))
		plan, err = merge.Open(t.Context(), base, []merge.Adapter{two}, merge.Options{Requantise: true, AcceptLoss: true})
		run(plan, err, at("direct"))
		checkSameFiles(t, at("direct"), at("swapped"))
		if _, err = merge.OpenSwap(t.Context(), at("first"), merge.Removal{Adapters: []merge.Adapter{one}, Records: []*merge.Record{earlier}}, []merge.Adapter{two}, merge.Options{}); !errors.Is(err, format.ErrUnsupported) {
			t.Errorf("%s: the swap for an adapter that would decode the weights is %v", base, err)
		}
	}
}

// rescaled copies an adapter of PEFT, with another alpha.
func rescaled(t *testing.T, adapter string, alpha int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"adapter_config.json", "adapter_model.safetensors"} {
		text, err := os.ReadFile(filepath.Join(adapter, name))
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`"lora_alpha": \d+`).ReplaceAll(text, []byte(fmt.Sprintf(`"lora_alpha": %d`, alpha)))
		testkit.Write(t, filepath.Join(dir, name), text)
	}
	return dir
}

// checkSameFiles compares files, or the weights of directories.
func checkSameFiles(t *testing.T, want, got string) {
	t.Helper()
	if info, err := os.Stat(want); err == nil && info.IsDir() {
		want, got = filepath.Join(want, "model.safetensors"), filepath.Join(got, "model.safetensors")
	}
	if testkit.Hash(t, want) != testkit.Hash(t, got) {
		t.Errorf("%s is not %s", got, want)
	}
}

// TestBlocksOfGGUFAreEncodedAnew: the blocks that change are those that llama-quantize makes of the
// exact sums in F32, and the types that are not encoded are decoded.
func TestBlocksOfGGUFAreEncodedAnew(t *testing.T) {
	base, adapter := ggufBases+"quantised/base.gguf", ggufBases+"quantised/peft"
	out, report := requantised(t, base, adapter)
	sums := readModel(t, first(runMerge(t, base, adapter, merge.Options{OutDType: dtype.F32})), true)
	stored := checkpoint.Stored(openModel(t, base))
	after := readModel(t, out, true)
	encoded := make(map[string]bool)
	for _, l := range report.Recoded.Layers {
		of, _ := gguf.TypeNamed(l.Scheme)
		values := make([]float32, len(sums[l.Tensor].Data)/4)
		dtype.Widen(values, dtype.F32, sums[l.Tensor].Data)
		ref, _ := stored.Lookup(l.Tensor)
		want := make([]byte, ref.Tensor.NBytes)
		of.Encode(want, values)
		if got := after[l.Tensor]; !bytes.Equal(got.Data, want) {
			t.Errorf("%q in %v has other blocks", l.Tensor, of)
		}
		encoded[l.Scheme] = true
	}
	if len(encoded) != 4 {
		t.Errorf("the schemes are %v, want Q8_0, Q4_0, Q5_1 and MXFP4", encoded)
	}
	for _, name := range []string{"blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"} {
		if d := after[name].DType; d != dtype.F16 && d != dtype.BF16 {
			t.Errorf("%q is %v, want plain values", name, d)
		}
	}
}

// TestStochasticCodesAreRightOnAverage: an update that the nearest codes lose is kept but for
// noise, every value is that of a code beside the exact sum, and the bytes depend on the seed
// alone.
func TestStochasticCodesAreRightOnAverage(t *testing.T) {
	for i, c := range []struct{ base, weight, module string }{
		{quantFixtures + "fp8_block_128", "", ""},
		{ggufBases + "quantised/base.gguf", "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"},
	} {
		if c.weight == "" {
			c.weight = checkpoint.QuantisedOf(openModel(t, c.base))[0].Name
			c.module = c.weight
		}
		rng := rand.New(rand.NewPCG(20, uint64(i)))
		w := readModel(t, c.base, false)[c.weight]
		adapter, _, _ := adapterFor(t, rng, c.module, w.Shape)
		merged := func(o merge.Options) (testkit.Tensor, *merge.Report) {
			t.Helper()
			o.Requantise, o.AcceptLoss = true, true
			plan, err := merge.Open(t.Context(), c.base, []merge.Adapter{{Source: opened(t, adapter), Name: "adapter", Weight: 0.004}}, o)
			if err != nil {
				t.Fatal(err)
			}
			defer plan.Close()
			out := filepath.Join(t.TempDir(), "out"+filepath.Ext(c.base))
			report, err := plan.Run(t.Context(), out)
			if err != nil {
				t.Fatal(err)
			}
			return readModel(t, out, false)[c.weight], report
		}
		_, nearest := merged(merge.Options{})
		var kept, n float64
		first, _ := merged(merge.Options{Stochastic: true, Workers: 1})
		again, _ := merged(merge.Options{Stochastic: true, Workers: 2, BlockBytes: 3000})
		if !bytes.Equal(first.Data, again.Data) {
			t.Errorf("%s: the bytes depend on the blocks", c.weight)
		}
		for seed := range int64(20) {
			got, report := merged(merge.Options{Stochastic: true, Seed: seed + 1})
			if bytes.Equal(got.Data, first.Data) {
				t.Errorf("%s: seed %d is as seed 0", c.weight, seed+1)
			}
			kept, n = kept+float64(report.Recoded.Kept), n+1
		}
		// The noise of a share is at most a step over the update and the root of the number of
		// elements.
		if kept /= n; kept < 0.95 || kept > 1.05 || nearest.Recoded.Kept > 0.9 {
			t.Errorf("%s: %.3f of ΔW is kept on average, and %.3f by the nearest codes", c.weight, kept, nearest.Recoded.Kept)
		}
	}
}

// TestNewCodesThatCannotBe: each refusal says why, and what to do.
func TestNewCodesThatCannotBe(t *testing.T) {
	fp8, nf4 := quantFixtures+"fp8_block_128", quantFixtures+"bnb_nf4_plain_float16_96x128"
	for what, c := range map[string]struct {
		base    string
		options merge.Options
		want    string
	}{
		"a scheme without new codes":   {nf4, merge.Options{Requantise: true}, "no weight that the adapters change can get new codes; they are in \"NF4"},
		"a base that is not quantised": {"../testdata/demo/base", merge.Options{Requantise: true}, "no weight of the base is quantised"},
		"both":                         {fp8, merge.Options{Requantise: true, Dequantise: true}, "exclude each other"},
		"NaN":                          {fp8, merge.Options{Requantise: true, AllowNonFinite: true}, "exclude each other"},
		"loss alone":                   {fp8, merge.Options{AcceptLoss: true}, "which is not set"},
		"stochastic integers":          {quantFixtures + "ct_w4_sym_g128", merge.Options{Requantise: true, Stochastic: true}, "Options.Stochastic is for weights of FP8 and Q8_0"},
	} {
		rng := rand.New(rand.NewPCG(21, 1))
		adapter := "../testdata/demo/adapter-r8"
		if q := checkpoint.QuantisedOf(openModel(t, c.base)); len(q) > 0 {
			adapter, _, _ = adapterFor(t, rng, q[0].Name, readModel(t, c.base, false)[q[0].Name].Shape)
		}
		_, err := merge.Open(t.Context(), c.base, []merge.Adapter{{Source: opened(t, adapter), Name: adapter, Weight: 1}}, c.options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

// TestAnAdapterWithoutAnUpdateKeepsAllCodes: ΔW is zero, however many digits W has.
func TestAnAdapterWithoutAnUpdateKeepsAllCodes(t *testing.T) {
	base := quantFixtures + "fp8_block_128"
	name := checkpoint.QuantisedOf(openModel(t, base))[0].Name
	w := readModel(t, base, false)[name]
	_, a, b := adapterFor(t, rand.New(rand.NewPCG(22, 1)), name, w.Shape)
	clear(b.Data)
	adapter := t.TempDir()
	testkit.WriteAdapter(t, adapter, 5, 10, a, b)
	out, report := runMerge(t, base, adapter, merge.Options{Requantise: true})
	if !report.Total.IsZero || report.Recoded.Kept != 1 || !bytes.Equal(readModel(t, out, true)[name].Data, readModel(t, base, true)[name].Data) {
		t.Errorf("the report is %+v and %+v", report.Total, report.Recoded)
	}
}

// TestNoiseIsNotKept: blocks that are encoded anew can move by more than a small update.
func TestNoiseIsNotKept(t *testing.T) {
	base := ggufBases + "quantised/base.gguf"
	adapter, _, _ := adapterFor(t, rand.New(rand.NewPCG(23, 1)), "model.layers.0.self_attn.o_proj.weight", readModel(t, base, false)["blk.0.attn_output.weight"].Shape)
	for _, weight := range []float64{1e-7, 1e-5} {
		plan, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: opened(t, adapter), Name: "adapter", Weight: weight}}, merge.Options{Requantise: true})
		if err != nil {
			t.Fatal(err)
		}
		defer plan.Close()
		if report, err := plan.Run(t.Context(), filepath.Join(t.TempDir(), "out.gguf")); !errors.Is(err, format.ErrCheck) {
			t.Errorf("with the weight %v the merge reports %+v, %v", weight, report, err)
		}
	}
}

// TestCodesAreNotSubtracted: without its record a merge with new codes cannot be taken out.
func TestCodesAreNotSubtracted(t *testing.T) {
	base := quantFixtures + "ct_w4_sym_g128"
	name := checkpoint.QuantisedOf(openModel(t, base))[0].Name
	adapter, _, _ := adapterFor(t, rand.New(rand.NewPCG(24, 1)), name, readModel(t, base, false)[name].Shape)
	out, _ := requantised(t, base, adapter)
	removal := merge.Removal{Adapters: []merge.Adapter{{Source: opened(t, adapter), Name: "adapter", Weight: 1}}, Approximate: true}
	if _, err := merge.OpenUnmerge(t.Context(), out, removal, merge.Options{}); !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), "undo record") {
		t.Errorf("the error is %v", err)
	}
}

// TestSumsBeyondFloat32GetCodes: gpt-oss's fixture has scales whose values are beyond F32.
func TestSumsBeyondFloat32GetCodes(t *testing.T) {
	base := quantFixtures + "gptoss_mxfp4"
	out, report := requantised(t, base, quantFixtures+"gptoss_peft_adapter")
	before, after := readModel(t, base, false), readModel(t, out, false)
	for _, l := range report.Recoded.Layers {
		for i := range len(before[l.Tensor].Data) / 8 {
			was, is := dtype.Load(dtype.F64, before[l.Tensor].Data, i), dtype.Load(dtype.F64, after[l.Tensor].Data, i)
			if math.Abs(was) > 1e30 && was != is {
				t.Fatalf("%q: element %d moves from %v to %v", l.Tensor, i, was, is)
			}
		}
	}
}
