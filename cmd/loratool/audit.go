package main

import (
	"fmt"
	"slices"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/audit"
	inner "github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// auditOptions are the flags of audit.
type auditOptions struct {
	common
	readingOptions
	baseAsOptions
	pageOption
	weights            cli.StringSlice
	anyWeight, anyBase bool
	strict, all, force bool
	tied, out, format  string
}

func auditCommand(t *terminal) *cli.Command {
	o := new(auditOptions)
	return &cli.Command{
		Name:      "audit",
		Usage:     "judge a merge: is a checkpoint what it claims to be",
		ArgsUsage: "BASE MERGED [ADAPTER...]",
		Description: "Compares MERGED with the merge of the adapters into BASE, every element of every tensor. It says how MERGED was rounded: correctly, " +
			"as PEFT does, as PEFT's safe_merge or mlx-lm do, by way of float16. If MERGED is not that merge, it says of each tensor what is wrong: " +
			"not applied, applied twice, with another scale, transposed, exchanged with another module, another adapter, DoRA merged as plain LoRA, " +
			"a foreign change, another dtype or shape.\n\n" +
			"Without an adapter it says what MERGED − BASE is: an adapter of some rank, or a fine-tune of whole weights; --extract writes it as an adapter.\n\n" +
			"audit exits with 0 if MERGED is as claimed, and with 4 if it is not. Where the data do not tell, it warns and exits with 0, or with 4 after --strict.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "the claimed weight `W` of an adapter; once per adapter, in their order (default: 1)", Destination: &o.weights},
			&cli.BoolFlag{Name: "any-weight", Usage: "find the weights of the adapters, and accept them if they are the same everywhere", Destination: &o.anyWeight},
			&cli.BoolFlag{Name: "strict", Usage: "exit with 4 also where the data do not tell", Destination: &o.strict},
			&cli.BoolFlag{Name: "all", Usage: "show every tensor, not just what is wrong", Destination: &o.all},
			&cli.BoolFlag{Name: "any-base", Usage: "audit even if an adapter was made for another base", Destination: &o.anyBase},
			&cli.StringFlag{Name: "tied", Usage: "the claim about a tied pair of which an adapter changes one: `untie|fold` (default: as MERGED has it)", Destination: &o.tied, Action: checkTied},
			&cli.StringFlag{Name: "base-as", Usage: "the claim that `nf4` was the --base-as of the merge (default: as the stamp of MERGED has it)", Destination: &o.baseAs},
			&cli.StringFlag{Name: "base-as-skip", Usage: "with --base-as: the `NAMES` of modules that the merge left as they were, separated by commas (default: those of a config.json in an adapter's folder, else the heads)", Destination: &o.baseAsSkip},
			&cli.StringFlag{Name: "extract", Usage: "without an adapter: write the change to `OUT`, an adapter", Destination: &o.out},
			&cli.StringFlag{Name: "format", Usage: "print the report as `sarif`, for CI", Destination: &o.format},
			o.pageFlag("the verdict on every tensor, and heat maps"),
			&cli.BoolFlag{Name: "force", Usage: "replace the OUT of --extract if it is an adapter, and the FILE of --html if it is a page", Destination: &o.force},
		}, o.readingFlags(), []cli.Flag{o.memoryFlag()}, o.flags()),
		Action: func(c *cli.Context) error { return runAudit(c, t, o) },
	}
}

func runAudit(c *cli.Context, t *terminal, o *auditOptions) error {
	const example = "loratool audit BASE MERGED ADAPTER"
	paths := c.Args().Slice()
	switch {
	case len(paths) < 2:
		return usagef(example, "audit needs a base and a merged checkpoint, got %s", fault.Count(len(paths), "argument"))
	case o.out != "" && len(paths) > 2:
		return usagef("loratool audit BASE MERGED --extract OUT", "--extract is for a change without an adapter")
	case o.format != "" && o.format != "sarif":
		return usagef("--format sarif", "got --format %q", o.format)
	case o.format != "" && o.json:
		return usagef("give one of --json and --format", "--json and --format sarif are two forms of the report")
	case sameFile(paths[0], paths[1]):
		return usagef("give the base first and the merged checkpoint second", "%s and %s are the same checkpoint", paths[0], paths[1])
	}
	if flag := ofClaim(c); flag != "" && len(paths) == 2 {
		return usagef(example+" "+flag, "%s is for a claim: it needs an adapter", flag)
	}
	var options merge.Options
	o.setBaseAs(&options)
	if err := checkOptions(options); err != nil {
		return err
	}
	if err := o.checkPage(o.place(o.force, paths, []string{o.out})); err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	both, err := openCheckpoints(c.Context, &closers, paths[:2]...)
	if err != nil {
		return err
	}
	if len(paths) == 2 {
		return o.change(c, t, paths, both[0], both[1])
	}
	weights, err := planWeights(o.weights.Value(), len(paths)-2, 1)
	if err != nil {
		return err
	}
	adapters, err := o.openAdapters(c.Context, paths[2:], weights, &closers)
	if err != nil {
		return err
	}
	warnings, err := o.readLoading(paths[2:])
	if err != nil {
		return err
	}
	o.warn(t, warnings)
	o.readingOptions.set(&options)
	o.setBaseAs(&options)
	options.Tied = merge.Tied(o.tied)
	add, finish := t.progress(&o.common, (*inner.Handle)(both[0]).Checkpoint().Bytes(), "auditing")
	r, err := audit.Run(c.Context, both[0], both[1], adapters, audit.Options{
		Reading: options.Reading, BaseAs: options.BaseAs, BaseAsSkip: options.BaseAsSkip, Workers: o.workers, AnyBase: o.anyBase, AnyWeight: o.anyWeight, Progress: add,
	})
	finish()
	if err != nil {
		return err
	}
	return o.report(t, paths, (*inner.Handle)(both[1]).Checkpoint().IsDir, r)
}

