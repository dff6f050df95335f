package parallel

import (
	"context"
	"sync"
)

// Pipe takes jobs 0 to n−1 through three steps on at most workers goroutines: in, for one job at a
// time and in order; work, for as many jobs at once as there are workers; out, for one job at a
// time and in order again. A job keeps its worker from in to out, so memory that belongs to a
// worker is memory for one job, and no job is further ahead of the last out than there are workers.
// A nil step is skipped.
//
// When a job fails, the jobs before it still end, with out, and those after it do not: what out has
// seen is the same at every run. Pipe returns the error of the first job that failed, by index,
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
	turned sync.Cond // turn or fail has changed
	turn   int       // the job whose out is due
	fail   int       // the lowest job that failed, n when none has
	err    error     // its error
}

// job takes the next job through its steps and reports whether there may be another.
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

// enter takes the next job through in; i is −1 when no more jobs may start.
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
		p.next = p.n // what would be read next is not where it should be
	}
	return i, err
}

// failed notes that job i failed; p.mu is held.
func (p *pipe) failed(i int, err error) {
	if i < p.fail {
		p.fail, p.err = i, err
	}
	p.turned.Broadcast()
}

func call(step func(worker, i int) error, worker, i int) error {
	if step == nil {
		return nil
	}
	return step(worker, i)
}
