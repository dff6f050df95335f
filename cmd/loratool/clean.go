package main

import (
	"time"

	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

// leastAge is the shortest --older-than. A run on another machine may write nothing for minutes
// while it computes or waits for a slow disk, and its lock may not be visible here.
const leastAge = time.Hour

// cleanOptions are the flags of clean.
type cleanOptions struct {
	json, quiet, dryRun bool
	olderThan           time.Duration
}

func cleanCommand(t *terminal) *cli.Command {
	o := new(cleanOptions)
	return &cli.Command{
		Name:      "clean",
		Usage:     "remove the hidden files that killed runs left in a directory",
		ArgsUsage: "DIR",
		Description: "A run writes its output under a hidden name in the directory of OUT, .NAME.loratool-…, and the next run\n" +
			"there removes the leftovers of a killed one. It cannot always tell a killed run from a live one:\n" +
			"on Windows, on file systems without locks, and for runs on other machines or before a restart.\n" +
			"There clean goes by age: it removes an output to which nothing was written for a day, or --older-than.\n" +
			"It keeps what a run on this machine holds, and looks in no directory below DIR.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "older-than", Usage: "remove outputs not written to for `TIME`, at least 1h", Value: 24 * time.Hour, DefaultText: "24h", Destination: &o.olderThan},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be removed, and remove nothing", Destination: &o.dryRun},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Destination: &o.json},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing", Destination: &o.quiet},
		},
		Action: func(c *cli.Context) error { return runClean(c, t, o) },
	}
}

func runClean(c *cli.Context, t *terminal, o *cleanOptions) error {
	if c.NArg() != 1 {
		return usagef("loratool clean DIR", "clean needs one directory")
	}
	if o.olderThan < leastAge {
		return usagef("use --older-than 1h or more: a run on another machine may be slow to write",
			"--older-than is %s, less than an hour", o.olderThan)
	}
	dir := c.Args().First()
	names, err := fileio.Sweep(dir, o.olderThan, o.dryRun)
	if err != nil {
		return err
	}
	document := map[string]any{
		"directory": dir, "dry_run": o.dryRun, "older_than_seconds": int64(o.olderThan.Seconds()),
		"removed": append([]string{}, names...),
	}
	return t.show("clean", o.json, document, func() { showCleaned(t, o, dir, names) })
}

// showCleaned prints the removed files, or those that would be.
func showCleaned(t *terminal, o *cleanOptions, dir string, names []string) {
	if o.quiet {
		return
	}
	what := "removed"
	if o.dryRun {
		what = "would remove"
	}
	for _, name := range names {
		t.line("%s %s", what, name)
	}
	if len(names) == 0 {
		t.line("nothing to remove: no killed run left anything in %s that is older than %s", dir, o.olderThan.String())
	}
}
