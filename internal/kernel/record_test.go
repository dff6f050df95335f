package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// TestRecordingMicroKernels checks the contract of recording micro-kernels: those that this
// processor can run, and all of amd64 by their text.
func TestRecordingMicroKernels(t *testing.T) {
	for _, k := range Available() {
		if m := k.bf16Recording; m.run != nil {
			t.Run(k.String(), func(t *testing.T) { recordingBlocks(t, m, 40) })
		}
	}
	for _, isa := range []struct {
		name                string
		rows, bytes, panels int
	}{{"AVX512", 8, 128, 8}, {"AVX2", 4, 64, 16}} {
		t.Run("text of "+isa.name, func(t *testing.T) {
			recordingBlocks(t, interpreted[float32]("bf16Recording"+isa.name, isa.rows, isa.bytes/4, isa.panels, new(counts)), 6)
		})
	}
}

// marker fills memory that a kernel must not change.
const marker = 0xfeedfacefeedface

func recordingBlocks(t *testing.T, m micro[float32], n int) {
	rng := rand.New(rand.NewPCG(51, 52))
	zero, other, open := 0, 0, 0
	for i := range n {
		rank := []int{1, 16, 5, 17, 33, 64}[i%6]
		f := newField(dtype.BF16, tested[float32]{m, false}, rank, 1+i*5%m.panels, rank*7%131, i)
		f.fill(rng, []float64{0.001, 0.05, 1, 30}[i%4])
		if i%5 == 4 {
			f.set(element{0, i % m.rows, 3}, math.Inf(1))
			f.setRight(element{0, 0, 5}, 0, float32(math.NaN()))
			f.set(element{0, 0, 7}, 0)
		}
		z := bytes.Repeat([]byte{0x5a}, 64+len(f.w)+64)
		f.z = z[64 : 64+len(f.w)]
		differs := make([][lineWords]uint64, 1+m.rows+1)
		for i := range differs {
			differs[i] = [lineWords]uint64{marker, marker, marker, marker}
		}
		f.differs = differs[1 : 1+m.rows]
		openBack := make([]uint64, len(f.undecided))
		f.m.run = func(b *block[float32]) {
			m.run(b)
			for i, word := range b.undecided {
				openBack[i], b.undecided[i] = word>>32, word&math.MaxUint32
			}
		}
		name := fmt.Sprintf("block %d, rank %d, %d panels", i, rank, f.panels)
		f.check(t, name)
		for i, line := range differs {
			for k, word := range line {
				if n := max(0, min(64, f.panels*m.cols-64*k)); i < 1 || i > m.rows {
					n = 0
					if word != marker {
						t.Fatalf("%s: wrote beside differs", name)
					}
				} else if n < 64 && word>>n != marker>>n {
					t.Fatalf("%s: wrote into differs[%d] beyond column %d", name, i-1, f.panels*m.cols)
				}
			}
		}
		a, b, c := f.checkBack(t, name, openBack)
		zero, other, open = zero+a, other+b, open+c
		for i := range z {
			at := i - 64
			if (at < 0 || at >= len(f.w) || at%f.stride >= f.panels*m.cols*2) && z[i] != 0x5a {
				t.Fatalf("%s: wrote beside z, at %d", name, at)
			}
		}
	}
	if zero == 0 || other == 0 || open == 0 || open > (zero+other)/2 {
		t.Errorf("%d residuals of zero, %d others, %d predictions undecided: all must occur, the last seldom", zero, other, open)
	}
}

// checkBack checks the predictions of a block that check has run, and counts residuals.
func (f *field[T]) checkBack(t *testing.T, name string, openBack []uint64) (zero, other, open int) {
	t.Helper()
	for e := range f.elements {
		if f.undecided[e.p*f.m.rows+e.i]>>e.j&1 == 1 {
			continue
		}
		at := e.i*f.stride + (e.p*f.m.cols+e.j)*2
		before, z := binary.LittleEndian.Uint16(f.before[f.at+at:]), binary.LittleEndian.Uint16(f.z[at:])
		v := f.truth(e)
		out := big.NewFloat(dtype.Load(f.d, f.w[at:], 0)).SetPrec(exactPrec)
		back := truth{w: v.w, delta: v.delta, spread: v.spread, bound: v.bound, open: v.open}
		if !v.open {
			back.x = out.Sub(out, v.x.Sub(v.x, big.NewFloat(v.w)))
		}
		if openBack[e.p*f.m.rows+e.i]>>e.j&1 == 1 {
			open++
			if z != before {
				t.Fatalf("%s: %v has an open prediction and %#04x beside it, want the bits of w, %#04x", name, e, z, before)
			}
			if f.isClear(&back) {
				t.Fatalf("%s: the prediction of %v is open: w = %v, Δ = %v, bound %v", name, e, v.w, v.delta, v.bound)
			}
			continue
		}
		column := e.p*f.m.cols + e.j
		if differs := f.differs[e.i][column/64]>>(column%64)&1 == 1; differs != (z != 0) {
			t.Fatalf("%s: %v has the residual %d, and the bit is %v", name, e, z, differs)
		}
		if z == 0 {
			zero++
		} else {
			other++
		}
		// p is the value whose residual is z: the order of w less d.
		d := int16(z>>1) ^ -int16(z&1)
		o := int16(before) ^ (int16(before)>>15 | math.MinInt16)
		o -= d
		p := uint16(o ^ (^o>>15 | math.MinInt16))
		f.checkDecided(t, name+", prediction", e, &back, uint64(p))
		if residual(before, p) != z {
			t.Fatalf("%s: residual(%#04x, %#04x) = %d, want %d", name, before, p, residual(before, p), z)
		}
	}
	return zero, other, open
}

