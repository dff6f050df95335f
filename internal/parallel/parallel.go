// Package parallel is the one place where goroutines start.
package parallel

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxWorkers bounds what a caller may ask for: more than any machine has processors, as every
// worker may own memory.
const maxWorkers = 1024

// Workers returns n, or the number of usable processors when n is not positive; at most 1024.
func Workers(n int) int {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return min(n, maxWorkers)
}

// For calls f once for every i from 0 to n−1, in ascending order of start, on at most workers
// goroutines; worker, below workers, tells f which of them it runs on, so that it can own scratch
// memory. After the first error, or when ctx ends, no further call starts. For returns when every
// call has returned: the error of the lowest i that failed, else ctx's. Results must not depend on
// worker or on timing; a panic in f ends the process, as it would without goroutines.
func For(ctx context.Context, workers, n int, f func(worker, i int) error) error {
	workers = min(Workers(workers), n)
	var (
		next  atomic.Int64
		stop  atomic.Bool
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
		at    int
	)
	run := func(worker int) {
		for !stop.Load() && ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			if err := f(worker, i); err != nil {
				mu.Lock()
				if first == nil || i < at {
					first, at = err, i
				}
				mu.Unlock()
				stop.Store(true)
				return
			}
		}
	}
	for worker := range workers {
		wg.Go(func() { run(worker) })
	}
	wg.Wait()
	if first != nil {
		return first
	}
	return ctx.Err()
}
