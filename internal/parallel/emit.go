package parallel

import "errors"

// errGone is what emit returns when nobody takes values any more.
var errGone = errors.New("nobody takes values any more")

// Emit calls run on a goroutine of its own and calls take for every value that it emits, on the
// goroutine of the caller, one at a time and in their order. emit waits until take returns, and
// returns an error once take has returned false: run then returns as well. Emit returns when run
// has, with its error, nil if take wanted no more.
func Emit[T any](run func(emit func(T) error) error, take func(T) bool) error {
	e := emitter[T]{values: make(chan T), taken: make(chan bool), gone: make(chan bool)}
	var failure error
	go func() {
		defer close(e.values)
		failure = run(e.emit)
	}()
	defer func() { // also when take panics
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
