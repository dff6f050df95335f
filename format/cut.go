package format

import (
	"math"
	"math/bits"
)

// This file decides where the coded bytes of a chunk are cut into blocks. Every block can have its
// own Huffman table, so a cut pays off where the statistics change by more than a header and a
// table cost. The cutter counts small pieces and then joins neighbours as long as a joint block is
// smaller. Most bytes are mantissa planes, which do not compress; the cutter recognises them in
// larger units and leaves them alone.
//
// Costs are integer estimates, so every machine writes the same bytes.

const (
	unitBytes  = 4 << 10 // the unit that is counted first
	pieceBytes = 256     // the pieces of a unit that may compress
	perUnit    = unitBytes / pieceBytes
	perWindow  = maxBlockBytes / pieceBytes
	manyValues = 200 // a unit whose values span this many may not compress at all
)

// histogram counts the byte values of a segment.
type histogram [256]uint32

// segment is a part of a chunk that becomes one block.
type segment struct {
	n     int  // bytes
	cost  int  // estimated bytes of the block
	kind  int  // kind of block
	gain  int  // bytes saved by joining it with the next segment
	fresh bool // joined in the last pass
	count *histogram
}

// cutter finds the segments of a window, which is at most one block long. It is scratch memory.
type cutter struct {
	segments [perWindow]segment
	counts   [perWindow]histogram
	partial  [4]histogram
	lo, hi   int // the byte values of the window lie between lo and hi
}

// cut returns the segments at the beginning of p and the number of bytes they cover. p is the rest
// of a chunk from position at. Each plane has plane bytes, and no segment crosses from one to the
// next before join. The segments are valid until the next call.
func (c *cutter) cut(p []byte, at, plane int) (segments []segment, covered int) {
	c.lo, c.hi = 255, 0
	segments = c.segments[:0]
	for covered < len(p) && covered+unitBytes <= maxBlockBytes && len(segments)+perUnit <= perWindow {
		toPlane := plane - (at+covered)%plane
		unit := p[covered : covered+min(unitBytes, toPlane, len(p)-covered)]
		covered += len(unit)
		segments = c.pieces(segments, unit)
	}
	for i := range segments {
		if s := &segments[i]; s.cost == 0 {
			s.cost, s.kind = c.cost(s.count, &noCounts, s.n)
		}
	}
	for i := range segments {
		c.weigh(segments, i)
	}
	return c.join(segments), covered
}

// pieces appends the pieces of a unit to segments, or the whole unit if it does not compress.
func (c *cutter) pieces(segments []segment, unit []byte) []segment {
	h := &c.counts[len(segments)]
	c.countBytes(h, unit)
	if c.hi-c.lo >= manyValues {
		if cost, kind := c.cost(h, &noCounts, len(unit)); kind == rawBlock {
			return append(segments, segment{n: len(unit), cost: cost, kind: kind, count: h})
		}
	}
	for len(unit) > 0 {
		n := min(len(unit), pieceBytes)
		h := &c.counts[len(segments)]
		c.countFew(h, unit[:n])
		segments = append(segments, segment{n: n, count: h})
		unit = unit[n:]
	}
	return segments
}

// join joins neighbours as long as that saves bytes. Each pass joins every pair that saves more
// than the pairs beside it.
func (c *cutter) join(segments []segment) []segment {
	for {
		joined := segments[:0]
		left := -1 // bytes saved by joining with the segment before
		for i := 0; i < len(segments); i++ {
			s := segments[i]
			s.fresh = false
			if s.gain >= 0 && s.gain > left && i+1 < len(segments) && s.gain >= segments[i+1].gain {
				next := &segments[i+1]
				for v := c.lo; v <= c.hi; v++ {
					s.count[v] += next.count[v]
				}
				s.n += next.n
				s.cost, s.kind = c.cost(s.count, &noCounts, s.n)
				s.fresh = true
				i++
				left = -1
			} else {
				left = s.gain
			}
			joined = append(joined, s)
		}
		if len(joined) == len(segments) {
			return segments
		}
		segments = joined
		for i := range segments {
			if segments[i].fresh || i+1 < len(segments) && segments[i+1].fresh {
				c.weigh(segments, i)
			}
		}
	}
}

