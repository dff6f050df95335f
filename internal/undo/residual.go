package undo

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/loratool/loratool/internal/fault"
)

// This file codes the residuals of one block (spec/UNDO.md, section 4): z = zigzag(ord(w) − ord(p)) for values w and their
// predictions p. Most are zero: what is stored are the gaps between those that are not, and their sizes.

var le = binary.LittleEndian

const (
	longGap = 255 // a byte of the gaps that says: so many zeros, and more
	escaped = 255 // a byte of the sizes that says: the residual is among the escapes
)

// coded is the payload of one block: three planes, or, where that is shorter, one plane per byte of an element.
type coded struct {
	gaps, sizes, escapes []byte
	planar               bool // all is in sizes
}

// bytes is the length of the payload.
func (c *coded) bytes() int { return len(c.gaps) + len(c.sizes) + len(c.escapes) }

// encode replaces c by the residuals of w against p: elements of width bytes each, 1, 2, 4 or 8.
func (c *coded) encode(w, p []byte, width int) {
	*c = coded{gaps: c.gaps[:0], sizes: c.sizes[:0], escapes: c.escapes[:0]}
	next := 0 // the element after the last one that is not zero
	const stride = 32
	at := 0
	for ; at+stride <= len(w); at += stride {
		a, b := (*[stride]byte)(w[at:]), (*[stride]byte)(p[at:])
		x0, x1 := le.Uint64(a[0:])^le.Uint64(b[0:]), le.Uint64(a[8:])^le.Uint64(b[8:])
		x2, x3 := le.Uint64(a[16:])^le.Uint64(b[16:]), le.Uint64(a[24:])^le.Uint64(b[24:])
		if x0|x1|x2|x3 == 0 { // equal bits have equal order
			continue
		}
		for k, x := range [...]uint64{x0, x1, x2, x3} {
			if x != 0 {
				next = c.word(le.Uint64(a[8*k:]), le.Uint64(b[8*k:]), (at+8*k)/width, next, width)
			}
		}
	}
	for ; at < len(w); at += width {
		if z := zigzag(load(w[at:], width), load(p[at:], width), width); z != 0 {
			c.add(at/width-next, z, width)
			next = at/width + 1
		}
	}
	if c.bytes() > len(w) {
		c.encodePlanar(w, p, width)
	}
}

// word appends the residuals of eight bytes of elements, of which i is the first, and returns what next becomes.
func (c *coded) word(w, p uint64, i, next, width int) int {
	perElement := 8 * width
	for x := w ^ p; x != 0; {
		k := bits.TrailingZeros64(x) / perElement
		c.add(i+k-next, zigzag(w>>(k*perElement), p>>(k*perElement), width), width)
		next = i + k + 1
		x &^= (1<<(perElement-1)<<1 - 1) << (k * perElement)
	}
	return next
}

// add appends one residual that is not zero, after gap that are.
func (c *coded) add(gap int, z uint64, width int) {
	for ; gap >= longGap; gap -= longGap {
		c.gaps = append(c.gaps, longGap)
	}
	c.gaps = append(c.gaps, byte(gap))
	if z <= escaped {
		c.sizes = append(c.sizes, byte(z-1))
		return
	}
	c.sizes = append(c.sizes, escaped)
	c.escapes = appendUint(c.escapes, z, width)
}

func (c *coded) encodePlanar(w, p []byte, width int) {
	n := len(w) / width
	*c = coded{gaps: c.gaps[:0], sizes: append(c.sizes[:0], w...), escapes: c.escapes[:0], planar: true}
	for i := range n {
		z := zigzag(load(w[i*width:], width), load(p[i*width:], width), width)
		for k := width - 1; k >= 0; k-- {
			c.sizes[k*n+i] = byte(z)
			z >>= 8
		}
	}
}

