package main

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// mergeOptions are the flags of merge.
type mergeOptions struct {
	common
	planOptions
	codeOptions
	pageOption
	as       string
	out      string
	weights  cli.StringSlice
	force    bool
	dryRun   bool
	undo     bool
	undoFile string
}

func mergeCommand(t *terminal) *cli.Command {
	o := new(mergeOptions)
	return &cli.Command{
		Name:      "merge",
		Usage:     "add adapters to a checkpoint, every weight correctly rounded",
		ArgsUsage: "BASE ADAPTER... -o OUT",
		Description: "Writes W0 + Σ weight·s·B·A. BASE is a .safetensors file or a pickle of torch.save, or a directory with model.safetensors or " +
			"pytorch_model.bin, with shards and their index, or with a pipeline of diffusers; merge copies the other files of the directory. ADAPTER is a directory or a file as PEFT saves it, a file of " +
			"kohya's sd-scripts, diffusers or ComfyUI, or a .lora file. OUT is a file or a directory as BASE is, always of safetensors, and appears whole or not at all.\n\n" +
			"--add-tensors puts the head that an adapter was trained with into OUT. A new tensor has the dtype of most values of BASE; a " +
			"replaced tensor keeps its dtype. For known model types config.json gets the class of the model and the number of labels; " +
			"adapters hold no names of labels.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write the merged checkpoint to `OUT`", Destination: &o.out},
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "multiply an adapter by `W`; once per adapter, in their order (default: 1)", Destination: &o.weights},
			&cli.BoolFlag{Name: "undo", Usage: "write an undo record, OUT" + undoSuffix + ", from which unmerge restores BASE byte for byte", Destination: &o.undo},
			&cli.StringFlag{Name: "undo-file", Usage: "write the undo record to `FILE`", Destination: &o.undoFile},
			&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is a checkpoint, and the FILE of --html if it is a page", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be done, and write nothing", Destination: &o.dryRun},
			asFlag(&o.as, "in the report: ", "loratool merge BASE ADAPTER -o OUT --as fp8"),
			o.pageFlag("heat maps of all updated tensors"),
		}, slices.Concat(o.planFlags(), o.codeFlags(), []cli.Flag{o.memoryFlag()}, o.flags())...),
		Action: func(c *cli.Context) error { return runMerge(c, t, o) },
	}
}

// parse reads the command line: the base, the adapters, and a weight for each of them.
func (o *mergeOptions) parse(c *cli.Context) (base string, adapters []string, weights []float64, err error) {
	const example = "loratool merge BASE ADAPTER... -o OUT"
	args := c.Args().Slice()
	if len(args) < 2 {
		return "", nil, nil, usagef(example, "merge needs a base and at least one adapter")
	}
	if o.out == "" && !o.dryRun {
		return "", nil, nil, usagef(example, "merge needs -o OUT, the path of the merged checkpoint")
	}
	if err := o.checkDry(o.dryRun); err != nil {
		return "", nil, nil, err
	}
	if err := o.checkSeed(c); err != nil {
		return "", nil, nil, err
	}
	if o.undo && o.undoFile == "" {
		o.undoFile = undoBeside(o.out)
	}
	options := o.library()
	options.UndoFile = o.undoFile
	if err := checkOptions(options); err != nil {
		return "", nil, nil, err
	}
	weights, err = planWeights(o.weights.Value(), len(args)-1, 1)
	return args[0], args[1:], weights, err
}

// library turns the flags into options of the library.
func (o *mergeOptions) library() merge.Options {
	options := merge.Options{Workers: o.workers, Replace: o.force, Tool: "loratool " + version}
	o.planOptions.set(&options)
	o.codeOptions.set(&options)
	return options
}

func runMerge(c *cli.Context, t *terminal, o *mergeOptions) error {
	base, paths, weights, err := o.parse(c)
	if err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	adapters, err := o.openAdapters(c.Context, paths, weights, &closers)
	if err != nil {
		return err
	}
	warnings, err := o.readLoading(paths)
	if err != nil {
		return err
	}
	if stale := undoBeside(o.out); o.force && o.undoFile == "" && o.out != "" && !fileio.IsAbsent(stale) {
		warnings = append(warnings, stale+" belongs to the merge that this one replaces, and cannot undo this one")
	}
	run := &planRun{
		warnings: warnings,
		command:  "merge", what: "merging", common: &o.common, in: base, adapters: paths, out: o.out, record: o.undoFile, dryRun: o.dryRun,
		show: showReport, page: &o.pageOption, replace: o.force,
		open: func(options merge.Options) (*merge.Plan, error) {
			return merge.Open(c.Context, base, adapters, options)
		},
	}
	if o.as != "" {
		run.survive = func() (*report.SurvivalMap, error) { return o.survivals(c, t, base, adapters) }
	}
	return runPlan(t, run, o.library(), c)
}

