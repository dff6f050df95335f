package merge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// lycoris holds the cases written by testdata/lycoris/make.py.
const lycoris = "../testdata/lycoris"

// lycorisCase is a case of index.json.
type lycorisCase struct {
	Name     string    `json:"name"`
	Base     string    `json:"base"`
	Adapters []string  `json:"adapters"`
	Weights  []float64 `json:"weights"` // nil for 1
	Merged   string    `json:"merged"`  // the tensors that change, by LyCORIS in float64
	Says     string    `json:"says"`    // a word of the refusal
}

func lycorisCases(t *testing.T) (cases, refused []lycorisCase) {
	t.Helper()
	var index struct {
		Cases   []lycorisCase `json:"cases"`
		Refused []lycorisCase `json:"refused"`
	}
	if err := json.Unmarshal(file(t, filepath.Join(lycoris, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Cases) < 33 || len(index.Refused) < 7 {
		t.Fatalf("%d and %d cases, want 33 and 7 or more", len(index.Cases), len(index.Refused))
	}
	return index.Cases, index.Refused
}

func (c lycorisCase) base() string { return filepath.Join(lycoris, c.Base) }

func (c lycorisCase) openAdapters(t *testing.T) (adapters []merge.Adapter, err error) {
	t.Helper()
	for i, name := range c.Adapters {
		path := filepath.Join(lycoris, name)
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { src.Close() })
		a := merge.Adapter{Source: src, Name: path, Weight: 1}
		if c.Weights != nil {
			a.Weight = c.Weights[i]
		}
		adapters = append(adapters, a)
	}
	return adapters, nil
}

func (c lycorisCase) open(t *testing.T, options merge.Options) (*merge.Plan, error) {
	t.Helper()
	adapters, err := c.openAdapters(t)
	if err != nil {
		return nil, err
	}
	return merge.Open(t.Context(), c.base(), adapters, options)
}

// TestMergeEqualsLyCORISInEveryElement compares every tensor that changes with the result of
// LyCORIS in float64, rounded once, and every other tensor with the base, byte for byte. An element
// may be a neighbour of the rounded one (spec/METHODS.md, section 3), but only one in 10000.
func TestMergeEqualsLyCORISInEveryElement(t *testing.T) {
	cases, _ := lycorisCases(t)
	elements, neighbours := 0, 0
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			p, err := c.open(t, merge.Options{})
			base, merged := openCheckpoint(t, c.base()), openCheckpoint(t, run(t, p, err))
			truth := openCheckpoint(t, filepath.Join(lycoris, c.Merged))
			if got := len(merged.Names()); got != len(base.Names()) {
				t.Fatalf("the result has %d tensors, want %d", got, len(base.Names()))
			}
			changes := 0
			for _, name := range base.Names() {
				if _, ok := truth.Lookup(name); !ok {
					compareTensor(t, name, "not changed", read(t, merged, name), read(t, base, name))
					continue
				}
				changes++
				n, apart := compareRounded(t, name, merged, truth)
				elements, neighbours = elements+n, neighbours+apart
			}
			if changes != len(truth.Names()) {
				t.Errorf("the base has %d tensors of %d that change", changes, len(truth.Names()))
			}
		})
	}
	t.Logf("%d elements of %d are neighbours of the rounded value", neighbours, elements)
	if neighbours*10000 > elements {
		t.Errorf("%d elements of %d are not the nearest value", neighbours, elements)
	}
}

// compareRounded compares a tensor with the truth in float64, rounded to the tensor's dtype. apart
// counts the elements that are neighbours of the rounded value.
func compareRounded(
	t *testing.T, name string, merged, truth *checkpoint.Checkpoint,
) (n, apart int) {
	t.Helper()
	ref, _ := merged.Lookup(name)
	d, got, exact := ref.Tensor.DType, read(t, merged, name), read(t, truth, name)
	n = len(exact) / 8
	if len(got) != n*d.Size() {
		t.Fatalf("%s has %d bytes, want %d", name, len(got), n*d.Size())
	}
	want := make([]byte, len(got))
	for i := range n {
		x := dtype.Load(dtype.F64, exact, i)
		dtype.Store(d, want, i, x)
		at := i * d.Size()
		if bytes.Equal(got[at:at+d.Size()], want[at:at+d.Size()]) || bothZero(d, got, want, i) {
			continue
		}
		apart++
		if y := dtype.Load(d, got, i); !neighbour(d, dtype.Load(d, want, i), y) {
			t.Fatalf("%s, element %d: %v, want %v", name, i, y, x)
		}
	}
	return n, apart
}

