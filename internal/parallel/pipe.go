package parallel

import (
	"context"
	"sync"
)

// Pipe takes jobs 0 to n−1 through three steps on at most workers goroutines: in, one job at a time
// and in order; work, up to workers jobs at once; out, one job at a time and in order. A job keeps
// its worker from in to out, so a worker's memory belongs to one job, and no job is more than
// workers ahead of the last out. A nil step is skipped.
//
// If a job fails, the jobs before it still run to the end of out, and those after it do not, so
// every run passes the same jobs to out. Pipe returns the error of the first failed job by index,
// else ctx's if that ended it early.
func Pipe(ctx context.Context, workers, n int, in, work, out func(worker, i int) error) error {
	p := pipe{n: n, fail: n, steps: [3]func(worker, i int) error{in, work, out}}
	p.turned.L = &p.mu
	var wg sync.WaitGroup
	for worker := range min(Workers(workers), n) {
		wg.Go(func() {
			for p.job(ctx, worker) {
			}
		})
	}
	wg.Wait()
	if p.err == nil && p.turn < n {
		return ctx.Err()
	}
	return p.err
}

type pipe struct {
	n     int
	steps [3]func(worker, i int) error

	entry sync.Mutex // held during in
	next  int        // the job whose in is due; under entry

	mu     sync.Mutex
	turned sync.Cond // signals changes of turn and fail
	turn   int       // the job whose out is due
	fail   int       // the lowest failed job; n if none
	err    error     // its error
}

// job takes the next job through its steps, and reports whether there may be another.
func (p *pipe) job(ctx context.Context, worker int) bool {
	i, err := p.enter(ctx, worker)
	if i < 0 {
		return false
	}
	if err == nil {
		err = call(p.steps[1], worker, i)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed(i, err)
	}
	for p.turn != i && i < p.fail {
		p.turned.Wait()
	}
	if i >= p.fail {
		return false
	}
	p.mu.Unlock()
	err = call(p.steps[2], worker, i)
	p.mu.Lock()
	if err != nil {
		p.failed(i, err)
		return false
	}
	p.turn++
	p.turned.Broadcast()
	return true
}

// enter takes the next job through in. i is −1 if no more jobs may start.
func (p *pipe) enter(ctx context.Context, worker int) (i int, err error) {
	p.entry.Lock()
	defer p.entry.Unlock()
	p.mu.Lock()
	stop := p.fail < p.n
	p.mu.Unlock()
	if stop || p.next == p.n || ctx.Err() != nil {
		return -1, nil
	}
	i = p.next
	p.next++
	if err = call(p.steps[0], worker, i); err != nil {
		p.next = p.n // in may have read only part of a job, so no later job can follow
	}
	return i, err
}

// failed records the failure of job i. The caller holds p.mu.
func (p *pipe) failed(i int, err error) {
	if i < p.fail {
		p.fail, p.err = i, err
	}
	p.turned.Broadcast()
}

// call runs a step unless it is nil.
func call(step func(worker, i int) error, worker, i int) error {
	if step == nil {
		return nil
	}
	return step(worker, i)
}
