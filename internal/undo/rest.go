package undo

import (
	"cmp"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"sync"
)

// Sums computes the CRC-32 of the ranges that a merge does not change, while the file is written in
// any order. Several goroutines may call Add at once.
type Sums struct {
	ranges []Range
	lock   sync.Mutex
	parts  [][]part // of each range
}

// part is the CRC-32 of some bytes of a range.
type part struct {
	off, n int64
	sum    uint32
}

// NewSums starts the sums of a file whose data begin at off and end at size; see Rest.
func NewSums(off, size int64, changed []Range) *Sums {
	ranges := Rest(off, size, changed)
	return &Sums{ranges: ranges, parts: make([][]part, len(ranges))}
}

// Add includes bytes of the file that begin at off. It ignores those of changed tensors.
func (s *Sums) Add(off int64, p []byte) {
	i := sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].Off+s.ranges[i].N > off })
	for ; i < len(s.ranges) && s.ranges[i].Off < off+int64(len(p)); i++ {
		from, to := max(off, s.ranges[i].Off), min(off+int64(len(p)), s.ranges[i].Off+s.ranges[i].N)
		x := part{from, to - from, crc32.ChecksumIEEE(p[from-off : to-off])}
		s.lock.Lock()
		s.parts[i] = append(s.parts[i], x)
		s.lock.Unlock()
	}
}

// Finish returns the sum of every range. All their bytes must have been added.
func (s *Sums) Finish() ([]uint32, error) {
	sums := make([]uint32, len(s.ranges))
	for i, g := range s.ranges {
		slices.SortFunc(s.parts[i], func(a, b part) int { return cmp.Compare(a.off, b.off) })
		at := g.Off
		for _, x := range s.parts[i] {
			if x.off != at {
				break
			}
			sums[i] = combine(sums[i], x.sum, x.n)
			at += x.n
		}
		if at != g.Off+g.N {
			return nil, fmt.Errorf("internal error: byte %d of the output was not counted into the undo record", at)
		}
	}
	return sums, nil
}

// combine returns the CRC-32 of the concatenation of two texts, given the CRC-32 of each and the
// length of the second. With polynomials over GF(2) modulo the CRC's polynomial it is a·x^(8n) + b,
// as in zlib's crc32_combine.
func combine(a, b uint32, n int64) uint32 {
	power, square := uint32(one), uint32(one>>8) // x^0 and x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			power = times(power, square)
		}
		square = times(square, square)
	}
	return times(power, a) ^ b
}

// one is the polynomial 1. A CRC stores its bits in reverse, so x is one position to the right.
const one = 1 << 31

// times multiplies two polynomials.
func times(a, b uint32) (product uint32) {
	for bit := uint32(one); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= crc32.IEEE
		}
	}
	return product
}
