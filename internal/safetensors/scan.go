package safetensors

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/loratool/loratool/format/dtype"
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

// usual reads the members of a tensor if they are spelled as the format's own writer spells them.
// In any other case ok is false, and nothing has been read.
func (s *scanner) usual(t *Tensor) (end int64, ok bool) {
	var shape [4]uint64
	n, c := 0, cursor{text: s.Rest()}
	c.skip(`{"dtype":"`)
	name, _, _ := strings.Cut(c.text[c.at:min(len(c.text), c.at+16)], `"`)
	d, isKnown := dtype.Parse(name)
	c.skip(name)
	c.skip(`","shape":[`)
	for ; n < len(shape) && !c.failed && !strings.HasPrefix(c.text[c.at:], "]"); n++ {
		if n > 0 {
			c.skip(",")
		}
		shape[n] = c.number()
	}
	c.skip(`],"data_offsets":[`)
	begin := c.number()
	c.skip(",")
	after := c.number()
	c.skip("]}")
	if c.failed || !isKnown || begin > after {
		return 0, false
	}
	s.Rewind(s.Pos() + c.at)
	t.DType, t.Shape, t.Off = d, s.keep(shape[:n]), int64(begin)
	return int64(after), true
}

// cursor is a place in a text that should continue in one way.
type cursor struct {
	text   string
	at     int
	failed bool
}

func (c *cursor) skip(word string) {
	if c.failed = c.failed || !strings.HasPrefix(c.text[c.at:], word); !c.failed {
		c.at += len(word)
	}
}

// number reads a number of up to 18 digits.
func (c *cursor) number() (n uint64) {
	first := c.at
	for ; c.at < len(c.text) && '0' <= c.text[c.at] && c.text[c.at] <= '9' && c.at-first < 18; c.at++ {
		n = 10*n + uint64(c.text[c.at]-'0')
	}
	c.failed = c.failed || c.at == first || c.text[first] == '0' && c.at > first+1
	return n
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
