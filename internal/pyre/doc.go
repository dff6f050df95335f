// Package pyre matches regular expressions as Python's re does, on str: PEFT's configurations hold
// such expressions, and which module a rank or an alpha is for depends on them. Go's regexp has no
// look-around and no back references, and no other engine reads every expression as Python does.
//
// The matcher backtracks, so an expression can take exponential time. It counts its steps, and a
// Budget bounds them: the same expression and text always take the same number, on any machine.
//
// The truth is CPython 3.11, whose rules later versions keep: flags for the whole expression stand
// at its start, and possessive repeats and atomic groups exist. \N{NAME} is not supported.
package pyre

import (
	"context"
	"errors"
	"fmt"
)

// ErrBudget means that a match used up its budget.
var ErrBudget = errors.New("the expression takes too many steps")

// SyntaxError is an expression that Python rejects.
type SyntaxError struct {
	Pos int    // the character at which the fault was noticed, from 0
	Msg string // what is wrong, in Python's words
}

// Error is a fault of an expression, and its place.
func (e *SyntaxError) Error() string { return fmt.Sprintf("%s at character %d", e.Msg, e.Pos) }

// Budget bounds the steps of any number of matches together. It must not be used by several
// goroutines at once.
type Budget struct {
	ctx  context.Context
	left int64
}

// NewBudget returns a budget of a number of steps, which ends early when ctx does.
func NewBudget(ctx context.Context, steps int64) *Budget { return &Budget{ctx, steps} }

// ctxSteps is how many steps a match makes between two looks at the context.
const ctxSteps = 1 << 14

// Spend takes steps from the budget. It returns ErrBudget when they are used up, and the error of
// the context when that has ended.
func (b *Budget) Spend(steps int64) error {
	if b.left -= steps; b.left < 0 {
		b.left = 0
		return ErrBudget
	}
	return b.ctx.Err()
}

// Left is how many steps are left.
func (b *Budget) Left() int64 { return b.left }
