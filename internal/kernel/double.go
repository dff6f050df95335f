package kernel

import "math"

// double is an unevaluated sum of two float64; hi is the rounded sum (Dekker, 1971).
type double struct{ hi, lo float64 }

func (a double) plus(b double) double {
	s, e := twoSum(a.hi, b.hi)
	if !isFinite(s) {
		return double{s, 0}
	}
	return normalised(s, e+(a.lo+b.lo))
}

func (a double) times(x float64) double {
	p, e := twoProduct(a.hi, x)
	if !isFinite(p) {
		return double{p, 0}
	}
	return normalised(p, e+a.lo*x)
}

// plusSquare adds (hi + lo)², without the square of lo.
func (a double) plusSquare(hi, lo float64) double {
	p, e := twoProduct(hi, hi)
	return a.plus(double{p, e + 2*hi*lo})
}

func (a double) sqrt() double {
	r := math.Sqrt(a.hi)
	if !isFinite(r) || r == 0 {
		return double{r, 0}
	}
	p, e := twoProduct(r, r)
	return normalised(r, ((a.hi-p)-e+a.lo)/(2*r))
}

// normalised returns s + e, for |e| at most about an ulp of s.
func normalised(s, e float64) double {
	hi := s + e
	return double{hi, e - (hi - s)}
}
