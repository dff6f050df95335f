package format

import (
	"math"
	"math/bits"
)

// This file decides where the coded bytes of a chunk are cut into blocks. Every block can bring a Huffman table of its
// own, so a cut pays where the statistics change, by more than the header and the table cost. Units of a few KiB are
// counted once, then the two neighbours that gain most by standing together are joined until none gain.
//
// Costs are estimates in integers: the same bytes come out on every machine.

const (
	unitBytes   = 4 << 10 // what is counted first
	fineBytes   = 1024    // what is counted where a unit is not better left as it is
	windowUnits = maxBlockBytes / unitBytes
	windowFine  = maxBlockBytes / fineBytes
)

// histogram counts the byte values of a segment.
type histogram [256]uint32

// segment is bytes of a chunk that become one block.
type segment struct {
	n     int // bytes
	cost  int // estimated bytes of the block
	gain  int // what joining it with the next saves
	kind  int // of block
	count *histogram
}

// cutter finds the segments of a window; it is scratch memory.
type cutter struct {
	segments [windowFine]segment
	counts   [windowFine]histogram
	partial  [4]histogram
	lo, hi   int // the byte values of the window are from lo to hi
}

// cut appends to c.segments the segments of the beginning of p and returns them and how many bytes they cover. No
// segment crosses a multiple of plane unless it gains by it.
func (c *cutter) cut(p []byte, at, plane int) ([]segment, int) {
	segments, covered := c.segments[:0], 0
	c.lo, c.hi = 255, 0
	for covered < len(p) && covered+unitBytes <= maxBlockBytes && len(segments)+unitBytes/fineBytes <= windowFine {
		pos := at + covered
		n := min(pos+unitBytes, (pos/plane+1)*plane, at+len(p)) - pos
		unit := p[covered : covered+n]
		covered += n
		h := &c.counts[len(segments)]
		c.countBytes(h, unit)
		if c.hi-c.lo > 200 {
			if cost, kind := c.cost(h, nil, n); kind == rawBlock || kind == rleBlock {
				segments = append(segments, segment{n: n, cost: cost, kind: kind, count: h})
				continue
			}
		}
		for len(unit) > 0 {
			k := min(len(unit), fineBytes)
			h := &c.counts[len(segments)]
			c.countBytes(h, unit[:k])
			segments = append(segments, segment{n: k, count: h})
			unit = unit[k:]
		}
	}
	for i := range segments {
		s := &segments[i]
		if s.cost == 0 {
			s.cost, s.kind = c.cost(s.count, nil, s.n)
		}
	}
	for i := range segments[:len(segments)-1] {
		c.weigh(segments, i)
	}
	return c.join(segments), covered
}

// join joins neighbours as long as that gains.
func (c *cutter) join(segments []segment) []segment {
	for len(segments) > 1 {
		best := 0
		for i := range segments[:len(segments)-1] {
			if segments[i].gain > segments[best].gain {
				best = i
			}
		}
		if segments[best].gain < 0 {
			break
		}
		s, next := &segments[best], &segments[best+1]
		for v := c.lo; v <= c.hi; v++ {
			s.count[v] += next.count[v]
		}
		s.n += next.n
		s.cost, s.kind = c.cost(s.count, nil, s.n)
		copy(segments[best+1:], segments[best+2:])
		segments = segments[:len(segments)-1]
		if best > 0 {
			c.weigh(segments, best-1)
		}
		if best < len(segments)-1 {
			c.weigh(segments, best)
		}
	}
	return segments
}

// weigh sets what joining segment i with the next saves.
func (c *cutter) weigh(segments []segment, i int) {
	s, next := &segments[i], &segments[i+1]
	joint, _ := c.cost(s.count, next.count, s.n+next.n)
	s.gain = s.cost + next.cost - joint
}

// countBytes sets h to the histogram of p, and widens the range of the window.
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
	lo, hi := 255, 0
	for v := range h {
		h[v] = t[0][v] + t[1][v] + t[2][v] + t[3][v]
		if h[v] != 0 {
			lo, hi = min(lo, v), v
		}
	}
	c.lo, c.hi = min(c.lo, lo), max(c.hi, hi)
}

const (
	blockCost  = blockBytes + 5 + 6 + 1 + 4 // block header, literals header, jump table, sequences, ends of streams
	logBits    = 16                         // log2 is in units of 2^-16
	logTableLn = 12
)

// logs has log2(i) for i below 2^logTableLn.
var logs = func() (t [1 << logTableLn]uint32) {
	for i := 1; i < len(t); i++ {
		t[i] = uint32(math.Round(math.Log2(float64(i)) * (1 << logBits)))
	}
	return t
}()

// log2 is the logarithm of x > 0, rounded down to logTableLn bits.
func log2(x uint32) uint64 {
	if x < 1<<logTableLn {
		return uint64(logs[x])
	}
	shift := bits.Len32(x) - logTableLn
	return uint64(logs[x>>shift]) + uint64(shift)<<logBits
}

// cost estimates the bytes of a block for n bytes with the histogram a + b, and the kind of block that takes them: the
// entropy, at least one bit for the most frequent value, and a table.
func (c *cutter) cost(a, b *histogram, n int) (cost, kind int) {
	var sum uint64
	var largest uint32
	distinct := 0
	if b == nil {
		b = &noCounts
	}
	for v := c.lo; v <= c.hi; v++ {
		x := a[v] + b[v]
		if x == 0 {
			continue
		}
		distinct++
		largest = max(largest, x)
		sum += uint64(x) * log2(x)
	}
	if distinct == 1 {
		return blockBytes + 1, rleBlock
	}
	ln := log2(uint32(n))
	size := uint64(n)*ln - min(sum, uint64(n)*ln)
	if rest := ln - min(ln, log2(largest)); rest < 1<<logBits {
		size += uint64(largest) * (1<<logBits - rest)
	}
	cost = blockCost + int(size>>(logBits+3)) + 1 + distinct/2 + (c.hi-distinct)/16
	if rawCost := blockBytes + n; cost >= rawCost {
		return rawCost, rawBlock
	}
	return cost, compressedBlock
}

var noCounts histogram
