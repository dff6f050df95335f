package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type diffOptions struct {
	common
	planOptions
	pageOption
	directions int
	base       string
	spectrum   bool
	exitCode   bool
	force      bool
}

func diffCommand(t *terminal) *cli.Command {
	o := new(diffOptions)
	return &cli.Command{
		Name:      "diff",
		Usage:     "compare adapters, or two checkpoints",
		ArgsUsage: "A B... | BASE TUNED ADAPTER",
		Description: "Compares the ΔW of adapters of one model, layer by layer, through their factors: norms, the norm of the difference, the cosine, " +
			"and whether they fight when they are merged together. Overlap is the similarity φ of the spaces of their first singular vectors " +
			"(section 7 of the LoRA paper): 1 for the same space, 0 for orthogonal ones; beside it stands what random spaces have. " +
			"With more than two adapters diff prints a table of all pairs. The adapters may be of different dialects.\n\n" +
			"Of two checkpoints it compares all tensors by their values, whatever their dtypes: those that are the same, changed, reshaped, or in one only. " +
			"--spectrum says of what rank the changes are.\n\n" +
			"diff BASE TUNED ADAPTER says how much of TUNED − BASE is the adapter's ΔW, with the weight that fits best, and which tensors changed elsewhere. " +
			"It takes the flags that merge needs for ADAPTER.",
		Flags: slices.Concat([]cli.Flag{
			&cli.IntFlag{Name: "directions", Usage: "compare the spaces of the first `K` singular vectors", Value: 8, Destination: &o.directions},
			&cli.StringFlag{Name: "base", Usage: "the model that the adapters are for, where their dialects differ in more than names: its config.json says how llama.cpp orders the rows of attention heads, and `BASE` has the names of modules of image models that no table knows", Destination: &o.base},
			&cli.BoolFlag{Name: "spectrum", Usage: "of two checkpoints: ranks and first singular values of the change of every matrix, and how many have 90 % of its energy; takes about as long as extract", Destination: &o.spectrum},
			&cli.BoolFlag{Name: "exit-code", Usage: "exit with 4 if the adapters differ", Destination: &o.exitCode},
			o.pageFlag("heat maps of all layers, and φ of each; of several adapters, heat maps of all pairs"),
			&cli.BoolFlag{Name: "force", Usage: "replace the FILE of --html if it is such a page", Destination: &o.force},
		}, []cli.Flag{o.memoryFlag()}, o.planFlags(), o.flags()),
		Action: func(c *cli.Context) error { return runDiff(c, t, o) },
	}
}

// errDiffer is the result of --exit-code.
var errDiffer = fault.New(fault.Check, "the adapters differ")

func runDiff(c *cli.Context, t *terminal, o *diffOptions) error {
	const example = "loratool diff ADAPTER ADAPTER"
	paths := c.Args().Slice()
	if len(paths) < 2 {
		return usagef(example, "diff takes two adapters or more, got %s", fault.Count(len(paths), "argument"))
	}
	if o.directions < 1 {
		return usagef(example, "--directions is at least 1, got %d", o.directions)
	}
	if err := o.checkHTML(paths); err != nil {
		return err
	}
	isModel := func(path string) bool { return !convert.IsAdapter(c.Context, path) }
	isChange := len(paths) == 3 && isModel(paths[0]) && isModel(paths[1]) && !isModel(paths[2])
	if flag := o.given(c); flag != "" && !isChange {
		return usagef("loratool diff BASE TUNED ADAPTER "+flag, "%s is for an adapter and the difference of two checkpoints", flag)
	}
	if o.dialect == "" && !isChange && slices.ContainsFunc(paths, isModel) {
		if o.base != "" {
			return usagef("loratool diff ADAPTER ADAPTER --base BASE", "--base of diff is for adapters")
		}
		if len(paths) != 2 {
			return usagef("loratool diff CHECKPOINT CHECKPOINT [ADAPTER]", "diff compares two checkpoints, or an adapter with their difference, got %s",
				fault.Count(len(paths), "argument"))
		}
		return o.checkpoints(c, t, paths)
	}
	if o.spectrum {
		return usagef("loratool inspect ADAPTER --spectrum", "--spectrum of diff is for two checkpoints")
	}
	if isChange {
		if o.base != "" {
			return usagef("loratool diff BASE TUNED ADAPTER", "BASE is the first argument of diff BASE TUNED ADAPTER")
		}
		return o.change(c, t, paths)
	}
	openings, err := o.opening(paths...)
	if err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	var adapters []format.Source
	for i, path := range paths {
		src, err := convert.Open(c.Context, path, openings[i])
		if err != nil {
			return err
		}
		closers.add(src)
		adapters = append(adapters, src)
	}
	if adapters, err = alike(c, adapters, o.base); err != nil {
		return err
	}
	if len(adapters) == 2 {
		return o.two(c, t, paths, adapters)
	}
	return o.all(c, t, paths, adapters)
}

