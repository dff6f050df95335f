package main

import (
	"math"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/urfave/cli/v2"
)

// common are the options that every command has.
type common struct {
	json, quiet, verbose, noProgress bool
	workers                          int
	maxMemory                        string // "" is all available memory
}

func (o *common) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "print one JSON document", Destination: &o.json},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no warnings and no summary", Destination: &o.quiet},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "print more: every layer and tensor by its name", Destination: &o.verbose},
		&cli.BoolFlag{Name: "no-progress", Usage: "show no progress bar", Destination: &o.noProgress},
		&cli.IntFlag{Name: "workers", Usage: "use `N` processors (default: all)", Destination: &o.workers, Action: func(c *cli.Context, n int) error {
			if n < 0 {
				return usagef(helpHint(c.Command.Name), "--workers takes a number of processors, got %d", n)
			}
			return nil
		}},
	}
}

// memoryFlag is the flag of the commands that know beforehand how much memory they take.
func (o *common) memoryFlag() cli.Flag {
	return &cli.StringFlag{Name: "max-memory", Usage: "take at most about `SIZE` bytes of memory, such as 2GB (default: all that is available)", Destination: &o.maxMemory,
		Action: func(_ *cli.Context, size string) error {
			_, err := parseBytes(size)
			return err
		}}
}

// checkMemory refuses work before it begins, if its estimated memory is above --max-memory or,
// without that flag, above the available memory. what names the work.
func (o *common) checkMemory(need int64, what string) error {
	if need > math.MaxInt {
		return fault.New(fault.Limit, "%s takes about %s of memory, more than a 32-bit program can address", what, fileio.FormatBytes(need)).
			WithHint("use a 64-bit build of loratool")
	}
	if o.maxMemory != "" {
		allowed, err := parseBytes(o.maxMemory)
		if total := processBytes(need); err == nil && total > allowed {
			return fault.New(fault.Limit, "%s takes about %s of memory, but --max-memory allows %s", what, fileio.FormatBytes(total), fileio.FormatBytes(allowed)).
				WithHint("allow more with --max-memory, or use fewer --workers")
		}
		return err
	}
	if there := fileio.AvailableMemory(); there > 0 && need > there {
		return fault.New(fault.Limit, "%s takes about %s of memory, but only %s is available", what, fileio.FormatBytes(need), fileio.FormatBytes(there)).
			WithHint("use fewer --workers, or a machine with more memory; --max-memory SIZE overrides this check")
	}
	return nil
}

// processBytes is the memory that the whole process has at the peak of some work: its memory now,
// and the memory that the work adds.
func processBytes(work int64) int64 { return fileio.HeldMemory() + work }

// warn prints warnings, except after --quiet.
func (o *common) warn(t *terminal, warnings []string) {
	if o.quiet {
		return
	}
	for _, w := range warnings {
		t.message("warning", w)
	}
}

// summary is the text of a report for show: nothing if the user asked for none.
func (o *common) summary(text func()) func() {
	if o.quiet {
		return func() {}
	}
	return text
}
