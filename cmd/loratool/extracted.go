package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/rank"
)

// showExtraction shows the tensors that would be compared.
func showExtraction(t *terminal, o *extractOptions, e *rank.Extraction) error {
	planned, skipped := e.Planned()
	document := map[string]any{
		"dry_run": true, "tensors": planned, "skipped": append([]rank.Skipped{}, skipped...),
		"peak_memory_bytes": e.PeakBytes(), "bytes_to_read": e.Bytes(), "free_bytes": freeBytes(o.out),
	}
	return t.show("extract", o.json, document, func() {
		for _, p := range planned {
			t.printf("%-10s %v %s\n", p.Kind, p.Shape, p.Tensor)
		}
		showSkipped(t, skipped)
		t.printf("compares %s, %s to read, about %s of memory\n",
			fault.Count(len(planned), "tensor"), fileio.FormatBytes(e.Bytes()), fileio.FormatBytes(e.PeakBytes()))
	})
}

func showSkipped(t *terminal, skipped []rank.Skipped) {
	for _, s := range skipped {
		share := ""
		if s.Share > 0 {
			share = fmt.Sprintf(" (%.4f of |Δ|)", s.Share)
		}
		t.printf("skipped    %s: %s%s\n", s.Tensor, s.Why, share)
	}
}

// showExtracted prints the report of an extraction, with its error.
func showExtracted(t *terminal, o *extractOptions, r *rank.ExtractReport, size int64) {
	if o.verbose {
		showExtractedLayers(t, r)
	}
	var left []rank.Skipped
	for _, x := range r.Skipped {
		if x.Why != rank.Unchanged {
			left = append(left, x)
		}
	}
	t.printf("extracted to %s: %s, %s", o.out, fileio.FormatBytes(size), fault.Count(len(r.Layers), "layer"))
	if n := len(r.Beside); n > 0 {
		t.printf(", %s whole", fault.Count(n, "tensor"))
	}
	t.printf("; %d unchanged, %d left out\n", len(r.Skipped)-len(left), len(left))
	if !o.verbose {
		showLeftOut(t, left)
	}
	if len(r.Layers) == 0 {
		return
	}
	t.printf("energy %.4f, error %s of |Δ|, as stored %s", r.Energy, errorText(r.Error), errorText(r.Rounded))
	if r.LeftOut > 0 {
		t.printf("; of that what is left out %.4f", r.LeftOut)
	}
	t.printf("\n")
	showCoarse(t, r, o.dtype)
	showRanks(t, r)
}

// showExtractedLayers prints a line for every layer and every tensor beside them.
func showExtractedLayers(t *terminal, r *rank.ExtractReport) {
	tab := &table{columns: []column{
		{head: "m×n"}, {head: "rank"}, {head: "|Δ|/|W|", drop: 3}, {head: "energy"}, {head: "error", drop: 1},
		{head: "stored"}, {head: "noise edge/σ1", drop: 2}, {head: "module", left: true, isName: true},
	}}
	for _, l := range r.Layers {
		tab.add(fmt.Sprintf("%d×%d", l.M, l.N), strconv.Itoa(l.Rank), fmt.Sprintf("%.4f", l.RelativeNorm),
			fmt.Sprintf("%.4f", l.Energy), errorText(l.Error), errorText(l.Rounded),
			fmt.Sprintf("%.3f", l.NoiseEdge/l.SingularValues[0]), l.Module)
	}
	t.print(tab)
	for _, b := range r.Beside {
		t.printf("whole      %s (%s, %s)\n", b.Tensor, b.Why, fileio.FormatBytes(b.Bytes))
	}
	showSkipped(t, r.Skipped)
}

// showRanks prints how large the adapter and its error would be at other ranks.
func showRanks(t *terminal, r *rank.ExtractReport) {
	tab := &table{columns: []column{
		{head: "rank"}, {head: "raw bytes"}, {head: "error of Δ"}, {head: "", left: true},
	}}
	lowest, chosen, isFixed := chosenRank(r.Layers)
	name := strconv.Itoa(chosen)
	if !isFixed {
		name = fmt.Sprintf("%d–%d", lowest, chosen)
	}
	isShown := false
	show := func() {
		tab.add(name, fileio.FormatBytes(r.Bytes), errorText(r.Error), "← this adapter")
		isShown = true
	}
	for _, k := range r.Ranks {
		if !isShown && k.Rank >= chosen {
			show()
		}
		if isFixed && k.Rank == chosen {
			continue
		}
		e := math.Sqrt(max(0, 1-k.Energy))
		lost := errorText(e)
		if k.AtLeast {
			lost = "≤ " + errorText(math.Ceil(e*1e4)/1e4) // a bound rounds up
		}
		tab.add(strconv.Itoa(k.Rank), fileio.FormatBytes(bytesAt(r, k.Rank)), lost, "")
	}
	if !isShown {
		show()
	}
	t.print(tab)
	if slices.ContainsFunc(r.Ranks, func(k rank.RankEnergy) bool { return k.AtLeast }) {
		t.printf("≤ is an upper bound, as not all singular values were computed\n")
	}
}

// chosenRank returns the lowest and the highest rank of the layers. isFixed reports that every
// layer has the highest one, or as much of it as its shape allows.
func chosenRank(layers []rank.ExtractedLayer) (lowest, highest int, isFixed bool) {
	lowest = layers[0].Rank
	for _, l := range layers {
		lowest, highest = min(lowest, l.Rank), max(highest, l.Rank)
	}
	isFixed = !slices.ContainsFunc(layers, func(l rank.ExtractedLayer) bool {
		return l.Rank != min(highest, l.M, l.N)
	})
	return lowest, highest, isFixed
}

// bytesAt is the size of the adapter if every layer had rank k. The factors grow in proportion to
// the rank; the tensors carried whole keep their size.
func bytesAt(r *rank.ExtractReport, k int) int64 {
	var whole, have, want int64
	for _, b := range r.Beside {
		whole += b.Bytes
	}
	for _, l := range r.Layers {
		have += int64(l.M+l.N) * int64(l.Rank)
		want += int64(l.M+l.N) * int64(min(k, l.M, l.N))
	}
	if have == 0 {
		return whole
	}
	return whole + int64(math.Round(float64(r.Bytes-whole)/float64(have)*float64(want)))
}

// errorText is an error as a share of |Δ|. One that is not 0 does not read as if it were.
func errorText(x float64) string {
	if x != 0 && x < 5e-5 {
		return fmt.Sprintf("%.1e", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// showCoarse says how many layers would have a smaller error if their factors had more digits. An
// error below what float32 resolves of Δ is as good as none.
func showCoarse(t *terminal, r *rank.ExtractReport, dtype string) {
	const resolved = 1e-6
	n := 0
	for i := range r.Layers {
		if l := &r.Layers[i]; !l.NearBest && l.Rounded >= resolved {
			n++
		}
	}
	if n > 0 {
		t.printf("%d of %d layers are not within 0.1 %% of the least error of their rank: %s factors have too few digits\n",
			n, len(r.Layers), dtype)
	}
}

// shownLeftOut is how many tensors are named that are left out, where -v does not ask for all.
const shownLeftOut = 8

// showLeftOut names the tensors left out, the largest share of Δ first.
func showLeftOut(t *terminal, left []rank.Skipped) {
	slices.SortStableFunc(left, func(a, b rank.Skipped) int { return cmp.Compare(b.Share, a.Share) })
	for i := range left {
		if i == shownLeftOut {
			t.printf("… and %d more; -v lists all\n", len(left)-i)
			return
		}
		showSkipped(t, left[i:i+1])
	}
}
