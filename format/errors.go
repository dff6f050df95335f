package format

import "github.com/loratool/loratool/internal/fault"

// The kinds of error for wrong input. errors.Is finds them.
var (
	ErrCorrupt     = fault.Corrupt     // the bytes break the rules of their format
	ErrTruncated   = fault.Truncated   // the file ends before its own structure does
	ErrUnsupported = fault.Unsupported // the input is valid, but this version cannot use it
	ErrLimit       = fault.Limit       // the input exceeds a stated bound
	ErrMismatch    = fault.Mismatch    // each input is valid, but they do not belong together
	ErrCheck       = fault.Check       // a check on a result did not hold
)

// Error describes wrong input, in every package of this module. errors.As finds it:
//
//	var e *format.Error
//	if errors.As(err, &e) { … }
//
// It has these fields:
//
//	Kind      ErrorKind // one of the kinds above; errors.Is finds it too
//	Path      string    // the file, or "" if the caller knows it
//	Off       int64     // byte offset in the file; 0 means unknown, as no error is about byte 0
//	Rule      string    // the rule of a specification, such as "R61" of spec/FORMAT.md, or ""
//	Msg       string    // the fault: got and want
//	Hint      string    // the next step, or ""
//	Misplaced bool      // valid input in the wrong place: a model given as an adapter
//
// and these methods:
//
//	Error() string                            // path, offset, message and rule
//	Unwrap() []error                          // the kind, and the cause that Errorf wraps
//	In(path string) *Error                    // sets Path
//	At(off int64) *Error                      // sets Off
//	WithHint(text string, args ...any) *Error // sets Hint, as fmt.Sprintf does
//
// In, At and WithHint change the error and return it, so that they can follow Errorf in a chain.
// The hint is not in Error(), so that a program can show it where it likes.
//
// These errors are not an *Error: those of the operating system, of an ended context and of the
// caller's own functions; *merge.OutputError and *merge.SpaceError, for an output path that cannot
// be used; and misuse, such as an option outside of its range, an adapter without a Source, or a
// plan that has run already.
//
// Readers of further dialects make an Error with [Errorf].
type Error = fault.Error

// ErrorKind is a kind of error: ErrCorrupt and the others. It is an error itself; its text is one
// lower-case word, such as "corrupt".
type ErrorKind = fault.Kind

// Errorf returns an error of a kind for wrong input. Its methods In, At and WithHint add the file,
// the offset and the hint. The message follows fmt.Errorf: errors.Is and errors.As find the cause
// behind a %w, beside the kind. Strings among the arguments are cut after 2000 bytes, so that a
// hostile name does not fill the screen.
func Errorf(kind ErrorKind, message string, args ...any) *Error {
	return fault.New(kind, message, args...)
}

// Hint returns the next step that err suggests, or "".
func Hint(err error) string { return fault.Hint(err) }
