package safetensors

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

// scanner scans the JSON text of a header and checks a context on the way.
type scanner struct {
	*jsontext.Scanner
	array []uint64 // the numbers of the last array
	room  []uint64 // for the results of keep
}

// roomNumbers is how many numbers share one allocation for shapes.
const roomNumbers = 1 << 10

func newScanner(ctx context.Context, text string) *scanner {
	s := &scanner{Scanner: jsontext.New(text, jsontext.Strict)}
	s.Context = ctx
	return s
}

// keep copies numbers into memory shared by several lists. A separate list costs twice as much.
func (s *scanner) keep(numbers []uint64) []uint64 {
	n := len(numbers)
	if n > len(s.room) {
		s.room = make([]uint64, max(n, roomNumbers))
	}
	kept := s.room[:n:n]
	s.room = s.room[copy(kept, numbers):]
	return kept
}

// err returns the first error with its position in the file.
func (s *scanner) err() error {
	var e *jsontext.Error
	if errors.As(s.Err(), &e) {
		return corrupt(e.At, "%s", e.Msg)
	}
	return s.Err()
}

// fail records the first error with its position in the text.
func (s *scanner) fail(at int, format string, args ...any) {
	if s.Err() == nil {
		s.Fail(corrupt(at, format, args...))
	}
}

func corrupt(at int, format string, args ...any) error {
	return fault.New(fault.Corrupt, "header: "+format, args...).At(int64(8 + at))
}

// numbers reads an array of non-negative integers below 2^63. If it has more than most, numbers
// calls tooMany. The result is valid until the next call.
func (s *scanner) numbers(most int, tooMany func()) []uint64 {
	s.array = s.array[:0]
	for range s.Array() {
		n := s.Count()
		if len(s.array) == most {
			tooMany()
			break
		}
		s.array = append(s.array, uint64(n))
	}
	return s.array
}

// appendString appends a JSON string with the bytes that the format's own writer gives it. That
// writer escapes quotes, backslashes and control characters, and nothing else.
func appendString(dst []byte, s string) []byte {
	const escaped, letters = "\"\\\b\f\n\r\t", `"\bfnrt`
	dst = append(dst, '"')
	isPlain := func(c byte) bool { return c >= 0x20 && c != '"' && c != '\\' }
	n := 0
	for n < len(s) && isPlain(s[n]) {
		n++
	}
	dst = append(dst, s[:n]...) // all of it, in nearly every name
	for i := n; i < len(s); i++ {
		c := s[i]
		if isPlain(c) {
			dst = append(dst, c)
		} else if at := strings.IndexByte(escaped, c); at >= 0 {
			dst = append(dst, '\\', letters[at])
		} else {
			dst = fmt.Appendf(dst, `\u%04x`, c)
		}
	}
	return append(dst, '"')
}
