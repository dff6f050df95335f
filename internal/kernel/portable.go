package kernel

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// portableCols is the width of the portable kernel's panels. Four lines of 64 numbers fit in the
// first-level cache.
const portableCols = 64

// portable returns the micro-kernel in plain Go, a micro[float32] or a micro[float64].
func portable(d dtype.Type, narrow, isWidened bool) any {
	slack := float32(slack32)
	if isWidened {
		slack = slackWidened
	}
	switch {
	case narrow && d == dtype.BF16:
		return portableOf(d, isWidened, decideBF16(slack))
	case narrow && d == dtype.F16:
		return portableOf(d, isWidened, decideF16(slack))
	case !narrow && d == dtype.F32:
		return portableOf(d, isWidened, decideF32)
	case !narrow:
		return portableOf(d, isWidened, func(out []byte, w, delta, bound []float64,
			b *block[float64]) uint64 {
			return decideWide(d, out, w, delta, bound, b)
		})
	}
	panic("kernel: a float32 result needs float64 arithmetic")
}

// portableOf builds a micro-kernel from the part that depends on D.
func portableOf[T Float](d dtype.Type, isWidened bool, decide decision[T]) micro[T] {
	source := d
	if isWidened {
		source, decide = dtypeOf[T](), decide.widened(d)
	}
	lineBytes := portableCols * source.Size()
	return micro[T]{rows: 1, cols: portableCols, panels: 8, run: func(b *block[T]) {
		w, acc, delta, bound := &b.room[0], &b.room[1], &b.room[2], &b.room[3]
		for p := range b.panels {
			line := b.w[p*lineBytes:][:lineBytes]
			Widen(w[:], source, line)
			accumulate(delta, acc, b.l[:b.rank], b.r[p*b.rank*portableCols:])
			norms := (*[portableCols]T)(b.rNorm[p*portableCols:])
			c, floor := b.lBound[0], b.floor
			for j := range bound {
				bound[j] = c*norms[j] + floor
			}
			b.undecided[p] = decide(line, w[:], delta[:], bound[:], b)
		}
	}}
}

// decision stores the results of a line that its bounds decide, as numbers of D, and returns the
// others as bits.
type decision[T Float] func(out []byte, w, delta, bound []T, b *block[T]) (undecided uint64)

// widened makes a decision store its results as numbers of T.
func (decide decision[T]) widened(d dtype.Type) decision[T] {
	return func(out []byte, w, delta, bound []T, b *block[T]) uint64 {
		var results [portableCols * 4]byte
		undecided := decide(results[:len(w)*d.Size()], w, delta, bound, b)
		for j := range w {
			if undecided>>j&1 == 0 {
				dtype.Store(dtypeOf[T](), out, j, dtype.Load(d, results[:], j))
			}
		}
		return undecided
	}
}

// accumulate sets delta to l·R for one panel, in chunks.
func accumulate[T Float](delta, acc *[portableCols]T, l, r []T) {
	clear(delta[:])
	for len(l) > 0 {
		n := min(chunk, len(l))
		clear(acc[:])
		k := 0
		for ; k+4 <= n; k += 4 {
			l0, l1, l2, l3 := l[k], l[k+1], l[k+2], l[k+3]
			r := (*[4 * portableCols]T)(r[k*portableCols:])
			for j := range acc {
				acc[j] = acc[j] + l0*r[j] + l1*r[j+portableCols] +
					l2*r[j+2*portableCols] + l3*r[j+3*portableCols]
			}
		}
		for ; k < n; k++ {
			l0, r := l[k], (*[portableCols]T)(r[k*portableCols:])
			for j := range acc {
				acc[j] += l0 * r[j]
			}
		}
		for j := range delta {
			delta[j] += acc[j]
		}
		l, r = l[n:], r[n*portableCols:]
	}
}

// The largest numbers of the narrow types. The fast pass decides nothing beyond them.
const (
	maxBF16 = 0x1.fep127
	maxF16  = 65504
	maxF32  = math.MaxFloat32
)

