// Package kernel does the arithmetic of a merge on rows of a matrix, and nothing else. Its promise,
// for every element of a matrix of dtype D:
//
//	out = RN_D( w + Σ_t S_t · Σ_k l_ik·r_kj )      over the reals, rounded once to nearest even
//
// It is kept by Ziv's strategy: a fast pass in float32 or float64 with a bound on its error decides
// nearly all elements; the rest is computed in float64, then double-double, then exactly. The proof
// of the bounds is in merge/proof.go.
//
// The fast pass is layered as in BLIS. Prepare turns the factors of a tensor into an Update, once:
// all terms side by side, S multiplied into L, R packed in panels. Update.Merge walks over a block
// of rows and owns everything irregular: edges, rows that nothing changes, undecided elements. A
// micro-kernel knows whole tiles of a fixed size and nothing else; there is one per dtype and
// instruction set, and a portable one. The choice changes the time, never the bytes.
package kernel

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/loratool/loratool/format/dtype"
)

// Variable is the environment variable that forces a kernel by name; empty or unset, the fastest
// one runs.
const Variable = "LORATOOL_KERNEL"

// Available lists the kernels that this processor can run, the fastest first; "portable" is always
// the last.
func Available() []*Kernel { return append(available(), &Kernel{name: "portable"}) }

// Selected returns the kernel to use: the one that Variable names, or the fastest. A name that this
// processor does not have is an error, so that a test which forces a kernel cannot run another one.
// The variable is read once.
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

// microFor picks the micro-kernel for a base of dtype d whose factors have type T. There is none
// for a float64 result, which no float64 pass can decide.
func microFor[T Float](k *Kernel, d dtype.Type) micro[T] {
	if d == dtype.F64 {
		return micro[T]{rows: 1, cols: 1}
	}
	var m any
	switch d {
	case dtype.BF16:
		m = k.bf16
	case dtype.F16:
		m = k.f16
	case dtype.F32:
		m = k.f32
	}
	if m, ok := m.(micro[T]); ok && m.run != nil {
		return m
	}
	return any(portable(d, any(T(0)) == any(float32(0)))).(micro[T])
}
