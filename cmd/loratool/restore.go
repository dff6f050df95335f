package main

import (
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
	"github.com/urfave/cli/v2"
)

type restoreOptions struct {
	common
	manifestOption
	out string
}

func restoreCommand(t *terminal) *cli.Command {
	o := new(restoreOptions)
	return &cli.Command{
		Name:      "restore",
		Usage:     "give back the files that a .lora file was made from",
		ArgsUsage: "FILE -o DIR",
		Description: "Writes the safetensors file that convert read, byte for byte and proved by its SHA-256, and the files attached to it, into the new " +
			"directory DIR. A pickle comes back as a safetensors file with the same names and values. FILE#NAME is one adapter of a bundle.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to the directory `DIR`, which must not exist", Destination: &o.out},
			o.manifestFlag(),
		}, o.flags()...),
		Action: func(c *cli.Context) error { return runRestore(c, t, o) },
	}
}

func runRestore(c *cli.Context, t *terminal, o *restoreOptions) error {
	const example = "loratool restore FILE.lora -o DIR"
	if c.NArg() != 1 || o.out == "" {
		return usagef(example, "restore needs one .lora file, and -o DIR for its files")
	}
	in := c.Args().First()
	if err := refuseDirectory("restore", in); err != nil {
		return err
	}
	limit, err := o.maxManifest()
	if err != nil {
		return err
	}
	src, err := convert.Dialects{convert.LoRA()}.Open(c.Context, in, convert.Options{MaxManifestBytes: limit})
	if err != nil {
		return err
	}
	defer src.Close()
	if report.IsUndo(src) {
		return fault.New(fault.Mismatch, "this is the undo record of a merge, not an archive").In(in).
			WithHint("loratool unmerge MERGED ADAPTER -o OUT gives the base back")
	}
	file, _ := convert.SplitMember(in)
	place := newDirectory(o.out, file)
	if err := place.Check(); err != nil {
		return withoutForce(err)
	}
	out, err := output.NewDisk(o.out, output.DiskOptions{IsDir: true, Names: convert.RestoredNames(src)})
	if err != nil {
		return err
	}
	defer out.Abort()
	stop := t.stopwatch()
	exact, err := convert.RestoreTo(c.Context, out, src)
	if err != nil {
		return fault.InFile(err, in)
	}
	size, err := sizeOf(o.out)
	if err != nil {
		return err
	}
	names := convert.RestoredNames(src)
	document := map[string]any{"out": o.out, "files": names, "exact": exact, "bytes_written": size, "seconds": stop()}
	return t.show("restore", o.json, document, o.summary(func() {
		t.line("restored in %s: %s%s, %s", o.out, fileio.FormatBytes(size), paceText(size, document["seconds"].(float64), "/s"), fault.Count(len(names), "file"))
		if exact {
			t.line("%s is the source byte for byte, proved by SHA-256", names[0])
		} else {
			t.line("the source was no safetensors file; %s has its names and values", names[0])
		}
	}))
}