// checkHTML checks the flags for the page.
func (o *diffOptions) checkHTML(paths []string) error {
	if o.force && o.html == "" {
		return usagef("loratool diff A B --html FILE --force", "--force is for --html")
	}
	return o.checkPage(o.place(o.force, paths, nil))
}

// writePage writes the page of two adapters or checkpoints.
func (o *diffOptions) writePage(t *terminal, paths []string, draw func(page.Head) ([]byte, error)) error {
	head := page.Head{Command: "diff", Title: strings.Join(paths, " and ")}
	return o.pageOption.writePage(t, &o.common, o.place(o.force, paths, nil), head, draw)
}

// compare compares two of the adapters.
func (o *diffOptions) compare(c *cli.Context, a, b format.Source) (*rank.Comparison, error) {
	need, module := rank.CombineBytes([]format.Source{a, b}, rank.CombineOptions{Workers: o.workers})
	if err := o.checkMemory(need, fmt.Sprintf("the comparison of layers such as %q", module)); err != nil {
		return nil, err
	}
	r, err := rank.Compare(c.Context, a, b, rank.CompareOptions{Directions: o.directions, Workers: o.workers})
	if err != nil {
		return nil, err
	}
	for i := range r.NotCompared {
		r.NotCompared[i].Why = flagsFor(r.NotCompared[i].Why)
	}
	return r, nil
}

// two compares two adapters in detail.
func (o *diffOptions) two(c *cli.Context, t *terminal, paths []string, adapters []format.Source) error {
	r, err := o.compare(c, adapters[0], adapters[1])
	if err != nil {
		return err
	}
	document := struct {
		A    string `json:"a"`
		B    string `json:"b"`
		Same bool   `json:"same"`
		*rank.Comparison
	}{paths[0], paths[1], r.Same(), r}
	if err := t.show("diff", o.json, document, func() { showComparison(t, o, paths, r) }); err != nil {
		return err
	}
	if err := o.writePage(t, paths, func(h page.Head) ([]byte, error) { return page.Comparison(h, r) }); err != nil {
		return err
	}
	if o.exitCode && !r.Same() {
		return errDiffer
	}
	return nil
}

// showComparison prints the comparison of two adapters.
func showComparison(t *terminal, o *diffOptions, paths []string, r *rank.Comparison) {
	switch {
	case r.Same():
		t.line("%s and %s do the same", paths[0], paths[1])
		if !o.verbose {
			return
		}
	case len(r.Layers) == 0:
		t.line("A and B have no layer in common that could be compared")
	default:
		t.line("%s", headline(r))
	}
	o.showComparedLayers(t, r)
	for _, only := range []struct {
		name    string
		modules []string
	}{{"A", r.OnlyA}, {"B", r.OnlyB}} {
		for _, g := range o.group(len(only.modules), func(i int) (name, key string) { return only.modules[i], "" }) {
			t.line("only in %s: %s (%s)", only.name, g.name, fault.Count(g.n, "layer"))
		}
	}
	for _, g := range o.group(len(r.NotCompared), func(i int) (name, key string) { return r.NotCompared[i].Module, r.NotCompared[i].Why }) {
		t.line("not compared: %s: %s", g.name, r.NotCompared[g.first].Why)
	}
	o.showComparedTensors(t, r)
	if len(r.Layers) > 0 && len(r.NotCompared) == 0 && !r.Same() {
		t.line("merged together: ‖ΔA + ΔB‖² is %.3f of ‖ΔA‖² + ‖ΔB‖², so %s", r.Interference, interferenceText(r.Interference))
	}
}

// headline compares the layers that both adapters have.
func headline(r *rank.Comparison) string {
	x := rank.TotalsOf(r.Layers)
	where := ""
	if r.IsPartial() {
		where = fmt.Sprintf(" in the %s that could be compared", fault.Count(len(r.Layers), "layer"))
	}
	if x.NormDifference <= 1e-12*max(x.NormA, x.NormB) {
		if where == "" {
			return "A and B have the same ΔW, and differ in other tensors"
		}
		return "A and B have the same ΔW" + where + "; the rest is below"
	}
	text := fmt.Sprintf("A and B differ: ‖ΔA − ΔB‖ is %.4g%s, with ‖ΔA‖ = %.4g and ‖ΔB‖ = %.4g", x.NormDifference, where, x.NormA, x.NormB)
	if x.NormA > 0 && x.NormB > 0 {
		text += fmt.Sprintf("; the cosine is %.4f", x.Cosine)
	}
	return text
}

