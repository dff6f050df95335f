package format

import "github.com/loratool/loratool/internal/fault"

// The kinds of error that input leads to, for errors.Is.
var (
	ErrCorrupt     = fault.Corrupt     // bytes that violate the rules of their format
	ErrTruncated   = fault.Truncated   // a file that ends before its own structure says so
	ErrUnsupported = fault.Unsupported // valid input that this version does not know how to use
	ErrLimit       = fault.Limit       // input larger than a stated bound
	ErrMismatch    = fault.Mismatch    // inputs that are each valid and do not belong together
	ErrCheck       = fault.Check       // a check on a result that did not hold
)

// Error is wrong input, in every package of this module, for errors.As:
//
//	var e *format.Error
//	if errors.As(err, &e) { … }
//
// It has these fields:
//
//	Kind      ErrorKind // one of the kinds above; errors.Is finds it as well
//	Path      string    // the file, "" where the caller knows it better
//	Off       int64     // byte offset in the file; 0 says nothing: no error is about byte 0
//	Rule      string    // the rule of a specification, such as "R61" of spec/FORMAT.md, or ""
//	Msg       string    // the fault: got and want
//	Hint      string    // the next step, or ""
//	Misplaced bool      // the input is valid, in the wrong place: a model for an adapter
//
// Error() has path, offset, message and rule; the hint stands apart, so that a program can show it
// where it likes. An error that is no *Error is one of the operating system, of a context that
// ended, or of the caller's own functions. The authors of dialects make one with [Errorf].
type Error = fault.Error

// ErrorKind is a kind of error, and an error itself: ErrCorrupt and the others. Its text is one
// lower-case word: "corrupt".
type ErrorKind = fault.Kind

// Errorf returns the error for wrong input of a kind. Its methods In, At and WithHint add the file,
// the offset and the hint. Texts among the arguments are cut after 2000 bytes, so that a hostile
// name does not fill a screen.
func Errorf(kind ErrorKind, message string, args ...any) *Error {
	return fault.New(kind, message, args...)
}

// Hint returns err's suggestion for the next step, or "".
func Hint(err error) string { return fault.Hint(err) }
