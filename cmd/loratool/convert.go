package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type convertOptions struct {
	common
	withoutOption
	out, to, base string
	loader        string
	architecture  string
	force, dryRun bool
	byLayer       bool
	opaque        bool
	foldScale     bool
	only          []string
	lora          asLoRA
}

func convertCommand(t *terminal) *cli.Command {
	o := new(convertOptions)
	return &cli.Command{
		Name:      "convert",
		Usage:     "turn an adapter of any dialect into a .lora file or into another dialect",
		ArgsUsage: "ADAPTER -o OUT",
		Description: "Converts between PEFT's directory or file, the .lora container, GGUF files for llama.cpp, directories of mlx-lm (--to mlx), and the dialects of image models (kohya, …). " +
			"A container made from a file of weights gives the file back byte for byte, with its configuration and model card, and proves it by SHA-256. " +
			"Beside a .safetensors file convert writes adapter_config.json.",
		Flags: append(append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `OUT`: a container if the name ends in .lora, an adapter for llama.cpp if it ends in .gguf, a weights file of PEFT if it ends in .safetensors, else a directory for PEFT", Destination: &o.out},
			&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora, gguf, mlx, peft, kohya, diffusers or comfyui, where OUT's name does not say it", Destination: &o.to},
			&cli.StringFlag{Name: "for", Usage: "write the dialect of `PROGRAM`, and say what it ignores: comfyui, diffusers, a1111, forge, sd-scripts, sd.cpp or wan2gp; vllm and sglang, servers of language models, get PEFT's files with one rank and one scale", Destination: &o.loader},
			&cli.StringFlag{Name: "base", Usage: "the model that the adapter is for: a container remembers `BASE`, so that merge can tell it from others; a dialect of image models takes the names of modules from it where no table knows them; a GGUF file needs its config.json, and mlx-lm's number of blocks and names of experts come from there", Destination: &o.base},
			&cli.StringFlag{Name: "architecture", Usage: "of the base, as llama.cpp calls it (`NAME` such as llama or qwen3), for a GGUF file where no --base says it", Destination: &o.architecture,
				Action: func(_ *cli.Context, name string) error {
					if err := convert.CheckArchitecture(name); err != nil {
						return usagef("loratool convert ADAPTER --architecture llama -o OUT.gguf", "%v", err)
					}
					return nil
				}},
			onlyFlag("write", &o.only),
			&cli.BoolFlag{Name: "fold-scale", Usage: "for programs that ignore alpha: let the factors carry the scale, and write the scale 1", Destination: &o.foldScale},
			&cli.BoolFlag{Name: "by-layer", Usage: "for readers over a network: keep each layer of a container in one place, in chunks of 64 KiB; the file grows by about 0.3 %", Destination: &o.byLayer},
			&cli.BoolFlag{Name: "opaque", Usage: "archive a safetensors file or a pickle of tensors in any dialect, without its meaning; restore gives it back", Destination: &o.opaque},
			&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is an adapter of the same kind", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be written, and write nothing", Destination: &o.dryRun},
			o.memoryFlag(),
		}, slices.Concat(o.lora.flags(), o.openFlags())...), o.flags()...),
		Action: func(c *cli.Context) error { return runConvert(c, t, o) },
	}
}

// conversion is the task that the flags of convert set.
type conversion struct {
	in       string
	dialect  convert.Dialect
	opening  convert.Options
	creation convert.CreateOptions
	loader   *convert.Loader   // the program that the user names; nil for none
	lora     *rank.LoRAOptions // nil keeps the methods of the adapter
	made     *rank.LoRAReport  // nil likewise

	rounding dtype.Type          // of the factors; 0 keeps theirs
	rounded  *rank.CombineReport // nil likewise
}

