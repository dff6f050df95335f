// Package kernel computes the elements of a merged matrix: W + Σ S·L·R, and DoRA's rescaled form,
// with every element rounded correctly. Package merge prepares an Update per tensor and calls Merge
// on blocks of rows, from any number of goroutines:
//
//	u, err := kernel.Prepare(ctx, k, dtype.BF16, rows, cols, terms)
//	err = u.Merge(ctx, w, row0, &stats, &scratch)
//
// For every element of a matrix of dtype D,
//
//	out = RN_D( w + Σ_t S_t · Σ_k l_ik·r_kj )      over the reals, rounded once to nearest even
//
// The package follows Ziv's strategy. A fast pass in float32 or float64, with a bound on its error,
// decides nearly all elements. The rest is computed in float64, then in double-double, then
// exactly. The file merge/proof.go proves the bounds.
//
// The fast pass is layered as in BLIS. Prepare packs the factors of a tensor into an Update: all
// terms side by side, S multiplied into L, R in panels. Update.Merge walks over a block of rows and
// handles everything irregular: edges, unchanged rows, undecided elements. A micro-kernel handles
// only whole tiles of a fixed size. There is one per dtype and instruction set, and a portable one.
// The choice of kernel changes the time, never the bytes.
package kernel

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// Variable is the environment variable that forces a kernel by name. If it is empty or unset, the
// fastest kernel runs.
const Variable = "LORATOOL_KERNEL"

// Available lists the kernels that this processor can run, the fastest first. "portable" is always
// the last.
func Available() []*Kernel { return append(available(), &Kernel{name: "portable"}) }

// Selected returns the kernel named by Variable, or the fastest one. A name that this processor
// lacks is an error, so that a test that forces a kernel cannot silently run another. The variable
// is read once.
var Selected = sync.OnceValues(func() (*Kernel, error) { return choose(os.Getenv(Variable)) })

func choose(name string) (*Kernel, error) {
	all := Available()
	if name == "" {
		return all[0], nil
	}
	names := make([]string, len(all))
	for i, k := range all {
		if k.name == name {
			return k, nil
		}
		names[i] = k.name
	}
	return nil, fmt.Errorf("%s is %q, which this processor does not have; it has %s", Variable,
		name, strings.Join(names, ", "))
}

// microFor returns the micro-kernel for results of dtype d and factors of type T, with a base of
// dtype d or a widened one. F64 has none, since no float64 pass can decide a float64 result.
func microFor[T Float](k *Kernel, d dtype.Type, isWidened bool) micro[T] {
	if d == dtype.F64 {
		return micro[T]{rows: 1, cols: 1}
	}
	var m any
	switch {
	case d == dtype.BF16 && isWidened:
		m = k.bf16Widened
	case d == dtype.F16 && isWidened:
		m = k.f16Widened
	case d == dtype.F32 && isWidened:
		m = k.f32Widened
	case d == dtype.BF16:
		m = k.bf16
	case d == dtype.F16:
		m = k.f16
	case d == dtype.F32:
		m = k.f32
	}
	if m, ok := m.(micro[T]); ok && m.run != nil {
		return m
	}
	return any(portable(d, isNarrow[T](), isWidened)).(micro[T])
}
