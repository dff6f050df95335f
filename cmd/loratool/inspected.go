package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
)

// showAdapter prints whether merge applies an adapter, and its content.
func showAdapter(t *terminal, o *inspectOptions, r *report.Adapter) {
	showVerdict(t, r)
	method := r.Method
	if r.Dialect != "" { // an adapter that extract made has none
		method += ", dialect " + r.Dialect
	}
	t.line("adapter   %s: %s, %s, %s in %s", method, fault.Count(len(r.Layers), "layer"),
		fault.Count(r.Parameters, "parameter"), fileio.FormatBytes(r.Bytes), tensorsText(r.DTypes))
	if r.Sign != "" {
		t.line("dialect   recognised by %s", flagsFor(r.Sign))
	}
	if r.Base != "" {
		t.line("base      %s", strings.TrimSpace(r.Base+" "+r.Revision))
	}
	if r.Fingerprints > 0 {
		t.line("base      remembered by the fingerprints of %s, which merge compares", fault.Count(r.Fingerprints, "tensor"))
	}
	if r.License != "" {
		t.line("licence   %s", r.License)
	}
	if len(r.Datasets) > 0 {
		t.line("datasets  %s", strings.Join(r.Datasets, ", "))
	}
	if len(r.Attached) > 0 {
		t.line("attached  %s", strings.Join(r.Attached, ", "))
	}
	showPEFT(t, r.PEFT)
	showUnusual(t, r.Unusual)
	showTraining(t, r)
	showHashes(t, r)
	showBeside(t, o, r.Beside)
	for _, n := range r.Notes {
		t.line("note      %s", n)
	}
	showValues(t, o, r)
	if len(r.Layers) > 0 {
		t.line("")
		showLayers(t, o, r.Layers)
	}
	if o.spectrum {
		t.line("")
		showSpectra(t, o, r)
	}
	if r.OnBase != nil && r.OnBase.Fits {
		t.line("")
		showOnBase(t, o, r.OnBase)
	}
	if o.metadata {
		t.line("")
		showMetadata(t, r)
	}
}

// showPEFT prints what PEFT's configuration says of the training.
func showPEFT(t *terminal, p *report.PEFT) {
	if p == nil {
		return
	}
	var facts []string
	for _, fact := range []struct{ name, text string }{
		{"version", p.Version}, {"task", p.TaskType}, {"targets", listText(slices.Sorted(slices.Values(p.TargetModules)))},
		{"trained whole", listText(p.ModulesToSave)},
	} {
		if fact.text != "" {
			facts = append(facts, fact.name+" "+fact.text)
		}
	}
	if len(facts) > 0 {
		t.line("peft      %s", strings.Join(facts, "; "))
	}
}

// maxListed is how many names a line lists.
const maxListed = 12

// listText lists the first names, and counts the others.
func listText(names []string) string {
	if n := len(names) - maxListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), n)
	}
	return strings.Join(names, ", ")
}

// showUnusual prints the unusual files of an adapter's folder, a line for each kind.
func showUnusual(t *terminal, files []convert.UnusualFile) {
	for _, kind := range []struct{ name, text string }{
		{convert.UnusualPickle, "pickles, which can run code in programs that load them"},
		{convert.UnusualCode, "code"}, {convert.UnusualTraining, "the state of a training, which merge does not need"},
		{convert.UnusualWeights, "other weights"},
	} {
		var names []string
		for _, f := range files {
			if f.Kind == kind.name {
				names = append(names, fmt.Sprintf("%s (%s)", f.Name, fileio.FormatBytes(f.Bytes)))
			}
		}
		if len(names) > 0 {
			t.line("unusual   its folder holds %s: %s", kind.text, strings.Join(names, ", "))
		}
	}
}

// showVerdict prints whether merge applies an adapter, how, and why not.
func showVerdict(t *terminal, r *report.Adapter) {
	if r.Mergeable {
		t.line("verdict   merge applies it")
	}
	for _, method := range r.Methods {
		t.line("method    %s", method)
	}
	for _, why := range r.Refusals {
		t.line("verdict   merge refuses it: %s", why)
	}
	showFit(t, r.OnBase)
}

// showBeside prints the tensors that are outside all layers.
func showBeside(t *terminal, o *inspectOptions, beside []report.BesideTensor) {
	for _, g := range o.group(len(beside), func(i int) (name, key string) {
		b := &beside[i]
		return b.Target, fmt.Sprintf("%s %s %d", b.Action, b.DType, b.Shape)
	}) {
		b := &beside[g.first]
		count := ""
		if g.n > 1 {
			count = " (" + fault.Count(g.n, "tensor") + ")"
		}
		t.line("beside    %s %s %d %s%s", b.Action, b.DType, b.Shape, g.name, count)
	}
}

// showValues prints the layers with untrained, NaN or infinite values, if the values were read.
func showValues(t *terminal, o *inspectOptions, r *report.Adapter) {
	if r.Values == nil {
		t.line("values    not read; --values looks for untrained layers, NaN and infinity")
		return
	}
	t.line("values    %s, %s NaN or infinite",
		fault.Count(r.Values.Untrained, "untrained layer"), fault.Count(r.Values.NonFinite, "value"))
	showOdd(t, o, r.Layers)
	t.line("content   %s", r.Content)
}

// maxOdd is how many lines a report has for layers that are untrained or not finite, unless it is
// verbose.
const maxOdd = 8

// showOdd names the layers that are untrained or not finite.
func showOdd(t *terminal, o *inspectOptions, layers []report.Layer) {
	var odd []report.Layer
	for _, l := range layers {
		if l.Untrained || l.NonFinite != 0 {
			odd = append(odd, l)
		}
	}
	left := len(odd)
	for i, g := range o.group(len(odd), func(i int) (name, key string) { return odd[i].Module, oddText(&odd[i]) }) {
		if i == maxOdd && !o.verbose {
			t.line("          and %s; -v lists all", fault.Count(left, "more layer"))
			return
		}
		left -= g.n
		t.line("          %s: %s", g.name, oddText(&odd[g.first]))
	}
}

// oddText names the oddities of a layer's values.
func oddText(l *report.Layer) string {
	var all []string
	if l.Untrained {
		all = append(all, "untrained")
	}
	if l.NonFinite != 0 {
		all = append(all, fault.Count(l.NonFinite, "value")+" NaN or infinite")
	}
	return strings.Join(all, ", ")
}

// group joins items that are alike and whose names differ only in numbers, unless the report is
// verbose.
func (o *common) group(n int, item func(i int) (name, key string)) []group {
	if !o.verbose {
		return groupNames(n, item)
	}
	all := make([]group, n)
	for i := range all {
		name, _ := item(i)
		all[i] = group{name, i, 1}
	}
	return all
}

// showLayers prints the shapes, ranks and scales of the layers.
func showLayers(t *terminal, o *inspectOptions, layers []report.Layer) {
	sizes := "rows of B, columns of A"
	if slices.ContainsFunc(layers, func(l report.Layer) bool { return l.M == 0 || l.N == 0 }) {
		sizes += "; a letter is a size that only the base tells"
	}
	tab := &table{columns: []column{
		{head: "layers"}, {head: "kind", left: true, drop: 1}, {head: "m×n", left: true, meaning: sizes}, {head: "rank"}, {head: "alpha", drop: 2},
		{head: "scale", meaning: "the s of s·B·A"}, {head: "dtype", left: true, drop: 3}, {head: "module", left: true, isName: true},
	}}
	for _, g := range o.group(len(layers), func(i int) (name, key string) {
		l := &layers[i]
		return l.Module, fmt.Sprint(l.Kind, l.Size(), l.DType, l.Rank, l.Alpha, l.Scale)
	}) {
		l := &layers[g.first]
		tab.add(strconv.Itoa(g.n), l.Kind, l.Size(), strconv.Itoa(l.Rank), fmt.Sprintf("%g", l.Alpha), fmt.Sprintf("%.6g", l.Scale), l.DType, g.name)
	}
	t.print(tab)
}

