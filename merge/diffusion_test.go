package merge_test

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
)

// diffusion holds the cases written by testdata/diffusion/make.py.
const diffusion = "../testdata/diffusion"

// diffusionCase is a case of index.json: one merge into a pipeline or into a single file.
type diffusionCase struct {
	Name     string    `json:"name"`
	Base     string    `json:"base"`
	Adapters []string  `json:"adapters"`
	Weights  []float64 `json:"weights"`
	Only     []string  `json:"only"`   // the components to change; nil for all
	Alpha    float64   `json:"alpha"`  // for adapters that do not say it; 0 gives none
	Scale    float64   `json:"scale"`  // the same
	Merged   string    `json:"merged"` // the file of the tensors that change
}

// TestMergeEqualsDiffusersInEveryElement compares every tensor that changes with diffusers' or
// kohya's result in float64, rounded once, and every other tensor with the base, byte for byte.
func TestMergeEqualsDiffusersInEveryElement(t *testing.T) {
	var index struct {
		Cases []diffusionCase `json:"cases"`
	}
	if err := json.Unmarshal(file(t, filepath.Join(diffusion, "index.json")), &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Cases) < 140 {
		t.Fatalf("%d cases, want 140 or more", len(index.Cases))
	}
	for _, c := range index.Cases {
		t.Run(c.Name, func(t *testing.T) { c.compare(t, c.openAdapters(t)) })
	}
}

// compare merges adapters into the base of the case and compares every tensor with the truth.
func (c diffusionCase) compare(t *testing.T, adapters []merge.Adapter) {
	t.Helper()
	base := openCheckpoint(t, filepath.Join(diffusion, c.Base))
	merged, want := c.merge(t, adapters), openCheckpoint(t, filepath.Join(diffusion, c.Merged))
	if got := len(merged.Names()); got != len(base.Names()) {
		t.Fatalf("the result has %d tensors, want %d", got, len(base.Names()))
	}
	changes := 0
	for _, name := range base.Names() {
		truth, kind := base, "not changed"
		if _, ok := want.Lookup(name); ok {
			truth, kind = want, "changed"
			changes++
		}
		compareTensor(t, name, kind, read(t, merged, name), read(t, truth, name))
	}
	if changes != len(want.Names()) {
		t.Errorf("the base has %d tensors of %d that change", changes, len(want.Names()))
	}
}

// compareTensor says at which byte a tensor differs from the one that a case wants.
func compareTensor(t *testing.T, name, kind string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s, which must be %s, differs at byte %d of %d", name, kind, at, len(want))
}

// merge merges adapters into the base in memory, and opens the result.
func (c diffusionCase) merge(t *testing.T, adapters []merge.Adapter) *checkpoint.Checkpoint {
	t.Helper()
	options := merge.Options{Reading: merge.Reading{Only: c.Only}}
	p, err := merge.Open(t.Context(), filepath.Join(diffusion, c.Base), adapters, options)
	if err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	defer p.Close()
	var out output.Memory
	if _, err := p.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	var merged *checkpoint.Checkpoint
	if content, ok := out.Files()[""]; ok { // the base is a single file
		merged, err = checkpoint.New(t.Context(), "merged", bytes.NewReader(content), int64(len(content)))
	} else {
		merged, err = checkpoint.OpenFS(t.Context(), out.FS(), ".")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { merged.Close() })
	return merged
}

func (c diffusionCase) openAdapters(t *testing.T) (adapters []merge.Adapter) {
	t.Helper()
	for i, name := range c.Adapters {
		path := filepath.Join(diffusion, name)
		src, err := convert.Open(t.Context(), path, convert.Options{Alpha: c.Alpha, Scale: c.Scale})
		if err != nil {
			t.Fatal(err, "\nhint: ", fault.Hint(err))
		}
		t.Cleanup(func() { src.Close() })
		adapters = append(adapters, merge.Adapter{Source: src, Name: path, Weight: c.Weights[i]})
	}
	return adapters
}
