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
	peak, _ := e.PeakBytes()
	document := map[string]any{
		"dry_run": true, "tensors": planned, "skipped": append([]rank.Skipped{}, skipped...),
		"peak_memory_bytes": processBytes(peak), "bytes_to_read": e.Bytes(), "free_bytes": freeBytes(o.out),
		"warnings": append([]string{}, e.Warnings()...),
	}
	return t.show("extract", o.json, document, func() {
		showCompared(t, &o.common, planned)
		showSkipped(t, &o.common, skipped)
		t.line("compares %s, %s to read; about %s of memory",
			fault.Count(len(planned), "tensor"), fileio.FormatBytes(e.Bytes()), fileio.FormatBytes(processBytes(peak)))
	})
}

// showCompared prints the tensors that would be compared.
func showCompared(t *terminal, o *common, planned []rank.Planned) {
	tab := &table{columns: []column{
		{head: "tensors"}, {head: "kind", left: true}, {head: "shape", left: true}, {head: "name", left: true, isName: true},
	}}
	for _, g := range o.group(len(planned), func(i int) (name, key string) {
		return planned[i].Tensor, fmt.Sprint(planned[i].Kind, planned[i].Shape)
	}) {
		p := &planned[g.first]
		tab.add(strconv.Itoa(g.n), string(p.Kind), fmt.Sprint(p.Shape), g.name)
	}
	t.print(tab)
}

// showSkipped names tensors that are not in the adapter, and says why.
func showSkipped(t *terminal, o *common, skipped []rank.Skipped) {
	for _, g := range o.group(len(skipped), func(i int) (name, key string) { return skipped[i].Tensor, skippedText(&skipped[i]) }) {
		t.line("skipped   %s: %s", g.name, skippedText(&skipped[g.first]))
	}
}

func skippedText(s *rank.Skipped) string {
	if s.Share > 0 {
		return fmt.Sprintf("%s (%.4f of ‖Δ‖)", s.Why, s.Share)
	}
	return s.Why
}

// showExtracted prints the report of an extraction, with its error. written is how much was written
// and how long it took.
func showExtracted(t *terminal, o *extractOptions, r *rank.ExtractReport, written string) {
	if o.verbose {
		showExtractedLayers(t, &o.common, r)
	}
	var left []rank.Skipped
	for _, x := range r.Skipped {
		if x.Why != rank.Unchanged {
			left = append(left, x)
		}
	}
	whole := ""
	if n := len(r.Beside); n > 0 {
		whole = ", " + fault.Count(n, "tensor") + " whole"
	}
	t.line("extracted to %s: %s, %s%s; of the other tensors %d unchanged, %d left out", o.out, written,
		fault.Count(len(r.Layers), "layer"), whole, len(r.Skipped)-len(left), len(left))
	if !o.verbose {
		showLeftOut(t, &o.common, left)
	}
	if len(r.Layers) == 0 {
		return
	}
	t.line("error of Δ: %s (‖Δ - s·B·A‖ ÷ ‖Δ‖%s); energy kept: %s",
		errorText(r.Rounded), partsText(r, o.dtype), energyText(r.Energy))
	showCoarse(t, r, o.dtype)
	showRanks(t, r)
}

// showExtractedLayers prints a line for every layer and every tensor beside them.
func showExtractedLayers(t *terminal, o *common, r *rank.ExtractReport) {
	tab := &table{columns: []column{
		{head: "m×n"}, {head: "rank"}, {head: "‖Δ‖/‖W‖", drop: 3}, {head: "energy", meaning: "the share of ‖Δ‖² that the rank keeps"},
		{head: "error", drop: 1, meaning: "‖Δ - s·B·A‖ ÷ ‖Δ‖ before rounding"}, {head: "stored", meaning: "‖Δ - s·B·A‖ ÷ ‖Δ‖ with the factors as stored"},
		{head: "noise edge/σ1", drop: 2, meaning: "singular values below this share of σ1 are rounding noise"}, {head: "module", left: true, isName: true},
	}}
	for _, l := range r.Layers {
		tab.add(fmt.Sprintf("%d×%d", l.M, l.N), strconv.Itoa(l.Rank), fmt.Sprintf("%.4f", l.RelativeNorm),
			fmt.Sprintf("%.4f", l.Energy), errorText(l.Error), errorText(l.Rounded),
			fmt.Sprintf("%.3f", l.NoiseEdge/l.SingularValues[0]), l.Module)
	}
	t.print(tab)
	for _, b := range r.Beside {
		t.line("whole      %s (%s, %s)", b.Tensor, b.Why, fileio.FormatBytes(b.Bytes))
	}
	showSkipped(t, o, r.Skipped)
}

