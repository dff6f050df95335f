// Package pyre matches regular expressions exactly as Python's re does on str. PEFT's
// configurations contain such expressions, and they decide which module gets which rank and alpha.
// Go's regexp has neither look-around nor back-references, and no other engine accepts exactly
// Python's syntax.
//
// The matcher backtracks, so an expression can take exponential time. The matcher therefore counts
// its steps, and a Budget bounds them. The same expression and text take the same number of steps
// on every machine.
//
// The reference is CPython 3.11, whose rules later versions keep: global flags stand at the start
// of an expression, and possessive repeats and atomic groups exist. \N{NAME} is not supported.
package pyre

import (
	"context"
	"errors"
	"fmt"
)

// ErrBudget means that a match has used up its budget.
var ErrBudget = errors.New("the expression takes too many steps")

// SyntaxError reports an expression that Python rejects.
type SyntaxError struct {
	Pos int    // index of the character at which the error was noticed
	Msg string // the error, in Python's words
}

// Error returns the message and the position.
func (e *SyntaxError) Error() string { return fmt.Sprintf("%s at character %d", e.Msg, e.Pos) }

// Budget bounds the total steps of any number of matches. Only one goroutine at a time may use it.
type Budget struct {
	ctx  context.Context
	left int64
}

// NewBudget returns a budget of the given number of steps. It also ends when ctx ends.
func NewBudget(ctx context.Context, steps int64) *Budget { return &Budget{ctx, steps} }

// ctxSteps is the number of steps between two checks of the context.
const ctxSteps = 1 << 14

// Spend takes steps from the budget. It returns ErrBudget if none are left, or the context's error
// if that has ended.
func (b *Budget) Spend(steps int64) error {
	if b.left -= steps; b.left < 0 {
		b.left = 0
		return ErrBudget
	}
	return b.ctx.Err()
}

// Left returns the number of steps left.
func (b *Budget) Left() int64 { return b.left }
