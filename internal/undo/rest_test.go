package undo

import (
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSumsAreThoseOfWholeRanges: pieces of a file in any order, cut anywhere, give the CRC-32 of
// each range between the changed tensors.
func TestSumsAreThoseOfWholeRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	file := make([]byte, 100_000)
	for i := range file {
		file[i] = byte(rng.Uint32())
	}
	changed := []Range{{200, 0}, {1000, 5000}, {6000, 1}, {90_000, 10_000}}
	for range 50 {
		s := NewSums(100, int64(len(file)), changed)
		var cuts []int
		for at := 0; at < len(file); at += 1 + rng.IntN(9000) {
			cuts = append(cuts, at)
		}
		order := rng.Perm(len(cuts))
		for _, i := range order {
			end := len(file)
			if i+1 < len(cuts) {
				end = cuts[i+1]
			}
			s.Add(int64(cuts[i]), file[cuts[i]:end])
		}
		got, err := s.Finish()
		if err != nil {
			t.Fatal(err)
		}
		var want []uint32
		for _, g := range Rest(100, int64(len(file)), changed) {
			want = append(want, crc32.ChecksumIEEE(file[g.Off:g.Off+g.N]))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("sums = %x, want %x", got, want)
		}
	}
}

// TestSumsMissNoByte: a range with a missing byte has no sum.
func TestSumsMissNoByte(t *testing.T) {
	s := NewSums(0, 10, []Range{{4, 2}})
	s.Add(0, make([]byte, 4))
	s.Add(6, make([]byte, 3))
	if got, err := s.Finish(); err == nil {
		t.Errorf("Finish() = %x without byte 9, want an error", got)
	}
}
