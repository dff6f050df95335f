package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type inspectOptions struct {
	common
	planOptions
	spectrumOptions
	baseOptions
	pageOption
	force    bool
	values   bool
	spectrum bool
	hashes   bool
	metadata bool
	tensors  bool
	rank     int
	targets  string
}

func inspectCommand(t *terminal) *cli.Command {
	o := new(inspectOptions)
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what an adapter, a checkpoint or an undo record holds",
		ArgsUsage: "PATH",
		Description: "Of an adapter: method, layers, ranks, alphas, scales, dtypes, whether merge applies it, and unusual files in its folder. Of a checkpoint: tensors, dtypes, parameters by role, shards, " +
			"the adapters merged into it, and with --rank the cost of a LoRA on it. inspect reads only headers, unless you ask for --values, " +
			"--hashes, --spectrum or --base. With --base it takes the flags that merge needs for an adapter. --json holds all metadata of a file for image models. On a narrow terminal the tables of --spectrum lose columns.",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "values", Usage: "read all values: find untrained layers, NaN and infinity, and print the content id", Destination: &o.values},
			&cli.BoolFlag{Name: "spectrum", Usage: "of an adapter: the singular values of every s·B·A, ranks and energies", Destination: &o.spectrum},
			&cli.BoolFlag{Name: "hashes", Usage: "read the whole file: print the hashes by which Civitai, A1111 and sd-scripts know it, and whether its header has the right ones", Destination: &o.hashes},
			&cli.BoolFlag{Name: "metadata", Usage: "print all entries of the metadata, such as those of the training", Destination: &o.metadata},
			&cli.BoolFlag{Name: "tensors", Usage: "of a checkpoint: list every tensor, as -v does", Destination: &o.tensors},
			&cli.IntFlag{Name: "rank", Aliases: []string{"r"}, Usage: "of a checkpoint: the parameters of a LoRA of rank `R`", Destination: &o.rank},
			&cli.StringFlag{Name: "targets", Usage: "with --rank: `NAMES` of the modules to adapt, separated by commas (default: all linear ones)", Destination: &o.targets},
			o.pageFlag("heat maps of all layers, and the spectrum of each, which implies --spectrum; of a checkpoint, an undo record or a bundle, the table of all tensors or adapters"),
			&cli.BoolFlag{Name: "force", Usage: "replace the FILE of --html if it is such a page", Destination: &o.force},
		}, slices.Concat(o.baseFlags(), o.spectrumFlags(), o.planFlags(), []cli.Flag{o.memoryFlag()}, o.flags())...),
		Action: func(c *cli.Context) error { return runInspect(c, t, o) },
	}
}

// parse reads the command line: the path, and how its adapter is opened, if it is one.
func (o *inspectOptions) parse(c *cli.Context) (path string, opening convert.Options, err error) {
	if c.NArg() != 1 {
		return "", opening, usagef("loratool inspect PATH", "inspect takes one path, got %d", c.NArg())
	}
	if o.rank < 0 || o.targets != "" && o.rank == 0 {
		return "", opening, usagef("loratool inspect CHECKPOINT --rank 8 --targets q_proj,v_proj", "--targets needs --rank, and a rank is at least 1")
	}
	if o.force && o.html == "" {
		return "", opening, usagef("loratool inspect ADAPTER --html FILE --force", "--force is for --html")
	}
	if err := o.checkTable(); err != nil {
		return "", opening, err
	}
	if flag := o.given(c); flag != "" && o.base == "" {
		return "", opening, usagef("loratool inspect ADAPTER --base BASE "+flag, "%s is for a merge into a base, and there is no --base", flag)
	}
	if err := o.check(""); err != nil {
		return "", opening, err
	}
	path = c.Args().First()
	all, err := o.opening(path)
	if err != nil {
		return "", opening, err
	}
	opening = all[0]
	opening.AllowBeside = true
	return path, opening, nil
}

func runInspect(c *cli.Context, t *terminal, o *inspectOptions) error {
	path, opening, err := o.parse(c)
	if err != nil {
		return err
	}
	if opening.From == "" && !convert.IsAdapter(c.Context, path) {
		return inspectCheckpoint(c, t, o, path)
	}
	if o.rank > 0 {
		return usagef("loratool inspect CHECKPOINT --rank 8", "--rank is for a checkpoint, and this is none")
	}
	if o.tensors {
		return usagef("loratool inspect ADAPTER -v", "--tensors is for a checkpoint, and this is none")
	}
	src, err := convert.Open(c.Context, path, opening)
	if err != nil {
		return err
	}
	defer src.Close()
	if len(src.Manifest().Adapters) > 1 {
		if err := o.checkValueFlags("a bundle: give one adapter of it as "+path+"#NAME", path); err != nil {
			return err
		}
		r := report.DescribeBundle(src)
		return o.showInspected(t, path, r, func() { showBundle(t, r) }, func(h page.Head) ([]byte, error) { return page.Bundle(h, r) })
	}
	if report.IsUndo(src) {
		return inspectUndo(t, o, src, path)
	}
	return fault.InFile(inspectAdapter(c, t, o, src, path), path)
}

