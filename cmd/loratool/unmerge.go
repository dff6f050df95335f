package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// removalOptions are the flags that unmerge and swap share.
type removalOptions struct {
	common
	readingOptions
	out           string
	records       cli.StringSlice
	force, dryRun bool
}

func (o *removalOptions) removalFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the checkpoint to `OUT`", Destination: &o.out},
		&cli.StringSliceFlag{Name: "undo", Usage: "the undo record `FILE` of the merge; once per merge (default: MERGED" + undoSuffix + ")", Destination: &o.records},
		&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is a checkpoint", Destination: &o.force},
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would be done, and write nothing", Destination: &o.dryRun},
	}, append(append(o.readingFlags(), o.memoryFlag()), o.flags()...)...)
}

type unmergeOptions struct {
	removalOptions
	weights     cli.StringSlice
	approximate bool
}

func unmergeCommand(t *terminal) *cli.Command {
	o := new(unmergeOptions)
	return &cli.Command{
		Name:      "unmerge",
		Usage:     "take adapters out of a merged checkpoint: with its undo record, back to the base byte for byte",
		ArgsUsage: "MERGED ADAPTER... -o OUT",
		Description: "MERGED is what merge --undo has written, ADAPTER what was merged. Every block is proved by its digest before OUT appears.\n" +
			"Without a record, subtracting leaves some elements of a 16-bit checkpoint one or several steps off, which has to be allowed.",
		Flags: append(o.removalFlags(),
			&cli.BoolFlag{Name: "approximate", Usage: "subtract without a record, and report how many elements may differ", Destination: &o.approximate},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "the weight `W` of an adapter; once per adapter (default: what the record or MERGED says)", Destination: &o.weights},
		),
		Action: func(c *cli.Context) error { return runUnmerge(c, t, o) },
	}
}

func runUnmerge(c *cli.Context, t *terminal, o *unmergeOptions) error {
	const example = "loratool unmerge MERGED ADAPTER... -o OUT"
	args := c.Args().Slice()
	if len(args) < 2 {
		return usagef(example, "unmerge needs a merged checkpoint and at least one adapter")
	}
	if o.out == "" && !o.dryRun {
		return usagef(example, "unmerge needs -o OUT, the place of the restored checkpoint")
	}
	if o.approximate && len(o.records.Value()) > 0 {
		return usagef(example, "--approximate is for a merge without an undo record, and --undo gives one")
	}
	weights, err := parseWeights(o.weights.Value(), len(args)-1, math.NaN())
	if err != nil {
		return err
	}
	remove := merge.Removal{Approximate: o.approximate}
	var closers closers
	defer closers.close()
	if remove.Adapters, err = o.openAdapters(c.Context, args[1:], weights, &closers); err != nil {
		return err
	}
	if !o.approximate {
		if remove.Records, err = openRecords(c.Context, o.records.Value(), args[0], &closers); err != nil {
			return err
		}
	}
	options := merge.Options{Workers: o.workers, Replace: o.force, Tool: "loratool " + version}
	o.readingOptions.set(&options)
	return runPlan(t, &planRun{
		command: "unmerge", what: "unmerging", common: &o.common, out: o.out, dryRun: o.dryRun, approximate: o.approximate, show: showUnmerged,
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.OpenUnmerge(c.Context, args[0], remove, options)
		},
	}, options, c)
}

type swapOptions struct {
	removalOptions
	remove, add             cli.StringSlice
	weights                 cli.StringSlice
	newUndo                 string
	again                   bool
	anyBase, allowNonFinite bool
}

