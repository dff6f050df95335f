package kernel

import (
	"encoding/binary"
	"math"
	"regexp"

	"github.com/loratool/loratool/format/dtype"
)

// counts is the number of operands and results of additions, multiplications and conversions, and
// of subnormal ones.
type counts struct{ operations, subnormal int }

// number reads a lane as a number; setNumber writes one.
func number(v *[64]byte, i, size int) float64 {
	if size == 4 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(v[4*i:])))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(v[8*i:]))
}

func setNumber(v *[64]byte, i, size int, x float64) {
	if size == 4 {
		binary.LittleEndian.PutUint32(v[4*i:], math.Float32bits(float32(x)))
	} else {
		binary.LittleEndian.PutUint64(v[8*i:], math.Float64bits(x))
	}
}

// look counts the numbers of an operation.
func (m *machine) look(size int, xs ...float64) {
	least := 0x1p-126
	if size == 8 {
		least = 0x1p-1022
	}
	m.counts.operations++
	for _, x := range xs {
		if x != 0 && math.Abs(x) < least {
			m.counts.subnormal++
			return
		}
	}
}

// fused returns x·y + z, rounded once.
func fused(x, y, z float64, size int) float64 {
	if size == 8 {
		return math.FMA(x, y, z)
	}
	p := x * y // exact for float32 numbers
	s, e := twoSum(p, z)
	if e != 0 && isFinite(s) {
		s = toOdd(s, (e > 0) == (s > 0))
	}
	return float64(float32(s))
}

var floating = regexp.MustCompile(`^V(ADD|SUB|MUL|MIN|RANGE|FMADD213|FMADD231|CMP)(P|S)(S|D)$`)

func (m *machine) float(in *instruction) bool {
	if in.form == nil {
		in.form = append(floating.FindStringSubmatch(in.op), "")
	}
	x := in.form
	if len(x) == 1 {
		return m.convert(in)
	}
	a, imm := in.args, uint64(0)
	size := map[string]int{"S": 4, "D": 8}[x[3]]
	if a[0][0] == '$' {
		imm, a = m.value(a[0], 8), a[1:]
	}
	n := max(width(a[1]), width(a[0]))
	lanes := n / size
	if x[2] == "S" {
		lanes, n = 1, size
	}
	mask := uint64(math.MaxUint64)
	dst := a[len(a)-1]
	if len(a) == 4 {
		mask = m.k[index(a[2])]
	}
	p, q := m.source(in, a[0], n, size), m.source(in, a[1], n, size)
	out, set := [64]byte{}, uint64(0)
	if width(dst) > 0 {
		out = m.v[index(dst)]
	}
	for i := range lanes {
		if mask>>i&1 == 0 {
			continue
		}
		p, q, r := number(&p, i, size), number(&q, i, size), number(&out, i, size)
		result := 0.0
		switch x[1] {
		case "ADD":
			result = q + p
			m.look(size, p, q, round(result, size))
		case "SUB":
			result = q - p
			m.look(size, p, q, round(result, size))
		case "MUL":
			result = q * p
			m.look(size, p, q, round(result, size))
		case "FMADD213":
			result = fused(q, r, p, size)
			m.look(size, p, q, r, result)
		case "FMADD231":
			result = fused(p, q, r, size)
			m.look(size, p, q, r, result)
		case "MIN":
			if result = p; q < p {
				result = q
			}
		// 0x0a: the smaller magnitude, with the sign cleared; the quiet one of two NaN
		case "RANGE":
			if imm != 0x0a {
				panic("VRANGE with another immediate")
			}
			switch result = math.Abs(p); {
			case p != p:
				result = math.Abs(q)
			case q == q:
				result = min(math.Abs(p), math.Abs(q))
			}
		case "CMP":
			if compare(imm, q, p) {
				set |= 1 << i
			}
			continue
		}
		setNumber(&out, i, size, result)
	}
	if x[1] != "CMP" {
		m.store(dst, &out, max(n, 16))
	} else if dst[0] == 'K' {
		m.k[index(dst)] = set
	} else {
		m.store(dst, spread(set, lanes, size), n)
	}
	return true
}

func round(x float64, size int) float64 {
	if size == 4 {
		return float64(float32(x))
	}
	return x
}

func compare(predicate uint64, x, y float64) bool {
	switch predicate {
	case 0x00:
		return x == y
	case 0x11:
		return x < y
	case 0x12:
		return x <= y
	case 0x1e:
		return x > y
	}
	panic("unknown predicate")
}

// spread sets lanes to all ones where a bit is set.
func spread(set uint64, lanes, size int) *[64]byte {
	var v [64]byte
	for i := range lanes * size {
		if set>>(i/size)&1 == 1 {
			v[i] = 0xff
		}
	}
	return &v
}

func (m *machine) convert(in *instruction) bool {
	a := in.args
	if a[0][0] == '$' {
		a = a[1:]
	}
	var from, to int
	switch in.op {
	case "VCVTPS2PD":
		from, to = 4, 8
	case "VCVTPD2PS", "VCVTPD2PSY":
		from, to = 8, 4
	case "VCVTPH2PS":
		from, to = 2, 4
	case "VCVTPS2PH":
		from, to = 4, 2
	default:
		return false
	}
	lanes := width(a[1]) / to
	if from > to {
		lanes = width(a[0]) / from
	}
	src, out := m.source(in, a[0], lanes*from, from), [64]byte{}
	for i := range lanes {
		switch {
		case from == 2:
			setNumber(&out, i, 4,
				float64(dtype.F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))))
		case to == 2: // not counted: subnormal halves are ordinary data
			binary.LittleEndian.PutUint16(out[2*i:],
				dtype.F16FromFloat32(float32(number(&src, i, 4))))
		default:
			x := number(&src, i, from)
			setNumber(&out, i, to, x)
			m.look(4, round(x, 4))
		}
	}
	m.store(a[1], &out, max(lanes*to, 16))
	return true
}
