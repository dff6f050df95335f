package audit

import (
	"math"
	"slices"

	"github.com/loratool/loratool/format/dtype"
)

// Rounding names a way to round W + ΔW into a dtype.
type Rounding string

// The ways to round. A suffix names a detour: ":f16" for a model that was merged in float16 and
// then stored in another dtype, ":before" for one that was cast to its dtype before the merge,
// ":after" for one that was cast after it, and ":direct" for one that was rounded to its dtype
// only. ":joined" is for adapters that became one before the merge.
const (
	// Exact is RN(W + ΔW), the merge of this project.
	Exact Rounding = "exact"
	// Float32 computes ΔW and the sum in float32 and rounds once: PEFT's default.
	Float32 Rounding = "float32"
	// DeltaRounded rounds ΔW to the dtype before it is added: PEFT's safe_merge and its experts,
	// and kohya's tools.
	DeltaRounded Rounding = "delta_rounded"
	// FactorsFloat32 is Float32 with factors that were rounded to the dtype first.
	FactorsFloat32 Rounding = "factors_float32"
	// FactorsRounded is DeltaRounded with factors that were rounded to the dtype first: PEFT
	// without autocast_adapter_dtype, on a processor.
	FactorsRounded Rounding = "factors_rounded"
	// ProductRounded rounds the factors, B·A, s·B·A and the sum: the same on a GPU.
	ProductRounded Rounding = "product_rounded"
	// ScaledB rounds s·B, its product with A, and the sum: mlx-lm.
	ScaledB Rounding = "scaled_b"
)

// Text says who rounds so.
func (r Rounding) Text() string {
	kind, detour := r.split()
	text := map[Rounding]string{
		Exact:          "rounded correctly, once",
		Float32:        "computed in float32 and rounded once, as PEFT's default does",
		DeltaRounded:   "ΔW was rounded before it was added, as PEFT's safe_merge, its experts and kohya's tools do",
		FactorsFloat32: "computed in float32 from factors that were rounded to the dtype of the base first",
		FactorsRounded: "the factors were rounded to the dtype of the base, and ΔW again, as PEFT does with autocast_adapter_dtype=False",
		ProductRounded: "the factors, their product, its multiple and the sum were rounded, as PEFT does with autocast_adapter_dtype=False on a GPU",
		ScaledB:        "s·B, its product with A, and the sum were rounded, as mlx-lm does",
	}[kind]
	switch detour {
	case viaF16:
		text += ", by way of float16"
	case joined:
		text += "; the adapters were one before the merge"
	case direct:
		text += ", to another dtype than the base's"
	case castBefore:
		text += ", after a cast of the base"
	case castAfter:
		text += ", before a cast of the result"
	}
	return text
}

const (
	viaF16     = ":f16"
	castBefore = ":before"
	castAfter  = ":after"
	direct     = ":direct"
	joined     = ":joined"
)

func (r Rounding) split() (kind Rounding, detour string) {
	for _, d := range []string{viaF16, castBefore, castAfter, direct, joined} {
		if n := len(r) - len(d); n > 0 && string(r[n:]) == d {
			return r[:n], d
		}
	}
	return r, ""
}

// kinds are the ways to round without detours, the most exact one first.
var kinds = []Rounding{Exact, Float32, DeltaRounded, FactorsFloat32, FactorsRounded, ProductRounded, ScaledB}

// roundings lists all ways to round, in the order in which they are preferred.
func roundings() []Rounding {
	all := slices.Clone(kinds)
	for _, d := range []string{direct, castBefore, castAfter, joined, viaF16} {
		for _, k := range kinds {
			all = append(all, k+Rounding(d))
		}
	}
	return all
}

// variant says which factors a way to round uses.
type variant int

const (
	asStored variant = iota // the factors as they are
	inDType                 // rounded to the dtype of the merge
	scaledB                 // rounded, and then s·B again
	scaledA                 // s·A, rounded, of adapters that became one
	nVariants
)

func (r Rounding) variant() variant {
	switch kind, detour := r.split(); kind {
	case FactorsFloat32, FactorsRounded, ProductRounded:
		if detour == joined {
			return scaledA
		}
		return inDType
	case ScaledB:
		return scaledB
	}
	return asStored
}

// candidate is a way to round with the dtypes that it uses for one tensor.
type candidate struct {
	name    Rounding
	kind    Rounding // the name without its detour
	detour  string
	variant variant
	base    dtype.Type
	work    dtype.Type // of the merge
	out     dtype.Type // of the result
}

