package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
)

// The exit codes, a contract with scripts.
const (
	exitDone        = 0
	exitFailed      = 1   // I/O, disk full
	exitUsage       = 2   // the command line
	exitInput       = 3   // an input is not valid or not supported
	exitCheck       = 4   // ran, but a check did not hold
	exitInterrupted = 130 // by a signal
)

const exitCodesHelp = `Exit codes: 0 done; 1 failed (I/O, disk full); 2 usage; 3 an input is not valid
or not supported; 4 ran, but a check did not hold; 130 interrupted.
`

// usageError is a mistake on the command line.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(hint, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), hint}
}

func helpHint(command string) string {
	return strings.TrimSpace("loratool "+command) + " --help shows what there is"
}

// errInterrupted reports that a signal ended the run.
var errInterrupted = errors.New("interrupted; nothing was written")

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

// kindOf returns the JSON word for the kind of an error.
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
