// Package parallel starts all goroutines of this module. For runs independent tasks, Pipe runs jobs
// that are read and written in order, and Emit turns a callback into a stream of values. Each
// returns after everything that it started has ended:
//
//	err := parallel.For(ctx, parallel.Workers(0), n, func(worker, i int) error { … })
package parallel

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// maxWorkers limits the workers, which may each own memory. It is more than the processors of any
// machine.
const maxWorkers = 1024

// Workers returns n, or the number of usable processors if n is not positive; at most 1024.
func Workers(n int) int {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return min(n, maxWorkers)
}

// For calls f once for every i from 0 to n−1, in ascending order of start, on at most workers
// goroutines. f can use its worker number, below workers, to own scratch memory. After the first
// error, or when ctx ends, no further call starts. For returns after every call has returned, with
// the error of the lowest i that failed, else ctx's. Results must not depend on worker or on
// timing. A panic in f ends the process, as without goroutines.
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