// weigh sets the gain of joining segment i with the next; −1 for the last.
func (c *cutter) weigh(segments []segment, i int) {
	s := &segments[i]
	s.gain = -1
	if i+1 < len(segments) {
		next := &segments[i+1]
		joint, _ := c.cost(s.count, next.count, s.n+next.n)
		s.gain = s.cost + next.cost - joint
	}
}

// countBytes sets h to the histogram of p and widens the window's range. It counts in four
// histograms in turn, because a counter that is incremented twice in a row makes the processor
// wait.
func (c *cutter) countBytes(h *histogram, p []byte) {
	t := &c.partial
	*t = [4]histogram{}
	for ; len(p) >= 8; p = p[8:] {
		x := le.Uint64(p)
		t[0][byte(x)]++
		t[1][byte(x>>8)]++
		t[2][byte(x>>16)]++
		t[3][byte(x>>24)]++
		t[0][byte(x>>32)]++
		t[1][byte(x>>40)]++
		t[2][byte(x>>48)]++
		t[3][byte(x>>56)]++
	}
	for _, v := range p {
		t[0][v]++
	}
	for v := range h {
		h[v] = t[0][v] + t[1][v] + t[2][v] + t[3][v]
		if h[v] != 0 {
			c.lo, c.hi = min(c.lo, v), max(c.hi, v)
		}
	}
}

// countFew is countBytes for a few bytes whose range is known. Adding four histograms would take
// longer than counting.
func (c *cutter) countFew(h *histogram, p []byte) {
	*h = histogram{}
	for _, v := range p {
		h[v]++
	}
}

const (
	blockCost  = blockBytes + 5 + 6 + 1 + 4 // headers of block and literals, jump table, sequences, ends of streams
	logBits    = 16                         // logarithms are in units of 2^-16
	logTableLn = 12                         // logarithms of numbers below 2^12 are in a table
)

// logs holds log2(x), and weights x·log2(x), for x below 2^logTableLn.
var logs, weights = func() (logs, weights [1 << logTableLn]uint32) {
	for x := 1; x < len(logs); x++ {
		l := math.Round(math.Log2(float64(x)) * (1 << logBits))
		logs[x], weights[x] = uint32(l), uint32(x)*uint32(l)
	}
	return logs, weights
}()

// log2 returns the logarithm of x > 0, with x rounded down to logTableLn bits.
func log2(x uint32) uint64 {
	if x < 1<<logTableLn {
		return uint64(logs[x])
	}
	shift := bits.Len32(x) - logTableLn
	return uint64(logs[x>>shift]) + uint64(shift)<<logBits
}

// cost estimates the size of a block for n bytes with the histogram a + b, and the kind of block
// that reaches it. A compressed block takes its entropy, with at least one bit for the most
// frequent value, and its table.
func (c *cutter) cost(a, b *histogram, n int) (cost, kind int) {
	var weight uint64 // Σ x·log2(x)
	distinct := 0
	x, y := a[c.lo:c.hi+1], b[c.lo:c.hi+1]
	if n < 1<<logTableLn {
		for v := range x {
			k := x[v] + y[v]
			weight += uint64(weights[k&(1<<logTableLn-1)])
			distinct += int((uint64(k) + 1<<32 - 1) >> 32) // 1 if k > 0
		}
	} else {
		for v := range x {
			if k := x[v] + y[v]; k > 0 {
				weight += uint64(k) * log2(k)
				distinct++
			}
		}
	}
	if distinct == 1 {
		return blockBytes + 1, rleBlock
	}
	ln := log2(uint32(n))
	size := uint64(n)*ln - min(weight, uint64(n)*ln)
	if size < uint64(n)*5/2<<logBits {
		size += excess(x, y, n)
	}
	cost = blockCost + int(size>>(logBits+3)) + 1 + distinct/2 + (c.hi-distinct)/16
	if rawCost := blockBytes + n; cost >= rawCost {
		return rawCost, rawBlock
	}
	return cost, compressedBlock
}

// excess is the cost of the most frequent value beyond its entropy: a Huffman code spends at least
// one bit on it.
func excess(x, y []uint32, n int) uint64 {
	var largest uint32
	for v := range x {
		largest = max(largest, x[v]+y[v])
	}
	if int(largest) <= n/2 {
		return 0
	}
	entropy := log2(uint32(n)) - min(log2(uint32(n)), log2(largest))
	return uint64(largest) * (1<<logBits - min(1<<logBits, entropy))
}

// noCounts is an empty histogram, the second argument of cost when there is only one.
var noCounts histogram
