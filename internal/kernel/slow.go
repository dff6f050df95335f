package kernel

import (
	"cmp"
	"context"
	"math"
	"math/big"

	"github.com/loratool/loratool/format/dtype"
)

// slow decides one element, with the given index in the rows that begin with row0.
func (u *Update[T]) slow(
	ctx context.Context, rows []byte, row0, index int, st *Stats,
) error {
	size := u.d.Size()
	out := rows[index*size:][:size]
	return u.decide(ctx, dtype.Load(u.d, out, 0), out, row0+index/u.cols, index%u.cols, st)
}

// decide is slow for an element of the base, and RN_D of it in out. Nearly always a sum in float64
// decides it; where no term changes the element, that is w, and its result stays.
func (u *Update[T]) decide(
	ctx context.Context, w float64, out []byte, i, j int, st *Stats,
) error {
	if n := narrowingOf(u.d); n != nil {
		delta, e := u.sum64(i, j, w)
		if result, bits, ok := n.round(w+delta, e); ok {
			n.put(out, bits)
			account(st, w, delta, result)
			return nil
		}
	}
	return u.decideRare(ctx, w, out, i, j, st)
}

// decideRare is decide for what a sum in float64 does not decide at once: it tries both ends of its
// interval, or double-double for a float64 result, and then sums exactly. It asks the context
// before the exact sum: a block can need one for every element, and one of some thousand products
// takes a millisecond.
func (u *Update[T]) decideRare(
	ctx context.Context, w float64, out []byte, i, j int, st *Stats,
) error {
	if u.isStill(i, j) {
		account(st, w, 0, dtype.Load(u.d, out, 0))
		return nil
	}
	var delta float64
	var ok bool
	if u.d == dtype.F64 {
		delta, ok = u.decideDouble(i, j, w, out)
	} else {
		var e float64
		delta, e = u.sum64(i, j, w)
		x := w + delta
		ok = math.Abs(x)+e <= math.MaxFloat64 && storeBetween(u.d, out, x-e, x+e)
	}
	if !ok {
		if err := ctx.Err(); err != nil {
			return err
		}
		st.Exact++
		delta = u.decideExact(i, j, w, out)
	}
	account(st, w, delta, dtype.Load(u.d, out, 0))
	return nil
}

// Side returns the sign of w + Δ − m for an element of an update from PrepareWidened, where float64
// holds w − m exactly. A difference below half of the least number of D counts as 0.
func Side[T Float](ctx context.Context, u *Update[T], w, m float64, row, col int) (int, error) {
	if u.rank == 0 {
		return cmp.Compare(w, m), ctx.Err()
	}
	var room [8]byte
	var ignored Stats
	out := room[:u.d.Size()]
	dtype.Store(u.d, out, 0, w-m)
	if err := u.decide(ctx, w-m, out, row, col, &ignored); err != nil {
		return 0, err
	}
	return cmp.Compare(dtype.Load(u.d, out, 0), 0), nil
}

// sum64 returns Δ of an element in float64, and a bound on the error of w + Δ. In float32 the fast
// pass's is 2²⁹ times larger. The packed factors are in the first-level cache, since the fast pass
// has just used them.
func (u *packed[T]) sum64(i, j int, w float64) (delta, e float64) {
	at, stride := u.column(j)
	if u.lossless {
		delta = u.scale64 * u.dot(u.l[i*u.rank:][:u.rank], u.r[at:], stride)
	} else {
		for t := range u.terms {
			term := &u.terms[t]
			delta += term.S * u.dot(term.L[i*term.Rank:][:term.Rank], u.right[at:], stride)
			at += term.Rank * stride
		}
	}
	return delta, u.bound64*float64(u.lBound[i])*float64(u.rNorm[j]) + u.floor64 +
		slack64*math.Abs(w+delta)
}

// decideDouble computes in double-double arithmetic: it adds the rounding error of every product
// and every sum, in working precision (Ogita, Rump and Oishi, "Accurate sum and dot product", 2005,
// algorithm 5.3). The scaling of each product by S is in double-double too.
func (u *Update[T]) decideDouble(i, j int, w float64, out []byte) (delta float64, ok bool) {
	const eps = 0x1p-53 // unit roundoff
	hi, lo := w, 0.0
	size := math.Abs(w)
	n := 1
	at, stride := u.column(j)
	for t := range u.terms {
		term := &u.terms[t]
		for _, x := range term.L[i*term.Rank : (i+1)*term.Rank] {
			y := float64(u.right[at])
			at += stride
			if x == 0 || y == 0 {
				if !isFinite(float64(x)) || !isFinite(y) {
					return delta, false
				}
				continue
			}
			p, ep := twoProduct(float64(x), y)
			q, eq := twoProduct(term.S, p)
			if math.Abs(p) < 0x1p-900 || math.Abs(q) < 0x1p-900 {
				// the error of a product may have underflowed
				return delta, false
			}
			eq += term.S * ep
			var es float64
			hi, es = twoSum(hi, q)
			lo += es + eq
			size += math.Abs(q)
			delta += q
		}
		n += term.Rank
	}
	// Every es and eq is at most 2eps·size; lo sums 2n of them, and each product lost at most 2eps²
	// of itself.
	e := 8 * float64(n) * float64(n) * eps * eps * size
	if !isFinite(e) || !isFinite(hi) || e == 0 {
		return delta, false
	}
	e += 2 * eps * math.Abs(lo)
	return delta, storeBetween(dtype.F64, out, hi+(lo-e), hi+(lo+e))
}

// twoSum returns s = fl(a+b) and the error e, with s + e = a + b exactly (Knuth).
func twoSum(a, b float64) (s, e float64) {
	s = a + b
	z := s - a
	return s, (a - (s - z)) + (b - z)
}