// parse reads the command line.
func (o *convertOptions) parse(c *cli.Context) (j conversion, err error) {
	const example = "loratool convert ADAPTER -o OUT.lora"
	if c.NArg() != 1 {
		return j, usagef(example, "convert takes one adapter, got %s", fault.Count(c.NArg(), "argument"))
	}
	if o.out == "" {
		return j, usagef(example, "convert needs -o OUT, the path of the new adapter")
	}
	j.in = c.Args().First()
	if err := j.chooseDialect(o); err != nil {
		return j, err
	}
	if j.lora, err = o.lora.options(c); err != nil {
		return j, err
	}
	opening, err := o.opening(j.in)
	if err != nil {
		return j, err
	}
	j.opening, j.creation = opening[0], o.creation(o.force, j.in)
	if j.opening.Opaque = o.opaque; o.opaque && j.dialect != convert.LoRA() {
		return j, usagef("loratool convert FILE --opaque -o OUT.lora", "--opaque writes a .lora file, and the output is %s", o.out)
	}
	j.creation.MaxManifestBytes = j.opening.MaxManifestBytes
	if o.byLayer {
		if j.dialect != convert.LoRA() {
			return j, usagef(example, "--by-layer arranges a .lora file, and %s is for %s", o.out, j.dialect.Name())
		}
		j.creation.ByLayer, j.creation.ChunkLog2 = true, 16
	}
	if err := errors.Join(j.parseGGUF(c, o), j.setRounding(c, o)); err != nil {
		return j, err
	}
	if o.base != "" {
		j.creation.Inputs = append(j.creation.Inputs, o.base)
	}
	if ext := filepath.Ext(o.out); j.isOfImages() && !strings.EqualFold(ext, ".safetensors") {
		return j, usagef("name an output ending in .safetensors", "%s is a safetensors file, and the output is %s",
			"an adapter of the dialect "+j.dialect.Name(), o.out)
	}
	j.creation.FoldScale, j.creation.Only, j.creation.Loader = o.foldScale, o.only, j.loader
	for name, isSet := range map[string]bool{"--fold-scale": o.foldScale, "--only": o.only != nil} {
		if isSet && !j.isOfImages() && j.dialect != convert.PEFT() {
			return j, usagef("loratool convert ADAPTER --to kohya --fold-scale -o OUT.safetensors",
				"%s is for the dialects of image models and for PEFT, and %s is for %s", name, o.out, j.dialect.Name())
		}
	}
	return j, nil
}

// chooseDialect takes the dialect of the program that the user names, or the dialect itself, or the
// one that the name of the output implies.
func (j *conversion) chooseDialect(o *convertOptions) (err error) {
	if o.loader == "" {
		j.dialect, err = dialectOf(o.out, o.to)
		return err
	}
	if j.loader, err = convert.LoaderNamed(o.loader); err != nil {
		return usagef(fault.Hint(err), "%v", err)
	}
	if name := j.loader.Dialect.Name(); o.to != "" && o.to != name {
		return usagef("leave one of them out", "--for %s writes the dialect %s, and --to says %s", o.loader, name, o.to)
	}
	j.dialect = j.loader.Dialect
	return nil
}

// isOfImages reports whether the output is of a dialect of image models.
func (j *conversion) isOfImages() bool { return isOfImages(j.dialect) }

func isOfImages(d convert.Dialect) bool {
	return d != convert.LoRA() && d != convert.PEFT() && d != convert.GGUF() && d != convert.MLX()
}

// readBase opens the base, for its names or for its fingerprints.
func (j *conversion) readBase(c *cli.Context, src format.Source, base string) (format.Source, error) {
	if j.dialect == convert.GGUF() || j.dialect == convert.MLX() {
		var err error
		if j.creation.BaseConfig, err = configOf(c, base); err != nil || j.dialect == convert.GGUF() {
			return src, err
		}
		// A directory with a config.json alone tells most; with weights it also tells their names.
		if j.creation.Base, err = tensorsOf(c, base); err != nil && !errors.Is(err, format.ErrUnsupported) {
			return src, err
		}
		return straighten(c, src, base)
	}
	if !j.isOfImages() && (j.dialect != convert.PEFT() || !convert.IsOfImages(src)) {
		src, err := straighten(c, src, base)
		if err == nil && j.loader != nil {
			j.creation.BaseConfig, err = configOf(c, base)
		}
		if err != nil {
			return nil, err
		}
		return rememberBase(c, src, base)
	}
	var err error
	j.creation.Base, err = tensorsOf(c, base)
	return src, err
}

