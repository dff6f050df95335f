// Command loratool merges LoRA adapters into checkpoints, and shows their contents.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), endingSignals()...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// endingSignals are the signals that end a run in good order. nohup ignores SIGHUP for the program
// that it starts, and a run under nohup goes on when its terminal closes.
func endingSignals() []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if hangup != nil && !signal.Ignored(hangup) {
		all = append(all, hangup)
	}
	return all
}

// run runs one command line and returns its exit code. Results go to stdout, all else to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return runOn(ctx, args, &terminal{out: &results{w: stdout}, err: stderr})
}

func runOn(ctx context.Context, args []string, t *terminal) int {
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
	err = t.named(err)
	t.fail(err, hintFor(err, t.usage))
	return exitCode(err)
}
