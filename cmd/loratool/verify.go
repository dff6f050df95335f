package main

import (
	"errors"
	"io"
	"os"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

type verifyOptions struct {
	common
	manifestOption
}

func verifyCommand(t *terminal) *cli.Command {
	o := new(verifyOptions)
	return &cli.Command{
		Name:      "verify",
		Usage:     "check every checksum and rule of a .lora file",
		ArgsUsage: "FILE",
		Flags:     append([]cli.Flag{o.manifestFlag()}, o.flags()...),
		Action:    func(c *cli.Context) error { return runVerify(c, t, o) },
	}
}

func runVerify(c *cli.Context, t *terminal, o *verifyOptions) error {
	limit, err := o.maxManifest()
	if err != nil {
		return err
	}
	f, size, err := openLoRA(c, "verify")
	if err != nil {
		return err
	}
	defer f.Close()
	name := f.Name()
	if c.Args().First() == "-" {
		name = "standard input"
	}
	summary, err := format.Verify(c.Context, f, size, format.ReaderOptions{Workers: o.workers, MaxManifestBytes: limit})
	if err != nil {
		return damaged(f, err, name)
	}
	document := map[string]any{
		"content_id": summary.ContentID, "file_id": summary.FileID, "chunks": summary.Chunks,
		"raw_bytes": summary.RawBytes, "stored_bytes": summary.StoredBytes, "file_bytes": summary.FileBytes,
	}
	return t.show("verify", o.json, document, o.summary(func() {
		t.printf("%s is valid: %s, %s in %s\ncontent %s\nfile    %s\n",
			name, fault.Count(summary.Chunks, "chunk"), fileio.FormatBytes(summary.RawBytes), fileio.FormatBytes(size),
			summary.ContentID, summary.FileID)
	}))
}

// damagedError is an error that begins with its meaning.
type damagedError struct {
	error
	name string
}

func (e damagedError) Error() string { return e.name + " is damaged: " + e.error.Error() }

func (e damagedError) Unwrap() error { return e.error }

// damaged is an error of verify. A file that begins as .lora files do is not the one that its
// writer wrote; any other is no .lora file.
func damaged(f *os.File, err error, name string) error {
	start := make([]byte, len(loraMagic))
	if _, readErr := f.ReadAt(start, 0); readErr != nil || string(start) != loraMagic {
		return fault.InFile(err, name)
	}
	if errors.Is(err, fault.Corrupt) || errors.Is(err, fault.Truncated) {
		return damagedError{err, name}
	}
	return fault.InFile(err, name)
}

// loraMagic is how a .lora file begins (spec/FORMAT.md, R3).
const loraMagic = "\x5a\x2a\x4d\x18"

// spooled copies a pipe to a file that is gone when it is closed: the checks go by position.
func spooled(r io.Reader) (*os.File, int64, error) {
	f, err := os.CreateTemp("", "loratool-verify-*")
	if err != nil {
		return nil, 0, err
	}
	os.Remove(f.Name()) // it lives on until it is closed; on Windows it stays in the temporary directory
	n, err := io.Copy(f, r)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, n, nil
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
	if path == "-" && command == "verify" {
		return spooled(os.Stdin)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, 0, fault.New(fault.Unsupported, "this is a directory, and %s reads a .lora file", command).In(path).
			WithHint("loratool inspect %s shows what it holds; of an adapter, loratool convert makes a .lora file", path)
	}
	return fileio.Open(path)
}
