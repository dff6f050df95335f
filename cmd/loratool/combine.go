package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

// combineOptions are the options of combine and of resize.
type combineOptions struct {
	common
	withoutOption
	ruleOptions
	pageOption
	out, to, base, dtype string
	weights              cli.StringSlice
	method               string
	density              float64
	seed                 int64
	force, dryRun        bool
}

func combineCommand(t *terminal) *cli.Command {
	o := new(combineOptions)
	return &cli.Command{
		Name:      "combine",
		Usage:     "add adapters to one adapter",
		ArgsUsage: "ADAPTER... -o OUT",
		Description: "Writes the adapter of Σ weight·s·B·A. Its rank is the sum of the ranks; factors are rounded only where weights and scales are no powers of two. One of --rank, --energy, " +
			"--max-error and --budget keeps the best approximation of lower rank, and its error is printed. The adapters may have different ranks, " +
			"dtypes, rules of scaling and dialects.\n\n" +
			"Biases and differences of whole tensors are added, too. What has no sum is refused by name: DoRA, saved modules and trained token rows, unless only one adapter has them, with the weight 1.\n\n" +
			"--method prune keeps the largest elements of each ΔW; ties also elects a sign for each element, and averages those that have it " +
			"(arXiv:2306.01708); dare keeps random elements, divided by the density (arXiv:2311.03099). One ΔW at a time is formed for them.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringSliceFlag{Name: "weight", Aliases: []string{"w"}, Usage: "multiply an adapter by `W`; once per adapter, in their order (default: 1)", Destination: &o.weights},
			&cli.StringFlag{Name: "method", Usage: "in place of the sum, with a rule for the rank: `METHOD` prune, ties, dare or dare-ties, which choose single elements of each ΔW", Destination: &o.method},
			&cli.Float64Flag{Name: "density", Usage: "with --method: keep this `SHARE` of the elements", Value: 0.5, Destination: &o.density},
			&cli.Int64Flag{Name: "seed", Usage: "of the random choice of dare", Destination: &o.seed},
		}, o.combineFlags()),
		Action: func(c *cli.Context) error { return runCombine(c, t, o) },
	}
}

func resizeCommand(t *terminal) *cli.Command {
	o := new(combineOptions)
	return &cli.Command{
		Name:      "resize",
		Usage:     "lower the ranks of an adapter",
		ArgsUsage: "ADAPTER -o OUT --energy 0.95",
		Description: "Keeps the best approximation of each s·B·A: of a rank, with a share of the energy, within an error, or as fits a size. " +
			"The scale of each layer stays. A layer that loses nothing keeps its factors. The printed error is that of the factors as they are stored. " +
			"loratool inspect ADAPTER --spectrum shows what there is to keep.",
		Flags:  o.combineFlags(),
		Action: func(c *cli.Context) error { return runCombine(c, t, o) },
	}
}

func (o *combineOptions) combineFlags() []cli.Flag {
	return slices.Concat([]cli.Flag{
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `OUT`: a container if the name ends in .lora, an adapter for llama.cpp if it ends in .gguf, a weights file of PEFT if it ends in .safetensors, else a directory for PEFT", Destination: &o.out},
		&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora, gguf, mlx, peft, kohya, diffusers or comfyui, where OUT's name does not say it", Destination: &o.to},
		&cli.StringFlag{Name: "base", Usage: "the model that the adapter is for: a dialect of image models takes the names of modules from `BASE` where no table knows them; a GGUF file needs its config.json, and so does a sum of adapters of llama.cpp and of other dialects", Destination: &o.base},
		&cli.StringFlag{Name: "dtype", Usage: "of new factors: f64, f32, bf16 or f16 (default: that of the old ones, and f32 where a sum needs it)", Destination: &o.dtype},
	}, o.ruleFlags("ΔW"), []cli.Flag{
		&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is an adapter of the same kind, and the FILE of --html if it is a page", Destination: &o.force},
		&cli.BoolFlag{Name: "dry-run", Usage: "check the adapters and show the memory that is needed, and write nothing", Destination: &o.dryRun},
		o.pageFlag("heat maps of all layers, and the spectrum of each"),
		o.memoryFlag(),
	}, o.openFlags(), o.flags())
}

// combination is the task that the flags set.
type combination struct {
	paths    []string
	openings []convert.Options
	dialect  convert.Dialect
	creation convert.CreateOptions
	options  rank.CombineOptions
}

func (j *combination) isResize(c *cli.Context) bool { return c.Command.Name == "resize" }

