package main

import (
	"fmt"
	"math"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// removalOptions are the flags that unmerge and swap share.
type removalOptions struct {
	common
	readingOptions
	pageOption
	out           string
	records       cli.StringSlice
	force, dryRun bool
}

func (o *removalOptions) removalFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the checkpoint to `OUT`", Destination: &o.out},
		&cli.StringSliceFlag{Name: "undo-file", Usage: "the undo record `FILE` of a merge; once per merge (default: MERGED" + undoSuffix + ")", Destination: &o.records},
		&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is a checkpoint, and the FILE of --html if it is a page", Destination: &o.force},
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would be done, and write nothing", Destination: &o.dryRun},
		o.pageFlag("heat maps of all restored and updated tensors"),
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
		Usage:     "remove adapters; with the undo record, restore the base byte for byte",
		ArgsUsage: "MERGED ADAPTER... -o OUT",
		Description: "MERGED is the output of merge --undo, and ADAPTER an adapter that was merged. unmerge checks every block by its checksums before OUT " +
			"appears. Without a record, subtraction leaves some weights of a 16-bit checkpoint a step or more off; --approximate allows that.",
		Flags: append(o.removalFlags(),
			&cli.BoolFlag{Name: "approximate", Usage: "subtract without a record, and report how many elements may differ", Destination: &o.approximate},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "the weight `W` of an adapter; once per adapter (default: as the record or MERGED says)", Destination: &o.weights},
		),
		Action: func(c *cli.Context) error { return runUnmerge(c, t, o) },
	}
}

// parse reads the command line: the checkpoint, the adapters in it, and the weight of each.
func (o *unmergeOptions) parse(c *cli.Context) (merged string, adapters []string, weights []float64, err error) {
	const example = "loratool unmerge MERGED ADAPTER... -o OUT"
	args := c.Args().Slice()
	switch {
	case len(args) < 2:
		return "", nil, nil, usagef(example, "unmerge needs a merged checkpoint and at least one adapter")
	case o.out == "" && !o.dryRun:
		return "", nil, nil, usagef(example, "unmerge needs -o OUT, the path of the restored checkpoint")
	case o.approximate && len(o.records.Value()) > 0:
		return "", nil, nil, usagef(example, "--approximate is for merges without an undo record, but --undo-file names one")
	}
	if err := o.checkDry(o.dryRun); err != nil {
		return "", nil, nil, err
	}
	weights, err = planWeights(o.weights.Value(), len(args)-1, math.NaN())
	return args[0], args[1:], weights, err
}

func runUnmerge(c *cli.Context, t *terminal, o *unmergeOptions) error {
	merged, paths, weights, err := o.parse(c)
	if err != nil {
		return err
	}
	remove := merge.Removal{Approximate: o.approximate}
	var closers closers
	defer closers.close()
	if remove.Adapters, err = o.openAdapters(c.Context, paths, weights, &closers); err != nil {
		return err
	}
	if !o.approximate {
		if remove.Records, err = openRecords(c.Context, o.records.Value(), merged, &closers); err != nil {
			return err
		}
	}
	options := merge.Options{Workers: o.workers, Replace: o.force, Tool: "loratool " + version}
	o.readingOptions.set(&options)
	var warnings []string
	if record := undoBeside(merged); o.approximate && !fileio.IsAbsent(record) {
		warnings = append(warnings, record+" is there; without --approximate the result would be exact")
	}
	return runPlan(t, &planRun{
		warnings: warnings,
		command:  "unmerge", what: "unmerging", common: &o.common, in: merged, adapters: paths, out: o.out, dryRun: o.dryRun, approximate: o.approximate, show: showUnmerged,
		page: &o.pageOption, replace: o.force, others: o.records.Value(),
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.OpenUnmerge(c.Context, merged, remove, options)
		},
	}, options, c)
}

// showUnmerged prints the report of a removal.
func showUnmerged(t *terminal, run *planRun, r *merge.Report) {
	showTakenOut(t, run, r, fmt.Sprintf("restored in %s: %s, ", run.out, run.written(r)))
}

// showTakenOut prints the tensors from which a run removed adapters. The line begins with done.
func showTakenOut(t *terminal, run *planRun, r *merge.Report, done string) {
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
		t.line("subtracted, in %s: %s, %s; at most %s of %s (%s) differ from those that ΔW was added to",
			run.out, run.written(r), fault.Count(len(r.TakenOut), "tensor"), countText(mayDiffer), fault.Count(elements, "element"), share(mayDiffer, elements))
		return
	}
	t.line("%s%s as before the merge, by all checksums of the record", done, fault.Count(len(r.TakenOut), "tensor"))
	if run.common.verbose {
		t.line("%s; %s of them from the record alone", fault.Count(elements, "element"), share(corrected, predictions))
	}
}
