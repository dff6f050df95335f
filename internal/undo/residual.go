package undo

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/loratool/loratool/internal/fault"
)

// This file codes the residuals of one block (spec/UNDO.md, section 4): z = zigzag(ord(w) − ord(p))
// for values w and predictions p. Most residuals are zero, and most others are one step down or up.
// A mark says how many zeros to skip and which of the two follows.

var le = binary.LittleEndian

const (
	maxSkip  = 80 // a mark below 3·maxSkip skips mark mod maxSkip zeros; an element of kind mark div maxSkip follows
	kindDown = 0  // one step down, z = 1
	kindUp   = 1  // one step up, z = 2
	kindFar  = 2  // z is among the sizes

	firstFar = 3   // a byte of the sizes is z − firstFar
	escaped  = 255 // or says that z is among the escapes
)

// A mark of firstLong or more skips a long run of zeros; no element follows.
const firstLong = 3 * maxSkip

var longSkips = [...]int{maxSkip, maxSkip << 2, maxSkip << 4, maxSkip << 6, maxSkip << 8, maxSkip << 10, maxSkip << 12}

// coded is the payload of one block: three planes, or one plane per byte of an element if that is
// shorter.
type coded struct {
	marks, sizes, escapes []byte
	planar                bool // all bytes are in sizes

	words [stretchBytes / 8]uint16
}

// bytes returns the length of the payload.
func (c *coded) bytes() int { return len(c.marks) + len(c.sizes) + len(c.escapes) }

