package rank_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/rank"
)

// pairOf writes two checkpoints, each with config as config.json; "" writes none.
func pairOf(t *testing.T, config string, base, tuned []testkit.Tensor) (basePath, tunedPath string) {
	t.Helper()
	dir := t.TempDir()
	for name, tensors := range map[string][]testkit.Tensor{"base": base, "tuned": tuned} {
		testkit.Write(t, filepath.Join(dir, name, "model.safetensors"), testkit.Encode(nil, tensors...))
		if config != "" {
			testkit.Write(t, filepath.Join(dir, name, "config.json"), []byte(config))
		}
	}
	return filepath.Join(dir, "base"), filepath.Join(dir, "tuned")
}

func extract(t *testing.T, base, tuned string, o rank.ExtractOptions) (format.Source, *rank.ExtractReport, error) {
	t.Helper()
	e, err := rank.OpenExtraction(t.Context(), base, tuned, o)
	if err != nil {
		return nil, nil, err
	}
	defer e.Close()
	src, report, err := e.Run(context.Background())
	if err == nil {
		t.Cleanup(func() { src.Close() })
	}
	return src, report, err
}

// values returns a tensor of a source as float64.
func values(t *testing.T, src format.Source, i int) []float64 {
	t.Helper()
	tensor := &src.Manifest().Tensors[i]
	b := make([]byte, tensor.NBytes())
	if err := src.ReadBlobAt(b, i, 0); err != nil {
		t.Fatal(err)
	}
	x := make([]float64, tensor.Elements())
	dtype.Widen64(x, tensor.DType, b)
	return x
}

// deltaOf forms s·B·A of a layer as an m×n matrix; the factors count as matrices.
func deltaOf(t *testing.T, src format.Source, l *format.Layer) []float64 {
	t.Helper()
	a, b := values(t, src, l.Roles[format.RoleA]), values(t, src, l.Roles[format.RoleB])
	m, n := len(b)/l.Rank, len(a)/l.Rank
	out := make([]float64, m*n)
	for i := range m {
		for k := range l.Rank {
			for j := range n {
				out[i*n+j] += l.Scale() * b[i*l.Rank+k] * a[k*n+j]
			}
		}
	}
	return out
}

func load(x testkit.Tensor) []float64 {
	n, _ := dtype.NElements(x.Shape)
	v := make([]float64, n)
	dtype.Widen64(v, x.DType, x.Data)
	return v
}

// changed returns a tensor plus a product of two random factors of the given rank.
func changed(rng *rand.Rand, x testkit.Tensor, r int, size float64) testkit.Tensor {
	rows := int(x.Shape[0])
	w := load(x)
	cols := len(w) / rows
	for range r {
		u, v := make([]float64, rows), make([]float64, cols)
		for i := range u {
			u[i] = rng.NormFloat64()
		}
		for j := range v {
			v[j] = size * rng.NormFloat64()
		}
		for i := range rows {
			for j := range cols {
				w[i*cols+j] += u[i] * v[j]
			}
		}
	}
	return testkit.Values(x.Name, x.DType, x.Shape, w...)
}

func TestEveryKindOfMatrixComesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(41, 42))
	base := []testkit.Tensor{
		testkit.Random(rng, "h.0.attn.c_attn.weight", dtype.F32, 0.1, 20, 60), // Conv1D, stored transposed
		testkit.Random(rng, "wte.weight", dtype.F32, 0.1, 50, 20),             // an embedding, vocabulary × dimension
		testkit.Random(rng, "proj.weight", dtype.F32, 0.1, 30, 20),
		testkit.Random(rng, "conv.weight", dtype.F32, 0.1, 12, 5, 3, 3),
		testkit.Random(rng, "same.weight", dtype.F32, 0.1, 30, 20),
		testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 20),
	}
	tuned := slices.Clone(base)
	for i := range 4 {
		tuned[i] = changed(rng, base[i], 3, 0.01)
	}
	tuned[5] = testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 20)
	basePath, tunedPath := pairOf(t, `{"model_type":"gpt2","architectures":["GPT2Model"]}`, base, tuned)
	src, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 3}})
	if err != nil {
		t.Fatal(err)
	}
	a := &src.Manifest().Adapters[0]
	if len(a.Layers) != 4 || len(a.Beside) != 1 || a.Beside[0].Target != "norm.weight" {
		t.Fatalf("%d layers and beside %v, want 4 layers and norm.weight", len(a.Layers), a.Beside)
	}
	same := rank.Skipped{Tensor: "same.weight", Why: "unchanged", Bytes: 2400}
	if !slices.Contains(report.Skipped, same) {
		t.Errorf("skipped: %v, want same.weight as unchanged", report.Skipped)
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		at := slices.IndexFunc(base, func(x testkit.Tensor) bool { return x.Name == l.Module+".weight" })
		w0, w1 := load(base[at]), load(tuned[at])
		got := deltaOf(t, src, l)
		rows := int(base[at].Shape[0])
		cols := len(w0) / rows
		transposed := l.Kind == format.Embedding || strings.Contains(l.Module, "c_attn")
		var diff, norm float64
		for r := range rows {
			for c := range cols {
				want := w1[r*cols+c] - w0[r*cols+c]
				have := got[r*cols+c]
				if transposed {
					have = got[c*rows+r]
				}
				diff += (have - want) * (have - want)
				norm += want * want
			}
		}
		// Δ has rank 3 up to the rounding of the tuned checkpoint to float32, 2⁻²⁴·|w| per element.
		if err := math.Sqrt(diff / norm); err > 1e-5 {
			t.Errorf("%s (%s): relative error %.3g", l.Module, l.Kind, err)
		}
	}
}

// TestStackedExpertsComeBack: experts are stored (E, out, in), or (E, in, out) as in gpt-oss.
// Factors have the layout of PEFT from 0.19.1 on: in A, (E·r)×in, the expert varies slowest, and in
// B, out×(r·E), fastest. Of two parameters of a module the first registered one is nested one
// base_layer deeper.
func TestStackedExpertsComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(55, 56))
	const nExperts, d1, d2, r = 3, 10, 6, 2
	for _, config := range []string{`{"model_type":"qwen3_moe"}`, `{"model_type":"gpt_oss"}`} {
		base := []testkit.Tensor{
			testkit.Random(rng, "mlp.experts.down_proj", dtype.F32, 0.1, nExperts, d1, d2),
			testkit.Random(rng, "mlp.experts.gate_up_proj", dtype.F32, 0.1, nExperts, d1, d2),
		}
		var tuned []testkit.Tensor
		for _, x := range base {
			w := load(x)
			for e := range nExperts - 1 { // the last expert does not change
				part := testkit.Values("", dtype.F32, []uint64{d1, d2}, w[e*d1*d2:(e+1)*d1*d2]...)
				copy(w[e*d1*d2:], load(changed(rng, part, r, 0.01)))
			}
			tuned = append(tuned, testkit.Values(x.Name, x.DType, x.Shape, w...))
		}
		basePath, tunedPath := pairOf(t, config, base, tuned)
		src, _, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: r}})
		if err != nil {
			t.Fatal(err)
		}
		a := &src.Manifest().Adapters[0]
		for i, module := range []string{"mlp.experts", "mlp.experts.base_layer"} { // down_proj, gate_up_proj
			at := slices.IndexFunc(a.Layers, func(l format.Layer) bool { return l.Module == module })
			if at < 0 || a.Layers[at].Kind != format.Expert || a.Layers[at].Rank != r {
				t.Fatalf("%s: layers %+v, want %s of rank %d", config, a.Layers, module, r)
			}
			fa, fb := values(t, src, a.Layers[at].Roles[format.RoleA]), values(t, src, a.Layers[at].Roles[format.RoleB])
			in := d2
			if strings.Contains(config, "gpt_oss") {
				in = d1
			}
			w0, w1 := load(base[i]), load(tuned[i])
			for e := range nExperts {
				for x := range d1 {
					for y := range d2 {
						o, n := x, y
						if in == d1 {
							o, n = y, x
						}
						var got float64
						for k := range r {
							got += fb[o*r*nExperts+k*nExperts+e] * fa[(e*r+k)*in+n]
						}
						if want := w1[(e*d1+x)*d2+y] - w0[(e*d1+x)*d2+y]; math.Abs(got-want) > 1e-6 {
							t.Fatalf("%s, %s, expert %d (%d,%d): %v, want %v", config, module, e, x, y, got, want)
						}
					}
				}
			}
		}
	}
}

func TestTheReportedErrorIsTheTrueOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(43, 44))
	for _, d := range []dtype.Type{dtype.F32, dtype.BF16, dtype.F16} {
		for _, out := range []dtype.Type{dtype.F32, dtype.BF16, dtype.F16} {
			base := testkit.Random(rng, "w.weight", d, 0.02, 80, 60)
			tuned := changed(rng, base, 12, 0.002)
			basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{tuned})
			src, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 4}, DType: out})
			if err != nil {
				t.Fatal(err)
			}
			got := deltaOf(t, src, &src.Manifest().Adapters[0].Layers[0])
			w0, w1 := load(base), load(tuned)
			var diff, norm float64
			for i := range got {
				want := w1[i] - w0[i]
				diff += (got[i] - want) * (got[i] - want)
				norm += want * want
			}
			want := math.Sqrt(diff / norm)
			if l := report.Layers[0]; math.Abs(l.Rounded-want) > 1e-3*want || math.Abs(report.Rounded-want) > 1e-3*want {
				t.Errorf("%v to %v: reported error %.6g, in total %.6g, the true one is %.6g", d, out, l.Rounded, report.Rounded, want)
			}
		}
	}
}

func TestTheNoiseFloorFindsTheRankUnderTheRounding(t *testing.T) {
	rng := rand.New(rand.NewPCG(45, 46))
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32, dtype.F64} {
		base := testkit.Random(rng, "w.weight", d, 0.02, 300, 200)
		tuned := changed(rng, base, 5, 0.0005)
		basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{tuned})
		_, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.NoiseFloor{}})
		if err != nil {
			t.Fatal(err)
		}
		if got := report.Layers[0].Rank; got != 5 {
			t.Errorf("%v: rank %d, want the 5 of the update", d, got)
		}
	}
}

func TestABudgetIsKept(t *testing.T) {
	rng := rand.New(rand.NewPCG(47, 48))
	base := []testkit.Tensor{testkit.Random(rng, "a.weight", dtype.F32, 0.1, 60, 40), testkit.Random(rng, "b.weight", dtype.F32, 0.1, 60, 40)}
	tuned := []testkit.Tensor{changed(rng, base[0], 20, 0.01), changed(rng, base[1], 20, 0.1)}
	basePath, tunedPath := pairOf(t, "", base, tuned)
	const budget = 10 * 4 * (60 + 40)
	_, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Budget: budget})
	if err != nil {
		t.Fatal(err)
	}
	if report.Bytes > budget || report.Bytes < budget-4*(60+40) {
		t.Errorf("%d bytes of factors, want just under %d", report.Bytes, budget)
	}
	// Every singular value of b is about ten times the matching one of a, so b gets all ten.
	if len(report.Layers) != 1 || report.Layers[0].Module != "b" || report.Layers[0].Rank != 10 {
		t.Errorf("layers %+v, want b with rank 10", report.Layers)
	}
}