// planRun is one run of merge, unmerge or swap.
type planRun struct {
	command, what string
	common        *common
	in            string   // the base, or the merged checkpoint
	adapters      []string // the paths of the adapters that are merged or removed
	others        []string // further inputs
	out           string
	record        string // where the undo record goes; "" is nowhere
	dryRun        bool
	approximate   bool
	seconds       float64                             // that Run took
	warnings      []string                            // of the command
	survive       func() (*report.SurvivalMap, error) // what a quantisation would leave; nil if nobody asks
	survived      *report.SurvivalMap                 // its result
	open          func(merge.Options) (*merge.Plan, error)
	show          func(*terminal, *planRun, *merge.Report)
	page          *pageOption
	replace       bool // the page
}

// place is the place of the page.
func (run *planRun) place() fileio.Place {
	return run.page.place(run.replace, slices.Concat([]string{run.in}, run.adapters, run.others), []string{run.out, run.record})
}

// writePage writes the page of the report.
func (run *planRun) writePage(t *terminal, r *merge.Report) error {
	head := page.Head{Command: run.command, Title: run.out}
	return run.page.writePage(t, run.common, run.place(), head, func(h page.Head) ([]byte, error) { return page.Merge(h, r, run.survived) })
}

// written returns the bytes that the run wrote, its time, and its rate.
func (run *planRun) written(r *merge.Report) string {
	return fileio.FormatBytes(r.BytesWritten) + paceText(r.BytesWritten, run.seconds, "/s")
}

// named tells the output of the record from that of the checkpoint in an error.
func (run *planRun) named(err error) error {
	if e := new(fileio.OutputError); errors.As(err, &e) && run.record != "" && filepath.Clean(e.Path) == filepath.Clean(run.record) {
		return pathError{err, "--undo-file"}
	}
	return err
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
	if err := run.page.checkPage(run.place()); err != nil {
		return err
	}
	plan, err := run.open(options)
	if err != nil {
		return err
	}
	defer plan.Close()
	run.common.warn(t, plan.Warnings())
	run.common.warn(t, run.warnings)
	if run.survive != nil {
		if run.survived, err = run.survive(); err != nil {
			return err
		}
	}
	if run.dryRun {
		return showPlan(t, run, plan)
	}
	if err := run.common.checkMemory(plan.PeakBytes(run.common.workers), run.what); err != nil {
		return err
	}
	add, finish := t.progress(run.common, plan.OutputBytes(), run.what)
	stop := t.stopwatch()
	result, err := plan.Run(c.Context, run.out)
	run.seconds = stop()
	finish()
	if err != nil {
		return run.named(err)
	}
	document := struct {
		Base     string   `json:"base"`
		Adapters []string `json:"adapters"`
		Out      string   `json:"out"`
		Version  string   `json:"version"`
		Seconds  float64  `json:"seconds"`
		*merge.Report
		Requantised *report.SurvivalMap `json:"requantised,omitempty"`
	}{run.in, run.adapters, run.out, version, run.seconds, result, run.survived}
	if err := t.show(run.command, run.common.json, document, run.common.summary(func() { run.show(t, run, result) })); err != nil {
		return err
	}
	return run.writePage(t, result)
}

// planWeights is parseWeights for adapters that are merged or removed.
func planWeights(texts []string, n int, absent float64) ([]float64, error) {
	weights, err := parseWeights(texts, n, absent)
	if slices.Contains(weights, 0) {
		return nil, usagef("leave the adapter out, or use another weight; 1 applies it as trained", "the weight 0 would change nothing")
	}
	return weights, err
}

// parseWeights returns one weight per adapter. Without texts each is absent.
func parseWeights(texts []string, n int, absent float64) ([]float64, error) {
	weights := slices.Repeat([]float64{absent}, n)
	if len(texts) == 0 {
		return weights, nil
	}
	if len(texts) != n {
		return nil, usagef("give --weight once per adapter, in the order of the adapters", "got %s for %s",
			fault.Count(len(texts), "weight"), fault.Count(n, "adapter"))
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
