package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

// parseGGUF reads the flags for GGUF files.
func (j *conversion) parseGGUF(c *cli.Context, o *convertOptions) error {
	const example = "loratool convert ADAPTER --base BASE -o OUT.gguf"
	if j.dialect != convert.GGUF() {
		switch {
		case o.architecture != "":
			return usagef(example, "--architecture is for GGUF files, and %s is for %s", o.out, j.dialect.Name())
		}
		return nil
	}
	if ext := filepath.Ext(o.out); !strings.EqualFold(ext, ".gguf") {
		return usagef(example, "an adapter for llama.cpp is a GGUF file, and the output is %s", o.out)
	}
	j.creation.Architecture = o.architecture
	d, ok := dtype.Parse(strings.ToUpper(o.lora.dtype))
	if !ok || d != dtype.F32 && d != dtype.F16 && d != dtype.BF16 {
		return usagef("--dtype f32, f16 or bf16", "unknown dtype %q for the factors of a GGUF file", o.lora.dtype)
	}
	if c.IsSet("dtype") {
		j.creation.DType = d
	}
	return nil
}

// straighten gives an adapter of llama.cpp the order of rows that the base has.
func straighten(c *cli.Context, src format.Source, base string) (format.Source, error) {
	if a := src.Manifest().Adapters; len(a) != 1 || !slices.ContainsFunc(a[0].Requires, format.Requirement.IsOfRows) {
		return src, nil
	}
	text, err := configOf(c, base)
	if err != nil {
		return nil, err
	}
	return convert.WithHeads(src, text)
}

// alike gives adapters of several dialects the names and the rows of one. base is "" or the path of
// their model.
func alike(c *cli.Context, adapters []format.Source, base string) ([]format.Source, error) {
	var o convert.CreateOptions
	for _, src := range adapters {
		if base == "" || len(src.Manifest().Adapters) != 1 {
			continue
		}
		var err error
		if slices.ContainsFunc(src.Manifest().Adapters[0].Requires, format.Requirement.IsOfRows) {
			o.BaseConfig, err = configOf(c, base)
		} else if convert.IsOfImages(src) && o.Base == nil {
			o.Base, err = tensorsOf(c, base)
		}
		if err != nil {
			return nil, err
		}
	}
	return convert.Alike(c.Context, adapters, o)
}

// configOf reads the config.json of a base: a directory, which need not hold weights, or a file in
// it. The keys of a GGUF file without one say the same.
func configOf(c *cli.Context, base string) ([]byte, error) {
	path := filepath.Join(base, checkpoint.ConfigName)
	if fileio.IsFile(base) {
		path = filepath.Join(filepath.Dir(base), checkpoint.ConfigName)
	}
	text, err := fileio.ReadFile(path, checkpoint.MaxJSONBytes)
	if !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	if text, err := keysOf(c, base); text != nil || fileio.IsFile(base) && err != nil {
		return text, err
	}
	return nil, fault.New(fault.Unsupported, "the base has no %s, which says its architecture and "+
		"the size of its attention heads", checkpoint.ConfigName).In(base)
}

// keysOf returns the keys of a base in GGUF as a config.json; nil for any other base.
func keysOf(c *cli.Context, base string) ([]byte, error) {
	b, err := checkpoint.Open(c.Context, base)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return checkpoint.KeysAsConfig(b)
}