// twoProduct returns p = fl(a·b) and the error e, with p + e = a·b exactly unless something
// underflows. The conversion prevents the compiler from fusing the product with a later addition of
// p, whose value would then not match e.
func twoProduct(a, b float64) (p, e float64) {
	p = float64(a * b)
	return p, math.FMA(a, b, -p)
}

// exactBits exceeds the length of any number in this package: products of S and six float64 lie
// between 2^-7518 and 2^7168, and their sums are squared. So nothing is ever rounded. A big.Float
// takes only the memory that its value needs.
const exactBits = 32768

// decideExact computes the element in exact arithmetic and stores it. If Δ is exactly zero, w keeps
// its bits, including −0 and the payload of a NaN. A sum that cancels to zero is +0. NaN and
// infinities propagate as in the IEEE sum of the exact parts.
func (u *Update[T]) decideExact(i, j int, w float64, out []byte) (delta float64) {
	if w != w {
		return 0 // a NaN stays as it is
	}
	if delta, ok := u.decidePair(i, j, w, out); ok {
		return delta
	}
	exact, special := u.exactDelta(i, j)
	switch {
	case special != 0: // also NaN
		dtype.Store(u.d, out, 0, w+special)
		return special
	case math.IsInf(w, 0):
		return 0
	}
	delta, _ = exact.Float64()
	if exact.Sign() == 0 {
		return 0
	}
	exact.Add(exact, big.NewFloat(w))
	if exact.Sign() == 0 {
		dtype.Store(u.d, out, 0, 0)
		return delta
	}
	storeExact(u.d, out, exact)
	return delta
}

// decidePair is decideExact for sums that a pair of float64 numbers can hold, as in nearly all
// ties, whose numbers are short. It gives up if adding a rounding error to the second number would
// round again, or if such an error could underflow.
func (u *Update[T]) decidePair(i, j int, w float64, out []byte) (delta float64, ok bool) {
	var hi, lo, lost float64
	add := func(x float64) {
		var e float64
		hi, e = twoSum(hi, x)
		lo, e = twoSum(lo, e)
		if e != 0 {
			lost = e
		}
	}
	at, stride := u.column(j)
	for t := range u.terms {
		term := &u.terms[t]
		for _, x := range term.L[i*term.Rank : (i+1)*term.Rank] {
			y := float64(u.right[at])
			at += stride
			p, ep := twoProduct(float64(x), y)
			q, eq := twoProduct(term.S, p)
			isZero := x == 0 || y == 0 || term.S == 0
			if ep != 0 || !isZero && (math.Abs(p) < 0x1p-900 || math.Abs(q) < 0x1p-900) {
				return 0, false
			}
			add(q)
			add(eq)
		}
		if lost != 0 {
			return 0, false
		}
	}
	delta = hi + lo
	switch {
	case !isFinite(delta) || !isFinite(w):
		return 0, false
	case delta == 0:
		return 0, true
	}
	add(w)
	sum, rest := twoSum(hi, lo)
	if lost != 0 || !isFinite(sum) {
		return 0, false
	}
	if u.d != dtype.F64 && rest != 0 {
		sum = toOdd(sum, (rest > 0) == (sum > 0))
	}
	dtype.Store(u.d, out, 0, sum)
	return delta, true
}

// toOdd rounds a number to odd. f is the float64 nearest to the number; beyond says that the number
// is farther from zero than f. A later rounding to a type of far fewer bits is then correct.
func toOdd(f float64, beyond bool) float64 {
	b := math.Float64bits(f)
	if !beyond {
		b-- // step back to the truncated value
	}
	return math.Float64frombits(b | 1)
}

// newExact returns a zero whose sums and products are never rounded.
func newExact() *big.Float { return new(big.Float).SetPrec(exactBits) }

// exactDelta returns Δ, or in special its NaN or infinity.
func (u *Update[T]) exactDelta(i, j int) (sum *big.Float, special float64) {
	sum = newExact()
	at, stride := u.column(j)
	for t := range u.terms {
		special += addExact(sum, &u.terms[t], i, u.right[at:], stride)
		at += u.terms[t].Rank * stride
	}
	return sum, special
}

// addExact adds S·Σ l_ik·r_k to a sum, with r_k = r[k·stride]. It returns the sum of the NaN and
// infinite products.
func addExact[T Float](sum *big.Float, term *Term[T], i int, r []T, stride int) (special float64) {
	p, q := newExact(), new(big.Float)
	for k, x := range term.L[i*term.Rank : (i+1)*term.Rank] {
		a, b := float64(x), float64(r[k*stride])
		if !isFinite(a) || !isFinite(b) {
			// The product is NaN or infinite, whatever the magnitudes: 0·Inf is NaN.
			special += sign(a) * sign(b) * sign(term.S) * math.Inf(1)
			continue
		}
		p.SetFloat64(a)
		p.Mul(p, q.SetFloat64(b))
		p.Mul(p, q.SetFloat64(term.S))
		sum.Add(sum, p)
	}
	return special
}

// sign returns −1, 0, 1 or NaN.
func sign(x float64) float64 {
	switch {
	case x != x:
		return x
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}

// storeExact rounds x once to nearest even and stores it.
func storeExact(d dtype.Type, out []byte, x *big.Float) {
	switch d {
	case dtype.F32:
		f, _ := x.Float32()
		dtype.Store(d, out, 0, float64(f))
		return
	case dtype.F64:
		f, _ := x.Float64()
		dtype.Store(d, out, 0, f)
		return
	}
	f, accuracy := x.Float64()
	if accuracy != big.Exact {
		f = toOdd(f, (accuracy == big.Below) == (x.Sign() > 0))
	}
	dtype.Store(d, out, 0, f)
}
