package kernel

import (
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// chunk is the number of columns that the portable pass works on at a time: with rank 16 the chunk of R has 32 KiB, about
// what the first-level cache holds.
const chunk = 512

// Portable is the fast pass in plain Go.
//
//	δ = Σ_t S_t · (Σ_k l_ik·r_kj)      t = w + δ      e = Σ_t c_t·u·|S_t|·‖l_i‖·‖r_j‖ + 2u·|t| + tiny
//
// An element is decided when t − e and t + e round to the same value of D.
func Portable[T Float](t *Tile[T], st *Stats, undecided []int32, s *Scratch[T]) []int32 {
	if t.D == dtype.F64 {
		return all(t, undecided)
	}
	size := t.D.Size()
	for c0 := 0; c0 < t.Cols; c0 += chunk {
		n := min(chunk, t.Cols-c0)
		w, delta, bound := s.w[:n], s.delta[:n], s.bound[:n]
		for i := range t.Rows {
			first := i*t.Cols + c0
			bytes := t.W[first*size : (first+n)*size]
			widen(w, t.D, bytes)
			clear(delta)
			clear(bound)
			zero := true
			var floor float64
			for k := range t.Terms {
				term := &t.Terms[k]
				if term.LNorm[i] == 0 && term.RFinite {
					continue
				}
				zero = false
				floor += accumulate(term, i, c0, len(t.Terms), delta, bound, s.acc[:n])
			}
			if zero {
				keep(w, st)
				continue
			}
			undecided = decide(t.D, bytes, w, delta, bound, T(floor), first, st, undecided)
		}
	}
	return undecided
}

// accumulate adds S·(l_i·R) of one term to delta, and the bound of its error to bound; it returns the part of the bound
// that is the same for every column: what underflow can have cost.
func accumulate[T Float](term *Term[T], i, c0, nTerms int, delta, bound, acc []T) float64 {
	n := len(acc)
	l := term.L[i*term.Rank : (i+1)*term.Rank]
	clear(acc)
	k := 0
	for ; k+4 <= len(l); k += 4 {
		l0, l1, l2, l3 := l[k], l[k+1], l[k+2], l[k+3]
		r0 := term.R[k*term.Stride+c0:][:n]
		r1 := term.R[(k+1)*term.Stride+c0:][:n]
		r2 := term.R[(k+2)*term.Stride+c0:][:n]
		r3 := term.R[(k+3)*term.Stride+c0:][:n]
		for j := range acc {
			acc[j] += l0*r0[j] + l1*r1[j] + l2*r2[j] + l3*r3[j]
		}
	}
	for ; k < len(l); k++ {
		lk := l[k]
		r := term.R[k*term.Stride+c0:][:n]
		for j := range acc {
			acc[j] += lk * r[j]
		}
	}
	s := T(term.S)
	abs := math.Abs(term.S)
	// Below the normal range c would lose its precision, and with it the bound.
	c := T(max(1.01*float64(term.Rank+3+nTerms)*unit[T]()*abs*float64(term.LNorm[i]), normal[T]()))
	norms := term.RNorm[c0:][:n]
	for j := range acc {
		delta[j] += s * acc[j]
		bound[j] += c * norms[j]
	}
	return (float64(term.Rank)*abs + 4) * smallest[T]()
}

// smallest is the smallest positive number of T.
func smallest[T Float]() float64 {
	if unit[T]() == 0x1p-24 {
		return math.SmallestNonzeroFloat32
	}
	return math.SmallestNonzeroFloat64
}

// normal is the smallest normal number of T.
func normal[T Float]() float64 {
	if unit[T]() == 0x1p-24 {
		return 0x1p-126
	}
	return 0x1p-1022
}

// all leaves every element undecided: no float64 pass can decide a float64 result.
func all[T Float](t *Tile[T], undecided []int32) []int32 {
	for i := range t.Rows * t.Cols {
		undecided = append(undecided, int32(i))
	}
	return undecided
}

// keep counts a row that no term changes.
func keep[T Float](w []T, st *Stats) {
	for _, x := range w {
		if x-x != 0 {
			st.NaNBefore++
			st.NaNAfter++
			continue
		}
		st.NormW += float64(x) * float64(x)
	}
	st.Unchanged += int64(len(w))
}

func widen[T Float](dst []T, d dtype.Type, src []byte) {
	switch dst := any(dst).(type) {
	case []float32:
		dtype.Widen(dst, d, src)
	case []float64:
		dtype.Widen64(dst, d, src)
	}
}

// decide tests, rounds and stores one row of a chunk; first is the index of its first element in the tile. It only
// picks the loop: each has its own, because a generic one would dispatch at every element.
func decide[T Float](d dtype.Type, out []byte, w, delta, bound []T, floor T, first int, st *Stats, undecided []int32) []int32 {
	var s sums
	w32, isNarrow := any(w).([]float32)
	if isNarrow {
		delta, bound, floor := any(delta).([]float32), any(bound).([]float32), float32(floor)
		if d == dtype.BF16 {
			undecided = decideBF16(out, w32, delta, bound, floor, first, &s, undecided)
		} else {
			undecided = decideF16(out, w32, delta, bound, floor, first, &s, undecided)
		}
	} else {
		w, delta, bound, floor := any(w).([]float64), any(delta).([]float64), any(bound).([]float64), float64(floor)
		if d == dtype.F32 {
			undecided = decideF32(out, w, delta, bound, floor, first, &s, undecided)
		} else {
			undecided = decideWide(d, out, w, delta, bound, floor, first, &s, undecided)
		}
	}
	s.addTo(st)
	return undecided
}

// The largest numbers of the narrow types; beyond them the fast pass decides nothing.
const (
	maxBF16 = 0x1.fep127
	maxF16  = 65504
	maxF32  = math.MaxFloat32
)

func decideBF16(out []byte, w, delta, bound []float32, floor float32, first int, s *sums, undecided []int32) []int32 {
	delta, bound, out = delta[:len(w)], bound[:len(w)], out[:2*len(w)]
	for j := range w {
		t := w[j] + delta[j]
		abs := math.Float32frombits(math.Float32bits(t) &^ (1 << 31))
		e := bound[j] + 0x1p-23*abs + floor
		lo, hi := math.Float32bits(t-e), math.Float32bits(t+e)
		lo, hi = (lo+0x7fff+lo>>16&1)&^0xffff, (hi+0x7fff+hi>>16&1)&^0xffff
		if !(abs+e <= maxBF16) || lo != hi {
			undecided = append(undecided, int32(first+j))
			continue
		}
		binary.LittleEndian.PutUint16(out[2*j:], uint16(lo>>16))
		s.add(w[j], delta[j], math.Float32frombits(lo))
	}
	return undecided
}

func decideF16(out []byte, w, delta, bound []float32, floor float32, first int, s *sums, undecided []int32) []int32 {
	delta, bound, out = delta[:len(w)], bound[:len(w)], out[:2*len(w)]
	for j := range w {
		t := w[j] + delta[j]
		abs := math.Float32frombits(math.Float32bits(t) &^ (1 << 31))
		e := bound[j] + 0x1p-23*abs + floor
		lo, hi := dtype.F16FromFloat32(t-e), dtype.F16FromFloat32(t+e)
		if !(abs+e <= maxF16) || lo != hi {
			undecided = append(undecided, int32(first+j))
			continue
		}
		binary.LittleEndian.PutUint16(out[2*j:], lo)
		s.add(w[j], delta[j], dtype.F16ToFloat32(lo))
	}
	return undecided
}

func decideF32(out []byte, w, delta, bound []float64, floor float64, first int, s *sums, undecided []int32) []int32 {
	delta, bound, out = delta[:len(w)], bound[:len(w)], out[:4*len(w)]
	for j := range w {
		t := w[j] + delta[j]
		e := bound[j] + 0x1p-52*math.Abs(t) + floor
		lo, hi := math.Float32bits(float32(t-e)), math.Float32bits(float32(t+e))
		if !(math.Abs(t)+e <= maxF32) || lo != hi {
			undecided = append(undecided, int32(first+j))
			continue
		}
		binary.LittleEndian.PutUint32(out[4*j:], lo)
		s.add64(w[j], delta[j], float64(math.Float32frombits(lo)))
	}
	return undecided
}

// decideWide serves a 16-bit base whose factors or scale float32 cannot hold.
func decideWide(d dtype.Type, out []byte, w, delta, bound []float64, floor float64, first int, s *sums, undecided []int32) []int32 {
	largest := map[dtype.Type]float64{dtype.BF16: maxBF16, dtype.F16: maxF16}[d]
	var lo, hi [2]byte
	for j := range w {
		t := w[j] + delta[j]
		e := bound[j] + 0x1p-52*math.Abs(t) + floor
		dtype.Store(d, lo[:], 0, t-e)
		dtype.Store(d, hi[:], 0, t+e)
		if !(math.Abs(t)+e <= largest) || lo != hi {
			undecided = append(undecided, int32(first+j))
			continue
		}
		copy(out[2*j:], lo[:])
		s.add64(w[j], delta[j], dtype.Load(d, lo[:], 0))
	}
	return undecided
}

// sums is the part of Stats that a pass keeps in registers.
type sums struct {
	unchanged                    int64
	normW, normD, stored, errors float64
}

// add accounts for a finite element. Differences of float32 values are taken in float64, where they are exact enough.
func (s *sums) add(w, delta, out float32) { s.add64(float64(w), float64(delta), float64(out)) }

func (s *sums) add64(w, delta, out float64) {
	moved := out - w
	if moved == 0 {
		s.unchanged++
	}
	s.normW += w * w
	s.normD += delta * delta
	s.stored += moved * moved
	s.errors += (moved - delta) * (moved - delta)
}

func (s *sums) addTo(st *Stats) {
	st.Unchanged += s.unchanged
	st.NormW += s.normW
	st.NormDelta += s.normD
	st.NormStored += s.stored
	st.NormError += s.errors
}