// Errors of t = w + δ and t ± e in units of |t|: 2u, and 2⁻¹⁰ of that for the roundings in e. With
// w rounded to float32 it is 3u.
const (
	slack32      = 0x1.004p-23
	slack64      = 0x1.004p-52
	slackWidened = 0x1.808p-23
)

// decideBF16 rounds both ends of the interval t ± e to BF16 in integer arithmetic: a float32 plus
// half a unit of BF16, ties to even, with the low 16 bits cut. Equal results decide the element.
// decideF16 and decideF32 do the same with their own rounding.
func decideBF16(slack float32) decision[float32] {
	return func(out []byte, w, delta, bound []float32, b *block[float32]) (undecided uint64) {
		delta, bound, out = delta[:len(w)], bound[:len(w)], out[:2*len(w)]
		for j := range w {
			t := w[j] + b.scale*delta[j]
			abs := math.Float32frombits(math.Float32bits(t) &^ (1 << 31))
			e := bound[j] + slack*abs
			lo, hi := math.Float32bits(t-e), math.Float32bits(t+e)
			lo, hi = (lo+0x7fff+lo>>16&1)&^0xffff, (hi+0x7fff+hi>>16&1)&^0xffff
			if !(abs+e <= maxBF16) || lo != hi {
				undecided |= 1 << j
				continue
			}
			binary.LittleEndian.PutUint16(out[2*j:], uint16(lo>>16))
			b.sums.add(float64(w[j]), float64(delta[j]),
				(float64(math.Float32frombits(lo))-float64(w[j]))*float64(b.inverse))
		}
		return undecided
	}
}

func decideF16(slack float32) decision[float32] {
	return func(out []byte, w, delta, bound []float32, b *block[float32]) (undecided uint64) {
		delta, bound, out = delta[:len(w)], bound[:len(w)], out[:2*len(w)]
		for j := range w {
			t := w[j] + b.scale*delta[j]
			abs := math.Float32frombits(math.Float32bits(t) &^ (1 << 31))
			e := bound[j] + slack*abs
			lo, hi := dtype.F16FromFloat32(t-e), dtype.F16FromFloat32(t+e)
			if !(abs+e <= maxF16) || lo != hi {
				undecided |= 1 << j
				continue
			}
			binary.LittleEndian.PutUint16(out[2*j:], lo)
			b.sums.add(float64(w[j]), float64(delta[j]),
				(float64(dtype.F16ToFloat32(lo))-float64(w[j]))*float64(b.inverse))
		}
		return undecided
	}
}

func decideF32(out []byte, w, delta, bound []float64, b *block[float64]) (undecided uint64) {
	delta, bound, out = delta[:len(w)], bound[:len(w)], out[:4*len(w)]
	for j := range w {
		t := w[j] + b.scale*delta[j]
		e := bound[j] + slack64*math.Abs(t)
		lo, hi := math.Float32bits(float32(t-e)), math.Float32bits(float32(t+e))
		if !(math.Abs(t)+e <= maxF32) || lo != hi {
			undecided |= 1 << j
			continue
		}
		binary.LittleEndian.PutUint32(out[4*j:], lo)
		b.sums.add(w[j], delta[j], (float64(math.Float32frombits(lo))-w[j])*b.inverse)
	}
	return undecided
}

// decideWide handles a 16-bit base with factors that float32 cannot hold.
func decideWide(d dtype.Type, out []byte, w, delta, bound []float64,
	b *block[float64]) (undecided uint64) {
	largest := float64(maxF16)
	if d == dtype.BF16 {
		largest = maxBF16
	}
	var lo, hi [2]byte
	for j := range w {
		t := w[j] + b.scale*delta[j]
		e := bound[j] + slack64*math.Abs(t)
		dtype.Store(d, lo[:], 0, t-e)
		dtype.Store(d, hi[:], 0, t+e)
		if !(math.Abs(t)+e <= largest) || lo != hi {
			undecided |= 1 << j
			continue
		}
		copy(out[2*j:], lo[:])
		b.sums.add(w[j], delta[j], (dtype.Load(d, lo[:], 0)-w[j])*b.inverse)
	}
	return undecided
}