// interferenceText describes an interference.
func interferenceText(x float64) string {
	switch {
	case x > 1.05:
		return "they add to each other"
	case x < 0.95:
		return "they take from each other"
	}
	return "they hardly touch each other"
}

func (o *diffOptions) showComparedLayers(t *terminal, r *rank.Comparison) {
	if len(r.Layers) == 0 {
		return
	}
	tab := &table{columns: []column{
		{head: "layers"}, {head: "ranks", left: true, drop: 4}, {head: "‖ΔA‖", drop: 2}, {head: "‖ΔB‖", drop: 3}, {head: "‖ΔA−ΔB‖"},
		{head: "cosine"}, {head: "overlap", meaning: "φ of the first input directions, on average"}, {head: "random", drop: 1, meaning: "φ of random spaces"},
		{head: "module", left: true, isName: true},
	}}
	for _, k := range o.kinds(len(r.Layers), func(i int) string { return r.Layers[i].Module }) {
		var ranksA, ranksB span
		var overlap, random float64
		var layers []rank.ComparedLayer
		for _, i := range k.items {
			l := &r.Layers[i]
			layers = append(layers, *l)
			ranksA.add(l.RankA)
			ranksB.add(l.RankB)
			overlap, random = overlap+l.Overlap, random+l.Random
		}
		n, x := float64(len(k.items)), rank.TotalsOf(layers)
		tab.add(fmt.Sprint(len(k.items)), ranksA.String()+", "+ranksB.String(), fmt.Sprintf("%.4g", x.NormA), fmt.Sprintf("%.4g", x.NormB),
			fmt.Sprintf("%.4g", x.NormDifference), fmt.Sprintf("%.4f", x.Cosine), fmt.Sprintf("%.3f", overlap/n), fmt.Sprintf("%.3f", random/n), k.name)
	}
	t.print(tab)
}

func (o *diffOptions) showComparedTensors(t *terminal, r *rank.Comparison) {
	for _, g := range o.group(len(r.Tensors), func(i int) (name, key string) {
		x := &r.Tensors[i]
		return x.Tensor, fmt.Sprint(x.What, x.Status)
	}) {
		x := &r.Tensors[g.first]
		t.line("%s %s: %s", x.What, g.name, x.Text())
	}
}

// all compares every pair of several adapters.
func (o *diffOptions) all(c *cli.Context, t *terminal, paths []string, adapters []format.Source) error {
	n := len(adapters)
	square := func() [][]float64 {
		x := make([][]float64, n)
		for i := range x {
			x[i] = make([]float64, n)
			x[i][i] = 1
		}
		return x
	}
	document := struct {
		Adapters     []string    `json:"adapters"`
		Norms        []float64   `json:"norms"`
		Cosines      [][]float64 `json:"cosines"`
		Interference [][]float64 `json:"interference"`
		Same         bool        `json:"same"`
	}{paths, make([]float64, n), square(), square(), true}
	for i := range n {
		document.Interference[i][i] = 2
		for k := range i {
			r, err := o.compare(c, adapters[k], adapters[i])
			if err != nil {
				return err
			}
			document.Norms[k], document.Norms[i] = r.NormA, r.NormB
			document.Cosines[i][k], document.Cosines[k][i] = r.Cosine, r.Cosine
			document.Interference[i][k], document.Interference[k][i] = r.Interference, r.Interference
			document.Same = document.Same && r.Same()
		}
	}
	if err := t.show("diff", o.json, document, func() {
		tab := &table{columns: []column{{head: "", left: true}, {head: "‖ΔW‖"}}}
		for i := range n {
			tab.columns = append(tab.columns, column{head: fmt.Sprint(i + 1)})
		}
		tab.columns = append(tab.columns, column{head: "adapter", left: true, isName: true})
		for i := range n {
			row := []string{fmt.Sprint(i + 1), fmt.Sprintf("%.4g", document.Norms[i])}
			for k := range n {
				row = append(row, fmt.Sprintf("%.3f", document.Cosines[i][k]))
			}
			tab.add(append(row, paths[i])...)
		}
		t.line("cosines of the ΔW over all layers:")
		t.print(tab)
	}); err != nil {
		return err
	}
	if err := o.writePage(t, paths, func(h page.Head) ([]byte, error) {
		return page.Several(h, paths, document.Norms, document.Cosines, document.Interference)
	}); err != nil {
		return err
	}
	if o.exitCode && !document.Same {
		return errDiffer
	}
	return nil
}
