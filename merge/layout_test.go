package merge

import (
	"slices"
	"testing"
)

// TestBatchesCoverTheJobsInOrder: every job is in one batch. A batch is one range of one file and
// at most a block long; large jobs are alone.
func TestBatchesCoverTheJobsInOrder(t *testing.T) {
	const block = 1000
	p := &Plan{options: Options{BlockBytes: block}}
	changing := new(pipeline)
	// file, bytes, is a target; 0 bytes is a header
	kinds := []struct {
		file   int
		n      int64
		target bool
	}{
		{0, 0, false}, {0, 100, false}, {0, 300, true}, {0, 8, false}, {0, 592, true}, {0, 1, true}, // a block and one more
		{0, smallCopyBytes + 1, false}, {0, 200, true}, {0, 2000, true}, {0, 200, true}, // too large for a shared batch
		{1, 0, false}, {1, 200, true}, {1, 200, true}, {1, 400, false},
		{2, 300, true},
	}
	var jobs []job
	off := int64(8)
	for i, k := range kinds {
		j := job{index: i, file: k.file, off: off, n: k.n, header: k.n == 0}
		if k.target {
			j.pipeline = changing
		}
		jobs = append(jobs, j)
		off += k.n
	}
	var ends []int
	next := 0
	for _, b := range p.batches(jobs) {
		if b.first != next || b.end <= b.first {
			t.Fatalf("a batch of jobs %d to %d follows job %d", b.first, b.end, next)
		}
		next = b.end
		ends = append(ends, b.end)
	}
	if want := []int{1, 5, 6, 7, 8, 9, 10, 11, 14, 15}; !slices.Equal(ends, want) {
		t.Errorf("batches end at %v, want %v", ends, want)
	}
}