// tensorsText counts tensors by dtype: 52 F32 and 2 BF16 tensors.
func tensorsText(counts []report.DTypeCount) string {
	var b strings.Builder
	for i, c := range counts {
		switch {
		case i > 0 && i == len(counts)-1:
			b.WriteString(" and ")
		case i > 0:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %s", countText(int64(c.Tensors)), c.DType)
	}
	if len(counts) == 1 && counts[0].Tensors == 1 {
		return b.String() + " tensor"
	}
	return b.String() + " tensors"
}

// showCheckpoint prints the content of a checkpoint, and the cost of a LoRA on it.
func showCheckpoint(t *terminal, r *report.Checkpoint) {
	t.line("checkpoint  %s%s, %s", strings.TrimLeft(r.ModelType+", ", ", "), fault.Count(r.Files, "file"), fileio.FormatBytes(r.Bytes))
	t.line("tensors     %s in %s", fault.Count(r.Parameters, "parameter"), tensorsText(r.DTypes))
	var roles []string
	for _, c := range r.Roles {
		roles = append(roles, fmt.Sprintf("%s %s", c.Role, countText(c.Parameters)))
	}
	t.line("roles       %s", strings.Join(roles, ", "))
	if r.Tied != "" {
		t.line("tied        the output head is the embedding %s", r.Tied)
	}
	if len(r.Shards) > 1 {
		var shards []string
		for _, s := range r.Shards {
			shards = append(shards, fmt.Sprintf("%s (%s)", s.File, fileio.FormatBytes(s.Bytes)))
		}
		t.line("shards      %s", listText(shards))
	}
	for _, c := range r.Components {
		name := cmp.Or(c.Name, "others")
		if c.Architecture != "" {
			name += " (" + c.Architecture + ")"
		}
		t.line("component   %s, %s", name, fault.Count(c.Weights, "weight"))
	}
	if r.Quantization != "" || r.Schemes != nil {
		t.line("quantised   %s", schemesText(r))
	}
	for _, m := range r.Merged {
		for _, a := range m.Adapters {
			t.line("merged      %s × %g%s (content %.16s…, %s, %s)", a.Name, a.Weight, m.OnBase(), a.Content, m.Tool, m.File)
		}
	}
	if r.Cost != nil {
		showCost(t, r.Cost)
	}
}

// schemesText says how the weights of a checkpoint are quantised.
func schemesText(r *report.Checkpoint) string {
	var all []string
	for _, s := range r.Schemes {
		if s.Refusal == "" {
			all = append(all, fmt.Sprintf("%s as %s", fault.Count(s.Tensors, "weight"), s.Scheme))
		} else {
			all = append(all, fmt.Sprintf("%s in a way that cannot be read (%s)", fault.Count(s.Tensors, "weight"), s.Refusal))
		}
	}
	text := strings.Join(all, "; ")
	if r.Quantization == "" {
		return text
	}
	return strings.TrimSuffix(r.Quantization+": "+text, ": ")
}

// showTensors prints a line for every tensor of a checkpoint.
func showTensors(t *terminal, tensors []report.StoredTensor) {
	t.line("")
	tab := &table{columns: []column{{head: "dtype", left: true}, {head: "shape", left: true}, {head: "name", left: true, isName: true}}}
	for _, x := range tensors {
		tab.add(x.DType, fmt.Sprint(x.Shape), x.Tensor)
	}
	t.print(tab)
}

// showCost prints how many parameters a LoRA on some modules would have.
func showCost(t *terminal, c *report.Cost) {
	t.line("")
	t.line("a LoRA of rank %d has %s, %s of the checkpoint:", c.Rank, fault.Count(c.Parameters, "parameter"), percent(c.Share))
	tab := &table{columns: []column{{head: "parameters"}, {head: "modules"}, {head: "name", left: true, isName: true}}}
	for _, target := range c.Targets {
		tab.add(countText(target.Parameters), countText(int64(target.Modules)), target.Name)
	}
	t.print(tab)
}

// showUndo prints the content of an undo record.
func showUndo(t *terminal, o *inspectOptions, r *report.Undo) {
	t.line("undo record  of a merge by %s: %s, %s", r.Tool, fault.Count(len(r.Tensors), "tensor"), fault.Count(r.Elements, "element"))
	for _, a := range r.Adapters {
		t.line("merged       %s × %g (content %.16s…)", a.Name, a.Weight, a.Content)
	}
	for _, f := range r.Files {
		if f.Changed {
			t.line("file         %s header %.16s… before, %.16s… after", strings.TrimSpace(f.Name+","), f.Before.SHA256, f.After.SHA256)
		}
	}
	for _, s := range r.Side {
		t.line("file         %s, %.16s… before, %.16s… after", s.Name, s.Before.SHA256, s.After.SHA256)
	}
	t.line("size         %s, %.3g bits per weight", fileio.FormatBytes(r.Bytes), r.BitsPerWeight)
	if !o.verbose {
		t.line("tensors      -v lists them, with digests of their checksums")
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