func TestWhatIsNotExtractedIsListed(t *testing.T) {
	rng := rand.New(rand.NewPCG(49, 50))
	base := []testkit.Tensor{
		testkit.Random(rng, "a.weight", dtype.F32, 0.1, 10, 8),
		testkit.Random(rng, "b.weight", dtype.F32, 0.1, 10, 8),
		testkit.Random(rng, "gone.weight", dtype.F32, 0.1, 10, 8),
		testkit.Random(rng, "grown.weight", dtype.F32, 0.1, 10, 8),
		testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 8),
		testkit.Values("count", dtype.F32, nil, 1),
	}
	tuned := []testkit.Tensor{
		changed(rng, base[0], 1, 0.1), changed(rng, base[1], 1, 0.1),
		testkit.Random(rng, "new.weight", dtype.F32, 0.1, 10, 8),
		testkit.Random(rng, "grown.weight", dtype.F32, 0.1, 12, 8),
		testkit.Random(rng, "norm.weight", dtype.F32, 0.1, 8),
		{Name: "count", DType: dtype.I64, Data: make([]byte, 8)},
	}
	basePath, tunedPath := pairOf(t, "", base, tuned)
	o := rank.ExtractOptions{Rule: rank.FixedRank{K: 2}, Exclude: []*regexp.Regexp{regexp.MustCompile(`^b\.`)}, Only: true}
	_, report, err := extract(t, basePath, tunedPath, o)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"b.weight": "excluded", "gone.weight": "only in the base", "new.weight": "only in the tuned", "grown.weight": "reshaped",
		"norm.weight": "not a matrix", "count": "stored as",
	}
	for _, s := range report.Skipped {
		if !strings.Contains(s.Why, want[s.Tensor]) || want[s.Tensor] == "" {
			t.Errorf("%s is skipped because %q, want %q", s.Tensor, s.Why, want[s.Tensor])
		}
		delete(want, s.Tensor)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	o.Strict = true
	if _, _, err := extract(t, basePath, tunedPath, o); !errors.Is(err, format.ErrCheck) {
		t.Errorf("strict: %v, want a failed check", err)
	}
}

// zerosOf is a 2×2 tensor of zeros.
func zerosOf(name string, d dtype.Type) testkit.Tensor {
	n, _ := d.NBytes(4)
	return testkit.Tensor{Name: name, DType: d, Shape: []uint64{2, 2}, Data: make([]byte, n)}
}