// tensorsOf lists the tensors of a base, for the dialects that take names from it.
func tensorsOf(c *cli.Context, base string) (tensors []format.Tensor, err error) {
	b, err := checkpoint.Open(c.Context, base)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	for _, name := range b.Names() {
		ref, _ := b.Lookup(name)
		tensors = append(tensors, format.Tensor{
			Name: name, DType: ref.Tensor.DType, Shape: ref.Tensor.Shape,
		})
	}
	return tensors, nil
}

func runConvert(c *cli.Context, t *terminal, o *convertOptions) error {
	j, err := o.parse(c)
	if err != nil {
		return err
	}
	src, err := convert.OpenDigested(c.Context, j.in, j.opening)
	if err != nil {
		return err
	}
	defer src.Close()
	o.warn(t, src.Manifest().Notes)
	if j.lora != nil {
		thin, made, err := o.lora.apply(c, src, j.lora, o.base, o.out, o.workers)
		if err != nil {
			return fault.InFile(err, j.in)
		}
		defer thin.Close()
		src, j.made = thin, made
		o.warn(t, made.Warnings)
	}
	if j.rounding != dtype.Invalid {
		rounded, err := j.round(c, o, src)
		if err != nil {
			return err
		}
		defer rounded.Close()
		src = rounded
	}
	if o.base != "" {
		if src, err = j.readBase(c, src, o.base); err != nil {
			return err
		}
	}
	if err := convert.Check(c.Context, o.out, j.dialect, src, j.creation); err != nil {
		return err
	}
	warnings, err := j.warnings(c.Context, src, o.out)
	if err != nil {
		return fault.InFile(err, j.in)
	}
	o.warn(t, warnings)
	peak, err := convert.PeakBytes(o.out, j.dialect, src, j.creation)
	if err != nil {
		return err
	}
	if o.dryRun {
		return showConversion(t, o, &j, src, peak, warnings)
	}
	if err := o.checkMemory(peak, "writing "+o.out); err != nil {
		return err
	}
	stop := t.stopwatch()
	size, err := store(c, src, o.out, j.dialect, j.creation)
	if err != nil {
		return fault.InFile(err, j.in)
	}
	return showConverted(t, o, &j, src, size, stop(), warnings)
}

// warnings say why merge or PEFT will not take what is converted, which is carried all the same,
// and what the output rounds.
func (j *conversion) warnings(ctx context.Context, src format.Source, out string) ([]string, error) {
	misgivings, err := report.Misgivings(ctx, src)
	warnings := allFlags(misgivings)
	if err == nil {
		var remarks []string
		remarks, err = convert.Remarks(ctx, out, j.dialect, src, j.creation)
		warnings = append(warnings, allFlags(remarks)...)
	}
	if j.loader != nil {
		warnings = append(warnings, j.loader.Warnings(src, j.creation)...)
	}
	if module, models := convert.LostByPEFT(src); module != "" && j.dialect == convert.PEFT() {
		warnings = append(warnings, fmt.Sprintf("PEFT will ignore %q without an error: this is its name "+
			"in the checkpoint, and transformers 5 gives it another in memory (%s); "+
			"run loratool extract --to peft, which writes PEFT's names", module, models))
	}
	return warnings, err
}

// creation are the options of an output that is made from inputs.
func (o *common) creation(replace bool, inputs ...string) convert.CreateOptions {
	return convert.CreateOptions{Replace: replace, Inputs: inputs, Workers: o.workers, Tool: "loratool", Version: version}
}

// showConversion shows the files that would be written. The caller has checked that it could be.
func showConversion(t *terminal, o *convertOptions, j *conversion, src format.Source, peak int64, warnings []string) error {
	n, raw := len(src.Manifest().Tensors), tensorBytes(src)
	document := map[string]any{
		"dry_run": true, "out": o.out, "dialect": j.dialect.Name(), "tensors": n, "tensor_bytes": raw,
		"peak_memory_bytes": processBytes(peak), "free_bytes": freeBytes(o.out), "warnings": warnings,
	}
	j.addMade(document)
	return t.show("convert", o.json, document, func() {
		j.showMade(t)
		t.line("%s of %s would be written to %s as %s; about %s of memory",
			fault.Count(n, "tensor"), fileio.FormatBytes(raw), o.out, j.dialect.Name(), fileio.FormatBytes(processBytes(peak)))
	})
}

