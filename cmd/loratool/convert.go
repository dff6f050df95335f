package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/inspect"
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

type convertOptions struct {
	common
	withoutOption
	out, to, base string
	force, dryRun bool
}

func convertCommand(t *terminal) *cli.Command {
	o := new(convertOptions)
	return &cli.Command{
		Name:      "convert",
		Usage:     "write an adapter in another dialect",
		ArgsUsage: "ADAPTER -o OUT",
		Description: "Between PEFT's directory or file and the .lora container. A container that was made from a file of PEFT gives it back byte\n" +
			"for byte, with its configuration and model card, and proves it by SHA-256.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `OUT`: a name that ends in .lora is a container, one that ends in .safetensors a weights file of PEFT, another one a directory for PEFT", Destination: &o.out},
			&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora or peft, where OUT's name does not say it", Destination: &o.to},
			&cli.StringFlag{Name: "base", Usage: "remember `BASE`, so that merge can tell it from others", Destination: &o.base},
			o.withoutFlag(), o.manifestFlag(),
			&cli.BoolFlag{Name: "force", Usage: "replace OUT if it is an adapter of the same kind", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be written, and write nothing", Destination: &o.dryRun},
			o.memoryFlag(),
		}, o.flags()...),
		Action: func(c *cli.Context) error { return runConvert(c, t, o) },
	}
}

func runConvert(c *cli.Context, t *terminal, o *convertOptions) error {
	const example = "loratool convert ADAPTER -o OUT.lora"
	if c.NArg() != 1 {
		return usagef(example, "convert takes one adapter, got %d arguments", c.NArg())
	}
	if o.out == "" {
		return usagef(example, "convert needs -o OUT, the place of the new adapter")
	}
	dialect, err := dialectOf(o.out, o.to)
	if err != nil {
		return err
	}
	opening, err := o.opening(c.Args().First())
	if err != nil {
		return err
	}
	src, err := convert.OpenDigested(c.Context, c.Args().First(), opening[0])
	if err != nil {
		return err
	}
	defer src.Close()
	for _, note := range src.Manifest().Notes {
		if !o.quiet {
			t.message("warning", note)
		}
	}
	if o.base != "" {
		if src, err = rememberBase(c, src, o.base); err != nil {
			return err
		}
	}
	m := src.Manifest()
	var raw int64
	for i := range m.Tensors {
		raw += m.Tensors[i].NBytes()
	}
	options := o.creation(o.force, c.Args().First())
	options.MaxManifestBytes = opening[0].MaxManifestBytes
	if o.base != "" {
		options.Inputs = append(options.Inputs, o.base)
	}
	if err := convert.Check(c.Context, o.out, dialect, src, options); err != nil {
		return err
	}
	warnings, err := misgivings(c.Context, src)
	if err != nil {
		return err
	}
	if module, models := convert.LostByPEFT(src); module != "" && dialect == convert.PEFT {
		warnings = append(warnings, fmt.Sprintf("PEFT will ignore %q without an error: this is its name "+
			"in the checkpoint, and transformers 5 gives it another in memory (%s); "+
			"run loratool extract --to peft, which writes PEFT's names", module, models))
	}
	for _, w := range warnings {
		if !o.quiet {
			t.message("warning", w)
		}
	}
	peak, err := convert.PeakBytes(o.out, dialect, src, options)
	if err != nil {
		return err
	}
	if o.dryRun {
		return showConversion(t, o, dialect, src, raw, peak, warnings)
	}
	if err := o.checkMemory(peak, "writing "+o.out); err != nil {
		return err
	}
	size, err := store(c, src, o.out, dialect, options)
	if err != nil {
		return err
	}
	if o.json {
		return t.document("convert", map[string]any{"out": o.out, "dialect": dialect.Name(), "tensor_bytes": raw, "bytes_written": size, "warnings": warnings})
	}
	if !o.quiet {
		t.printf("converted to %s: %s, %d tensors of %s\n", o.out, fileio.FormatBytes(size), len(m.Tensors), fileio.FormatBytes(raw))
	}
	return nil
}

// misgivings are the reasons why merge refuses what is converted, which is carried all the same.
func misgivings(ctx context.Context, src format.Source) ([]string, error) {
	all := []string{}
	m := src.Manifest()
	for i := range m.Adapters {
		why, _ := merge.Refusals(&m.Adapters[i])
		for _, w := range why {
			all = append(all, "merge refuses this adapter: "+flagsFor(w))
		}
	}
	n, err := inspect.CountNonFinite(ctx, src)
	if n > 0 {
		all = append(all, fmt.Sprintf("merge refuses this adapter without --allow-nonfinite: %d of its values are NaN or infinite", n))
	}
	return all, err
}

