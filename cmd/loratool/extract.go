package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/page"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type extractOptions struct {
	common
	manifestOption
	ruleOptions
	pageOption
	out, to, dtype              string
	convRank                    int
	noiseFloor                  bool
	include, exclude            cli.StringSlice
	strict, only, force, dryRun bool
	seed                        int64
}

func extractCommand(t *terminal) *cli.Command {
	o := new(extractOptions)
	return &cli.Command{
		Name:      "extract",
		Usage:     "make an adapter of the difference between two checkpoints",
		ArgsUsage: "BASE TUNED -o ADAPTER --rank 8",
		Description: "Decomposes TUNED − BASE, tensor by tensor, by truncated SVD. You choose the rank, or the fewest singular values that keep a share " +
			"of the energy, stay below an error, stand above the rounding noise of TUNED, or fit a size. Norms and biases have no low rank: " +
			"extract carries them whole.\n\n" +
			"The printed error covers all that changed. A tensor that is left out is lost: extract lists it with its share of |Δ|. A row or " +
			"tensor that only one of BASE and TUNED has counts whole; a head that only one has counts as its difference from the embedding " +
			"that the other ties it to.\n\n" +
			"Of an image or video model, BASE and TUNED may be a pipeline, a component or a single file, in different layouts; the adapter has " +
			"the names of BASE. Files of kohya, diffusers and ComfyUI hold no norms, biases and embeddings: extract leaves these out and lists them.\n\n" +
			"A directory for PEFT has the names that transformers 5 gives the modules in memory. extract refuses by name what PEFT cannot " +
			"hold; a .lora file holds it.",
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `ADAPTER`: a name that ends in .lora, a directory for PEFT, or a .safetensors file of PEFT or of the dialect of --to", Destination: &o.out},
			&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora, gguf, mlx, peft, kohya, diffusers or comfyui, where ADAPTER's name does not say it", Destination: &o.to},
		}, o.ruleFlags("Δ"), []cli.Flag{
			&cli.BoolFlag{Name: "noise-floor", Usage: "keep the singular values above the rounding noise of TUNED", Destination: &o.noiseFloor},
			&cli.IntFlag{Name: "conv-rank", Usage: "keep `K` singular values of each convolution with a kernel larger than 1, in place of what the rule says", Destination: &o.convRank},
			&cli.StringFlag{Name: "dtype", Usage: "of the factors: f32, bf16 or f16", Value: "f32", Destination: &o.dtype},
			&cli.StringSliceFlag{Name: "include", Usage: "extract only tensors whose name matches the regular expression `RE`", Destination: &o.include},
			&cli.StringSliceFlag{Name: "exclude", Usage: "leave out tensors whose name matches `RE`", Destination: &o.exclude},
			&cli.BoolFlag{Name: "only-lora", Usage: "leave out what low rank does not hold, in place of carrying it whole", Destination: &o.only},
			&cli.BoolFlag{Name: "strict", Usage: "fail if anything is left out or carried whole", Destination: &o.strict},
			&cli.Int64Flag{Name: "seed", Usage: "of the random start", Destination: &o.seed},
			&cli.BoolFlag{Name: "force", Usage: "replace ADAPTER if it is an adapter, and the FILE of --html if it is a page", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be compared, and write nothing", Destination: &o.dryRun},
			o.pageFlag("heat maps of all layers, and the spectrum of each"),
			o.memoryFlag(), o.manifestFlag(),
		}, o.flags()),
		Action: func(c *cli.Context) error { return runExtract(c, t, o) },
	}
}

// extraction is the task that the flags of extract set.
type extraction struct {
	base, tuned string
	dialect     convert.Dialect
	options     rank.ExtractOptions
	creation    convert.CreateOptions
}

// parse reads the command line.
func (o *extractOptions) parse(c *cli.Context) (j extraction, err error) {
	const example = "loratool extract BASE TUNED -o ADAPTER --rank 8"
	if c.NArg() != 2 {
		return j, usagef(example, "extract takes a base and a tuned checkpoint, got %s", fault.Count(c.NArg(), "argument"))
	}
	if o.out == "" && !o.dryRun {
		return j, usagef(example, "extract needs -o ADAPTER, the path of the adapter")
	}
	if err := o.checkDry(o.dryRun); err != nil {
		return j, err
	}
	if j.options, err = o.library(c); err != nil {
		return j, err
	}
	j.dialect = convert.LoRA()
	j.options.Path = o.out
	if o.out != "" {
		if j.dialect, err = dialectOf(o.out, o.to); err != nil {
			return j, err
		}
	}
	j.options.PEFT = j.dialect == convert.PEFT()
	j.base, j.tuned = c.Args().Get(0), c.Args().Get(1)
	if sameFile(j.base, j.tuned) {
		return j, usagef("give the base first and the tuned checkpoint second", "%s and %s are the same checkpoint", j.base, j.tuned)
	}
	j.creation = o.creation(o.force, j.base, j.tuned)
	if j.dialect == convert.GGUF() || j.dialect == convert.MLX() {
		j.creation.DType = j.options.DType
		if j.creation.BaseConfig, err = configOf(c, j.base); err != nil {
			return j, err
		}
	}
	if j.options.Images = isOfImages(j.dialect); j.options.Images {
		if j.creation.Base, err = tensorsOf(c, j.base); err != nil {
			return j, err
		}
	}
	j.creation.MaxManifestBytes, err = o.maxManifest()
	return j, err
}

