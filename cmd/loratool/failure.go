package main

import (
	"errors"

	"github.com/loratool/loratool/internal/fault"
)

// failure is one thing wrong with a file, for scripts.
type failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Path    string `json:"path,omitempty"`
	Rule    string `json:"rule,omitempty"`   // R17 for example
	Offset  int64  `json:"offset,omitempty"` // byte in the file
}

// failed is the error of a command in its JSON document. Path, rule and offset are those of the
// first failure.
type failed struct {
	failure
	Hint string `json:"hint"`
	// Failures are all that verify found.
	Failures []failure `json:"failures,omitempty"`
}

func failedWith(err error, hint string) failed {
	f := failed{failure: failure{Kind: kindOf(err), Message: flagsFor(err.Error())}, Hint: flagsFor(hint)}
	all := failuresIn(err)
	if len(all) > 0 {
		f.Path, f.Rule, f.Offset = all[0].Path, all[0].Rule, all[0].Offset
	}
	var found *findings
	if errors.As(err, &found) {
		f.Path, f.Failures = found.name, all
	}
	return f
}

// failuresIn lists the faults that an error joins.
func failuresIn(err error) (all []failure) {
	switch x := err.(type) {
	case *fault.Error:
		return []failure{{x.Kind.Error(), flagsFor(x.Msg), x.Path, x.Rule, x.Off}}
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			all = append(all, failuresIn(e)...)
		}
	case interface{ Unwrap() error }:
		return failuresIn(x.Unwrap())
	}
	return all
}
