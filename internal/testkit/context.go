package testkit

import (
	"context"
	"errors"
	"testing"
)

// Asked is a context that ends at call number End of Err, and counts the calls. It shows how often
// work checks its context, without a clock. One goroutine may use it.
type Asked struct {
	context.Context
	Times, End int
}

// Err counts.
func (c *Asked) Err() error {
	if c.Times++; c.Times > c.End {
		return context.Canceled
	}
	return nil
}

// EndsAnywhere runs work to its end, and then again under contexts that end after some of its
// checks: one in every. Each run must fail with context.Canceled after at most 8 further checks.
// Work that checks less often than least is an error.
func EndsAnywhere(t testing.TB, least, every int, work func(context.Context) error) {
	t.Helper()
	whole := &Asked{Context: t.Context(), End: 1 << 30}
	if err := work(whole); err != nil {
		t.Fatal(err)
	}
	if whole.Times < least {
		t.Errorf("the work looked %d times at its context, want %d at least", whole.Times, least)
	}
	for end := 0; end < whole.Times; end += every {
		ctx := &Asked{Context: t.Context(), End: end}
		if err := work(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that ends after %d of %d looks: %v, want %v", end, whole.Times, err, context.Canceled)
		}
		if more := ctx.Times - end; more > 8 {
			t.Errorf("%d looks followed the end after %d, want 8 at most", more, end)
		}
	}
}
