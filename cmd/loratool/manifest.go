package main

import "github.com/urfave/cli/v2"

// manifestOption is --max-manifest: how large the manifest of a .lora file may be.
type manifestOption struct{ size string }

func (o *manifestOption) manifestFlag() cli.Flag {
	return &cli.StringFlag{Name: "max-manifest", Usage: "read and write .lora files with a manifest of `SIZE` bytes, up to 64MiB (default: 16MiB)", Destination: &o.size}
}

// maxManifest is the limit in bytes, 0 for the default.
func (o *manifestOption) maxManifest() (int64, error) {
	if o.size == "" {
		return 0, nil
	}
	n, err := parseBytes(o.size)
	if err != nil || n < 1 {
		return 0, usagef("--max-manifest takes a size such as 64MiB", "got --max-manifest %q", o.size)
	}
	return n, nil
}
