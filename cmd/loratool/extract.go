package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type extractOptions struct {
	common
	manifestOption
	out, to, dtype              string
	rank, maxRank, convRank     int
	energy, maxError            float64
	noiseFloor                  bool
	budget                      string
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
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `ADAPTER`: a name that ends in .lora, a directory for PEFT, or a .safetensors file of PEFT or of the dialect of --to", Destination: &o.out},
			&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora, gguf, peft, kohya, diffusers or comfyui, where ADAPTER's name does not say it", Destination: &o.to},
			&cli.IntFlag{Name: "rank", Aliases: []string{"r"}, Usage: "keep `K` singular values per layer", Destination: &o.rank},
			&cli.Float64Flag{Name: "energy", Usage: "keep the fewest singular values with this `SHARE` of the energy ‖Δ‖², such as 0.95", Destination: &o.energy},
			&cli.Float64Flag{Name: "max-error", Usage: "keep the fewest singular values with an error of at most `E`·‖Δ‖, such as 0.1", Destination: &o.maxError},
			&cli.BoolFlag{Name: "noise-floor", Usage: "keep the singular values above the rounding noise of TUNED", Destination: &o.noiseFloor},
			&cli.StringFlag{Name: "budget", Usage: "spend `SIZE` bytes of factors, such as 40MB, on the singular values that bring most energy per byte; headers and configuration come on top", Destination: &o.budget},
			&cli.IntFlag{Name: "max-rank", Usage: "with another rule: at most `K` per layer", Destination: &o.maxRank},
			&cli.IntFlag{Name: "conv-rank", Usage: "keep `K` singular values of each convolution with a kernel larger than 1, in place of what the rule says", Destination: &o.convRank},
			&cli.StringFlag{Name: "dtype", Usage: "of the factors: f32, bf16 or f16", Value: "f32", Destination: &o.dtype},
			&cli.StringSliceFlag{Name: "include", Usage: "extract only tensors whose name matches the regular expression `RE`", Destination: &o.include},
			&cli.StringSliceFlag{Name: "exclude", Usage: "leave out tensors whose name matches `RE`", Destination: &o.exclude},
			&cli.BoolFlag{Name: "only-lora", Usage: "leave out what low rank does not hold, in place of carrying it whole", Destination: &o.only},
			&cli.BoolFlag{Name: "strict", Usage: "fail if anything is left out or carried whole", Destination: &o.strict},
			&cli.Int64Flag{Name: "seed", Usage: "of the random start", Destination: &o.seed},
			&cli.BoolFlag{Name: "force", Usage: "replace ADAPTER if it is an adapter", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be compared, and write nothing", Destination: &o.dryRun},
		}, append([]cli.Flag{o.memoryFlag(), o.manifestFlag()}, o.flags()...)...),
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
	if j.dialect == convert.GGUF() {
		j.creation.DType = j.options.DType
		if j.creation.BaseConfig, err = configOf(j.base); err != nil {
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
	d, ok := dtype.Parse(strings.ToUpper(o.dtype))
	if !ok || d != dtype.F32 && d != dtype.BF16 && d != dtype.F16 {
		return options, usagef("--dtype f32, bf16 or f16", "unknown dtype %q for the factors", o.dtype)
	}
	options.DType = d
	if options.Include, err = parsePatterns(o.include.Value()); err != nil {
		return options, err
	}
	options.Exclude, err = parsePatterns(o.exclude.Value())
	return options, err
}

// checkRule checks that the flags name one rule for the rank, with a number that makes sense.
func (o *extractOptions) checkRule(c *cli.Context) error {
	rules := 0
	for _, name := range []string{"rank", "energy", "max-error", "noise-floor", "budget"} {
		if c.IsSet(name) {
			rules++
		}
	}
	const hint = "one of --rank 8, --energy 0.95, --max-error 0.1, --noise-floor, --budget 40MB"
	switch {
	case rules != 1:
		return usagef(hint, "extract needs one rule for the rank, got %d", rules)
	case c.IsSet("rank") && o.rank < 1:
		return usagef(hint, "a rank is at least 1, got %d", o.rank)
	case c.IsSet("conv-rank") && (o.convRank < 1 || c.IsSet("budget")):
		return usagef(hint, "--conv-rank is a rank of at least 1, with another rule than --budget")
	case c.IsSet("energy") && !(o.energy > 0 && o.energy <= 1):
		return usagef(hint, "a share of the energy lies above 0 and up to 1, got %v", o.energy)
	case c.IsSet("max-error") && !(o.maxError > 0 && o.maxError < 1):
		return usagef(hint, "a relative error lies between 0 and 1, got %v", o.maxError)
	case o.maxRank < 0 || o.maxRank > 0 && c.IsSet("rank"):
		return usagef(hint, "--max-rank is a positive bound for another rule than --rank")
	}
	return nil
}

// setRule sets the rule for the rank.
func (o *extractOptions) setRule(c *cli.Context, options *rank.ExtractOptions) (err error) {
	switch {
	case c.IsSet("rank"):
		options.Rule = rank.FixedRank{K: o.rank}
	case c.IsSet("energy"):
		options.Rule = rank.EnergyShare{Share: o.energy, Max: o.maxRank}
	case c.IsSet("max-error"):
		options.Rule = rank.MaxError(o.maxError, o.maxRank)
	case c.IsSet("noise-floor"):
		options.Rule = rank.NoiseFloor{Max: o.maxRank}
	default:
		options.MaxRank = o.maxRank
		options.Budget, err = parseBytes(o.budget)
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
		return err
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
	return t.show("extract", o.json, document, o.summary(func() {
		showExtracted(t, o, report, fileio.FormatBytes(size)+paceText(document.BytesRead, document.Seconds, "/s read"))
	}))
}

// sameFile reports whether two paths lead to the same file or directory.
func sameFile(a, b string) bool {
	ra, err1 := filepath.EvalSymlinks(a)
	rb, err2 := filepath.EvalSymlinks(b)
	return err1 == nil && err2 == nil && ra == rb
}
