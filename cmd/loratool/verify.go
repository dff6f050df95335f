package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

type verifyOptions struct {
	common
	manifestOption
	key, signature string
}

func verifyCommand(t *terminal) *cli.Command {
	o := new(verifyOptions)
	return &cli.Command{
		Name:      "verify",
		Usage:     "check every checksum and rule of a .lora file",
		ArgsUsage: "FILE",
		Description: "With --json, rules lists the rules of spec/FORMAT.md that a valid file was checked against. For any other file, " +
			"error.failures lists what is wrong: kind, rule, offset and message of each failure.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "key", Usage: "check the signature too: `KEY` is a public key of minisign, or its file", Destination: &o.key},
			&cli.StringFlag{Name: "signature", Usage: "the signature, in `FILE` (default: that of the .lora file with " + signatureSuffix + ")", Destination: &o.signature},
			o.manifestFlag(),
		}, o.flags()...),
		Action: func(c *cli.Context) error { return runVerify(c, t, o) },
	}
}

func runVerify(c *cli.Context, t *terminal, o *verifyOptions) error {
	limit, err := o.maxManifest()
	if err != nil {
		return err
	}
	options := format.ReaderOptions{Workers: o.workers, MaxManifestBytes: limit}
	stop := t.stopwatch()
	var name string
	var summary *format.Summary
	if c.Args().First() == "-" && c.NArg() == 1 {
		name = "standard input"
		summary, err = verifyPipe(c.Context, os.Stdin, options, name)
	} else {
		name = c.Args().First()
		summary, err = verifyFile(c, options)
	}
	if err != nil {
		return err
	}
	document := map[string]any{
		"rules": format.VerifiedRules(), "content_id": summary.ContentID, "file_id": summary.FileID, "chunks": summary.Chunks,
		"raw_bytes": summary.RawBytes, "stored_bytes": summary.StoredBytes, "file_bytes": summary.FileBytes,
	}
	signature, err := o.checkSignature(c, summary)
	if err != nil {
		return err
	}
	if signature != nil {
		document["signature"] = signature
	}
	pace := paceText(summary.FileBytes, stop(), "/s")
	return t.show("verify", o.json, document, o.summary(func() {
		t.line("%s is valid: %s%s, %s, %s uncompressed with the attached files", name, fileio.FormatBytes(summary.FileBytes), pace,
			fault.Count(summary.Chunks, "chunk"), fileio.FormatBytes(summary.RawBytes))
		t.line("content   %s", summary.ContentID)
		t.line("file      %s", summary.FileID)
		switch beside := name + signatureSuffix; {
		case signature != nil:
			t.line("signed    by key %s: %s", signature.KeyID, signature.Comment)
		case !fileio.IsAbsent(beside):
			t.line("signed    not checked: --key KEY checks %s", beside)
		}
	}))
}

// checkSignature checks the signature of a file that is valid, where the user gives a key.
func (o *verifyOptions) checkSignature(c *cli.Context, summary *format.Summary) (*signed, error) {
	path := o.signature
	switch {
	case o.key == "" && path == "":
		return nil, nil
	case o.key == "":
		return nil, usagef("loratool verify FILE --key KEY", "--signature needs --key, the key that is to have signed the file")
	case path == "" && c.Args().First() == "-":
		return nil, usagef("name the signature with --signature", "a pipe has no signature beside it")
	case path == "":
		path = c.Args().First() + signatureSuffix
	}
	return checkSignature(c.Context, summary, path, o.key)
}

func verifyFile(c *cli.Context, options format.ReaderOptions) (*format.Summary, error) {
	f, size, err := openLoRA(c, c.Command.Name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	summary, err := format.Verify(c.Context, f, size, options)
	if err != nil {
		start := make([]byte, len(format.Magic))
		n, _ := f.ReadAt(start, 0)
		return nil, damaged(start[:n], err, f.Name())
	}
	return summary, nil
}

// verifyPipe proves a file as it arrives.
func verifyPipe(ctx context.Context, r io.Reader, options format.ReaderOptions, name string) (*format.Summary, error) {
	pipe := bufio.NewReader(r)
	start, _ := pipe.Peek(len(format.Magic))
	start = slices.Clone(start)
	stream, err := format.NewStreamReader(pipe, options)
	if err != nil {
		return nil, damaged(start, err, name)
	}
	for _, err := range stream.Pieces(ctx) {
		if err != nil {
			return nil, damaged(start, err, name)
		}
	}
	return stream.Summary(), nil
}

// findings are the errors that verify found in a file.
type findings struct {
	error
	name    string
	damaged bool // the file is not the one that its writer wrote
}

func (f *findings) Error() string {
	if f.damaged {
		return f.name + " is damaged: " + f.error.Error()
	}
	return f.error.Error()
}

func (f *findings) Unwrap() error { return f.error }

// damaged is the error of verify for a file that begins with start. One that begins as .lora files
// do is damaged; any other is no .lora file.
func damaged(start []byte, err error, name string) error {
	if !errors.Is(err, fault.Corrupt) && !errors.Is(err, fault.Truncated) || string(start) != format.Magic {
		return &findings{fault.InFile(err, name), name, false}
	}
	return &findings{err, name, true}
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
		return nil, 0, usagef("loratool "+command+" FILE", "%s takes one file, got %s", command, fault.Count(c.NArg(), "argument"))
	}
	path := c.Args().First()
	if err := refuseDirectory(command, path); err != nil {
		return nil, 0, err
	}
	if file, name := convert.SplitMember(path); name != "" {
		return nil, 0, usagef("loratool "+command+" "+file, "%s takes the whole file, and %s is one adapter of it", command, path)
	}
	return fileio.Open(path)
}

// refuseDirectory returns an error if a directory stands in place of a .lora file.
func refuseDirectory(command, path string) error {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return nil
	}
	return fault.New(fault.Unsupported, "this is a directory, but %s reads a .lora file", command).In(path).
		WithHint("loratool inspect %s shows its contents; loratool convert makes a .lora file of an adapter", path)
}