// decode turns predictions into values, in place, and returns how many were not right already.
func (c *coded) decode(p []byte, width int) (nCorrected int64, err error) {
	if c.planar {
		return c.decodePlanar(p, width), nil
	}
	at, n := 0, len(p)/width
	gaps, escapes := c.gaps, c.escapes
	for _, size := range c.sizes {
		gap := byte(longGap)
		for gap == longGap {
			if len(gaps) == 0 {
				return 0, broken(12, "the gaps end before the sizes")
			}
			gap, gaps = gaps[0], gaps[1:]
			at += int(gap)
		}
		if at >= n {
			return 0, broken(12, "a residual for element %d of a block of %d", at, n)
		}
		z := uint64(size) + 1
		if size == escaped {
			if len(escapes) < width {
				return 0, broken(12, "the escapes end before the sizes")
			}
			z, escapes = load(escapes, width), escapes[width:]
		}
		correct(p[at*width:], z, width)
		nCorrected++
		at++
	}
	if len(gaps) > 0 || len(escapes) > 0 {
		return 0, broken(12, "%d bytes of gaps and %d of escapes are left over", len(gaps), len(escapes))
	}
	return nCorrected, nil
}

func (c *coded) decodePlanar(p []byte, width int) (nCorrected int64) {
	n := len(p) / width
	for i := range n {
		var z uint64
		for k := range width {
			z = z<<8 | uint64(c.sizes[k*n+i])
		}
		if z != 0 {
			correct(p[i*width:], z, width)
			nCorrected++
		}
	}
	return nCorrected
}

// correct moves one element by a residual.
func correct(p []byte, z uint64, width int) {
	d := z>>1 ^ -(z & 1)
	x := unordered(ordered(load(p, width), width)+d, width)
	switch width {
	case 1:
		p[0] = byte(x)
	case 2:
		le.PutUint16(p, uint16(x))
	case 4:
		le.PutUint32(p, uint32(x))
	default:
		le.PutUint64(p, x)
	}
}

func load(p []byte, width int) uint64 {
	switch width {
	case 1:
		return uint64(p[0])
	case 2:
		return uint64(le.Uint16(p))
	case 4:
		return uint64(le.Uint32(p))
	}
	return le.Uint64(p)
}

func appendUint(dst []byte, x uint64, width int) []byte {
	for range width {
		dst = append(dst, byte(x))
		x >>= 8
	}
	return dst
}

// ordered maps the bits of a float to an integer, such that the order of the integers is that of the values and neighbours are one
// apart: negative values have all bits turned, others the sign bit. −0 comes right before +0. Only the low width bytes of x count.
func ordered(x uint64, width int) uint64 {
	up := 64 - 8*width
	x <<= up // the sign on top
	return (x ^ (uint64(int64(x)>>63) | 1<<63)) >> up
}

// unordered is the inverse of ordered.
func unordered(x uint64, width int) uint64 {
	up := 64 - 8*width
	x <<= up
	return (x ^ (^uint64(int64(x)>>63) | 1<<63)) >> up
}

// zigzag is ord(w) − ord(p), modulo 2^(8·width) and taken as signed, in a form that is small where the two are near: 0, −1, 1, −2, …
// become 0, 1, 2, 3, ….
func zigzag(w, p uint64, width int) uint64 {
	if width == 2 { // the usual one, without shifts by variables
		a, b := int16(w), int16(p)
		d := (a ^ (a>>15 | math.MinInt16)) - (b ^ (b>>15 | math.MinInt16))
		return uint64(uint16(d<<1 ^ d>>15))
	}
	up := 64 - 8*width
	d := int64((ordered(w, width)-ordered(p, width))<<up) >> up
	return uint64(d<<1^d>>63) << up >> up
}

func broken(rule int, format string, args ...any) *fault.Error {
	e := fault.New(ruleKinds[rule], format, args...)
	e.Rule = fmt.Sprint("U", rule)
	return e
}

// Step moves all elements of p by d places in the order of their values.
func Step(p []byte, width int, d int64) {
	for ; len(p) > 0; p = p[width:] {
		correct(p, uint64(d<<1^d>>63), width)
	}
}
