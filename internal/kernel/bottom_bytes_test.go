package kernel

import (
	"runtime"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestUpdateBytesCountsTheWayOfTheBottom: an update of about 2⁻¹⁰⁰ beside zero weights exists in
// float32 and in float64. Its live memory stays within UpdateBytes.
func TestUpdateBytesCountsTheWayOfTheBottom(t *testing.T) {
	const rows, cols, rank = 512, 768, 32
	k := Available()[0]
	l, r := make([]float32, rows*rank), make([]float32, rank*cols)
	for i := range l {
		l[i] = 0x1p-50
	}
	for i := range r {
		r[i] = 0x1p-50
	}
	alive := func() int64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	w := make([]byte, rows*cols*2)
	factors := int64(4 * (len(l) + len(r)))
	before := alive()
	u := packTerms(k, dtype.BF16, rows, cols, []Term[float32]{{S: 1, Rank: rank, L: l, R: r}})
	var s Scratch[float32]
	u.Merge(t.Context(), w, 0, new(Stats), &s)
	got := alive() - before + factors
	if want := UpdateBytes(dtype.BF16, false, rows, cols, rank); got > want+64<<10 || 2*got < want {
		t.Errorf("%d bytes are alive, UpdateBytes = %d: want half of it to all", got, want)
	}
	before = alive() - got // the negative shares R in both arithmetics
	negative, err := u.Negative(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	negative.Merge(t.Context(), w, 0, new(Stats), &s)
	more, want := alive()-before-got, NegativeBytes(dtype.BF16, false, rows, rank)
	if more > want+64<<10 || 2*more < want {
		t.Errorf("the negative has %d bytes alive, NegativeBytes = %d: want half of it to all", more, want)
	}
	runtime.KeepAlive(negative)
	if narrow := UpdateBytes(dtype.F32, false, rows, cols, rank); got <= narrow {
		t.Errorf("%d bytes are alive with a limit of %d: the block has not gone through float64", got, narrow)
	}
	runtime.KeepAlive(u)
	runtime.KeepAlive(l)
	runtime.KeepAlive(r)
	runtime.KeepAlive(w)
}