// parse reads the command line.
func (o *combineOptions) parse(c *cli.Context) (j combination, err error) {
	example := "loratool combine ADAPTER ADAPTER -o OUT.lora"
	if j.paths = c.Args().Slice(); j.isResize(c) {
		example = "loratool resize ADAPTER -o OUT.lora --energy 0.95"
	}
	switch {
	case j.isResize(c) && len(j.paths) != 1:
		return j, usagef(example, "resize takes one adapter, got %s", fault.Count(len(j.paths), "argument"))
	case len(j.paths) == 0:
		return j, usagef(example, "combine takes adapters, got none")
	case o.out == "":
		return j, usagef(example, "%s needs -o OUT, the path of the new adapter", c.Command.Name)
	}
	if err := o.checkDry(o.dryRun); err != nil {
		return j, err
	}
	if err := o.check(c, j.isResize(c)); err != nil {
		return j, err
	}
	if j.options.Rule, j.options.Budget, err = o.rule(c); err != nil {
		return j, err
	}
	if o.dtype != "" {
		if j.options.DType, err = factorDType(o.dtype, dtype.F64, dtype.F32, dtype.BF16, dtype.F16); err != nil {
			return j, err
		}
	}
	if err := o.setMethod(c, &j.options); err != nil {
		return j, err
	}
	if !j.isResize(c) {
		if j.options.Weights, err = parseWeights(o.weights.Value(), len(j.paths), 1); err != nil {
			return j, err
		}
	}
	if j.openings, err = o.opening(j.paths...); err != nil {
		return j, err
	}
	if j.dialect, err = dialectOf(o.out, o.to); err != nil {
		return j, err
	}
	j.options.Path, j.options.Workers = o.out, o.workers
	j.creation = o.creation(o.force, j.paths...)
	j.creation.MaxManifestBytes = j.openings[0].MaxManifestBytes
	return j, j.readBase(c, o.base)
}

// setMethod sets the method and what it needs.
func (o *combineOptions) setMethod(c *cli.Context, options *rank.CombineOptions) error {
	const example = "loratool combine A B --method ties --density 0.3 --rank 16 -o OUT"
	if o.method == "" {
		if c.IsSet("density") || c.IsSet("seed") {
			return usagef(example, "--density and --seed are for --method")
		}
		return nil
	}
	known := []rank.Method{rank.Prune, rank.TIES, rank.DARE, rank.DARETIES}
	switch options.Method, options.Density, options.Seed = rank.Method(o.method), o.density, uint64(o.seed); {
	case !slices.Contains(known, options.Method):
		return usagef(example, "the methods are prune, ties, dare and dare-ties, got %q", o.method)
	case options.Rule == nil:
		return usagef(example, "--method %s needs one of --rank, --energy and --max-error", o.method)
	case !(o.density > 0 && o.density <= 1):
		return usagef(example, "a density lies above 0 and up to 1, got %v", o.density)
	}
	return nil
}

// readBase takes from the base what the dialect needs of it.
func (j *combination) readBase(c *cli.Context, base string) (err error) {
	switch {
	case base == "":
	case j.dialect == convert.GGUF(), j.dialect == convert.MLX():
		j.creation.BaseConfig, err = configOf(c, base)
	default:
		j.creation.Base, err = tensorsOf(c, base)
	}
	return err
}

func runCombine(c *cli.Context, t *terminal, o *combineOptions) error {
	j, err := o.parse(c)
	if err != nil {
		return err
	}
	if err := convert.Check(c.Context, o.out, j.dialect, nil, j.creation); err != nil {
		return err
	}
	place := o.place(o.force, j.paths, []string{o.out})
	if err := o.checkPage(place); err != nil {
		return err
	}
	var closers closers
	defer closers.close()
	var adapters []format.Source
	for i, path := range j.paths {
		src, err := convert.Open(c.Context, path, j.openings[i])
		if err != nil {
			return err
		}
		closers.add(src)
		adapters = append(adapters, src)
		o.warn(t, allFlags(src.Manifest().Notes))
	}
	if adapters, err = alike(c, adapters, o.base); err != nil {
		return err
	}
	peak, module := rank.CombineBytes(adapters, j.options)
	if o.dryRun {
		return showCombination(t, o, c, &j, adapters, peak)
	}
	if err := o.checkMemory(peak, fmt.Sprintf("the decomposition of layers such as %q", module)); err != nil {
		return err
	}
	add, finish := t.progress(&o.common, int64(nLayers(adapters)), "computing")
	if add != nil {
		j.options.Layer = func(string) { add(1) }
	}
	stop := t.stopwatch()
	src, report, err := o.make(c, &j, adapters)
	finish()
	if err != nil {
		return err
	}
	defer src.Close()
	report.Warnings = allFlags(report.Warnings)
	o.warn(t, report.Warnings)
	remarks, err := convert.Remarks(c.Context, o.out, j.dialect, src, j.creation)
	if err != nil {
		return err
	}
	o.warn(t, remarks)
	size, err := store(c, src, o.out, j.dialect, j.creation)
	if err != nil {
		return err
	}
	document := struct {
		Adapters     []string `json:"adapters"`
		Out          string   `json:"out"`
		Dialect      string   `json:"dialect"`
		Version      string   `json:"version"`
		Seconds      float64  `json:"seconds"`
		BytesWritten int64    `json:"bytes_written"`
		*rank.CombineReport
	}{j.paths, o.out, j.dialect.Name(), version, stop(), size, report}
	if err := t.show(c.Command.Name, o.json, document, o.summary(func() {
		showCombined(t, o, c, report, fileio.FormatBytes(size)+paceText(report.Was, document.Seconds, "/s read"))
	})); err != nil {
		return err
	}
	head := page.Head{Command: c.Command.Name, Title: o.out}
	return o.writePage(t, &o.common, place, head, func(h page.Head) ([]byte, error) { return page.Combination(h, report) })
}

