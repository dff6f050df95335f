package quant

import "math"

// e4m3 holds the values of the codes of F8_E4M3: a sign, four bits of exponent with bias 7, and
// three of fraction. It has no infinities; 0x7f and 0xff are NaN.
var e4m3 = func() (values [256]float64) {
	for code := range values {
		exponent, fraction := code>>3&0xf, float64(code&7)
		x := math.Ldexp(8+fraction, exponent-10)
		switch {
		case code&0x7f == 0x7f:
			x = math.NaN()
		case exponent == 0:
			x = math.Ldexp(fraction, -9)
		}
		if code >= 0x80 {
			x = -x
		}
		values[code] = x
	}
	return values
}()

// int8s holds the values of signed bytes.
var int8s = func() (values [256]float64) {
	for code := range values {
		values[code] = float64(int8(code))
	}
	return values
}()

// e2m1 holds the values of the codes of FP4 with two bits of exponent and one of fraction.
var e2m1 = [16]float64{
	0, .5, 1, 1.5, 2, 3, 4, 6, math.Copysign(0, -1), -.5, -1, -1.5, -2, -3, -4, -6,
}

// e2m3 holds the values of the codes of FP6 with two bits of exponent and three of fraction.
var e2m3 = func() (values [256]float64) {
	for code := range values {
		exponent, fraction := code>>3&3, float64(code&7)
		values[code] = math.Ldexp(8+fraction, exponent-4)
		if exponent == 0 {
			values[code] = fraction / 8
		}
		if code&0x20 != 0 {
			values[code] = -values[code]
		}
	}
	return values
}()

// e8m0 returns the value of a scale of F8_E8M0: a power of two, or NaN.
func e8m0(b byte) float64 { return e8m0s[b] }

var e8m0s = func() (values [256]float64) {
	for i := range values {
		values[i] = math.Ldexp(1, i-127)
	}
	values[0xff] = math.NaN()
	return values
}()
