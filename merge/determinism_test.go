package merge_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// Numbers of workers and block sizes that must not change the bytes: single rows, a few rows, and
// the default.
var (
	someWorkers = []int{1, 2, 7}
	someBlocks  = []int{1, 4096, 0}
)

// checkDeterminism merges in every way and compares the outputs with the first. Reports of equal
// block sizes must be equal too, since they add up the same figures in the same order.
func checkDeterminism(t *testing.T, open func(merge.Options) (*merge.Plan, error)) {
	t.Helper()
	var first map[string]string
	for _, block := range someBlocks {
		var firstReport []byte
		for _, workers := range someWorkers {
			p, err := open(merge.Options{Workers: workers, BlockBytes: block})
			if err != nil {
				t.Fatal(err)
			}
			parent := t.TempDir()
			r, err := p.Run(context.Background(), filepath.Join(parent, "out"))
			if err != nil {
				t.Fatal(err)
			}
			report, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			tree := testkit.Tree(t, parent)
			if first == nil {
				first = tree
			}
			if firstReport == nil {
				firstReport = report
			}
			if !maps.Equal(tree, first) {
				t.Errorf("workers %d, blocks of %d: the output is %v, want %v", workers, block, tree, first)
			}
			if !bytes.Equal(report, firstReport) {
				t.Errorf("workers %d, blocks of %d: the report is %s, want %s", workers, block, report, firstReport)
			}
		}
	}
}

func TestBytesDoNotDependOnWorkersAndBlocks(t *testing.T) {
	eachFixture(t, "merge", 20, func(t *testing.T, dir string, c fixture) {
		checkDeterminism(t, func(o merge.Options) (*merge.Plan, error) { return c.open(t, dir, o) })
	})
}

// mixed is a base of several files and dtypes. It has tensors of several default blocks, rows
// longer than a block, odd alignment, and tensors that no adapter touches.
type mixed struct {
	base     string
	adapters []merge.Adapter
	tensors  map[string]testkit.Tensor // of the base; adapters' are under adapter/name
	ranks    []int
	scales   []float64 // S = ω·s
}

// mixedTargets are the matrices that the adapters change.
var mixedTargets = []struct {
	name       string
	d          dtype.Type
	rows, cols uint64
}{
	{"a.bf16", dtype.BF16, 1500, 513},
	{"b.f16", dtype.F16, 700, 1024},
	{"c.f32", dtype.F32, 600, 640},
	{"d.f64", dtype.F64, 200, 700},
	{"e.long", dtype.BF16, 3, 600_000},
	{"f.wide", dtype.F16, 300, 256}, // its factors are F64
}

func writeMixed(t *testing.T) mixed {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	m := mixed{base: filepath.Join(dir, "base.safetensors"), tensors: make(map[string]testkit.Tensor)}
	base := []testkit.Tensor{
		{Name: "odd", DType: dtype.U8, Shape: []uint64{3}, Data: []byte{1, 2, 3}},
		{Name: "empty", DType: dtype.F32, Shape: []uint64{0, 5}},
	}
	for _, target := range mixedTargets {
		base = append(base, testkit.Random(rng, target.name+".weight", target.d, 1, target.rows, target.cols))
	}
	base = append(base, testkit.Random(rng, "c.f32.bias", dtype.F16, 1, 600), testkit.Random(rng, "untouched", dtype.BF16, 1, 77),
		testkit.Values("scalar", dtype.F64, nil, math.Pi))
	for _, tensor := range base {
		m.tensors[tensor.Name] = tensor
	}
	testkit.Write(t, m.base, testkit.Encode(map[string]string{"format": "pt"}, base...))

	for i, a := range []struct {
		rank   int
		alpha  float64
		weight float64
		d      dtype.Type
	}{{8, 16, 0.7, dtype.F32}, {5, 3, -0.3, dtype.BF16}} {
		var tensors []testkit.Tensor
		for j, target := range mixedTargets {
			d := a.d
			if i == 1 && j == 0 {
				continue // one update per target
			}
			if target.name == "f.wide" || target.name == "d.f64" {
				d = dtype.F64
			}
			key := "base_model.model." + target.name
			tensors = append(tensors, testkit.Random(rng, key+".lora_A.weight", d, 1, uint64(a.rank), target.cols),
				testkit.Random(rng, key+".lora_B.weight", d, 0x1p-6, target.rows, uint64(a.rank)))
		}
		if i == 0 {
			tensors = append(tensors, testkit.Random(rng, "base_model.model.c.f32.lora_B.bias", dtype.F32, 0x1p-6, 600))
		}
		path := filepath.Join(dir, fmt.Sprint("adapter", i))
		testkit.WriteAdapter(t, path, a.rank, a.alpha, tensors...)
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		for _, tensor := range tensors {
			m.tensors[fmt.Sprint(i, "/", tensor.Name)] = tensor
		}
		m.adapters = append(m.adapters, merge.Adapter{Source: src, Name: path, Weight: a.weight})
		m.ranks = append(m.ranks, a.rank)
		m.scales = append(m.scales, a.weight*(a.alpha/float64(a.rank)))
	}
	return m
}