// showConverted shows the written files.
func showConverted(t *terminal, o *convertOptions, j *conversion, src format.Source, size int64, seconds float64, warnings []string) error {
	raw := tensorBytes(src)
	document := map[string]any{
		"out": o.out, "dialect": j.dialect.Name(), "tensor_bytes": raw, "bytes_written": size, "seconds": seconds, "warnings": warnings,
	}
	beside := ""
	if j.dialect.Name() == convert.PEFT().Name() && convert.PEFTWritesFile(o.out) {
		document["configuration"] = filepath.Join(filepath.Dir(o.out), format.PEFTConfig)
		beside = ", with " + format.PEFTConfig + " beside it"
	}
	j.addMade(document)
	return t.show("convert", o.json, document, o.summary(func() {
		j.showMade(t)
		t.line("converted to %s: %s%s, %s, %s uncompressed%s", o.out, fileio.FormatBytes(size), paceText(size, seconds, "/s"),
			fault.Count(len(src.Manifest().Tensors), "tensor"), fileio.FormatBytes(raw), beside)
	}))
}

// addMade adds the layers that became LoRA, or were rounded, to a document.
func (j *conversion) addMade(document map[string]any) {
	if j.made != nil {
		document["as_lora"] = j.made.Layers
	}
	if j.rounded != nil {
		document["rounded"] = j.rounded.Layers
	}
}

func (j *conversion) showMade(t *terminal) {
	if j.made != nil {
		t.line("%s", loraText(j.made))
	}
	if j.rounded != nil {
		t.line("%s", roundedText(j.rounded, j.rounding))
	}
}

// tensorBytes is the size of all tensors of an adapter.
func tensorBytes(src format.Source) (n int64) {
	m := src.Manifest()
	for i := range m.Tensors {
		n += m.Tensors[i].NBytes()
	}
	return n
}

// freeBytes is the space on the disk where an output is to appear, -1 where it is not known.
func freeBytes(out string) int64 {
	n, err := fileio.FreeBytes(filepath.Dir(out))
	if err != nil {
		return -1
	}
	return n
}

// rememberBase returns the source with the fingerprints of a base in its record.
func rememberBase(c *cli.Context, src format.Source, base string) (format.Source, error) {
	plan, err := merge.Open(c.Context, base, []merge.Adapter{{Source: src, Name: c.Args().First(), Weight: 1}}, merge.Options{Again: true, AnyBase: true, Reading: merge.Reading{ExpertTurns: true}})
	if err != nil {
		return nil, err
	}
	defer plan.Close()
	b, err := plan.BaseOf(c.Context, 0)
	if err != nil {
		return nil, err
	}
	return convert.WithBase(src, b), nil
}

// dialectOf is the dialect that the user names, or that the name of the output implies.
func dialectOf(out, to string) (convert.Dialect, error) {
	dialects := convert.Default().Written()
	if to == "" {
		d, err := dialects.For(out)
		if err != nil {
			return nil, usagef(fault.Hint(err), "%v", err)
		}
		return d, nil
	}
	to = strings.ToLower(to)
	if to == "comfy" {
		to = convert.ComfyUI().Name()
	}
	if d := dialects.Named(to); d != nil {
		return d, nil
	}
	names := dialects.Names()
	written := strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
	return nil, usagef("the dialects that are written are "+written, "unknown dialect %q", to)
}

// store writes a source to a path and returns the size of what is there then.
func store(c *cli.Context, src format.Source, out string, d convert.Dialect, o convert.CreateOptions) (int64, error) {
	sink, err := convert.Create(out, d, o)
	if err != nil {
		return 0, err
	}
	if err := format.Copy(c.Context, sink, src); err != nil {
		return 0, err
	}
	return sizeOf(out)
}

// sizeOf is the size of a file, or of the files of a directory.
func sizeOf(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	entries, err := os.ReadDir(path)
	var n int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			n += info.Size()
		}
	}
	return n, err
}