// make runs the command's part of package rank. An error that one adapter causes names it.
func (o *combineOptions) make(c *cli.Context, j *combination, adapters []format.Source) (src format.Source, report *rank.CombineReport, err error) {
	if j.isResize(c) {
		src, report, err = rank.Resize(c.Context, adapters[0], j.options)
	} else {
		src, report, err = rank.Combine(c.Context, adapters, j.options)
	}
	var e *fault.Error
	if errors.As(err, &e) && len(j.paths) == 1 {
		err = fault.InFile(err, j.paths[0])
	}
	if err == nil {
		src, err = configured(src, adapters...)
	}
	return src, report, err
}

// configured gives an adapter the configuration of PEFT of those that it was made of.
func configured(made format.Source, from ...format.Source) (format.Source, error) {
	src, err := convert.WithConfig(made, from...)
	if err != nil {
		made.Close()
	}
	return src, err
}

func nLayers(adapters []format.Source) int {
	modules := make(map[string]bool)
	for _, src := range adapters {
		m := src.Manifest()
		for i := range m.Adapters {
			for j := range m.Adapters[i].Layers {
				modules[m.Adapters[i].Layers[j].Module] = true
			}
		}
	}
	return len(modules)
}

// showCombination shows what would be written.
func showCombination(t *terminal, o *combineOptions, c *cli.Context, j *combination, adapters []format.Source, peak int64) error {
	document := map[string]any{
		"dry_run": true, "out": o.out, "dialect": j.dialect.Name(), "adapters": j.paths, "layers": nLayers(adapters),
		"peak_memory_bytes": processBytes(peak), "free_bytes": freeBytes(o.out),
	}
	return t.show(c.Command.Name, o.json, document, func() {
		t.line("%s of %s would be written to %s as %s; about %s of memory", fault.Count(nLayers(adapters), "layer"),
			fault.Count(len(adapters), "adapter"), o.out, j.dialect.Name(), fileio.FormatBytes(processBytes(peak)))
	})
}

// showCombined prints the report.
func showCombined(t *terminal, o *combineOptions, c *cli.Context, r *rank.CombineReport, written string) {
	tab := &table{columns: []column{
		{head: "layers"}, {head: "m×n", drop: 2}, {head: "rank before", drop: 1}, {head: "rank"},
		{head: "error", meaning: "‖ΔW - s·B·A‖ ÷ ‖ΔW‖ with the factors as stored, the largest"}, {head: "module", left: true, isName: true},
	}}
	for _, k := range o.kinds(len(r.Layers), func(i int) string { return r.Layers[i].Module }) {
		var ranks, before span
		var sizes []string
		worst := 0.0
		for _, i := range k.items {
			l := &r.Layers[i]
			ranks.add(l.Rank)
			for _, n := range l.Was {
				before.add(n)
			}
			if size := fmt.Sprintf("%d×%d", l.M, l.N); !slices.Contains(sizes, size) {
				sizes = append(sizes, size)
			}
			worst = max(worst, l.Rounded)
		}
		tab.add(fmt.Sprint(len(k.items)), strings.Join(sizes, ", "), before.String(), ranks.String(), lossText(worst), k.name)
	}
	t.print(tab)
	showSkipped(t, &o.common, r.Skipped)
	verb := "combined"
	if c.Command.Name == "resize" {
		verb = "resized"
	}
	t.line("%s to %s: %s; the factors take %s, before %s", verb, o.out, written, fileio.FormatBytes(r.Bytes), fileio.FormatBytes(r.Was))
	before := ""
	if exact := lossText(r.Error); exact != lossText(r.Rounded) {
		before = fmt.Sprintf(", %s before the factors were rounded", exact)
	}
	t.line("error of ΔW: %s (‖ΔW - s·B·A‖ ÷ ‖ΔW‖%s); energy kept: %s", lossText(r.Rounded), before, energyText(r.Energy))
}

// lossText is an error; one that float64 does not resolve is none.
func lossText(x float64) string {
	if x < 1e-12 {
		return "none"
	}
	return errorText(x)
}

// span is the range of some numbers.
type span struct {
	least, most int
	isSet       bool
}

func (s *span) add(n int) {
	if !s.isSet {
		s.least, s.most, s.isSet = n, n, true
	}
	s.least, s.most = min(s.least, n), max(s.most, n)
}

func (s *span) String() string {
	if s.least == s.most {
		return fmt.Sprint(s.most)
	}
	return fmt.Sprintf("%d–%d", s.least, s.most)
}
