package safetensors

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/loratool/loratool/internal/fault"
)

// scanner walks the JSON text of a header. encoding/json cannot stand here: it keeps the last of two equal keys and
// replaces what is not Unicode, so two different files would read alike, and it does not say where it is.
type scanner struct {
	ctx     context.Context
	text    string // strings without escapes are parts of it, not copies
	pos     int
	members int      // of objects, so far
	array   []uint64 // the numbers of the last array
	room    []uint64 // for what keep returns
}

const (
	membersPerAsk = 1 << 12 // members of objects between two looks at the context
	roomNumbers   = 1 << 10 // numbers in a piece of memory for shapes
)

// keep copies numbers into memory that several lists share: a list of its own costs twice as much.
func (s *scanner) keep(numbers []uint64) []uint64 {
	n := len(numbers)
	if n > len(s.room) {
		s.room = make([]uint64, max(n, roomNumbers))
	}
	kept := s.room[:n:n]
	s.room = s.room[copy(kept, numbers):]
	return kept
}

func (s *scanner) errorf(at int, format string, args ...any) error {
	return fault.New(fault.Corrupt, "header: "+format, args...).At(int64(8 + at))
}

func (s *scanner) space() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// next skips white space and consumes c.
func (s *scanner) next(c byte) error {
	s.space()
	if s.pos == len(s.text) {
		return s.errorf(s.pos, "the text ends where %q is due", c)
	}
	if s.text[s.pos] != c {
		return s.errorf(s.pos, "got %q, want %q", s.text[s.pos], c)
	}
	s.pos++
	return nil
}

// peek skips white space and reports whether c comes next.
func (s *scanner) peek(c byte) bool {
	s.space()
	return s.pos < len(s.text) && s.text[s.pos] == c
}

// list reads items between open and shut, separated by commas.
func (s *scanner) list(open, shut byte, item func() error) error {
	if err := s.next(open); err != nil {
		return err
	}
	for first := true; !s.peek(shut); first = false {
		if !first {
			if err := s.next(','); err != nil {
				return err
			}
		}
		if err := item(); err != nil {
			return err
		}
	}
	return s.next(shut)
}

// object reads an object; member is called with every key and its position, and must consume the value.
func (s *scanner) object(member func(key string, at int) error) error {
	return s.list('{', '}', func() error {
		if s.members++; s.members%membersPerAsk == 0 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		s.space()
		at := s.pos
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.next(':'); err != nil {
			return err
		}
		s.space()
		return member(key, at)
	})
}

// numbers reads an array of non-negative integers below 2^63. They are valid until the next call.
// tooMany is the error for more than most.
func (s *scanner) numbers(most int, tooMany func() error) ([]uint64, error) {
	s.array = s.array[:0]
	err := s.list('[', ']', func() error {
		s.space()
		start := s.pos
		for s.pos < len(s.text) && '0' <= s.text[s.pos] && s.text[s.pos] <= '9' {
			s.pos++
		}
		digits := s.text[start:min(s.pos, start+20)]
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || n > math.MaxInt64 || s.pos-start > 1 && digits[0] == '0' {
			return s.errorf(start, "want a non-negative integer below 2^63")
		}
		if len(s.array) == most {
			return tooMany()
		}
		s.array = append(s.array, n)
		return nil
	})
	return s.array, err
}

// str reads a string.
func (s *scanner) str() (string, error) {
	if err := s.next('"'); err != nil {
		return "", err
	}
	start := s.pos
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '"':
			s.pos++
			return s.text[start : s.pos-1], nil
		case c == '\\':
			return s.escaped(start)
		case c < 0x20:
			return "", s.errorf(s.pos, "a control character in a string")
		}
		s.pos++
	}
	return "", s.errorf(start-1, "a string without an end")
}

// escaped reads on in a string that began at start, from its first escape.
func (s *scanner) escaped(start int) (string, error) {
	b := append([]byte(nil), s.text[start:s.pos]...)
	for s.pos < len(s.text) {
		c := s.text[s.pos]
		switch {
		case c == '"':
			s.pos++
			return string(b), nil
		case c < 0x20:
			return "", s.errorf(s.pos, "a control character in a string")
		case c != '\\':
			b = append(b, c)
			s.pos++
			continue
		}
		r, err := s.escape()
		if err != nil {
			return "", err
		}
		b = utf8.AppendRune(b, r)
	}
	return "", s.errorf(start-1, "a string without an end")
}

var escapes = map[byte]rune{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escape reads one escape, or two that make a surrogate pair.
func (s *scanner) escape() (rune, error) {
	at := s.pos
	if s.pos+1 >= len(s.text) {
		return 0, s.errorf(at, "a string without an end")
	}
	if r, ok := escapes[s.text[s.pos+1]]; ok {
		s.pos += 2
		return r, nil
	}
	r, ok := s.hex4()
	if ok && utf16.IsSurrogate(r) {
		low, lowOK := s.hex4()
		r = utf16.DecodeRune(r, low)
		ok = lowOK && r != utf8.RuneError
	}
	if !ok {
		return 0, s.errorf(at, "an escape that is none, or half a surrogate pair")
	}
	return r, nil
}

// hex4 reads \uXXXX.
func (s *scanner) hex4() (rune, bool) {
	if s.pos+6 > len(s.text) || s.text[s.pos] != '\\' || s.text[s.pos+1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(s.text[s.pos+2:s.pos+6], 16, 16)
	s.pos += 6
	return rune(n), err == nil
}

// appendString appends a JSON string with the fewest escapes.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < 0x20:
			dst = fmt.Appendf(dst, `\u%04x`, c)
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
