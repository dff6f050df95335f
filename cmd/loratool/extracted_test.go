package main

import (
	"testing"

	"github.com/loratool/loratool/rank"
)

// TestBytesAtRank compares sizes with those counted by hand: an m×n update of rank k has (m+n)·k
// values in its factors, and k is at most min(m, n).
func TestBytesAtRank(t *testing.T) {
	r := &rank.ExtractReport{
		Layers: []rank.ExtractedLayer{{M: 100, N: 60, Rank: 8}, {M: 30, N: 6, Rank: 6}},
		Beside: []rank.BesideReport{{Bytes: 1000}},
	}
	r.Bytes = 1000 + 2*(160*8+36*6)
	for k, want := range map[int]int64{
		4: 1000 + 2*(160*4+36*4), 8: r.Bytes, 16: 1000 + 2*(160*16+36*6), 64: 1000 + 2*(160*60+36*6),
	} {
		if got := bytesAt(r, k); got != want {
			t.Errorf("rank %d: %d bytes, want %d", k, got, want)
		}
	}
	lowest, highest, isFixed := chosenRank(r.Layers)
	if lowest != 6 || highest != 8 || !isFixed {
		t.Errorf("ranks %d to %d, fixed %v, want 6 to 8, fixed", lowest, highest, isFixed)
	}
	r.Layers[0].Rank, r.Layers[1].Rank = 8, 4
	if _, _, isFixed := chosenRank(r.Layers); isFixed {
		t.Error("ranks 8 and 4 count as one fixed rank")
	}
}