func swapCommand(t *terminal) *cli.Command {
	o := new(swapOptions)
	return &cli.Command{
		Name:      "swap",
		Usage:     "take adapters out of a merged checkpoint and merge others, in one pass",
		ArgsUsage: "MERGED --remove ADAPTER --add ADAPTER -o OUT",
		Description: "The result is that of merging into the base what --add names, byte for byte, and comes with an undo record of its own. All\n" +
			"adapters of the given records have to be named by --remove; one that is to stay is named by --add as well.",
		Flags: append(o.removalFlags(),
			&cli.StringSliceFlag{Name: "remove", Usage: "take `ADAPTER` out; once per adapter", Destination: &o.remove},
			&cli.StringSliceFlag{Name: "add", Usage: "merge `ADAPTER`; once per adapter", Destination: &o.add},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "multiply an added adapter by `W`; once per --add, in their order (default: 1)", Destination: &o.weights},
			&cli.BoolFlag{Name: "again", Usage: "merge an adapter again that MERGED still has", Destination: &o.again},
			&cli.BoolFlag{Name: "any-base", Usage: "merge though an added adapter remembers another base", Destination: &o.anyBase},
			&cli.BoolFlag{Name: "allow-nonfinite", Usage: "go on where an added adapter holds NaN or infinity, or a weight becomes infinite", Destination: &o.allowNonFinite},
			&cli.StringFlag{Name: "new-undo", Usage: "write the new undo record to `FILE` (default: OUT" + undoSuffix + ")", Destination: &o.newUndo},
		),
		Action: func(c *cli.Context) error { return runSwap(c, t, o) },
	}
}

func runSwap(c *cli.Context, t *terminal, o *swapOptions) error {
	const example = "loratool swap MERGED --remove ADAPTER --add ADAPTER -o OUT"
	if c.NArg() != 1 {
		return usagef(example, "swap takes one merged checkpoint, got %d arguments", c.NArg())
	}
	merged := c.Args().First()
	if len(o.remove.Value()) == 0 || len(o.add.Value()) == 0 {
		return usagef(example, "swap needs --remove and --add")
	}
	if o.out == "" && !o.dryRun {
		return usagef(example, "swap needs -o OUT, the place of the new checkpoint")
	}
	weights, err := parseWeights(o.weights.Value(), len(o.add.Value()), 1)
	if err != nil {
		return err
	}
	weights = append(slices.Repeat([]float64{math.NaN()}, len(o.remove.Value())), weights...) // what is taken out has the record's
	var closers closers
	defer closers.close()
	all, err := o.openAdapters(c.Context, slices.Concat(o.remove.Value(), o.add.Value()), weights, &closers)
	if err != nil {
		return err
	}
	var remove merge.Removal
	var add []merge.Adapter
	remove.Adapters, add = all[:len(o.remove.Value())], all[len(o.remove.Value()):]
	if remove.Records, err = openRecords(c.Context, o.records.Value(), merged, &closers); err != nil {
		return err
	}
	newUndo := o.newUndo
	if newUndo == "" {
		newUndo = undoBeside(o.out)
	}
	options := merge.Options{Workers: o.workers, Replace: o.force, Again: o.again, AnyBase: o.anyBase, AllowNonFinite: o.allowNonFinite, Tool: "loratool " + version}
	o.readingOptions.set(&options)
	return runPlan(t, &planRun{
		command: "swap", what: "swapping", common: &o.common, out: o.out, record: newUndo, dryRun: o.dryRun,
		show: func(t *terminal, run *planRun, r *merge.Report) {
			showUnmerged(t, run, r)
			showReport(t, run, r)
		},
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.OpenSwap(c.Context, merged, remove, add, options)
		},
	}, options, c)
}

// showUnmerged prints what was taken out.
func showUnmerged(t *terminal, run *planRun, r *merge.Report) {
	var elements, predictions, corrected, mayDiffer int64
	for _, o := range r.TakenOut {
		elements += o.Elements
		predictions += o.Elements * int64(o.Merges)
		corrected += o.Corrected
		mayDiffer += o.MayDiffer
	}
	if run.common.verbose {
		tab := &table{columns: []column{{head: "elements", drop: 1}, {head: "corrected"}, {head: "may differ"}, {head: "tensor", left: true, isName: true}}}
		for _, o := range r.TakenOut {
			tab.add(fmt.Sprint(o.Elements), fmt.Sprint(o.Corrected), fmt.Sprint(o.MayDiffer), o.Tensor)
		}
		t.print(tab)
	}
	share := func(n, of int64) string { return percent(float64(n) / float64(max(1, of))) }
	if run.approximate {
		t.printf("subtracted, in %s: %d tensors; at most %s of %s elements, %s, are not what they were\n", run.out, len(r.TakenOut), countText(mayDiffer), countText(elements), share(mayDiffer, elements))
		return
	}
	t.printf("restored in %s: %d tensors of %s elements, as they were before the merge, proved by SHA-256; %s of them from the record alone\n",
		run.out, len(r.TakenOut), countText(elements), share(corrected, predictions))
}