func inspectCheckpoint(c *cli.Context, t *terminal, o *inspectOptions, path string) error {
	base, err := checkpoint.Open(c.Context, path)
	if err != nil {
		return err // a path that cannot be opened is named before flags that do not fit
	}
	defer base.Close()
	if err := o.checkValueFlags("a checkpoint", path); err != nil {
		return err
	}
	var targets []string
	if o.targets != "" {
		targets = strings.Split(o.targets, ",")
	}
	list := o.verbose || o.tensors
	r, err := report.DescribeCheckpoint(base, report.CheckpointOptions{List: list || o.html != "", Rank: o.rank, Targets: targets})
	if err != nil {
		return fault.InFile(err, path)
	}
	return o.showInspected(t, path, r, func() {
		showCheckpoint(t, r)
		if list {
			showTensors(t, r.Listed)
		}
	}, func(h page.Head) ([]byte, error) { return page.Checkpoint(h, r) })
}

// showInspected prints a report, and writes its page.
func (o *inspectOptions) showInspected(t *terminal, path string, r any, text func(), draw func(page.Head) ([]byte, error)) error {
	if err := t.show("inspect", o.json, r, text); err != nil {
		return err
	}
	return o.writePage(t, &o.common, o.place(o.force, []string{path}, nil), page.Head{Command: "inspect", Title: path}, draw)
}

// checkValueFlags refuses the flags that are for an adapter, where something else is inspected, and
// checks the place of the page.
func (o *inspectOptions) checkValueFlags(what, path string) error {
	if o.base != "" {
		return usagef("loratool inspect ADAPTER --base BASE", "--base is for an adapter, and this is %s", what)
	}
	if o.spectrum || o.values || o.hashes || o.metadata {
		return usagef("loratool inspect ADAPTER --spectrum --values", "--spectrum, --values, --hashes and --metadata are for an adapter, and this is %s", what)
	}
	if o.hasTableFlags() {
		return usagef("loratool inspect ADAPTER --spectrum --sort norm --top 10", "--all, --sort and --top are for an adapter, and this is %s", what)
	}
	return o.checkPage(o.place(o.force, []string{path}, nil))
}

func inspectAdapter(c *cli.Context, t *terminal, o *inspectOptions, src format.Source, path string) error {
	place := o.place(o.force, []string{path, o.base}, nil)
	if err := o.checkPage(place); err != nil {
		return err
	}
	if o.spectrum = o.spectrum || o.html != ""; o.spectrum {
		need, module := rank.SpectraBytes(src.Manifest(), o.workers)
		if err := o.checkMemory(need, fmt.Sprintf("the spectrum of layers such as %q", module)); err != nil {
			return err
		}
	}
	r, err := report.Describe(c.Context, src, report.Options{
		Values: o.values, Spectrum: o.spectrum, Hashes: o.hashes, Metadata: o.metadata, Workers: o.workers, Beside: convert.WeightsBeside(src), Sign: convert.RecognisedBy(src),
	})
	if err != nil {
		return err
	}
	if r.OnBase, err = o.compareBase(c, t, src, path); err != nil {
		return err
	}
	r.Methods, r.Refusals, r.Notes = allFlags(r.Methods), allFlags(r.Refusals), allFlags(r.Notes)
	if err := t.show("inspect", o.json, r, func() { showAdapter(t, o, r) }); err != nil {
		return err
	}
	if r.OnBase != nil {
		o.warn(t, r.OnBase.Warnings)
	}
	if err := o.writeInspected(t, place, path, r); err != nil {
		return err
	}
	return errors.Join(r.OnBase.Check(), r.CheckSpectra())
}

// writeInspected writes the page of an adapter.
func (o *inspectOptions) writeInspected(t *terminal, place fileio.Place, path string, r *report.Adapter) error {
	head := page.Head{Command: "inspect", Title: path}
	if r.Saving != nil {
		head.Notes = append(head.Notes, savingText(r.Saving))
	}
	return o.writePage(t, &o.common, place, head, func(h page.Head) ([]byte, error) { return page.Adapter(h, r) })
}

func inspectUndo(t *terminal, o *inspectOptions, src format.Source, path string) error {
	if err := o.checkValueFlags("an undo record", path); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	r, err := report.DescribeUndo(src, info.Size())
	if err != nil {
		return fault.InFile(err, path)
	}
	return o.showInspected(t, path, r, func() { showUndo(t, o, r) }, func(h page.Head) ([]byte, error) { return page.Undo(h, r) })
}
