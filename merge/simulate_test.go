package merge_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestBaseAsNF4MergesIntoWhatTrainingSaw: linear weights are the values of their codes in NF4,
// whose codes and scales bitsandbytes gave, plus s·B·A, rounded once. Embeddings and heads stay.
func TestBaseAsNF4MergesIntoWhatTrainingSaw(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	encoded := readModel(t, quantFixtures+"encoded/model.safetensors", true)
	for _, name := range []string{"main", "straddling", "short", "float32"} {
		x := encoded[name]
		exact := testkit.Tensor{Name: "l.q_proj.weight", DType: dtype.F64, Shape: x.Shape}
		n := int(x.Shape[0] * x.Shape[1])
		exact.Data = make([]byte, 8*n)
		for i := range n {
			code, scale := encoded[name+".nf4.codes"].Data[i], dtype.Load(dtype.F32, encoded[name+".nf4.scales"].Data, i/64)
			dtype.Store(dtype.F64, exact.Data, i, tableNF4[code]*scale)
		}
		linear, other := x, x
		linear.Name, other.Name = "l.q_proj.weight", "l.v_proj.weight"
		embedding := testkit.Random(rng, "embed_tokens.weight", x.DType, .02, 8, 16)
		head := testkit.Random(rng, "lm_head.weight", x.DType, .02, 8, 16)
		norm := testkit.Random(rng, "norm.weight", x.DType, .02, 16)
		base := filepath.Join(t.TempDir(), "base.safetensors")
		testkit.Write(t, base, testkit.Encode(nil, linear, other, embedding, head, norm))
		adapter, a, b := adapterFor(t, rng, linear.Name, x.Shape)
		out, report := runMerge(t, base, adapter, merge.Options{BaseAs: "nf4", BlockBytes: 5000})
		got := readModel(t, out, true)
		if len(got) != 5 || got[linear.Name].DType != x.DType {
			t.Fatalf("%s: the output has %d tensors, and %q in %v", name, len(got), linear.Name, got[linear.Name].DType)
		}
		var lost, all float64
		for i := range n {
			w := dtype.Load(x.DType, x.Data, i)
			d := dtype.Load(dtype.F64, exact.Data, i) - w
			lost, all = lost+d*d, all+w*w
		}
		if got, want := float64(report.BaseAs.Error), math.Sqrt(lost/all); math.Abs(got-want) > 1e-12*want || len(report.BaseAs.Tensors) != 2 {
			t.Errorf("%s: the report says %+v, want an error of %v", name, *report.BaseAs, want)
		}
		delta := 0.0
		for i := range n {
			d := 0.0
			for k := range 5 {
				d += 2 * dtype.Load(dtype.F32, b.Data, i/int(x.Shape[1])*5+k) * dtype.Load(dtype.F32, a.Data, k*int(x.Shape[1])+i%int(x.Shape[1]))
			}
			delta += d * d
		}
		layer := report.BaseAs.Layers[0] // some weights are so large that ΔW vanishes beside them
		if want := math.Sqrt(lost / delta); len(report.BaseAs.Layers) != 1 || layer.Tensor != linear.Name || layer.Share != report.BaseAs.Share ||
			math.Abs(float64(layer.Share)-want) > 0x1p-12*want || math.Abs(float64(layer.Error-report.BaseAs.Error)) > 1e-12 {
			t.Errorf("%s: the report says %+v, want %v times ΔW", name, report.BaseAs, want)
		}
		checkNearest(t, name, exact, a, b, got[linear.Name])
		rounded := make([]byte, len(x.Data))
		for i := range n {
			dtype.Store(x.DType, rounded, i, dtype.Load(dtype.F64, exact.Data, i))
		}
		if !bytes.Equal(got[other.Name].Data, rounded) {
			t.Errorf("%s: a weight that no adapter changes is not that of NF4", name)
		}
		for _, same := range []testkit.Tensor{embedding, head, norm} {
			if !bytes.Equal(got[same.Name].Data, same.Data) {
				t.Errorf("%s: %q changed", name, same.Name)
			}
		}
	}
}

var tableNF4 = []float64{
	-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
	-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
	0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
}

func TestBaseAsIsRefusedByName(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	base := filepath.Join(t.TempDir(), "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, testkit.Random(rng, "q.weight", dtype.BF16, 1, 16, 64)))
	adapter, _, _ := adapterFor(t, rng, "q.weight", []uint64{16, 64})
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for _, c := range []struct {
		options merge.Options
		words   string
	}{
		{merge.Options{BaseAs: "nf4-dq"}, "double quantisation subtracts the mean"},
		{merge.Options{BaseAs: "int8"}, "want nf4"},
		{merge.Options{BaseAs: "nf4", Undo: io.Discard}, "cannot bring back"},
	} {
		_, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, c.options)
		if !errors.Is(err, format.ErrUnsupported) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: %v, want %q", c.options, err, c.words)
		}
	}
	_, err = merge.Open(t.Context(), quantFixtures+"fp8_block_128", []merge.Adapter{{Source: src, Name: "a", Weight: 1}}, merge.Options{BaseAs: "nf4"})
	if err == nil || !strings.Contains(err.Error(), "the base is quantised") {
		t.Errorf("a quantised base: %v", err)
	}
}
