package main

import "github.com/urfave/cli/v2"

// manifestOption is --max-manifest, the limit on the manifest of a .lora file.
type manifestOption struct{ size string }

func (o *manifestOption) manifestFlag() cli.Flag {
	return &cli.StringFlag{Name: "max-manifest", Usage: "allow .lora files a manifest of `SIZE` bytes, at most 64MiB (default: 16MiB)", Destination: &o.size}
}

// maxManifest returns the limit in bytes, 0 for the default.
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
