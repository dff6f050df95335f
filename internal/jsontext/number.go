package jsontext

import (
	"math"
	"strings"
)

// Number reads a number and returns its digits unchanged, so that only the conversion to the final
// type rounds. A canonical text has only integers.
func (s *Scanner) Number() string {
	if s.form == Canonical {
		from := s.pos
		s.Integer()
		return s.text[from:s.pos]
	}
	rest := s.Rest()
	n := numberLen(rest)
	if s.err != nil || n == 0 {
		s.mismatch("a number")
		return ""
	}
	s.pos += n
	return rest[:n]
}

// numberLen returns the length of the number at the beginning of text, or 0.
func numberLen(text string) int {
	digits := func(from int) int {
		for from < len(text) && '0' <= text[from] && text[from] <= '9' {
			from++
		}
		return from
	}
	from := 0
	if strings.HasPrefix(text, "-") {
		from = 1
	}
	n := digits(from)
	if n == from {
		return 0
	}
	if text[from] == '0' {
		n = from + 1
	}
	if n < len(text) && text[n] == '.' {
		if end := digits(n + 1); end > n+1 {
			n = end
		}
	}
	if n < len(text) && text[n]|0x20 == 'e' {
		sign := n + 1
		if sign < len(text) && (text[sign] == '+' || text[sign] == '-') {
			sign++
		}
		if end := digits(sign); end > sign {
			n = end
		}
	}
	return n
}

// Integer reads an integer in its only form, of magnitude at most MaxInteger.
func (s *Scanner) Integer() int64 {
	if s.err != nil {
		return 0
	}
	at := s.Pos()
	end := at
	for end < len(s.text) && strings.IndexByte("+-.0123456789Ee", s.text[end]) >= 0 {
		end++
	}
	literal := s.text[at:end]
	digits, negative := strings.CutPrefix(literal, "-")
	if literal == "" {
		s.mismatch("an integer")
		return 0
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" || digits[0] == '0' && literal != "0" {
		s.Failf(Number, at, "number %q, want an integer in its only form", literal[:min(len(literal), 32)])
		return 0
	}
	n, ok := decimal(digits, s.MaxInteger)
	if !ok {
		s.Failf(Range, at, "number %s, the limit is %d", literal[:min(len(literal), 32)], s.MaxInteger)
		return 0
	}
	s.pos = end
	if negative {
		n = -n
	}
	return n
}

// Count reads an integer from 0 to 2^63 - 1 and stops after its digits.
func (s *Scanner) Count() int64 {
	if s.err != nil {
		return 0
	}
	at := s.Pos()
	end := at
	for end < len(s.text) && '0' <= s.text[end] && s.text[end] <= '9' {
		end++
	}
	n, ok := decimal(s.text[at:end], math.MaxInt64)
	if !ok || end == at || end-at > 1 && s.text[at] == '0' {
		s.Failf(Number, at, "want a non-negative integer below 2^63")
		return 0
	}
	s.pos = end
	return n
}

// decimal returns the value of digits, if it is at most limit.
func decimal(digits string, limit int64) (n int64, ok bool) {
	for i := range len(digits) {
		d := int64(digits[i] - '0')
		if n > (limit-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
