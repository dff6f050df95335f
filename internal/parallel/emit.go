package parallel

import "errors"

// errGone is the result of emit after take has returned false.
var errGone = errors.New("the receiver takes no more values")

// Emit calls run on a new goroutine, and take on the caller's goroutine for every emitted value,
// one at a time and in order. emit waits until take returns. It returns an error once take has
// returned false, and run must return then too. Emit returns after run, with run's error, or nil if
// take wanted no more.
func Emit[T any](run func(emit func(T) error) error, take func(T) bool) error {
	e := emitter[T]{values: make(chan T), taken: make(chan bool), gone: make(chan bool)}
	var failure error
	go func() {
		defer close(e.values)
		failure = run(e.emit)
	}()
	defer func() { // also if take panics
		close(e.gone)
		for range e.values {
		}
	}()
	for v := range e.values {
		if !take(v) {
			return nil
		}
		e.taken <- true
	}
	return failure
}

type emitter[T any] struct {
	values chan T
	taken  chan bool
	gone   chan bool
}

func (e *emitter[T]) emit(v T) error {
	select {
	case e.values <- v:
	case <-e.gone:
		return errGone
	}
	select {
	case <-e.taken:
		return nil
	case <-e.gone:
		return errGone
	}
}