// candidates lists the ways to round a tensor, in the order of preference.
func candidates(base, merged dtype.Type, nAdapters int) (all []candidate) {
	for _, name := range roundings() {
		kind, detour := name.split()
		c := candidate{name: name, kind: kind, detour: detour, variant: name.variant(), base: base, work: base, out: merged}
		switch {
		case detour == joined:
			if base != merged || nAdapters < 2 || kind == Exact || kind == ScaledB || kind == ProductRounded {
				continue
			}
		case detour == direct:
			if base == merged || kind != Exact && kind != Float32 {
				continue
			}
			if c.work = dtype.F64; kind == Float32 {
				c.work = dtype.F32
			}
		case detour == viaF16:
			if c.work = dtype.F16; base == dtype.F16 || base == dtype.F64 || merged == dtype.F16 {
				continue
			}
		case base == merged && detour != "", base != merged && detour == "":
			continue
		case detour == castBefore:
			c.work = merged
		}
		all = append(all, c)
	}
	return all
}

const (
	unit32 = 0x1p-24 // half a unit in the last place of float32, relative
	unit64 = 0x1p-53
)

// round rounds to nearest even in a dtype.
func round(t dtype.Type, x float64) float64 {
	switch t {
	case dtype.BF16:
		return float64(dtype.BF16ToFloat32(dtype.BF16FromFloat64(x)))
	case dtype.F16:
		return float64(dtype.F16ToFloat32(dtype.F16FromFloat64(x)))
	case dtype.F32:
		return float64(float32(x))
	}
	return x
}

// interval returns the least and the largest value that the candidate can make of an element w with
// the updates u of the adapters, in their order. bounds holds for each update the largest error of
// a float32 product, and scales its scale. All steps are monotone, so the ends of the interval are
// those of the errors.
func (c *candidate) interval(w float64, u, bounds, scales []float64) (lo, hi float64) {
	if c.kind == Exact {
		sum, bound := 0.0, 0.0
		for k, x := range u {
			sum, bound = sum+x, bound+bounds[k]*(unit64/unit32)
		}
		if c.detour != "" {
			w = round(c.work, w)
		}
		y := w + sum
		bound += 2 * unit64 * math.Abs(y)
		return c.finish(round(c.work, y-bound), round(c.work, y+bound))
	}
	lo = round(c.work, w)
	hi = lo
	if c.detour == joined {
		u, bounds = sums(u), sums(bounds)
	}
	for k, x := range u {
		below, above := x-bounds[k], x+bounds[k]
		switch c.kind {
		case DeltaRounded, FactorsRounded, ScaledB:
			below, above = round(c.work, below), round(c.work, above)
		case ProductRounded:
			below, above = c.product(x, bounds[k], scales[k])
		}
		lo, hi = lo+below, hi+above
		lo, hi = round(c.work, lo-unit32*math.Abs(lo)), round(c.work, hi+unit32*math.Abs(hi))
	}
	return c.finish(lo, hi)
}

// value is the value that the candidate makes without errors. It lies in the interval.
func (c *candidate) value(w float64, u, scales []float64) float64 {
	if c.kind == Exact || c.detour == joined {
		lo, _ := c.interval(w, u, make([]float64, len(u)), scales)
		return lo
	}
	if c.work != c.base {
		w = round(c.work, w)
	}
	for k, x := range u {
		switch c.kind {
		case DeltaRounded, FactorsRounded, ScaledB:
			x = round(c.work, x)
		case ProductRounded:
			x, _ = c.product(x, 0, scales[k])
		}
		w = round(c.work, w+x)
	}
	if c.work != c.out {
		w = round(c.out, w)
	}
	return w
}

// sums returns the sum of x as a slice.
func sums(x []float64) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return []float64{sum}
}

// product rounds B·A and then s·B·A.
func (c *candidate) product(x, bound, scale float64) (below, above float64) {
	if scale == 0 {
		return 0, 0
	}
	p, b := x/scale, math.Abs(bound/scale)
	below, above = round(c.work, scale*round(c.work, p-b)), round(c.work, scale*round(c.work, p+b))
	return min(below, above), max(below, above)
}

func (c *candidate) finish(lo, hi float64) (float64, float64) {
	if c.work == c.out {
		return lo, hi
	}
	return round(c.out, lo), round(c.out, hi)
}

// ulp returns the distance of the values of a dtype around x, as the rounding to it sees them.
func ulp(t dtype.Type, x float64) float64 {
	mantissa, least := 52, -1022
	switch t {
	case dtype.BF16:
		mantissa, least = 7, -126
	case dtype.F16:
		mantissa, least = 10, -14
	case dtype.F32:
		mantissa, least = 23, -126
	}
	if x == 0 {
		return math.Ldexp(1, least-mantissa)
	}
	return math.Ldexp(1, max(math.Ilogb(x), least)-mantissa)
}
