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
// Error() contains path, offset, message and rule. The hint is separate, so that a program can show
// it where it likes. An error that is not an *Error comes from the operating system, from an ended
// context, or from the caller's own functions. Readers of further dialects make an Error with
// [Errorf].
type Error = fault.Error

// ErrorKind is a kind of error: ErrCorrupt and the others. It is an error itself; its text is one
// lower-case word, such as "corrupt".
type ErrorKind = fault.Kind

// Errorf returns an error of a kind for wrong input. Its methods In, At and WithHint add the file,
// the offset and the hint. Strings among the arguments are cut after 2000 bytes, so that a hostile
// name does not fill the screen.
func Errorf(kind ErrorKind, message string, args ...any) *Error {
	return fault.New(kind, message, args...)
}

// Hint returns the next step that err suggests, or "".
func Hint(err error) string { return fault.Hint(err) }
