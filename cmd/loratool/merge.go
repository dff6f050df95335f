package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// mergeOptions are the flags of merge.
type mergeOptions struct {
	common
	readingOptions
	out            string
	weights        cli.StringSlice
	force, again   bool
	dryRun         bool
	undo           optionalPath
	anyBase        bool
	allowNonFinite bool
	tied           string
	growVocabulary bool
	addTensors     bool
}

func mergeCommand(t *terminal) *cli.Command {
	o := new(mergeOptions)
	return &cli.Command{
		Name:      "merge",
		Usage:     "write a checkpoint that is BASE plus one or more adapters: W0 + Σ weight·s·B·A, every element correctly rounded",
		ArgsUsage: "BASE ADAPTER... -o OUT",
		Description: "BASE is a .safetensors file, or a directory with model.safetensors or with an index and its shards; the other files of a\n" +
			"directory are copied. ADAPTER is a directory or a file as PEFT saves it. OUT is of the same kind as BASE, and appears whole\n" +
			"or not at all.\n\n" +
			"With --add-tensors the head that an adapter was trained with comes into OUT. A new tensor is rounded once, to the dtype that\n" +
			"most values of BASE have; one that replaces another gets the dtype of the old one. config.json gets the class of the model\n" +
			"and the number of labels where the model type is known; names of labels are in no adapter.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the merged checkpoint to `OUT`", Destination: &o.out},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "multiply an adapter by `W`; once per adapter, in their order (default: 1)", Destination: &o.weights},
			&cli.GenericFlag{Name: "undo", Usage: "write an undo record to `FILE`, from which unmerge restores BASE byte for byte (default: OUT" + undoSuffix + ")", Value: &o.undo},
			&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is a checkpoint", Destination: &o.force},
			&cli.BoolFlag{Name: "again", Usage: "merge an adapter again that BASE already has", Destination: &o.again},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be done, and write nothing", Destination: &o.dryRun},
			&cli.BoolFlag{Name: "any-base", Usage: "merge though an adapter remembers another base", Destination: &o.anyBase},
			&cli.BoolFlag{Name: "allow-nonfinite", Usage: "go on where an adapter holds NaN or infinity, or a weight becomes infinite", Destination: &o.allowNonFinite},
			&cli.StringFlag{Name: "tied", Usage: "where an adapter changes one of two tied ends, `untie|fold`: make the head a tensor of its own, or make the change to both", Destination: &o.tied, Action: checkTied},
			&cli.BoolFlag{Name: "grow-vocabulary", Usage: "add rows to embedding and head where an adapter has more, and change config.json", Destination: &o.growVocabulary},
			&cli.BoolFlag{Name: "add-tensors", Usage: "add tensors that an adapter saves whole and BASE lacks or has in another shape, such as a classifier, and change config.json", Destination: &o.addTensors},
		}, append(append(o.readingFlags(), o.memoryFlag()), o.flags()...)...),
		Action: func(c *cli.Context) error { return runMerge(c, t, o) },
	}
}

func runMerge(c *cli.Context, t *terminal, o *mergeOptions) error {
	args := c.Args().Slice()
	if len(args) < 2 {
		return usagef("loratool merge BASE ADAPTER... -o OUT", "merge needs a base and at least one adapter")
	}
	if o.out == "" && !o.dryRun {
		return usagef("loratool merge BASE ADAPTER... -o OUT", "merge needs -o OUT, the place of the merged checkpoint")
	}
	weights, err := parseWeights(o.weights.Value(), len(args)-1, 1)
	if err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	adapters, err := o.openAdapters(c.Context, args[1:], weights, &closers)
	if err != nil {
		return err
	}
	run := &planRun{
		command: "merge", what: "merging", common: &o.common, out: o.out, dryRun: o.dryRun, show: showReport,
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.Open(c.Context, args[0], adapters, options)
		},
	}
	if o.undo.given {
		if run.record = o.undo.path; run.record == "" {
			run.record = undoBeside(o.out)
		}
	}
	options := merge.Options{Workers: o.workers, Replace: o.force, Again: o.again, AnyBase: o.anyBase, AllowNonFinite: o.allowNonFinite, Tool: "loratool " + version}
	o.readingOptions.set(&options)
	options.Tied, options.GrowVocabulary, options.AddTensors = merge.Tied(o.tied), o.growVocabulary, o.addTensors
	return runPlan(t, run, options, c)
}

