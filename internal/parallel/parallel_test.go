package parallel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
)

func TestForCallsEveryIndexOnce(t *testing.T) {
	for _, workers := range []int{0, 1, 2, 7, 100} {
		counts := make([]atomic.Int32, 57)
		err := For(context.Background(), workers, len(counts), func(worker, i int) error {
			if workers > 0 && worker >= workers {
				t.Errorf("worker = %d, want below %d", worker, workers)
			}
			counts[i].Add(1)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range counts {
			if n := counts[i].Load(); n != 1 {
				t.Errorf("workers %d: index %d was called %d times", workers, i, n)
			}
		}
	}
}

func TestForReturnsTheFirstErrorByIndex(t *testing.T) {
	errAt := func(i int) error { return errors.New(string(rune('a' + i))) }
	err := For(context.Background(), 1, 10, func(_, i int) error {
		if i >= 3 {
			return errAt(i)
		}
		return nil
	})
	if err == nil || err.Error() != "d" {
		t.Errorf("For = %v, want d", err)
	}
}

func TestForStopsWhenTheContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var n atomic.Int32
	err := For(ctx, 2, 1000, func(_, i int) error {
		if n.Add(1) >= 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("For = %v, want context.Canceled", err)
	}
	if got := n.Load(); got > 6 { // each of two workers can be in a call that cancels
		t.Errorf("%d calls started, want at most 6", got)
	}
}
