package merge

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/resolve"
)

// Refusals lists, in words, why no base can be merged with an adapter by this version: one entry
// per feature that it requires, empty for an adapter that can be merged. The hint belongs to the
// first.
func Refusals(a *format.Adapter) (why []string, hint string) { return resolve.Refusals(a) }
