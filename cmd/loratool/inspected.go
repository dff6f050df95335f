package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
)

// showAdapter prints the content of an adapter, and whether merge applies it.
func showAdapter(t *terminal, o *inspectOptions, r *report.Adapter) {
	method := r.Method
	if r.Dialect != "" { // an adapter that was made here was read from none
		method += ", dialect " + r.Dialect
	}
	t.printf("adapter   %s, %s, %s, %s (%s)\n", method, fault.Count(len(r.Layers), "layer"), fault.Count(r.Parameters, "parameter"), fileio.FormatBytes(r.Bytes), dtypesText(r.DTypes))
	if r.Base != "" {
		t.printf("base      %s\n", strings.TrimSpace(r.Base+" "+r.Revision))
	}
	if r.Fingerprints > 0 {
		t.printf("base      is remembered by the fingerprints of %s, which merge compares\n", fault.Count(r.Fingerprints, "tensor"))
	}
	if len(r.Layers) > 0 {
		showLayers(t, o, r.Layers)
	}
	if o.spectrum {
		showSpectra(t, r.Layers)
	}
	for _, b := range r.Beside {
		t.printf("beside    %s %s %d %s\n", b.Action, b.DType, b.Shape, b.Target)
	}
	for _, n := range r.Notes {
		t.printf("note      %s\n", n)
	}
	if r.Values == nil {
		t.printf("values    not read (--values reads them)\n")
	} else {
		t.printf("values    %s, %s NaN or infinite\n",
			fault.Count(r.Values.Untrained, "untrained layer"), fault.Count(r.Values.NonFinite, "value"))
		showOdd(t, o, r.Layers)
		t.printf("content   %s\n", r.Content)
	}
	showVerdict(t, r)
}

// showVerdict prints whether merge applies an adapter, how, and why not.
func showVerdict(t *terminal, r *report.Adapter) {
	if r.Mergeable {
		t.printf("merge     applies it\n")
	}
	for _, method := range r.Methods {
		t.printf("method    %s\n", method)
	}
	for _, why := range r.Refusals {
		t.printf("merge     refuses it: %s\n", why)
	}
}

// maxOdd is how many layers a report names that are untrained or not finite, unless it is verbose.
const maxOdd = 8

// showOdd names the layers that are untrained or not finite.
func showOdd(t *terminal, o *inspectOptions, layers []report.Layer) {
	n := 0
	for _, l := range layers {
		if !l.Untrained && l.NonFinite == 0 {
			continue
		}
		if n++; n <= maxOdd || o.verbose {
			t.printf("          %s: untrained %v, not finite %d\n", l.Module, l.Untrained, l.NonFinite)
		}
	}
	if n > maxOdd && !o.verbose {
		t.printf("          and %s (--verbose lists them)\n", fault.Count(n-maxOdd, "more layer"))
	}
}

// showLayers prints the shapes, ranks and scales of the layers.
func showLayers(t *terminal, o *inspectOptions, layers []report.Layer) {
	tab := &table{columns: []column{
		{head: "layers", left: true}, {head: "kind", left: true, drop: 1}, {head: "m×n", left: true}, {head: "rank", left: true}, {head: "alpha", left: true, drop: 2},
		{head: "scale", left: true}, {head: "dtype", left: true, drop: 3}, {head: "modules", left: true, isName: true},
	}}
	for _, g := range groupLayers(layers, o.verbose) {
		l := g.first
		tab.add(strconv.Itoa(g.n), l.Kind, sizeText(&l), strconv.Itoa(l.Rank), fmt.Sprintf("%g", l.Alpha), fmt.Sprintf("%.6g", l.Scale), l.DType, g.name)
	}
	t.print(tab)
}

// sizeText is the shape of the update of a layer: of a convolution with its kernel.
func sizeText(l *report.Layer) string {
	text := fmt.Sprintf("%d×%d", l.M, l.N)
	for _, k := range l.Kernel {
		text += fmt.Sprintf("×%d", k)
	}
	return text
}

// layerGroup is a run of layers that differ in nothing but the number in their path.
type layerGroup struct {
	name  string
	first report.Layer
	n     int
}