func (m *mixed) open(t *testing.T, o merge.Options) (*merge.Plan, error) {
	p, err := merge.Open(context.Background(), m.base, m.adapters, o)
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

func TestBytesOfManyBlocksDoNotDependOnWorkersAndBlocks(t *testing.T) {
	m := writeMixed(t)
	checkDeterminism(t, func(o merge.Options) (*merge.Plan, error) { return m.open(t, o) })
}

// TestManyBlocksAreRoundedOnce compares sampled elements of every target with the exact sum,
// rounded once, and all other data with the base.
func TestManyBlocksAreRoundedOnce(t *testing.T) {
	m := writeMixed(t)
	p, err := m.open(t, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out.safetensors")
	if _, err := p.Run(context.Background(), out); err != nil {
		t.Fatal(err)
	}
	merged := openCheckpoint(t, out)
	for _, name := range []string{"odd", "empty", "untouched", "scalar"} {
		if got := read(t, merged, name); !bytes.Equal(got, m.tensors[name].Data) {
			t.Errorf("%s is % x, want % x", name, got, m.tensors[name].Data)
		}
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for _, target := range mixedTargets {
		got := read(t, merged, target.name+".weight")
		for range 2000 {
			i, j := rng.IntN(int(target.rows)), rng.IntN(int(target.cols))
			at := i*int(target.cols) + j
			want := make([]byte, target.d.Size())
			storeExact(target.d, want, m.exact(target.name, i, j, int(target.cols)))
			if element := got[at*len(want) : (at+1)*len(want)]; !bytes.Equal(element, want) {
				t.Fatalf("%s, row %d, column %d: % x, want % x", target.name, i, j, element, want)
			}
		}
	}
	bias := m.tensors["c.f32.bias"]
	got := read(t, merged, "c.f32.bias")
	for i := range 600 {
		sum := exact().SetFloat64(dtype.Load(bias.DType, bias.Data, i))
		update := m.tensors["0/base_model.model.c.f32.lora_B.bias"]
		sum.Add(sum, product(m.scales[0], dtype.Load(update.DType, update.Data, i), 1))
		want := make([]byte, 2)
		storeExact(dtype.F16, want, sum)
		if !bytes.Equal(got[2*i:2*i+2], want) {
			t.Fatalf("c.f32.bias, element %d: % x, want % x", i, got[2*i:2*i+2], want)
		}
	}
}

// exact returns a number wide enough for every sum of products in this file.
func exact() *big.Float { return new(big.Float).SetPrec(2000) }

func product(x, y, z float64) *big.Float {
	p := exact().SetFloat64(x)
	p.Mul(p, exact().SetFloat64(y))
	return p.Mul(p, exact().SetFloat64(z))
}

// exact computes w + Σ S·Σ b·a of one element.
func (m *mixed) exact(name string, i, j, nCols int) *big.Float {
	w := m.tensors[name+".weight"]
	sum := exact().SetFloat64(dtype.Load(w.DType, w.Data, i*nCols+j))
	for k, rank := range m.ranks {
		key := fmt.Sprint(k, "/base_model.model.", name)
		a, ok := m.tensors[key+".lora_A.weight"]
		b := m.tensors[key+".lora_B.weight"]
		for l := 0; ok && l < rank; l++ {
			sum.Add(sum, product(m.scales[k], dtype.Load(b.DType, b.Data, i*rank+l), dtype.Load(a.DType, a.Data, l*nCols+j)))
		}
	}
	return sum
}

// storeExact rounds once. It first cuts the sum to float64 and sets the last bit if digits were
// lost (round to odd). This preserves ties, since 53 bits are more than twice those of the narrower
// dtypes.
func storeExact(d dtype.Type, dst []byte, sum *big.Float) {
	if d == dtype.F64 {
		x, _ := sum.Float64()
		dtype.Store(d, dst, 0, x)
		return
	}
	cut := new(big.Float).SetMode(big.ToZero).SetPrec(53).Set(sum)
	x, _ := cut.Float64()
	if cut.Cmp(sum) != 0 {
		x = math.Float64frombits(math.Float64bits(x) | 1)
	}
	dtype.Store(d, dst, 0, x)
}

// factors reads the matrix of a role as float64.
func factors(t *testing.T, src format.Source, l *format.Layer, role format.Role) (values []float64, shape []uint64) {
	t.Helper()
	i, ok := l.Roles[role]
	if !ok {
		t.Fatalf("%s has no %s", l.Module, role)
	}
	tensor := &src.Manifest().Tensors[i]
	raw := make([]byte, tensor.NBytes())
	if err := src.ReadBlobAt(raw, i, 0); err != nil {
		t.Fatal(err)
	}
	return load(tensor.DType, raw), tensor.Shape
}

func load(d dtype.Type, raw []byte) []float64 {
	values := make([]float64, len(raw)/d.Size())
	for i := range values {
		values[i] = dtype.Load(d, raw, i)
	}
	return values
}
