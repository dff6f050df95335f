package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/inspect"
	"golang.org/x/term"
)

// sparkWidth is the number of bars of a spectrum.
const sparkWidth = 16

// showSpectra prints a line per layer: ranks, norm, and the singular values as bars. On a terminal that is too narrow the
// beginnings of the module names go, as their ends tell them apart.
func showSpectra(t *terminal, layers []inspect.Layer) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "rank\tstable\teffective\t90 %\t95 %\t99 %\t|ΔW|\tσ1\t  spectrum\t  module")
	for _, l := range layers {
		s := l.Spectrum
		if s == nil {
			continue
		}
		first := 0.0
		if len(s.SingularValues) > 0 {
			first = s.SingularValues[0]
		}
		fmt.Fprintf(w, "%d\t%.2f\t%.2f\t%d\t%d\t%d\t%.4g\t%.4g\t  %-*s\t  %s\n", l.Rank, s.StableRank, s.EffectiveRank, s.Rank90, s.Rank95, s.Rank99,
			s.Frobenius, first, sparkWidth, sparkline(s.SingularValues), clean(l.Module))
	}
	w.Flush()
	width := t.width()
	for line := range strings.Lines(b.String()) {
		line = clean(fit(strings.TrimRight(line, "\n"), width))
		if t.hasColour() {
			line = bars.ReplaceAllString(line, cyan+"$0"+plain)
		}
		fmt.Fprintln(t.out, line)
	}
}

// The colours of a terminal, ECMA-48.
const (
	cyan  = "\x1b[36m"
	plain = "\x1b[0m"
)

var bars = regexp.MustCompile("[▁▂▃▄▅▆▇█]+")

// hasColour reports whether results go to a terminal whose user has not asked for none (no-color.org).
func (t *terminal) hasColour() bool {
	return isTerminal(t.out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// fit shortens a line to a width by cutting out the beginning of its last word; 0 is any width.
func fit(line string, width int) string {
	over := utf8.RuneCountInString(line) - width
	if width == 0 || over <= 0 {
		return line
	}
	at := strings.LastIndex(line, " ") + 1
	last := []rune(line[at:])
	if over+1 >= len(last) {
		return line
	}
	return line[:at] + "…" + string(last[over+1:])
}

// width is the number of columns of the terminal, 0 where the output goes elsewhere.
func (t *terminal) width() int {
	f, ok := t.out.(*os.File)
	if !ok {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// sparkline draws values as bars, relative to the first: one bar a value, or the largest of a group where there are many.
func sparkline(values []float64) string {
	bars := []rune("▁▂▃▄▅▆▇█")
	if len(values) == 0 || values[0] == 0 {
		return ""
	}
	n := min(len(values), sparkWidth)
	line := make([]rune, n)
	for i := range line {
		v := values[i*len(values)/n] / values[0]
		line[i] = bars[min(int(v*float64(len(bars))), len(bars)-1)]
	}
	return string(line)
}
