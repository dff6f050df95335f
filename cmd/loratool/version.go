package main

import (
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is that of the next release; released binaries are built with -ldflags "-X
// main.version=…".
var version = "0.1.0-dev"

func versionCommand(t *terminal) *cli.Command {
	licences := false
	return &cli.Command{
		Name:  "version",
		Usage: "print the version, the commit, and the release of Go that built it",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "licences", Usage: "print the licences of all linked modules", Destination: &licences},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Destination: &t.json},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("loratool version", "version takes no argument")
			}
			if licences {
				return showLicences(t)
			}
			return showVersion(t)
		},
	}
}

func showVersion(t *terminal) error {
	b := builtFrom(debug.ReadBuildInfo())
	if t.json {
		return t.document("version", map[string]any{"version": version, "commit": b.commit, "modified": b.modified, "go": b.release})
	}
	commit := "commit " + b.commit
	switch {
	case b.commit == "":
		commit = "commit not known"
	case b.modified:
		commit += " with changes"
	}
	t.line("loratool %s, %s, %s", version, commit, b.release)
	return nil
}

// build describes the build of this binary.
type build struct {
	commit   string // empty where it was not built in a clone
	modified bool   // the clone had changes that were not committed
	release  string // of Go
}

func builtFrom(info *debug.BuildInfo, ok bool) build {
	if !ok {
		return build{release: runtime.Version()}
	}
	b := build{release: info.GoVersion}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value
		case "vcs.modified":
			b.modified = s.Value == "true"
		}
	}
	return b
}
