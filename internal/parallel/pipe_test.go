package parallel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
)

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func TestPipeKeepsTheOrderOfInAndOut(t *testing.T) {
	for _, workers := range []int{1, 2, 3, 8} {
		const n = 200
		var in, out []int
		var ahead atomic.Int32
		holds := make([]int, workers)
		err := Pipe(context.Background(), workers, n,
			func(worker, i int) error {
				in = append(in, i)
				if d := ahead.Add(1); int(d) > workers {
					t.Errorf("%d jobs are under way on %d workers", d, workers)
				}
				holds[worker] = i
				return nil
			},
			func(worker, i int) error {
				if holds[worker] != i {
					t.Errorf("worker %d works on job %d and read job %d", worker, i, holds[worker])
				}
				return nil
			},
			func(worker, i int) error {
				out = append(out, i)
				ahead.Add(-1)
				return nil
			})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(in, upTo(n)) || !slices.Equal(out, upTo(n)) {
			t.Errorf("workers %d: in = %d, out = %d, want 0 to %d", workers, in, out, n-1)
		}
	}
}

func TestPipeEndsTheJobsBeforeTheFirstThatFails(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		for step := range 3 {
			var out []int
			fail := func(at int) func(_, i int) error {
				return func(_, i int) error {
					if at == 2 && i < 20 {
						out = append(out, i)
					}
					if at == step && (i == 20 || i == 23) {
						return fmt.Errorf("job %d", i)
					}
					return nil
				}
			}
			err := Pipe(context.Background(), workers, 100, fail(0), fail(1), fail(2))
			if err == nil || err.Error() != "job 20" {
				t.Errorf("workers %d, step %d: Pipe = %v, want job 20", workers, step, err)
			}
			if !slices.Equal(out, upTo(20)) {
				t.Errorf("workers %d, step %d: out = %d, want 0 to 19", workers, step, out)
			}
		}
	}
}

func TestPipeStopsWhenTheContextEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var out []int
	err := Pipe(ctx, 2, 1000, nil, nil, func(_, i int) error {
		out = append(out, i)
		if i == 4 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Pipe = %v, want context.Canceled", err)
	}
	if len(out) > 10 || !slices.Equal(out, upTo(len(out))) {
		t.Errorf("out = %d, want a few jobs in order", out)
	}
}