// TestRecordedMergesPredictAsTwoPasses merges matrices of every shape of edge, with zero rows and
// values of all kinds, and compares bytes, statistics and residuals with those of two merges.
func TestRecordedMergesPredictAsTwoPasses(t *testing.T) {
	rng := rand.New(rand.NewPCG(53, 54))
	ctx := context.Background()
	for _, k := range Available() {
		for _, shape := range [][3]int{{64, 256, 16}, {5, 33, 3}, {17, 96, 8}, {1, 16, 1}, {9, 1000, 33}, {40, 7, 4}} {
			rows, cols, rank := shape[0], shape[1], shape[2]
			l, r := make([]float32, rows*rank), make([]float32, rank*cols)
			for i := range l {
				l[i] = float32(0.05 * rng.NormFloat64())
			}
			for i := range r {
				r[i] = float32(0.05 * rng.NormFloat64())
			}
			clear(l[:rank*min(rows/2, 4)])
			u, err := Prepare(ctx, k, dtype.BF16, rows, cols, []Term[float32]{{S: 2, Rank: rank, L: l, R: r}})
			if err != nil {
				t.Fatal(err)
			}
			back, err := u.Negative(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w := make([]byte, 2*rows*cols)
			for i := range rows * cols {
				x := 0.05 * rng.NormFloat64()
				switch rng.IntN(50) {
				case 0:
					x = math.Ldexp(x, -rng.IntN(160))
				case 1:
					x = math.Copysign(0, x)
				case 2:
					x = math.NaN()
				case 3:
					x = math.Inf(1)
				}
				dtype.Store(dtype.BF16, w, i, x)
			}
			recording := NewRecording(u, back)
			if recording.Takes(w) != (k.bf16Recording.run != nil) {
				t.Errorf("%v, %v: Takes = %v", k, shape, recording.Takes(w))
			}
			if !recording.Takes(w) {
				continue
			}
			out, p := bytes.Clone(w), []byte(nil)
			var want, got, ignored Stats
			var s Scratch[float32]
			var res Residuals
			if err := u.Merge(ctx, out, 0, &want, &s); err != nil {
				t.Fatal(err)
			}
			p = bytes.Clone(out)
			if err := back.Merge(ctx, p, 0, &ignored, &s); err != nil {
				t.Fatal(err)
			}
			fused := bytes.Clone(w)
			for range 2 { // a used scratch makes no difference
				copy(fused, w)
				got = Stats{}
				for i := range res.Differs {
					res.Differs[i] = math.MaxUint64
				}
				if err := recording.Merge(ctx, fused, 0, &got, &s, &res); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(fused, out) || got != want {
				t.Errorf("%v, %v: another result or other statistics than Merge: %+v, want %+v", k, shape, got, want)
			}
			for i := range rows * cols {
				z := uint16(0)
				if res.Differs[i>>6]>>(i&63)&1 == 1 {
					if z = binary.LittleEndian.Uint16(res.Z[2*i:]); z == 0 {
						t.Fatalf("%v, %v: element %d has a bit, and the residual 0", k, shape, i)
					}
				}
				if want := residual(binary.LittleEndian.Uint16(w[2*i:]), binary.LittleEndian.Uint16(p[2*i:])); z != want {
					t.Fatalf("%v, %v: element %d has the residual %d, want %d", k, shape, i, z, want)
				}
			}
		}
	}
}

// TestRecordingMeetsNoSubnormals counts subnormal operands and results, as
// TestNoSubnormalsOnOrdinaryData does.
func TestRecordingMeetsNoSubnormals(t *testing.T) {
	for _, isa := range []struct {
		name                string
		rows, bytes, panels int
	}{{"AVX512", 8, 128, 8}, {"AVX2", 4, 64, 16}} {
		for name, change := range map[string]func(*plainTerm){
			"ordinary":          func(*plainTerm) {},
			"half of A is zero": func(x *plainTerm) { clear(x.r[len(x.r)/2:]) },
			"half of B is zero": func(x *plainTerm) { clear(x.l[len(x.l)/2:]) },
		} {
			c := new(counts)
			k := &Kernel{
				name:          t.Name(),
				bf16:          interpreted[float32]("bf16"+isa.name, isa.rows, isa.bytes/4, isa.panels, c),
				bf16Recording: interpreted[float32]("bf16Recording"+isa.name, isa.rows, isa.bytes/4, isa.panels, c),
			}
			p := randomProblem(rand.New(rand.NewPCG(43, 44)), dtype.BF16, 9, 40, 0.02, []int{18}, 0.05, 2)
			change(&p.terms[0])
			u := prepare[float32](k, p)
			back, err := u.Negative(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var st Stats
			w := p.bytes()
			if err := NewRecording(u, back).Merge(t.Context(), w, 0, &st, new(Scratch[float32]), new(Residuals)); err != nil {
				t.Fatal(err)
			}
			if c.subnormal > 0 || c.operations < 4*40*18 {
				t.Errorf("%s, %s: %d of %d operations have a subnormal operand or result, want none", isa.name, name, c.subnormal, c.operations)
			}
		}
	}
}