// layerKey is the common part of the layers of a group.
type layerKey struct {
	name, kind, size, dtype string
	rank                    int
	alpha, scale            float64
}

// withoutNumbers is a path with a star for every number in it.
func withoutNumbers(path string) string {
	parts := strings.Split(path, ".")
	for i, p := range parts {
		if strings.Trim(p, "0123456789") == "" {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, ".")
}

// groupLayers joins the layers of a kind for a table that fits a screen; each stays alone in a
// verbose one.
func groupLayers(layers []report.Layer, verbose bool) []*layerGroup {
	byKey := make(map[layerKey]*layerGroup)
	var groups []*layerGroup
	for _, l := range layers {
		name := l.Module
		if !verbose {
			name = withoutNumbers(name)
		}
		key := layerKey{name, l.Kind, sizeText(&l), l.DType, l.Rank, l.Alpha, l.Scale}
		if byKey[key] == nil {
			byKey[key] = &layerGroup{name: name, first: l}
			groups = append(groups, byKey[key])
		}
		byKey[key].n++
	}
	return groups
}

func dtypesText(counts []report.DTypeCount) string {
	parts := make([]string, len(counts))
	for i, c := range counts {
		parts[i] = fmt.Sprintf("%d %s", c.Tensors, c.DType)
	}
	return strings.Join(parts, ", ")
}

// showCheckpoint prints the content of a checkpoint, and the cost of a LoRA on it.
func showCheckpoint(t *terminal, r *report.Checkpoint) {
	t.printf("checkpoint  %s%s, %s\n", strings.TrimLeft(r.ModelType+", ", ", "), fault.Count(r.Files, "file"), fileio.FormatBytes(r.Bytes))
	t.printf("tensors     %d (%s), %s parameters\n", r.Tensors, dtypesText(r.DTypes), countText(r.Parameters))
	if r.Quantization != "" {
		t.printf("quantised   %s\n", r.Quantization)
	}
	for _, m := range r.Merged {
		for _, a := range m.Adapters {
			t.printf("merged      %s × %g (content %.16s…, %s, %s)\n", a.Name, a.Weight, a.Content, m.Tool, m.File)
		}
	}
	if r.Cost == nil {
		return
	}
	for _, target := range r.Cost.Targets {
		t.printf("lora r=%-4d %s: %s, %s\n", r.Cost.Rank, target.Name, fault.Count(target.Modules, "module"), fault.Count(target.Parameters, "parameter"))
	}
	t.printf("lora r=%-4d %s parameters, %s of the checkpoint\n", r.Cost.Rank, countText(r.Cost.Parameters), percent(r.Cost.Share))
}

// showUndo prints the content of an undo record.
func showUndo(t *terminal, o *inspectOptions, r *report.Undo) {
	t.printf("undo record  of a merge by %s: %s, %s\n", r.Tool, fault.Count(len(r.Tensors), "tensor"), fault.Count(r.Elements, "element"))
	for _, a := range r.Adapters {
		t.printf("merged       %s × %g (content %.16s…)\n", a.Name, a.Weight, a.Content)
	}
	for _, f := range r.Files {
		if f.Changed {
			t.printf("file         %s header %.16s… before, %.16s… after\n", strings.TrimSpace(f.Name+","), f.Before.SHA256, f.After.SHA256)
		}
	}
	t.printf("size         %s, %.3g bits per weight\n", fileio.FormatBytes(r.Bytes), r.BitsPerWeight)
	if !o.verbose {
		t.printf("tensors      --verbose lists them, with their digests\n")
		return
	}
	tab := &table{columns: []column{
		{head: "dtype", left: true}, {head: "shape", left: true, drop: 2}, {head: "predicted by", left: true, drop: 1}, {head: "residuals"},
		{head: "before", left: true}, {head: "tensor", left: true, isName: true},
	}}
	for _, x := range r.Tensors {
		tab.add(x.DType, fmt.Sprint(x.Shape), x.Predict, percent(float64(x.Residuals)/float64(max(1, x.Elements))), fmt.Sprintf("%.16s…", x.Before), x.Tensor)
	}
	t.print(tab)
}