// neighbour reports whether no value of the dtype lies between x and y.
func neighbour(d dtype.Type, x, y float64) bool {
	b := make([]byte, d.Size())
	dtype.Store(d, b, 0, x+(y-x)/2)
	between := dtype.Load(d, b, 0)
	return !math.IsNaN(between) && (between == x || between == y)
}

// TestUnmergeOfLyCORISRestoresEveryByte merges every case with a record and removes the merge.
func TestUnmergeOfLyCORISRestoresEveryByte(t *testing.T) {
	cases, _ := lycorisCases(t)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			var rec bytes.Buffer
			p, err := c.open(t, merge.Options{Undo: &rec})
			merged := run(t, p, err)
			if maps.Equal(tree(t, merged), tree(t, c.base())) {
				t.Fatal("the merge has changed nothing")
			}
			adapters, err := c.openAdapters(t)
			if err != nil {
				t.Fatal(err)
			}
			p, err = merge.OpenUnmerge(t.Context(), merged, merge.Removal{
				Adapters: anyWeight(adapters),
				Records:  []*merge.Record{record(t, "r", rec.Bytes())},
			}, merge.Options{})
			if got, want := tree(t, run(t, p, err)), tree(t, c.base()); !maps.Equal(got, want) {
				t.Errorf("taken back: %v, want %v", got, want)
			}
		})
	}
}

// TestLyCORISMergesTheSameEverywhere: neither the number of workers, the size of blocks, nor a
// container in place of the file changes a byte of a tensor.
func TestLyCORISMergesTheSameEverywhere(t *testing.T) {
	cases, _ := lycorisCases(t)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			p, err := c.open(t, merge.Options{})
			direct := run(t, p, err)
			want := tree(t, direct)
			for _, o := range []merge.Options{{Workers: 1, BlockBytes: 1}, {Workers: 3, BlockBytes: 700}} {
				p, err := c.open(t, o)
				if got := tree(t, run(t, p, err)); !maps.Equal(got, want) {
					t.Errorf("other bytes with %d workers and blocks of %d bytes", o.Workers, o.BlockBytes)
				}
			}
			p, err = merge.Open(t.Context(), c.base(), c.containers(t), merge.Options{})
			compareTensors(t, run(t, p, err), direct)
		})
	}
}

// containers returns the adapters of a case, each converted to a container.
func (c lycorisCase) containers(t *testing.T) []merge.Adapter {
	t.Helper()
	adapters, err := c.openAdapters(t)
	if err != nil {
		t.Fatal(err)
	}
	for i := range adapters {
		path := filepath.Join(t.TempDir(), "adapter.lora")
		sink, err := convert.Create(path, convert.LoRA(), convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), sink, adapters[i].Source); err != nil {
			t.Fatal(err)
		}
		src, err := convert.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { src.Close() })
		adapters[i].Source, adapters[i].Name = src, path
	}
	return adapters
}

// TestRefusedMethodsOfLyCORISAreNamed: OFT, BOFT, GLoRA, T-LoRA and sparse residuals have no
// formula here, and the error names them.
func TestRefusedMethodsOfLyCORISAreNamed(t *testing.T) {
	_, refused := lycorisCases(t)
	for _, c := range refused {
		t.Run(c.Name, func(t *testing.T) {
			p, err := c.open(t, merge.Options{})
			if err == nil {
				p.Close()
				t.Fatal("opened without an error")
			}
			var kind *fault.Error
			if !errors.As(err, &kind) || !strings.Contains(err.Error(), c.Says) {
				t.Errorf("%v, want a refusal that names %q", err, c.Says)
			}
		})
	}
}
