package report

import (
	"fmt"
	"testing"

	"github.com/loratool/loratool/format"
)

// diagonal adds a layer with the given singular values: B is the identity, and A is diagonal.
func diagonal(x *format.Builder, module string, sigma ...float32) {
	r := uint64(len(sigma))
	const side = 12
	a, b := make([]float32, r*side), make([]float32, side*r)
	for i, v := range sigma {
		a[i*side+i], b[i*int(r)+i] = v, 1
	}
	x.Linear(module, int(r), 1, format.Float32s(a, r, side), format.Float32s(b, side, r))
}

// TestFindings: zero layers, spikes and outliers are named, and the saving is that of the ranks
// with 95 % of the energy.
func TestFindings(t *testing.T) {
	x := format.NewBuilder("")
	diagonal(x, "a", 1, 1, 1, 1)
	diagonal(x, "b", 10, 1, 1, 1)            // stable rank 1.03, 97 % in the first
	diagonal(x, "c", 0, 0, 0, 0)             // zero
	diagonal(x, "d", 30, 20, 0.5, 0.5)       // an outlier, and 95 % in two
	diagonal(x, "e", 3, 0.1)                 // no spike: only two directions
	diagonal(x, "f", 0.05, 0.05, 0.05, 0.05) // an outlier
	src, err := x.Source()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Describe(t.Context(), src, Options{Spectrum: true})
	if err != nil {
		t.Fatal(err)
	}
	want := "[{zero [c]} {spike [b]} {outlier [d f]}]"
	var got []struct {
		Kind    string
		Modules []string
	}
	for _, f := range r.Findings {
		got = append(got, struct {
			Kind    string
			Modules []string
		}{f.Kind, f.Modules})
	}
	if fmt.Sprint(got) != want {
		t.Errorf("findings %v, want %s", got, want)
	}
	// All layers are 12×12: 4 + 1 + 1 + 2 + 1 + 4 of 4 + 4 + 4 + 4 + 2 + 4 ranks stay.
	if s := r.Saving; s == nil || s.Rank != 4 || s.Was != 4 || s.Share != 0.409 {
		t.Errorf("saving %+v, want ranks 4 and 4 and the share 0.409", r.Saving)
	}
	even := format.NewBuilder("")
	diagonal(even, "a", 1, 1, 1, 1)
	if src, err = even.Source(); err != nil {
		t.Fatal(err)
	}
	if r, err = Describe(t.Context(), src, Options{Spectrum: true}); err != nil || len(r.Findings) > 0 || r.Saving != nil {
		t.Errorf("an even spectrum: %+v, %+v, %v", r.Findings, r.Saving, err)
	}
}
