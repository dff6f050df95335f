package merge_test

import (
	"context"
	"errors"
	"flag"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/merge"
	nlp "github.com/nlpodyssey/safetensors"
)

// corpus is a directory of other people's adapters, by default the few in this repository.
var corpus = flag.String("corpus", "../testdata/corpus", "directory with one adapter per sub-directory")

// TestAdaptersOfOtherPeople merges every adapter into a base of matching shapes and compares
// sampled elements with exact arithmetic. A refusal must have a kind and a reason.
func TestAdaptersOfOtherPeople(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(*corpus, "*", "SOURCE.json"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no adapters in %s", *corpus)
	}
	merged := 0
	for _, source := range dirs {
		dir := filepath.Dir(source)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			src, err := convert.Open(t.Context(), dir, convert.Options{})
			if err != nil {
				wantKind(t, err)
				return
			}
			defer src.Close()
			if why, _ := merge.Refusals(&src.Manifest().Adapters[0], src.Manifest().Tensors); len(why) > 0 {
				_, err := merge.Open(context.Background(), writeBase(t, src), []merge.Adapter{{Source: src, Name: dir, Weight: 1}}, merge.Options{})
				wantKind(t, err)
				return
			}
			mergeIntoOwnShapes(t, dir, src)
			merged++
		})
	}
	if merged == 0 {
		t.Error("no adapter was merged")
	}
}

func wantKind(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, format.ErrUnsupported) && !errors.Is(err, format.ErrCorrupt) {
		t.Fatalf("%v: want an error that names the unsupported feature", err)
	}
	t.Log(err)
}

func mergeIntoOwnShapes(t *testing.T, dir string, src format.Source) {
	base := writeBase(t, src)
	p, err := merge.Open(context.Background(), base, []merge.Adapter{{Source: src, Name: dir, Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out := filepath.Join(t.TempDir(), "out.safetensors")
	report, err := p.Run(context.Background(), out)
	if err != nil {
		t.Fatal(err)
	}
	a := &src.Manifest().Adapters[0]
	if len(report.Layers) != len(a.Layers) || len(report.Replaced) != len(a.Beside) {
		t.Fatalf("%d layers and %d replaced tensors, want %d and %d", len(report.Layers), len(report.Replaced), len(a.Layers), len(a.Beside))
	}
	before, after := openCheckpoint(t, base), openCheckpoint(t, out)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range a.Layers {
		l := &a.Layers[i]
		name := l.Module + ".weight"
		w, got := read(t, before, name), read(t, after, name)
		fa, fb := factorOf(t, src, l.Roles[format.RoleA]), factorOf(t, src, l.Roles[format.RoleB])
		n := len(fa) / l.Rank
		for range 50 {
			e := rng.IntN(len(w) / 2)
			sum := new(big.Float).SetPrec(3000).SetFloat64(dtype.Load(dtype.BF16, w, e))
			row, col := e/n, e%n
			if l.Kind == format.Embedding { // Δ is (B·A)ᵀ
				m := len(fb) / l.Rank
				row, col = e%m, e/m
			}
			for k := range l.Rank {
				q := new(big.Float).SetPrec(3000).SetFloat64(fb[row*l.Rank+k])
				q.Mul(q, big.NewFloat(fa[k*n+col]))
				sum.Add(sum, q.Mul(q, big.NewFloat(l.Scale())))
			}
			want := make([]byte, 2)
			x, _ := sum.Float64() // the sum falls on a tie of BF16 with a chance of 2^-45
			dtype.Store(dtype.BF16, want, 0, x)
			if string(got[2*e:2*e+2]) != string(want) {
				t.Fatalf("%s, element %d: % x, want % x", name, e, got[2*e:2*e+2], want)
			}
		}
	}
}

func factorOf(t *testing.T, src format.Source, i int) []float64 {
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

// writeBase writes a BF16 base with exactly the tensors that the adapter changes.
func writeBase(t *testing.T, src format.Source) string {
	t.Helper()
	m := src.Manifest()
	shapes := make(map[string][]uint64)
	for _, l := range m.Adapters[0].Layers {
		a, hasA := l.Roles[format.RoleA]
		b, hasB := l.Roles[format.RoleB]
		if hasA && hasB && len(m.Tensors[a].Shape) == 2 {
			shape := []uint64{m.Tensors[b].Shape[0], m.Tensors[a].Shape[1]}
			if l.Kind == format.Embedding {
				slices.Reverse(shape)
			}
			shapes[l.Module+".weight"] = shape
		}
	}
	for _, b := range m.Adapters[0].Beside {
		shapes[b.Target] = m.Tensors[b.Tensor].Shape
	}
	rng := rand.New(rand.NewPCG(2, 2))
	views := make(map[string]nlp.TensorView)
	for name, shape := range shapes {
		n, _ := dtype.NElements(shape)
		data := make([]byte, 2*n)
		for i := range int(n) {
			dtype.Store(dtype.BF16, data, i, 0.02*rng.NormFloat64())
		}
		v, err := nlp.NewTensorView(nlp.BF16, shape, data)
		if err != nil {
			t.Fatal(err)
		}
		views[name] = v
	}
	path := filepath.Join(t.TempDir(), "base.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(nlp.SerializeToWriter(views, nil, f), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}