// ofClaim is a flag on the command line that is about the merge of an adapter, "" if there is none.
func ofClaim(c *cli.Context) string {
	for _, name := range []string{"weight", "any-weight", "any-base", "tied", "base-as", "base-as-skip", "strict", "format"} {
		if c.IsSet(name) {
			return "--" + name
		}
	}
	return ""
}

// report shows the report on a merge.
func (o *auditOptions) report(t *terminal, paths []string, isDir bool, r *audit.Report) error {
	for i := range r.Tensors {
		r.Tensors[i].Text = flagsFor(r.Tensors[i].Text)
	}
	r.Warnings = allFlags(r.Warnings)
	o.warn(t, r.Warnings)
	document := struct {
		Base   string `json:"base"`
		Merged string `json:"merged"`
		*audit.Report
	}{paths[0], paths[1], r}
	failure := o.failure(paths[1], r)
	var err error
	if o.format == "sarif" {
		err = o.showSARIF(t, paths, isDir, r, failure)
	} else {
		err = t.show("audit", o.json, document, func() { o.showAudit(t, paths, r) })
	}
	if err != nil {
		return err
	}
	if err := o.page(t, paths, func(h page.Head) ([]byte, error) { return page.Audit(h, r) }); err != nil {
		return err
	}
	return failure
}

// showSARIF prints the report as SARIF.
func (o *auditOptions) showSARIF(t *terminal, paths []string, isDir bool, r *audit.Report, failure error) error {
	code := exitDone
	if failure != nil {
		code = exitCode(failure)
	}
	text, err := r.SARIF("loratool", version, paths[0], paths[1], isDir, code)
	if err != nil {
		return err
	}
	_, err = t.out.Write(escapeHidden(append(text, '\n')))
	return err
}

// page writes the page, and says so unless stdout is a document.
func (o *auditOptions) page(t *terminal, paths []string, draw func(page.Head) ([]byte, error)) error {
	c := o.common
	c.quiet = c.quiet || o.format != ""
	return o.writePage(t, &c, o.place(o.force, paths, []string{o.out}), page.Head{Command: "audit", Title: paths[1]}, draw)
}

// failure is the error of a merge that is not as claimed.
func (o *auditOptions) failure(merged string, r *audit.Report) error {
	switch {
	case r.Verdict == audit.NotAsClaimed:
		return fault.New(fault.Check, "%s is not what it is claimed to be", merged)
	case r.Verdict == audit.Inconclusive && o.strict:
		return fault.New(fault.Check, "the data do not tell whether %s is what it is claimed to be", merged)
	}
	return nil
}

// change shows what a change without an adapter is.
func (o *auditOptions) change(c *cli.Context, t *terminal, paths []string, base, merged *checkpoint.Checkpoint) error {
	options := audit.ChangeOptions{Workers: o.workers, Path: o.out, Tool: "loratool " + version}
	var dialect convert.Dialect
	creation := o.creation(o.force, paths...)
	if o.out != "" {
		var err error
		if dialect, err = dialectOf(o.out, ""); err != nil {
			return err
		}
		if err := convert.Check(c.Context, o.out, dialect, nil, creation); err != nil {
			return err
		}
		options.PEFT = dialect == convert.PEFT()
	}
	r, src, err := audit.Change(c.Context, base, merged, options)
	if err != nil {
		return err
	}
	if src != nil {
		defer src.Close()
		if _, err := store(c, src, o.out, dialect, creation); err != nil {
			return err
		}
	}
	document := struct {
		Base   string `json:"base"`
		Merged string `json:"merged"`
		Out    string `json:"out,omitempty"`
		*audit.Unclaimed
	}{paths[0], paths[1], o.out, r}
	if err := t.show("audit", o.json, document, func() { o.showUnclaimed(t, r) }); err != nil {
		return err
	}
	return o.page(t, paths, func(h page.Head) ([]byte, error) { return page.Unclaimed(h, r) })
}

// showUnclaimed prints what a change is.
func (o *auditOptions) showUnclaimed(t *terminal, r *audit.Unclaimed) {
	t.line("change    %s", r.Text)
	if len(r.Layers) > 0 {
		tab := &table{columns: []column{
			{head: "layers"}, {head: "rank", meaning: "the number of singular values above the noise of rounding"}, {head: "‖Δ‖/‖W‖"}, {head: "module", left: true, isName: true},
		}}
		for _, k := range o.kinds(len(r.Layers), func(i int) string { return r.Layers[i].Module }) {
			var ranks span
			most := 0.0
			for _, i := range k.items {
				ranks.add(r.Layers[i].Rank)
				most = max(most, r.Layers[i].RelativeNorm)
			}
			tab.add(fmt.Sprint(len(k.items)), ranks.String(), fmt.Sprintf("%.3g", most), k.name)
		}
		t.print(tab)
	}
	for _, x := range []struct {
		what  string
		names []string
	}{{"changed, and not decomposed", r.Whole}, {"new, gone or reshaped", r.Elsewhere}} {
		if len(x.names) > 0 {
			t.line("others    %s %s", fault.Count(len(x.names), "tensor"), x.what)
			o.showNames(t, o.group(len(x.names), func(i int) (name, key string) { return x.names[i], "" }))
		}
	}
	if o.out != "" {
		t.line("written   %s", o.out)
	}
}