func checkTied(_ *cli.Context, tied string) error {
	if t := merge.Tied(tied); t != merge.Untie && t != merge.Fold {
		return usagef("--tied untie, or --tied fold", "got --tied %q", tied)
	}
	return nil
}

// planRun is the run of a plan of package merge, by whichever command.
type planRun struct {
	command, what string
	common        *common
	out           string
	record        string // where the undo record goes; "" is nowhere
	dryRun        bool
	approximate   bool
	open          func(merge.Options) (*merge.Plan, error)
	show          func(*terminal, *planRun, *merge.Report)
}

// runPlan opens a plan, shows or runs it, and reports.
func runPlan(t *terminal, run *planRun, options merge.Options, c *cli.Context) error {
	var add func(int64)
	options.Progress = func(n int64) {
		if add != nil {
			add(n)
		}
	}
	options.UndoFile = run.record
	plan, err := run.open(options)
	if err != nil {
		return err
	}
	defer plan.Close()
	if !run.common.quiet {
		for _, w := range plan.Warnings() {
			t.message("warning", w)
		}
	}
	if run.dryRun {
		return showPlan(t, run, plan)
	}
	if err := run.common.checkMemory(plan.PeakBytes(parallel.Workers(run.common.workers)), run.what); err != nil {
		return err
	}
	add, finish := t.progress(run.common, plan.OutputBytes(), run.what)
	report, err := plan.Run(c.Context, run.out)
	finish()
	if err != nil {
		return err
	}
	if run.common.json {
		return t.document(run.command, report)
	}
	if !run.common.quiet {
		run.show(t, run, report)
	}
	return nil
}

// parseWeights returns one weight per adapter; none at all means the absent one for each.
func parseWeights(texts []string, n int, absent float64) ([]float64, error) {
	weights := slices.Repeat([]float64{absent}, n)
	if len(texts) == 0 {
		return weights, nil
	}
	if len(texts) != n {
		return nil, usagef("give --weight once per adapter, in the order of the adapters", "got %d weights for %d adapters", len(texts), n)
	}
	for i, text := range texts {
		w, ok := parseDecimal(text)
		if !ok {
			return nil, usagef("a weight is a number such as 0.7 or -1", "got the weight %q", text)
		}
		weights[i] = w
	}
	return weights, nil
}

// showPlan prints what a plan would do.
func showPlan(t *terminal, o *planRun, plan *merge.Plan) error {
	var blocked error
	free := int64(-1)
	if o.out != "" {
		blocked = plan.CheckOutput(o.out)
		free = freeBytes(o.out)
	}
	tensors, peak := plan.Tensors(), plan.PeakBytes(parallel.Workers(o.common.workers))
	if o.common.json && blocked == nil {
		return t.document(o.command, map[string]any{
			"dry_run": true, "tensors": tensors, "bytes_to_write": plan.OutputBytes(), "free_bytes": free, "peak_memory_bytes": peak,
			"warnings": allFlags(plan.Warnings()),
		})
	}
	if !o.common.json {
		tab := &table{columns: []column{
			{head: "tensor", left: true, isName: true}, {head: "dtype", left: true, drop: 1}, {head: "shape", left: true}, {head: "rank", left: true}, {head: "scale", left: true, drop: 2},
		}}
		for _, p := range tensors {
			rank, scale := strconv.Itoa(p.Rank), scaleText(&p)
			switch {
			case p.Replaced && p.Rank == 0:
				rank, scale = fateText(&p), ""
			case p.Rows > 0:
				rank, scale = fmt.Sprintf("%d rows", p.Rows), ""
			}
			tab.add(p.Tensor, p.DType, fmt.Sprint(p.Shape), rank, scale)
		}
		t.print(tab)
		t.printf("%d tensors change; %s to write, about %s of memory", len(tensors), fileio.FormatBytes(plan.OutputBytes()), fileio.FormatBytes(peak))
		if free >= 0 {
			t.printf(", %s free", fileio.FormatBytes(free))
		}
		t.printf("\n")
	}
	return blocked
}