func TestPairsThatCannotBeExtracted(t *testing.T) {
	rng := rand.New(rand.NewPCG(51, 52))
	w := testkit.Random(rng, "w.weight", dtype.F32, 0.1, 10, 8)
	factors := func(names ...string) (all []testkit.Tensor) {
		for _, name := range names {
			all = append(all, testkit.Random(rng, name, dtype.F32, 0.1, 2, 8))
		}
		return all
	}
	for _, c := range []struct {
		name        string
		config      string
		base, tuned []testkit.Tensor
		kind        error
		words       string
	}{
		{"nothing changed", "", []testkit.Tensor{w}, []testkit.Tensor{w}, format.ErrMismatch, "same values"},
		{"nothing changed but what is not compared", "", []testkit.Tensor{w, zerosOf("f.weight", dtype.F8E4M3)}, []testkit.Tensor{w, zerosOf("f.weight", dtype.F32)},
			format.ErrMismatch, `1 tensor was not compared, such as "f.weight" (stored as F8_E4M3 and F32)`},
		{"two namespaces of an image model", "", []testkit.Tensor{zerosOf("unet.conv_in.weight", dtype.F32)}, []testkit.Tensor{zerosOf("model.diffusion_model.input_blocks.0.0.weight", dtype.F32)},
			format.ErrMismatch, "1 compared tensor has the same values"},
		{"no common name", "", []testkit.Tensor{w}, []testkit.Tensor{testkit.Random(rng, "v.weight", dtype.F32, 1, 10, 8)}, format.ErrMismatch, "in common"},
		{"an adapter for the tuned one", "", []testkit.Tensor{w}, factors("q.lora_A.weight", "q.lora_B.weight"), format.ErrMismatch, "these keys are PEFT's"},
		{"an adapter for the base", "", factors("lora_te_q.a1.weight", "lora_te_q.a2.weight"), []testkit.Tensor{w}, format.ErrMismatch, "these keys are GLoRA"},
		{"an adapter of an unknown dialect", "", []testkit.Tensor{w}, factors("q.LoRA_left", "q.LoRA_right"), format.ErrMismatch, "these keys are those of LoRA in a dialect that is not known here"},
		{"an adapter with a saved tensor", "", []testkit.Tensor{w}, append(factors("q.lora_A.weight", "q.lora_B.weight"), w), format.ErrMismatch, "these keys are PEFT's"},
		{"other shapes", "", []testkit.Tensor{w}, []testkit.Tensor{testkit.Random(rng, "w.weight", dtype.F32, 1, 8, 8)}, format.ErrMismatch, "same shape"},
		{"infinity", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, 1, 2)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, 1, math.Inf(1))}, format.ErrCorrupt, "infinite"},
		{"not a number", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, math.NaN(), 2)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, 1, 2)}, format.ErrCorrupt, "NaN"},
		{"a difference beyond float32", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F64, []uint64{1, 2}, 1, 2)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F64, []uint64{1, 2}, 1, 1e39)}, format.ErrUnsupported, "1 difference of \"w.weight\" is beyond float32"},
		{"a difference of F32 beyond it", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, 1, -3e38)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{1, 2}, 1, 3e38)}, format.ErrUnsupported, "beyond float32"},
		{"products beyond float32", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{2, 2}, 0, 0, 0, 0)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F32, []uint64{2, 2}, 1e30, 2e30, 3e30, 5e30)}, format.ErrUnsupported, "has the norm 6.24e+30"},
		{"a difference below float32", "", []testkit.Tensor{testkit.Values("w.weight", dtype.F64, []uint64{1, 2}, 0, 0)}, []testkit.Tensor{testkit.Values("w.weight", dtype.F64, []uint64{1, 2}, 0, 1e-50)}, format.ErrMismatch, "is too small for float32"},
		{"infinity in a tensor carried whole", "", []testkit.Tensor{w, testkit.Values("norm.weight", dtype.F16, []uint64{2}, 1, 2)}, []testkit.Tensor{w, testkit.Values("norm.weight", dtype.F16, []uint64{2}, 1, math.Inf(1))}, format.ErrCorrupt, "1 value of \"norm.weight\" is NaN or infinite"},
		{"quantised", `{"quantization_config":{"quant_method":"gptq"}}`, []testkit.Tensor{w}, []testkit.Tensor{w}, format.ErrUnsupported, "gptq"},
	} {
		basePath, tunedPath := pairOf(t, c.config, c.base, c.tuned)
		_, _, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 2}})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.kind, c.words)
		}
	}
}

func TestAnAdapterLargerThanTheCheckpointComesWithAWarning(t *testing.T) {
	rng := rand.New(rand.NewPCG(71, 72))
	base, tuned := testkit.Random(rng, "w.weight", dtype.BF16, 1, 64, 64), testkit.Random(rng, "w.weight", dtype.BF16, 1, 64, 64)
	basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{tuned})
	for _, c := range []struct {
		rule rank.Rule
		want int
	}{{rank.NoiseFloor{}, 1}, {rank.FixedRank{K: 4}, 0}} {
		_, report, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: c.rule})
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Warnings) != c.want || c.want > 0 && !strings.Contains(report.Warnings[0], "the tuned checkpoint") {
			t.Errorf("%+v: the warnings are %q, want %d", c.rule, report.Warnings, c.want)
		}
	}
}

// TestExtractionIsTheSameForAnyNumberOfWorkers compares content ids, which cover every byte of the
// factors.
func TestExtractionIsTheSameForAnyNumberOfWorkers(t *testing.T) {
	rng := rand.New(rand.NewPCG(53, 54))
	base := testkit.Random(rng, "w.weight", dtype.BF16, 0.02, 700, 300)
	basePath, tunedPath := pairOf(t, "", []testkit.Tensor{base}, []testkit.Tensor{changed(rng, base, 30, 0.001)})
	var first string
	for _, workers := range []int{1, 2, 3} {
		src, _, err := extract(t, basePath, tunedPath, rank.ExtractOptions{Rule: rank.FixedRank{K: 8}, Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		id, err := format.ContentID(context.Background(), src)
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = id
		} else if id != first {
			t.Errorf("%d workers give another adapter than one", workers)
		}
	}
}
