package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/report"
)

// layersOf are layers as of a large model, with spectra of the widest numbers.
func layersOf(n int) []report.Layer {
	values := make([]float64, 64)
	for i := range values {
		values[i] = 1.234e-10 / float64(i+1)
	}
	var layers []report.Layer
	for i := range n {
		layers = append(layers, report.Layer{
			Module: fmt.Sprintf("model.language_model.layers.%d.self_attn.out_proj", 2*i), Kind: "linear", M: 11008, N: 28672, Rank: 64, Alpha: 16, Scale: 0.125, DType: "F32/BF16",
			Spectrum: &report.Spectrum{SingularValues: values, Frobenius: 1.234e-10, StableRank: 61.25, EffectiveRank: 63.75, Rank90: 55, Rank95: 58, Rank99: 63},
		})
	}
	return layers
}

// TestTablesFitTheTerminal: at any width that is in use, no line is longer, and the names that are
// shortened still differ.
func TestTablesFitTheTerminal(t *testing.T) {
	tables := map[string]func(*terminal){
		"spectra": func(t *terminal) {
			showSpectra(t, &inspectOptions{spectrumOptions: spectrumOptions{all: true}}, &report.Adapter{Layers: layersOf(40)})
		},
		"layers": func(t *terminal) {
			o := new(inspectOptions)
			o.verbose = true
			showLayers(t, o, layersOf(40))
		},
	}
	for name, show := range tables {
		for _, width := range []int{60, 72, 80, 100, 132} {
			var b bytes.Buffer
			show(&terminal{out: &results{w: &b}, columns: width})
			seen := make(map[string]bool)
			for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n") {
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("%s: line %d at %d columns has %d: %s", name, i, width, n, line)
				}
				fields := strings.Fields(line)
				last := fields[len(fields)-1]
				if seen[last] {
					t.Errorf("%s at %d columns: two modules are called %s", name, width, last)
				}
				seen[last] = true
			}
		}
	}
}

func TestColumnsGoInTheirOrder(t *testing.T) {
	var b bytes.Buffer
	for _, c := range []struct {
		width int
		heads string
	}{
		{0, "rank stable effective 90 % 95 % 99 % ‖ΔW‖ σ1 spectrum module"},
		{130, "rank stable effective 90 % 95 % 99 % ‖ΔW‖ σ1 spectrum module"},
		{116, "rank stable effective 95 % 99 % ‖ΔW‖ σ1 spectrum module"},
		{106, "rank stable effective 99 % ‖ΔW‖ σ1 spectrum module"},
		{102, "rank stable effective 99 % ‖ΔW‖ spectrum module"},
		{86, "rank stable 99 % ‖ΔW‖ spectrum module"},
		{76, "rank ‖ΔW‖ spectrum module"},
	} {
		b.Reset()
		showSpectra(&terminal{out: &results{w: &b}, columns: c.width}, &inspectOptions{spectrumOptions: spectrumOptions{all: true}}, &report.Adapter{Layers: layersOf(1)})
		head, _, _ := strings.Cut(b.String(), "\n")
		if got := strings.Join(strings.Fields(head), " "); got != c.heads {
			t.Errorf("at %d columns the heads are %q, want %q", c.width, got, c.heads)
		}
	}
}

// failing is a writer that fails once and would go on.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n++; f.n == 2 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestTheFirstErrorOfAResultStays(t *testing.T) {
	w := new(failing)
	r := &results{w: w}
	for range 5 {
		r.WriteString("text")
	}
	var e *resultsError
	if !errors.As(r.err, &e) || !errors.Is(r.err, io.ErrShortWrite) || w.n != 2 {
		t.Errorf("after a write that failed err is %v and the writer was called %d times, want the error and 2", r.err, w.n)
	}
}