// library turns the flags into options of the library.
func (o *extractOptions) library(c *cli.Context) (options rank.ExtractOptions, err error) {
	options = rank.ExtractOptions{ConvRank: o.convRank, Only: o.only, Strict: o.strict, Workers: o.workers, Tool: "loratool " + version}
	options.SVD.Seed = uint64(o.seed)
	if err := o.checkRule(c); err != nil {
		return options, err
	}
	if err := o.setRule(c, &options); err != nil {
		return options, err
	}
	if options.DType, err = factorDType(o.dtype, dtype.F32, dtype.BF16, dtype.F16); err != nil {
		return options, err
	}
	if options.Include, err = parsePatterns(o.include.Value()); err != nil {
		return options, err
	}
	options.Exclude, err = parsePatterns(o.exclude.Value())
	return options, err
}

// checkRule checks the flags for the rank.
func (o *extractOptions) checkRule(c *cli.Context) error {
	if c.IsSet("conv-rank") && (o.convRank < 1 || c.IsSet("budget")) {
		return usagef("--rank 8 --conv-rank 4", "--conv-rank is a rank of at least 1, with another rule than --budget")
	}
	return o.check(c, true, "noise-floor")
}

// setRule sets the rule for the rank.
func (o *extractOptions) setRule(c *cli.Context, options *rank.ExtractOptions) (err error) {
	if options.Rule, options.Budget, err = o.rule(c); options.Budget > 0 {
		options.MaxRank = o.maxRank
	}
	if c.IsSet("noise-floor") {
		options.Rule = rank.NoiseFloor{Max: o.maxRank}
	}
	return err
}

// parsePatterns compiles regular expressions.
func parsePatterns(texts []string) (all []*regexp.Regexp, err error) {
	for _, text := range texts {
		re, err := regexp.Compile(text)
		if err != nil {
			return nil, usagef("the syntax is that of Go: https://pkg.go.dev/regexp/syntax", "%v", err)
		}
		all = append(all, re)
	}
	return all, nil
}

func runExtract(c *cli.Context, t *terminal, o *extractOptions) error {
	j, err := o.parse(c)
	if err != nil {
		return err
	}
	if o.out != "" {
		if err := convert.Check(c.Context, o.out, j.dialect, nil, j.creation); err != nil {
			return err
		}
	}
	place := o.place(o.force, []string{j.base, j.tuned}, []string{o.out})
	if err := o.checkPage(place); err != nil {
		return err
	}
	var add func(int64)
	j.options.Layer = func(_ string, n int64) {
		if add != nil {
			add(n)
		}
	}
	e, err := rank.OpenExtraction(c.Context, j.base, j.tuned, j.options)
	if err != nil {
		return err
	}
	defer e.Close()
	o.warn(t, e.Warnings())
	if o.dryRun {
		return showExtraction(t, o, e)
	}
	peak, largest := e.PeakBytes()
	if err := o.checkMemory(peak, fmt.Sprintf("extracting %q", largest)); err != nil {
		return err
	}
	add, finish := t.progress(&o.common, e.Bytes(), "extracting")
	stop := t.stopwatch()
	src, report, err := e.Run(c.Context)
	finish()
	if err != nil {
		return err
	}
	defer src.Close()
	o.warn(t, report.Warnings[len(e.Warnings()):])
	size, err := store(c, src, o.out, j.dialect, j.creation)
	if err != nil {
		return adviseContainer(err)
	}
	document := struct {
		Base         string  `json:"base"`
		Tuned        string  `json:"tuned"`
		Out          string  `json:"out"`
		Version      string  `json:"version"`
		Seconds      float64 `json:"seconds"`
		BytesRead    int64   `json:"bytes_read"`
		BytesWritten int64   `json:"bytes_written"`
		*rank.ExtractReport
	}{j.base, j.tuned, o.out, version, stop(), e.Bytes(), size, report}
	if err := t.show("extract", o.json, document, o.summary(func() {
		showExtracted(t, o, report, fileio.FormatBytes(size)+paceText(document.BytesRead, document.Seconds, "/s read"))
	})); err != nil {
		return err
	}
	head := page.Head{Command: "extract", Title: fmt.Sprintf("%s: %s − %s", o.out, j.tuned, j.base)}
	return o.writePage(t, &o.common, place, head, func(h page.Head) ([]byte, error) { return page.Extraction(h, report) })
}

// adviseContainer replaces the advice to choose a component, for which extract has no flag.
func adviseContainer(err error) error {
	var e *fault.Error
	if errors.As(err, &e) {
		if _, choice, ok := strings.Cut(e.Hint, "CreateOptions.Only="); ok {
			e.Hint = "extract to a .lora file, and write one component of it with convert.Create and CreateOptions.Only=" + choice
		}
	}
	return err
}

// sameFile reports whether two paths lead to the same file or directory.
func sameFile(a, b string) bool {
	ra, err1 := filepath.EvalSymlinks(a)
	rb, err2 := filepath.EvalSymlinks(b)
	return err1 == nil && err2 == nil && ra == rb
}