// encode sets c to the residuals of w against p. Elements have width bytes: 1, 2, 4 or 8.
func (c *coded) encode(w, p []byte, width int) {
	c.marks, c.sizes, c.escapes, c.planar = c.marks[:0], c.sizes[:0], c.escapes[:0], false
	next := 0 // the index after the last nonzero element
	at := 0
	for at+8 <= len(w) {
		n := min(len(w)-at, stretchBytes) &^ 7
		for _, k := range c.differing(w[at:at+n], p[at:at+n]) {
			i := at + 8*int(k)
			next = c.word(le.Uint64(w[i:]), le.Uint64(p[i:]), i/width, next, width)
		}
		at += n
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

// encodeKnown sets c to residuals of two bytes. Those whose bit in differs is not set are zero.
// Only rare cases branch: whether a residual is among the sizes cannot be predicted.
func (c *coded) encodeKnown(differs []uint64, z []byte) {
	n := len(z) / 2
	c.escapes, c.planar = c.escapes[:0], false
	marks, sizes := slices.Grow(c.marks[:0], n)[:n], slices.Grow(c.sizes[:0], n)[:n]
	nMarks, nSizes, next := 0, 0, 0 // next is the index after the last nonzero element
	for k, word := range differs {
		for ; word != 0; word &= word - 1 {
			i := 64*k + bits.TrailingZeros64(word)
			skip, x := i-next, int(le.Uint16(z[2*i:]))
			next = i + 1
			if skip >= maxSkip || x >= firstFar+escaped {
				c.marks, c.sizes = marks[:nMarks], sizes[:nSizes]
				c.add(skip, uint64(x), 2)
				nMarks, nSizes = len(c.marks), len(c.sizes)
				continue
			}
			marks[nMarks] = byte(skip + (min(x, firstFar)-1)*maxSkip)
			nMarks++
			sizes[nSizes] = byte(x - firstFar)
			isFar := 0
			if x >= firstFar {
				isFar = 1
			}
			nSizes += isFar
		}
	}
	if c.marks, c.sizes = marks[:nMarks], sizes[:nSizes]; c.bytes() <= len(z) {
		return
	}
	c.marks, c.sizes, c.escapes, c.planar = c.marks[:0], slices.Grow(c.sizes[:0], len(z))[:len(z)], c.escapes[:0], true
	for i := range n {
		x := uint16(0)
		if differs[i>>6]>>(i&63)&1 == 1 {
			x = le.Uint16(z[2*i:])
		}
		c.sizes[i], c.sizes[n+i] = byte(x>>8), byte(x)
	}
}

// stretchBytes is how many bytes are compared before the differences are examined.
const stretchBytes = 8 << 12

// differing returns the indices of the 8-byte words that differ, among at most stretchBytes. Equal
// bits have equal order, so equal words have zero residuals. The loop has no unpredictable branch.
func (c *coded) differing(w, p []byte) []uint16 {
	const last = len(c.words) - 1
	n, k := 0, uint16(0)
	one := func(differs bool) int {
		if differs {
			return 1
		}
		return 0
	}
	for ; len(w) >= 32 && len(p) >= 32; w, p, k = w[32:], p[32:], k+4 {
		x0, x1 := le.Uint64(w)^le.Uint64(p), le.Uint64(w[8:])^le.Uint64(p[8:])
		x2, x3 := le.Uint64(w[16:])^le.Uint64(p[16:]), le.Uint64(w[24:])^le.Uint64(p[24:])
		if x0|x1|x2|x3 == 0 {
			continue
		}
		c.words[n&last] = k
		n += one(x0 != 0)
		c.words[n&last] = k + 1
		n += one(x1 != 0)
		c.words[n&last] = k + 2
		n += one(x2 != 0)
		c.words[n&last] = k + 3
		n += one(x3 != 0)
	}
	for ; len(w) >= 8 && len(p) >= 8; w, p, k = w[8:], p[8:], k+1 {
		c.words[n&last] = k
		n += one(le.Uint64(w) != le.Uint64(p))
	}
	return c.words[:n]
}

// word appends the residuals of eight bytes of elements, the first of which is element i, and
// returns the new value of next.
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

// add appends one nonzero residual after skip zeros.
func (c *coded) add(skip int, z uint64, width int) {
	if skip >= maxSkip {
		skip = c.addLong(skip)
	}
	if z < firstFar {
		c.marks = append(c.marks, byte(skip+(int(z)-1)*maxSkip))
		return
	}
	c.marks = append(c.marks, byte(skip+kindFar*maxSkip))
	if z-firstFar < escaped {
		c.sizes = append(c.sizes, byte(z-firstFar))
		return
	}
	c.sizes = append(c.sizes, escaped)
	c.escapes = appendUint(c.escapes, z, width)
}

// addLong appends marks for long runs of zeros, the longest first, and returns the remaining skip.
func (c *coded) addLong(skip int) int {
	for i := len(longSkips) - 1; i >= 0; i-- {
		for ; skip >= longSkips[i]; skip -= longSkips[i] {
			c.marks = append(c.marks, byte(firstLong+i))
		}
	}
	return skip
}

func (c *coded) encodePlanar(w, p []byte, width int) {
	n := len(w) / width
	c.marks, c.sizes, c.escapes, c.planar = c.marks[:0], append(c.sizes[:0], w...), c.escapes[:0], true
	for i := range n {
		z := zigzag(load(w[i*width:], width), load(p[i*width:], width), width)
		for k := width - 1; k >= 0; k-- {
			c.sizes[k*n+i] = byte(z)
			z >>= 8
		}
	}
}

// decode replaces predictions by values in place and returns how many it changed.
func (c *coded) decode(p []byte, width int) (nCorrected int64, err error) {
	if c.planar {
		return c.decodePlanar(p, width), nil
	}
	at, n := 0, len(p)/width
	sizes, escapes := c.sizes, c.escapes
	for _, mark := range c.marks {
		if mark >= firstLong {
			if int(mark) >= firstLong+len(longSkips) {
				return 0, broken(12, "mark %d is unknown", mark)
			}
			if at += longSkips[mark-firstLong]; at > n {
				return 0, broken(12, "the marks skip to element %d of a block of %d", at, n)
			}
			continue
		}
		m := marked[mark]
		at += int(m.skip)
		if at >= n {
			return 0, broken(12, "a residual belongs to element %d of a block of %d", at, n)
		}
		z := uint64(m.z)
		if z == firstFar {
			if len(sizes) == 0 {
				return 0, broken(12, "the sizes end before the marks")
			}
			z, sizes = uint64(sizes[0])+firstFar, sizes[1:]
			if z == escaped+firstFar {
				if len(escapes) < width {
					return 0, broken(12, "the escapes end before the sizes")
				}
				z, escapes = load(escapes, width), escapes[width:]
			}
		}
		if width == 2 {
			correct2(p[2*at:], uint16(z))
		} else {
			correct(p[at*width:], z, width)
		}
		nCorrected++
		at++
	}
	if len(sizes) > 0 || len(escapes) > 0 {
		return 0, broken(12, "%d bytes of sizes and %d of escapes are left over", len(sizes), len(escapes))
	}
	return nCorrected, nil
}

// marked holds the meaning of marks below firstLong. z is firstFar if it is among the sizes.
var marked = func() (all [firstLong]struct{ skip, z uint8 }) {
	for m := range all {
		all[m].skip, all[m].z = uint8(m%maxSkip), uint8(m/maxSkip+1)
	}
	return all
}()

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

// correct changes one element by a residual.
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

// correct2 is correct for the common width.
func correct2(p []byte, z uint16) {
	x := int16(le.Uint16(p))
	o := x ^ (x>>15 | math.MinInt16)
	o += int16(z>>1 ^ -(z & 1))
	le.PutUint16(p, uint16(o^(^o>>15|math.MinInt16)))
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

// ordered maps the bits of a float to an integer so that integers and values have the same order
// and neighbours differ by one. It inverts all bits of a negative value and the sign bit of any
// other. −0 comes right before +0. Only the low width bytes of x count.
func ordered(x uint64, width int) uint64 {
	up := 64 - 8*width
	x <<= up // the sign at the top
	return (x ^ (uint64(int64(x)>>63) | 1<<63)) >> up
}

// unordered undoes ordered.
func unordered(x uint64, width int) uint64 {
	up := 64 - 8*width
	x <<= up
	return (x ^ (^uint64(int64(x)>>63) | 1<<63)) >> up
}

// zigzag returns ord(w) − ord(p), a signed number modulo 2^(8·width), in a form that is small for
// small differences: 0, −1, 1, −2, … become 0, 1, 2, 3, ….
func zigzag(w, p uint64, width int) uint64 {
	if width == 2 { // the common width, without variable shifts
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

// Step moves every element of p by d places in the order of values.
func Step(p []byte, width int, d int64) {
	for ; len(p) > 0; p = p[width:] {
		correct(p, uint64(d<<1^d>>63), width)
	}
}