// creation are the options of an output that is made from inputs.
func (o *common) creation(replace bool, inputs ...string) convert.CreateOptions {
	return convert.CreateOptions{Replace: replace, Inputs: inputs, Workers: o.workers, Tool: "loratool", Version: version}
}

// showConversion prints what would be written. The caller has checked that it could be.
func showConversion(t *terminal, o *convertOptions, d convert.Dialect, src format.Source, raw, peak int64, warnings []string) error {
	n := len(src.Manifest().Tensors)
	if o.json {
		return t.document("convert", map[string]any{"dry_run": true, "out": o.out, "dialect": d.Name(), "tensors": n, "tensor_bytes": raw, "peak_memory_bytes": peak, "free_bytes": freeBytes(o.out), "warnings": warnings})
	}
	t.printf("%d tensors of %s would be written to %s as %s, about %s of memory\n",
		n, fileio.FormatBytes(raw), o.out, d.Name(), fileio.FormatBytes(peak))
	return nil
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
	plan, err := merge.Open(c.Context, base, []merge.Adapter{{Source: src, Name: c.Args().First(), Weight: 1}}, merge.Options{Again: true, AnyBase: true})
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
	dialects := convert.Default()
	if to == "" {
		d, err := dialects.For(out)
		if err != nil {
			return nil, usagef(fault.Hint(err), "%v", err)
		}
		return d, nil
	}
	if d := dialects.Named(strings.ToLower(to)); d != nil {
		return d, nil
	}
	return nil, usagef("the dialects that are written are "+strings.Join(dialects.Names(), " and "), "unknown dialect %q", to)
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

func verifyCommand(t *terminal) *cli.Command {
	o := new(struct {
		common
		manifestOption
	})
	return &cli.Command{
		Name:      "verify",
		Usage:     "check every checksum and rule of a .lora file",
		ArgsUsage: "FILE",
		Flags:     append([]cli.Flag{o.manifestFlag()}, o.flags()...),
		Action: func(c *cli.Context) error {
			limit, err := o.maxManifest()
			if err != nil {
				return err
			}
			f, size, err := openLoRA(c, "verify")
			if err != nil {
				return err
			}
			defer f.Close()
			summary, err := format.Verify(c.Context, f, size, format.ReaderOptions{Workers: o.workers, MaxManifestBytes: limit})
			if err != nil {
				return fault.InFile(err, f.Name())
			}
			if o.json {
				return t.document("verify", map[string]any{
					"content_id": summary.ContentID, "file_id": summary.FileID, "chunks": summary.Chunks,
					"raw_bytes": summary.RawBytes, "stored_bytes": summary.StoredBytes, "file_bytes": summary.FileBytes,
				})
			}
			if !o.quiet {
				t.printf("%s is valid: %d chunks, %s in %s\ncontent %s\nfile    %s\n", f.Name(), summary.Chunks, fileio.FormatBytes(summary.RawBytes), fileio.FormatBytes(size), summary.ContentID, summary.FileID)
			}
			return nil
		},
	}
}

func dumpCommand(t *terminal) *cli.Command {
	o := new(common)
	return &cli.Command{
		Name:      "dump",
		Usage:     "print the bytes of a .lora file with their meaning",
		ArgsUsage: "FILE",
		Flags:     o.flags(),
		Action: func(c *cli.Context) error {
			if o.json {
				return usagef("loratool verify FILE --json and loratool inspect FILE --json tell what is in it", "dump prints text only")
			}
			f, size, err := openLoRA(c, "dump")
			if err != nil {
				return err
			}
			defer f.Close()
			return fault.InFile(format.Dump(c.Context, t.out, f, size), f.Name())
		},
	}
}

// openLoRA opens the one argument of a command for a .lora file.
func openLoRA(c *cli.Context, command string) (*os.File, int64, error) {
	if c.NArg() != 1 {
		return nil, 0, usagef("loratool "+command+" FILE", "%s takes one file, got %d arguments", command, c.NArg())
	}
	path := c.Args().First()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, 0, fault.New(fault.Unsupported, "this is a directory, and %s reads a .lora file", command).In(path).
			WithHint("loratool inspect %s shows what it holds; of an adapter, loratool convert makes a .lora file", path)
	}
	return fileio.Open(path)
}
