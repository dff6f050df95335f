package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

// withoutOption is --with and --without, the files beside adapters to apply and to ignore.
type withoutOption struct {
	manifestOption
	fromOption
	files cli.StringSlice
	whole cli.StringSlice
}

func (o *withoutOption) withFlag() cli.Flag {
	return &cli.StringSliceFlag{
		Name: "with",
		Usage: "replace weights of the base by those of `FILE`, which were trained whole beside an adapter; " +
			"once per file",
		Destination: &o.whole,
	}
}

func (o *withoutOption) withoutFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "without", Usage: "ignore `FILE`, weights in an adapter's folder that are not part of it; once per file", Destination: &o.files}
}

// openFlags are the flags of every command that opens adapters.
func (o *withoutOption) openFlags() []cli.Flag {
	return append([]cli.Flag{o.withFlag(), o.withoutFlag()}, append(o.fromFlags(), o.manifestFlag())...)
}

// opening returns the options for each adapter at paths. A file that is in none of their folders is
// a mistake.
func (o *withoutOption) opening(paths ...string) ([]convert.Options, error) {
	limit, err := o.maxManifest()
	if err != nil {
		return nil, err
	}
	options := make([]convert.Options, len(paths))
	for i := range options {
		options[i].MaxManifestBytes = limit
		if err := o.fromOption.set(&options[i]); err != nil {
			return nil, err
		}
	}
	for _, file := range o.files.Value() {
		found := false
		for i, path := range paths {
			if name := within(path, file); name != "" {
				options[i].Without = append(options[i].Without, name)
				found = true
			}
		}
		if !found {
			hint := "--without takes the name of a file in the directory of an adapter, such as non_lora_trainables.bin"
			if near := nearest(filepath.Base(file), filesIn(paths)); near != "" {
				hint = "did you mean " + near + "?"
			}
			return nil, usagef(hint, "--without %s: no adapter has this file in its folder", file)
		}
	}
	for _, file := range o.whole.Value() {
		if err := addWith(options, paths, file); err != nil {
			return nil, err
		}
	}
	return options, nil
}

// addWith adds a file of weights to the options of the adapter that has it in its folder, or to
// those of the only adapter.
func addWith(options []convert.Options, paths []string, file string) error {
	found := false
	for i, path := range paths {
		if name := within(path, file); name != "" {
			options[i].With = append(options[i].With, filepath.Join(path, filepath.FromSlash(name)))
			found = true
		}
	}
	switch {
	case found:
		return nil
	case fileio.IsAbsent(file):
		hint := "--with takes a file of weights, such as ADAPTER/non_lora_trainables.bin"
		if near := nearest(filepath.Base(file), filesIn(paths)); near != "" {
			hint = "did you mean " + near + "?"
		}
		return usagef(hint, "--with %s: there is no such file", file)
	case len(paths) > 1:
		return usagef("move it into the folder of its adapter",
			"--with %s: the file is in no adapter's folder, and there are %d adapters", file, len(paths))
	}
	options[0].With = append(options[0].With, file)
	return nil
}

// filesIn names the entries of directories.
func filesIn(dirs []string) (names []string) {
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir) // an adapter can be a file
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return names
}

// within returns the path of a file within dir, with slashes, or "" if dir does not have it. file
// is relative to dir or to the working directory.
func within(dir, file string) string {
	if info, err := os.Stat(dir); err != nil || !info.IsDir() || filepath.Clean(file) == "." {
		return ""
	}
	if rel, err := filepath.Rel(dir, file); err == nil && isFileIn(dir, rel) {
		return filepath.ToSlash(rel)
	}
	if isFileIn(dir, file) {
		return filepath.ToSlash(filepath.Clean(file))
	}
	return ""
}

func isFileIn(dir, name string) bool {
	if filepath.IsAbs(name) || strings.HasPrefix(filepath.Clean(name), "..") {
		return false
	}
	info, err := os.Stat(filepath.Join(dir, name))
	return err == nil && !info.IsDir()
}
