package main

import (
	"math"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// swapOptions are the flags of swap.
type swapOptions struct {
	removalOptions
	codeOptions
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
		Usage:     "exchange adapters of a merged checkpoint, in one pass",
		ArgsUsage: "MERGED --remove ADAPTER --add ADAPTER -o OUT",
		Description: "The result is the same, byte for byte, as that of merging the added adapters into the base, and comes with an undo record of its own. " +
			"--remove must name all adapters of the given records; name an adapter that stays with --add as well.",
		Flags: append(append(o.removalFlags(), o.codeFlags()...),
			&cli.StringSliceFlag{Name: "remove", Usage: "take `ADAPTER` out; once per adapter", Destination: &o.remove},
			&cli.StringSliceFlag{Name: "add", Usage: "merge `ADAPTER`; once per adapter", Destination: &o.add},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "multiply an added adapter by `W`; once per --add, in their order (default: 1)", Destination: &o.weights},
			&cli.BoolFlag{Name: "again", Usage: "merge an adapter again that MERGED still has", Destination: &o.again},
			&cli.BoolFlag{Name: "any-base", Usage: "merge even if an added adapter was made for another base", Destination: &o.anyBase},
			&cli.BoolFlag{Name: "allow-nonfinite", Usage: "allow NaN and infinity in an added adapter, and weights that become infinite", Destination: &o.allowNonFinite},
			&cli.StringFlag{Name: "new-undo", Usage: "write the new undo record to `FILE` (default: OUT" + undoSuffix + ")", Destination: &o.newUndo},
		),
		Action: func(c *cli.Context) error { return runSwap(c, t, o) },
	}
}

// parse reads the command line: the checkpoint, and a weight for each adapter, the removed ones
// first.
func (o *swapOptions) parse(c *cli.Context) (merged string, weights []float64, err error) {
	const example = "loratool swap MERGED --remove ADAPTER --add ADAPTER -o OUT"
	switch {
	case c.NArg() != 1:
		return "", nil, usagef(example, "swap takes one merged checkpoint, got %s", fault.Count(c.NArg(), "argument"))
	case len(o.remove.Value()) == 0 || len(o.add.Value()) == 0:
		return "", nil, usagef(example, "swap needs --remove and --add")
	case o.out == "" && !o.dryRun:
		return "", nil, usagef(example, "swap needs -o OUT, the path of the new checkpoint")
	}
	if err := o.checkDry(o.dryRun); err != nil {
		return "", nil, err
	}
	if err := o.checkSeed(c); err != nil {
		return "", nil, err
	}
	if o.newUndo == "" {
		o.newUndo = undoBeside(o.out)
	}
	weights, err = planWeights(o.weights.Value(), len(o.add.Value()), 1)
	asRecorded := slices.Repeat([]float64{math.NaN()}, len(o.remove.Value()))
	return c.Args().First(), append(asRecorded, weights...), err
}

func runSwap(c *cli.Context, t *terminal, o *swapOptions) error {
	merged, weights, err := o.parse(c)
	if err != nil {
		return err
	}
	options := merge.Options{
		Workers: o.workers, Replace: o.force, Again: o.again, AnyBase: o.anyBase, AllowNonFinite: o.allowNonFinite,
		Tool: "loratool " + version,
	}
	o.readingOptions.set(&options)
	o.codeOptions.set(&options)
	if err := checkOptions(options); err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	all, err := o.openAdapters(c.Context, slices.Concat(o.remove.Value(), o.add.Value()), weights, &closers)
	if err != nil {
		return err
	}
	nOut := len(o.remove.Value())
	remove, add := merge.Removal{Adapters: all[:nOut]}, all[nOut:]
	if remove.Records, err = openRecords(c.Context, o.records.Value(), merged, &closers); err != nil {
		return err
	}
	return runPlan(t, &planRun{
		command: "swap", what: "swapping", common: &o.common, in: merged, adapters: o.add.Value(), out: o.out, record: o.newUndo, dryRun: o.dryRun,
		page: &o.pageOption, replace: o.force, others: slices.Concat(o.remove.Value(), o.records.Value()),
		show: func(t *terminal, run *planRun, r *merge.Report) {
			showTakenOut(t, run, r, "taken out: ")
			showReport(t, run, r)
		},
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.OpenSwap(c.Context, merged, remove, add, options)
		},
	}, options, c)
}
