// Package fault holds the few kinds of error for wrong input, and one struct that says what is
// wrong, where, and what to do about it. Package format exports the kinds.
package fault

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Kind is a kind of error. It is an error itself, so that errors.Is finds it. An error that wraps
// no kind is an I/O error or a bug.
type Kind string

// The kinds.
const (
	Corrupt     Kind = "corrupt"     // the bytes break the rules of their format
	Truncated   Kind = "truncated"   // the file ends before its own structure does
	Unsupported Kind = "unsupported" // the input is valid, but this version cannot use it
	Limit       Kind = "limit"       // the input exceeds a stated bound
	Mismatch    Kind = "mismatch"    // each input is valid, but they do not belong together
	Check       Kind = "check"       // a check on the result did not hold
)

// Error returns the word for the kind.
func (k Kind) Error() string { return string(k) }

// Error describes wrong input: the fault, the file, the byte, and the next step for the user.
type Error struct {
	Kind Kind
	Path string // the file, or "" if the caller knows it
	Off  int64  // byte offset in the file; 0 means unknown, as no error is about byte 0 alone
	Rule string // the rule of a specification, such as "R61", or ""
	Msg  string // the fault: got and want
	Hint string // the next step, or ""

	Misplaced bool // valid input in the wrong place, such as a model given as an adapter

	cause error // the error behind the %w of the message, or nil
}

// Error returns "path: byte off: message (rule)", without the parts that are unknown.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	if e.Off > 0 {
		fmt.Fprintf(&b, "byte %d: ", e.Off)
	}
	b.WriteString(e.Msg)
	if e.Rule != "" {
		b.WriteString(" (" + e.Rule + ")")
	}
	return b.String()
}

// Unwrap returns the kind and, if the message wraps an error, that one, for errors.Is and
// errors.As.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.cause}
}

// maxTextBytes bounds each string that an error quotes: a name in a hostile file can be as long as
// the file.
const maxTextBytes = 2000

// shorten cuts long strings among the arguments of a message.
func shorten(args []any) {
	for i, arg := range args {
		if s, ok := arg.(string); ok && len(s) > maxTextBytes {
			args[i] = strings.ToValidUTF8(s[:maxTextBytes], "") + "…"
		}
	}
}

// New returns an error of a kind. The message follows fmt.Errorf: %w wraps the cause.
func New(kind Kind, format string, args ...any) *Error {
	shorten(args)
	err := fmt.Errorf(format, args...)
	e := &Error{Kind: kind, Msg: err.Error()}
	switch err.(type) {
	case interface{ Unwrap() error }, interface{ Unwrap() []error }:
		e.cause = err
	}
	return e
}

// At sets the byte offset and returns e.
func (e *Error) At(off int64) *Error { e.Off = off; return e }

// In sets the file and returns e.
func (e *Error) In(path string) *Error { e.Path = path; return e }

// WithHint sets the next step for the user and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	shorten(args)
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// InFile adds the path to an *Error that has none, and wraps any other error with it. nil stays
// nil.
func InFile(err error, path string) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.Path == "" {
			e.Path = path
		}
		return err
	}
	if strings.Contains(err.Error(), path) {
		return err // errors of package os name the file already
	}
	return fmt.Errorf("%s: %w", path, err)
}

// KindName returns the name of the kind that err wraps, or "io".
func KindName(err error) string {
	var k Kind
	if errors.As(err, &k) {
		return string(k)
	}
	return "io"
}

// Hint returns the hint of the first *Error in err's tree, or "".
func Hint(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// Count returns a number with its noun for a message: "1 tensor", "28 tensors". The noun is the
// singular of a regular noun.
func Count[N ~int | ~int64](n N, noun string) string {
	text := strconv.FormatInt(int64(n), 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	if n == 1 {
		return text + " " + noun
	}
	return text + " " + noun + "s"
}

// Choose returns the form of a word that agrees with a number: fault.Choose(n, "is", "are").
func Choose[N ~int | ~int64](n N, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// List joins names for a message: up to max of them, quoted, and the number of the others.
func List(names []string, max int) string {
	var b strings.Builder
	for i, name := range names {
		if i == max {
			fmt.Fprintf(&b, " and %d more", len(names)-max)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", name)
	}
	return b.String()
}

// Quote returns a name in quotation marks for a message.
func Quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }
