package gguf

import (
	"errors"
	"testing"

	"github.com/loratool/loratool/internal/fault"
)

// TestRefusesLargeAlignment: a header is held in memory with its padding.
func TestRefusesLargeAlignment(t *testing.T) {
	for _, n := range []uint32{MaxAlignment, 2 * MaxAlignment, 1 << 31} {
		_, _, err := Compose(3, []KV{Uint32KV(alignmentKey, n)}, nil)
		if isLarge := n > MaxAlignment; isLarge != errors.Is(err, fault.Limit) || !isLarge && err != nil {
			t.Errorf("alignment %d: %v", n, err)
		}
	}
}