// partsText says how much of an error comes from rounding the factors and from tensors left out.
func partsText(r *rank.ExtractReport, dtype string) string {
	text := ""
	if exact := errorText(r.Error); exact != errorText(r.Rounded) {
		text = fmt.Sprintf(", %s before the factors were rounded to %s", exact, dtype)
	}
	if r.LeftOut > 0 {
		text += fmt.Sprintf(", of which %.4f for tensors left out", r.LeftOut)
	}
	return text
}

// energyText is a share of an energy in percent. Only all of it reads as 100 %.
func energyText(share float64) string {
	if text := fmt.Sprintf("%.2f %%", 100*share); share >= 1 || text != "100.00 %" {
		return text
	}
	return "over 99.99 %"
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
		tab.add(name, fileio.FormatBytes(r.Bytes), errorText(r.Rounded), "← this adapter")
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
			if isFixed && k.Rank > chosen {
				e = min(e, r.Error) // a higher rank loses no more than this one
			}
			lost = "≤ " + boundText(e)
		}
		tab.add(strconv.Itoa(k.Rank), fileio.FormatBytes(bytesAt(r, k.Rank)), lost, "")
	}
	if !isShown {
		show()
	}
	t.print(tab)
	if slices.ContainsFunc(r.Ranks, func(k rank.RankEnergy) bool { return k.AtLeast }) {
		t.line("≤ is an upper bound, as not all singular values were computed")
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

// boundText is errorText rounded up.
func boundText(x float64) string {
	if x != 0 && x < 5e-5 {
		return fmt.Sprintf("%.1e", x*1.05)
	}
	return errorText(math.Ceil(x*1e4) / 1e4)
}

// errorText is an error as a share of ‖Δ‖. One that is not 0 does not read as if it were.
func errorText(x float64) string {
	if x != 0 && x < 5e-5 {
		return fmt.Sprintf("%.1e", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// showCoarse says how many layers would have a smaller error if their factors had more digits. An
// error below the resolution of float32 is as good as none.
func showCoarse(t *terminal, r *rank.ExtractReport, dtype string) {
	const resolved = 1e-6
	n := 0
	for i := range r.Layers {
		if l := &r.Layers[i]; !l.NearBest && l.Rounded >= resolved {
			n++
		}
	}
	more := ""
	if dtype != "f32" {
		more = "; --dtype f32 has more"
	}
	if n > 0 {
		t.line("%d of %d layers are not within 0.1 %% of the least error of their rank: %s factors have too few digits%s",
			n, len(r.Layers), dtype, more)
	}
}

// shownLeftOut is how many tensors are named that are left out, where -v does not ask for all.
const shownLeftOut = 8

// showLeftOut names the tensors left out, the largest share of Δ first. Those without a share are
// counted, by their reasons.
func showLeftOut(t *terminal, o *common, left []rank.Skipped) {
	slices.SortStableFunc(left, func(a, b rank.Skipped) int { return cmp.Compare(b.Share, a.Share) })
	shared := 0
	for shared < len(left) && left[shared].Share > 0 {
		shared++
	}
	shown := shared
	if shared > shownLeftOut+1 {
		shown = shownLeftOut
	}
	for i := range shown {
		showSkipped(t, o, left[i:i+1])
	}
	if shown < shared {
		t.line("… and %d more; -v lists all", shared-shown)
	}
	byReason := make(map[string][]rank.Skipped)
	for _, s := range left[shared:] {
		byReason[s.Why] = append(byReason[s.Why], s)
	}
	for _, s := range left[shared:] {
		if of := byReason[s.Why]; of != nil {
			showReason(t, o, of)
			delete(byReason, s.Why)
		}
	}
}

// showReason shows tensors that are left out for one reason.
func showReason(t *terminal, o *common, of []rank.Skipped) {
	if len(of) == 1 {
		showSkipped(t, o, of)
		return
	}
	var size int64
	for _, s := range of {
		size += s.Bytes
	}
	t.line("skipped   %d tensors of %s, such as %s: %s", len(of), fileio.FormatBytes(size),
		of[0].Tensor, of[0].Why)
}