// fateText says what happens to a tensor that an adapter saves whole.
func fateText(p *merge.PlannedTensor) string {
	switch {
	case p.Added:
		return "added"
	case p.Was != nil:
		return fmt.Sprintf("replaces %d", p.Was)
	}
	return "replaced"
}

// whyZero says what makes every update zero.
func whyZero(r *merge.Report) string {
	for _, l := range r.Layers {
		if l.Scale != 0 || slices.ContainsFunc(l.Updates, func(u merge.TermShort) bool { return u.Scale != 0 }) {
			return "the adapter's factors are untrained"
		}
	}
	return "the scale of every layer is 0"
}

// scaleText is the scale of the update of a tensor, or of each one.
func scaleText(p *merge.PlannedTensor) string {
	if len(p.Updates) == 0 {
		return fmt.Sprintf("%.6g", p.Scale)
	}
	var all []string
	for _, u := range p.Updates {
		all = append(all, fmt.Sprintf("%.6g", u.Scale))
	}
	return strings.Join(all, ", ")
}

// replacedText names all tensors that an adapter puts in place, those of equal layers under one name.
func replacedText(replaced []merge.PlannedTensor) string {
	counts := make(map[string]int)
	var names []string
	for i := range replaced {
		name := withoutNumbers(replaced[i].Tensor)
		if counts[name]++; counts[name] == 1 {
			names = append(names, name)
		}
	}
	for i, name := range names {
		if n := counts[name]; n > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, n)
		}
	}
	return strings.Join(names, ", ")
}

// showReport prints what a merge did.
func showReport(t *terminal, o *planRun, r *merge.Report) {
	if o.common.verbose {
		tab := &table{columns: []column{
			{head: "rank"}, {head: "scale", drop: 1}, {head: "|ΔW|/|W|"}, {head: "unchanged", drop: 2}, {head: "lost"}, {head: "tensor", left: true, isName: true},
		}}
		for _, l := range r.Layers {
			tab.add(strconv.Itoa(l.Rank), scaleText(&l.PlannedTensor), fmt.Sprintf("%.3g", l.RelativeNorm), percent(l.UnchangedShare), percent(l.RetentionError), l.Tensor)
		}
		for _, p := range r.Replaced {
			tab.add("", "", "", "", "", p.Tensor+" ("+fateText(&p)+")")
		}
		t.print(tab)
	}
	t.printf("merged into %s: %s, %d tensors updated", o.out, fileio.FormatBytes(r.BytesWritten), len(r.Layers))
	added := 0
	for _, p := range r.Replaced {
		if p.Added {
			added++
		}
	}
	if n := len(r.Replaced) - added; n > 0 {
		t.printf(", %d replaced", n)
	}
	if added > 0 {
		t.printf(", %d added", added)
	}
	t.printf("\n")
	if names := replacedText(r.Replaced); names != "" {
		t.printf("from the adapter: %s\n", names)
	}
	if u := r.Undo; u != nil {
		t.printf("undo record in %s: %s, %.3g bits per weight\n", o.record, fileio.FormatBytes(u.Bytes), u.BitsPerWeight)
	}
	if r.Elements == 0 {
		return
	}
	t.printf("|ΔW|/|W| = %.3g; every one of %s elements is the nearest to W + ΔW in its dtype\n", r.Total.RelativeNorm, countText(r.Elements))
	switch lost := r.Total.RetentionError; {
	case r.Total.IsZero:
		t.printf("ΔW is zero, and nothing changes: %s\n", whyZero(r))
	case lost > 0.1:
		t.printf("rounding to the base's dtype costs %s of ΔW, and %s of the weights do not move: ΔW is small against the steps of\n"+
			"the dtype. A float32 base keeps all of it\n", percent(lost), percent(r.Total.UnchangedShare))
	case lost > 1e-4:
		t.printf("rounding to the base's dtype costs %s of ΔW\n", percent(lost))
	}
}
