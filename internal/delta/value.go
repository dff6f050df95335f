package delta

import (
	"math/big"
)

// value is a number over the reals, or a NaN or infinity. The zero value is 0.
type value struct {
	number  *big.Float // nil for 0
	special float64    // NaN or infinite; else 0, and number is the value
}

// precision exceeds the length of any number here: products of up to seven float64 lie between
// 2^-7518 and 2^7168. A big.Float takes only the memory that its value needs.
const precision = 1 << 15

func exact() *big.Float { return new(big.Float).SetPrec(precision) }

func numberOf(x float64) value {
	if x-x != 0 {
		return value{special: x}
	}
	return value{number: exact().SetFloat64(x)}
}

func (v value) isZero() bool {
	return v.special == 0 && (v.number == nil || v.number.Sign() == 0)
}

// sign returns a float64 with the sign of v, or its NaN or infinity.
func (v value) sign() float64 {
	if v.special != 0 || v.number == nil {
		return v.special
	}
	return float64(v.number.Sign())
}

// times returns v·w. A NaN or infinity propagates as in IEEE arithmetic: 0·∞ is NaN.
func (v value) times(w value) value {
	if v.special != 0 || w.special != 0 {
		return value{special: v.sign() * w.sign()}
	}
	if v.isZero() || w.isZero() {
		return value{}
	}
	return value{number: exact().Mul(v.number, w.number)}
}

// plus returns v + w, and may change v. ∞ − ∞ is NaN.
func (v value) plus(w value) value {
	switch {
	case v.special != 0 || w.special != 0:
		return value{special: v.special + w.special}
	case w.isZero():
		return v
	case v.number == nil:
		return w
	}
	v.number.Add(v.number, w.number)
	return v
}
