package merge_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// fixtures holds the cases written by testdata/peft/make.py with PEFT 0.21.2.
const fixtures = "../testdata/peft"

// fixture is a case.json.
type fixture struct {
	Base     string    `json:"base"`
	Adapters []string  `json:"adapters"`
	Weights  []float64 `json:"weights"`
	Warn     []string  `json:"warn"`
	Words    []string  `json:"words"`
	Options  struct {
		ExpertInput       int
		ExpertsSlowest    bool
		OutProjTwice      bool
		Tied              merge.Tied
		GrowVocabulary    bool
		RecomputeResidual bool
	} `json:"options"`

	from func(t *testing.T, path string) (*checkpoint.Checkpoint, error) // opens the base; nil means fromDisk
}

// eachFixture runs f on every case of a kind and fails for fewer than atLeast.
func eachFixture(t *testing.T, kind string, atLeast int, f func(t *testing.T, dir string, c fixture)) {
	dirs, err := filepath.Glob(filepath.Join(fixtures, kind, "*"))
	if err != nil || len(dirs) < atLeast {
		t.Fatalf("%d %s cases in %s, want at least %d", len(dirs), kind, fixtures, atLeast)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			f(t, dir, readFixture(t, dir))
		})
	}
}

func readFixture(t *testing.T, dir string) (c fixture) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "case.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// with adds the options of a case.
func (c fixture) with(o merge.Options) merge.Options {
	o.RecomputeResidual = c.Options.RecomputeResidual
	o.Tied, o.GrowVocabulary = c.Options.Tied, c.Options.GrowVocabulary
	o.ExpertInput, o.ExpertsSlowest, o.OutProjTwice = c.Options.ExpertInput, c.Options.ExpertsSlowest, c.Options.OutProjTwice
	return o
}

// open plans the merge of a case.
func (c fixture) open(t *testing.T, dir string, options merge.Options) (*merge.Plan, error) {
	options = c.with(options)
	adapters, err := c.openAdapters(t, dir)
	if err != nil {
		return nil, err
	}
	base, err := c.openBase(t)
	if err != nil {
		return nil, err
	}
	return merge.New(context.Background(), base, adapters, options)
}

// openBase opens the case's base until the test ends.
func (c fixture) openBase(t *testing.T) (*checkpoint.Checkpoint, error) {
	open := c.from
	if open == nil {
		open = fromDisk
	}
	b, err := open(t, filepath.Join(fixtures, "bases", c.Base))
	if err == nil {
		t.Cleanup(func() { b.Close() })
	}
	return b, err
}

func (c fixture) openAdapters(t *testing.T, dir string) (adapters []merge.Adapter, err error) {
	for i, name := range c.Adapters {
		path := filepath.Join(dir, name)
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

// TestMergeEqualsPEFTInEveryElement compares every changed element with RN of PEFT's float64
// result, and every other element with the base, bit for bit.
func TestMergeEqualsPEFTInEveryElement(t *testing.T) {
	elements := 0
	compare := func(t *testing.T, dir string, c fixture) {
		out := filepath.Join(t.TempDir(), "out")
		p, err := c.open(t, dir, merge.Options{})
		if err != nil {
			t.Fatal(err, "\nhint: ", fault.Hint(err))
		}
		if _, err := p.Run(context.Background(), out); err != nil {
			t.Fatal(err)
		}
		warnings := strings.ToLower(strings.Join(p.Warnings(), "\n"))
		for _, w := range c.Warn {
			if !strings.Contains(warnings, strings.ToLower(w)) {
				t.Errorf("the warnings do not mention %q: %s", w, warnings)
			}
		}
		base, merged := openCheckpoint(t, filepath.Join(fixtures, "bases", c.Base)), openCheckpoint(t, out)
		truth := openCheckpoint(t, filepath.Join(dir, "truth.safetensors"))
		names := slices.Compact(slices.Sorted(slices.Values(append(base.Names(), truth.Names()...))))
		if !slices.Equal(names, merged.Names()) {
			t.Fatalf("names of the merged checkpoint: %q, want %q", merged.Names(), names)
		}
		if len(names) > len(base.Names()) && c.Options.Tied != merge.Untie {
			t.Fatalf("the truth has more tensors than the base: %q", names)
		}
		for _, name := range merged.Names() {
			ref, _ := merged.Lookup(name)
			got, d := read(t, merged, name), ref.Tensor.DType
			var want []byte
			if _, ok := truth.Lookup(name); ok {
				exact := read(t, truth, name)
				want = make([]byte, len(exact)/8*d.Size())
				for i := range len(exact) / 8 {
					dtype.Store(d, want, i, dtype.Load(dtype.F64, exact, i))
				}
			} else {
				want = read(t, base, name)
			}
			if len(got) != len(want) {
				t.Fatalf("%s has %d bytes, want %d", name, len(got), len(want))
			}
			for i := range len(want) / d.Size() {
				at := i * d.Size()
				if string(got[at:at+d.Size()]) != string(want[at:at+d.Size()]) && !bothZero(d, got, want, i) {
					t.Fatalf("%s, element %d: % x, want % x", name, i, got[at:at+d.Size()], want[at:at+d.Size()])
				}
				elements++
			}
		}
	}
	eachBase(t, "merge", 20, compare)
	eachFixture(t, "eras", 29, compare) // one per release of PEFT, named in the directory
	t.Logf("%d elements compared", elements)
}

// bothZero allows a difference of sign: PEFT's −0 + 0 is +0, and here an element without an update
// keeps its bits.
func bothZero(d dtype.Type, got, want []byte, i int) bool {
	return d.IsFloat() && dtype.Load(d, got, i) == 0 && dtype.Load(d, want, i) == 0
}

// TestRefusalsNameTheirCause: the error is of a kind for bad input and names the cause, and nothing
// appears at the output.
func TestRefusalsNameTheirCause(t *testing.T) {
	eachBase(t, "refuse", 20, func(t *testing.T, dir string, c fixture) {
		parent := t.TempDir()
		p, err := c.open(t, dir, merge.Options{})
		if err == nil {
			_, err = p.Run(context.Background(), filepath.Join(parent, "out"))
		}
		if err == nil {
			t.Fatal("merged without an error")
		}
		var kind *fault.Error
		if !errors.As(err, &kind) {
			t.Errorf("%v: the error has no kind", err)
		}
		text := strings.ToLower(err.Error() + "\n" + fault.Hint(err))
		for _, w := range c.Words {
			if !strings.Contains(text, strings.ToLower(w)) {
				t.Errorf("%v (hint: %s): does not mention %q", err, fault.Hint(err), w)
			}
		}
		if left, _ := os.ReadDir(parent); len(left) > 0 {
			t.Errorf("%q was left behind", left[0].Name())
		}
	})
}
