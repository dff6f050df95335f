package merge

import (
	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/resolve"
)

// Refusals explains why this version cannot merge the adapter into any base: one entry per
// unsupported feature, none for an adapter that it can merge. tensors are those of the manifest
// that holds the adapter. hint belongs to the first entry.
func Refusals(a *format.Adapter, tensors []format.Tensor) (why []string, hint string) {
	return resolve.Refusals(a, tensors)
}
