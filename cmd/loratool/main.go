// Command loratool merges LoRA adapters into checkpoints, and says what is in them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// version is that of the next release; released binaries are built with -ldflags "-X main.version=…".
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), endingSignals()...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// endingSignals are the signals that end a run in good order. nohup ignores SIGHUP for the program that
// it starts, and a run under nohup goes on when its terminal closes.
func endingSignals() []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if hangup != nil && !signal.Ignored(hangup) {
		all = append(all, hangup)
	}
	return all
}

// The exit codes, a contract with scripts.
const (
	exitDone        = 0
	exitFailed      = 1   // I/O, disk full
	exitUsage       = 2   // the command line
	exitInput       = 3   // an input is not valid or not supported
	exitCheck       = 4   // ran, but a check did not hold
	exitInterrupted = 130 // by a signal
)

const exitCodesHelp = `EXIT CODES
   0    done
   1    failed: I/O, disk full
   2    usage: the command line is wrong, or OUT cannot be written there
   3    an input is not valid or not supported
   4    ran, but a check did not hold
   130  interrupted
`

// run runs one command line and returns its exit code. Results go to stdout, all else to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	t := &terminal{out: &results{w: stdout}, err: stderr}
	err := newApp(t).run(ctx, args)
	if err == nil {
		err = t.out.err
	}
	if err == nil {
		return exitDone
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		t.fail(errInterrupted, "")
		return exitInterrupted
	}
	t.fail(err, hintFor(err, t.usage))
	return exitCode(err)
}

// errInterrupted reports a run that a signal ended.
var errInterrupted = errors.New("interrupted; nothing was written")

// usageError is a mistake on the command line.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(hint, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), hint}
}

func exitCode(err error) int {
	var usage *usageError
	var output *fileio.OutputError
	var input *fault.Error
	switch {
	case errors.As(err, &usage), errors.As(err, &output):
		return exitUsage
	case errors.Is(err, fault.Check):
		return exitCheck
	case errors.As(err, &input):
		return exitInput
	}
	return exitFailed
}

// hintFor says what to do next, where that is known; usage is how the command is called.
func hintFor(err error, commandUsage string) string {
	var usage *usageError
	var output *fileio.OutputError
	var space *fileio.SpaceError
	var results *resultsError
	switch {
	case errors.As(err, &usage):
		return usage.hint
	case errors.As(err, &results):
		return "see where standard output goes; files that the command writes are not concerned"
	case errors.As(err, &output) && output.Replaceable:
		return "choose another path with -o, or use --force to replace it"
	case errors.As(err, &output):
		return "choose another path with -o"
	case errors.As(err, &space), errors.Is(err, syscall.ENOSPC):
		return "free some space, or write to another disk with -o"
	case errors.Is(err, syscall.EROFS):
		return "choose another path with -o"
	case errors.Is(err, fs.ErrPermission):
		return "check who may read the inputs and write to the directory of OUT"
	}
	return inputHint(err, commandUsage)
}

// kindOf is the word for an error in JSON.
func kindOf(err error) string {
	var usage *usageError
	var output *fileio.OutputError
	switch {
	case errors.As(err, &usage), errors.As(err, &output):
		return "usage"
	case errors.Is(err, errInterrupted):
		return "interrupted"
	}
	return fault.KindName(err)
}
