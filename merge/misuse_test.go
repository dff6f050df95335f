package merge_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/merge"
)

const demo = "../testdata/demo/"

// openDemo opens the adapter of the demo.
func openDemo(t *testing.T) merge.Adapter {
	t.Helper()
	src, err := convert.Open(t.Context(), demo+"adapter-r8", convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return merge.Adapter{Source: src, Name: "go", Weight: 1}
}

// TestMisuseIsAnErrorWithoutAKind: a fault of the calling program is no fault of a file, and it
// names the field and the values that it takes.
func TestMisuseIsAnErrorWithoutAKind(t *testing.T) {
	a := openDemo(t)
	missing := []merge.Adapter{{Name: "go", Weight: 1}}
	for _, c := range []struct {
		adapters []merge.Adapter
		reading  merge.Reading
		want     string
	}{
		{missing, merge.Reading{}, `the adapter "go" has no Source`},
		{[]merge.Adapter{a}, merge.Reading{Tied: "bogus"}, `Options.Tied is "bogus"`},
		{[]merge.Adapter{a}, merge.Reading{ExpertInput: 3}, "Options.ExpertInput is 3, want 1 or 2"},
		{[]merge.Adapter{a}, merge.Reading{LinearInput: -1}, "Options.LinearInput is -1"},
	} {
		p, err := merge.Open(t.Context(), demo+"base", c.adapters, merge.Options{Reading: c.reading})
		if err == nil {
			p.Close()
		}
		var e *format.Error
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &e) {
			t.Errorf("Open(%v, %+v) = %v, want an error without a kind: %s",
				c.adapters, c.reading, err, c.want)
		}
	}
	remove := merge.Removal{Adapters: missing, Approximate: true}
	p, err := merge.OpenUnmerge(t.Context(), demo+"base", remove, merge.Options{})
	if err == nil {
		p.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "has no Source") {
		t.Errorf("OpenUnmerge(an adapter without a source) = %v, want an error", err)
	}
}

// TestPeakBytesOfZeroWorkersIsForThoseOfRun: one per processor and one more, as in Options.Workers.
func TestPeakBytesOfZeroWorkersIsForThoseOfRun(t *testing.T) {
	p, err := merge.Open(t.Context(), demo+"base", []merge.Adapter{openDemo(t)}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want := p.PeakBytes(runtime.GOMAXPROCS(0) + 1)
	for _, n := range []int{0, -1} {
		if got := p.PeakBytes(n); got != want {
			t.Errorf("PeakBytes(%d) = %d, want %d as for all processors and one more", n, got, want)
		}
	}
}
