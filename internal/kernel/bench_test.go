package kernel

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// BenchmarkFast times the fast pass with its test, and the slow pass where it leaves elements open, on a 4096×4096 matrix that
// is worked on in blocks of 1 MiB, as a merge does. BenchmarkCopy beside it is the speed of the memory.
func BenchmarkFast(b *testing.B) {
	for _, k := range Available() {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, r := range []int{4, 8, 16, 64, 256} {
				b.Run(fmt.Sprintf("kernel=%v/m=4096/n=4096/r=%d/dtype=%v", k, r, d), func(b *testing.B) {
					if d == dtype.F32 {
						benchmark[float64](b, k, d, r)
					} else {
						benchmark[float32](b, k, d, r)
					}
				})
			}
		}
	}
}

func benchmark[T Float](b *testing.B, k *Kernel, d dtype.Type, r int) {
	const n, blockBytes = 4096, 1 << 20
	p := randomProblem(rand.New(rand.NewPCG(13, 14)), d, n, n, 0.02, []int{r}, 0.05, 2)
	w, st, scratch := p.bytes(), Stats{}, new(Scratch[T])
	add := prepare[T](k, p)
	p.terms[0].s *= -1
	remove := prepare[T](k, p) // so that w stays what it is
	rows := blockBytes / (n * d.Size())
	b.SetBytes(int64(len(w)))
	b.ReportAllocs()
	for b.Loop() {
		add, remove = remove, add
		for row := 0; row < n; row += rows {
			add.Merge(w[row*n*d.Size():][:blockBytes], row, &st, scratch)
		}
	}
	b.ReportMetric(float64(st.Elements)/b.Elapsed().Seconds()/1e9, "Gelem/s")
	b.ReportMetric(100*float64(st.Slow)/float64(st.Elements), "%slow")
}

func BenchmarkCopy(b *testing.B) {
	w := make([]byte, 2*4096*4096)
	x := make([]byte, len(w))
	b.SetBytes(int64(len(w)))
	for b.Loop() {
		copy(x, w)
	}
	b.ReportMetric(float64(len(w)/2)*float64(b.N)/b.Elapsed().Seconds()/1e9, "Gelem/s")
}
