package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/loratool/loratool/format/dtype"
)

// BenchmarkFast times the fast pass, and the slow pass for undecided elements, on a 4096×4096
// matrix in blocks of 1 MiB, as in a merge. BenchmarkCopy measures the speed of the memory for
// comparison.
func BenchmarkFast(b *testing.B) {
	for _, k := range Available() {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, r := range []int{4, 8, 16, 64, 256} {
				b.Run(fmt.Sprintf("kernel=%v/m=4096/n=4096/r=%d/dtype=%v", k, r, d),
					func(b *testing.B) {
						if d == dtype.F32 {
							benchmark[float64](b, k, d, r, 1)
						} else {
							benchmark[float32](b, k, d, r, 1)
						}
					})
			}
		}
	}
}

// BenchmarkSmall shrinks B until its squares, then its products, then its elements would be
// subnormal. It takes at most 1.3 times as long as BenchmarkFast.
func BenchmarkSmall(b *testing.B) {
	for _, k := range Available() {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, factor := range []float64{1, 1e-10, 1e-20, 1e-30, 1e-40} {
				b.Run(fmt.Sprintf("kernel=%v/factor=%v/dtype=%v", k, factor, d),
					func(b *testing.B) {
						if d == dtype.F32 {
							benchmark[float64](b, k, d, 16, factor)
						} else {
							benchmark[float32](b, k, d, 16, factor)
						}
					})
			}
		}
	}
}

// benchmark merges an update with its left factor scaled.
func benchmark[T Float](b *testing.B, k *Kernel, d dtype.Type, r int, factor float64) {
	const n, blockBytes = 4096, 1 << 20
	p := randomProblem(rand.New(rand.NewPCG(13, 14)), d, n, n, 0.02, []int{r}, 0.05, 2)
	times(p.terms[0].l, factor)
	w, st, scratch := p.bytes(), Stats{}, new(Scratch[T])
	add := prepare[T](k, p)
	p.terms[0].s *= -1
	remove := prepare[T](k, p) // restores w
	rows := blockBytes / (n * d.Size())
	b.SetBytes(int64(len(w)))
	b.ReportAllocs()
	for b.Loop() {
		add, remove = remove, add
		for row := 0; row < n; row += rows {
			add.Merge(b.Context(), w[row*n*d.Size():][:blockBytes], row, &st, scratch)
		}
	}
	b.ReportMetric(float64(st.Elements)/b.Elapsed().Seconds()/1e9, "Gelem/s")
	b.ReportMetric(100*float64(st.Slow)/float64(st.Elements), "%slow")
}

// BenchmarkSlow times an element that the fast pass leaves undecided: in float64 and, for exact
// ties, in exact arithmetic.
func BenchmarkSlow(b *testing.B) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		for _, r := range []int{16, 64, 256} {
			for _, ties := range []bool{false, true} {
				b.Run(fmt.Sprintf("ties=%v/r=%d/dtype=%v", ties, r, d), func(b *testing.B) {
					const rows, cols = 16, 1024
					p := randomProblem(rand.New(rand.NewPCG(15, 16)), d, rows, cols, 0.02, []int{r},
						0.05, 2)
					if ties {
						p.tie()
					}
					if d == dtype.F32 {
						benchmarkSlow[float64](b, p)
					} else {
						benchmarkSlow[float32](b, p)
					}
				})
			}
		}
	}
}

// BenchmarkShare measures the part of the time that undecided elements take in a merge: it runs a
// block with and without them in turn, and reports the least times.
func BenchmarkShare(b *testing.B) {
	for _, k := range Available() {
		for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, r := range []int{16, 64, 256} {
				b.Run(fmt.Sprintf("kernel=%v/r=%d/dtype=%v", k, r, d), func(b *testing.B) {
					if d == dtype.F32 {
						benchmarkShare[float64](b, k, d, r)
					} else {
						benchmarkShare[float32](b, k, d, r)
					}
				})
			}
		}
	}
}

func benchmarkShare[T Float](b *testing.B, k *Kernel, d dtype.Type, r int) {
	const rows, cols = 128, 4096
	p := randomProblem(rand.New(rand.NewPCG(13, 14)), d, rows, cols, 0.02, []int{r}, 0.05, 2)
	u := prepare[T](k, p)
	run := u.micro.run
	fast := func(b *block[T]) {
		run(b)
		clear(b.undecided)
	}
	before, st, scratch := p.bytes(), Stats{}, new(Scratch[T])
	w := make([]byte, len(before))
	least := [2]time.Duration{math.MaxInt64, math.MaxInt64}
	for b.Loop() {
		for i, f := range []func(*block[T]){run, fast} {
			u.micro.run = f
			copy(w, before)
			start := time.Now()
			u.Merge(b.Context(), w, 0, &st, scratch)
			least[i] = min(least[i], time.Since(start))
		}
	}
	slow := float64(least[0] - least[1])
	b.ReportMetric(float64(least[0])/float64(len(p.w)), "ns/elem")
	b.ReportMetric(100*slow/float64(least[0]), "%time")
	b.ReportMetric(200*float64(st.Slow)/float64(st.Elements), "%slow")
	b.ReportMetric(slow*float64(b.N)/float64(st.Slow), "ns/slow")
}

// tie makes w 1 and Δ half an ulp.
func (p *problem) tie() {
	for i := range p.w {
		p.w[i] = 1
	}
	t := &p.terms[0]
	t.s = ulp(p.d, 1) / 2 / float64(t.rank)
	for _, f := range [][]float64{t.l, t.r} {
		for i := range f {
			f[i] = 1
		}
	}
}

func benchmarkSlow[T Float](b *testing.B, p *problem) {
	u := prepare[T](Available()[0], p)
	before, st := p.bytes(), Stats{}
	w := make([]byte, len(before))
	for b.Loop() {
		copy(w, before)
		for i := range len(p.w) {
			u.slow(b.Context(), w, 0, i, &st)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(p.w)), "ns/elem")
	b.ReportMetric(float64(st.Exact)/float64(b.N*len(p.w)), "exact/elem")
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

// BenchmarkRescaled times DoRA with magnitudes of rows, on one thread, as a merge runs it.
func BenchmarkRescaled(b *testing.B) {
	for _, d := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
		b.Run(fmt.Sprintf("m=512/n=4096/r=16/dtype=%v", d), func(b *testing.B) {
			const rows, cols = 512, 4096
			p := randomProblem(rand.New(rand.NewPCG(17, 18)), d, rows, cols, 0.02, []int{16}, 0.05,
				2)
			magnitude := make([]float64, rows)
			for i := range magnitude {
				magnitude[i] = 0.02 * 64 // ‖v‖, so that the weights keep their size
			}
			b.SetBytes(int64(len(p.bytes())))
			for b.Loop() {
				if _, st := p.rescale(b, magnitude, false, 16); st.Elements == 0 {
					b.Fatal("nothing was merged")
				}
			}
		})
	}
}
