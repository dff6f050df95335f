package kernel

import (
	"encoding/binary"
	"math"
)

// move executes instructions that move, select and combine bits.
func (m *machine) move(in *instruction) bool {
	a, dst := in.args, in.args[len(in.args)-1]
	op := in.op
	get := func(a string, n int) [64]byte { return m.source(in, a, n, 4) }
	put := func(x *[64]byte, n int) { m.store(dst, x, n) }
	word := func(v *[64]byte, i, size int) uint64 {
		var b [8]byte
		copy(b[:], v[i*size:(i+1)*size])
		return binary.LittleEndian.Uint64(b[:])
	}
	setWord := func(v *[64]byte, i, size int, x uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], x)
		copy(v[i*size:(i+1)*size], b[:])
	}
	n := width(dst)
	if n == 0 && len(a) > 1 {
		n = max(width(a[0]), width(a[1]))
	}
	var out [64]byte
	lanewise := func(size int, f func(x, y uint64) uint64) {
		in := &instruction{broadcast: in.broadcast}
		x, y := m.source(in, a[0], n, size), m.source(in, a[1], n, size)
		mask := uint64(math.MaxUint64)
		if len(a) == 4 {
			mask, out = m.k[index(a[2])], m.v[index(dst)]
		}
		for i := range n / size {
			if mask>>i&1 == 1 {
				setWord(&out, i, size, f(word(&x, i, size), word(&y, i, size)))
			}
		}
		put(&out, n)
	}
	switch op {
	case "VMOVUPS", "VMOVUPD", "VMOVAPS", "VMOVAPD", "VMOVDQU", "VMOVDQU16", "VMOVDQU32",
		"VMOVDQA32":
		size := 4
		switch op {
		case "VMOVDQU16":
			size = 2
		case "VMOVUPD":
			size = 8
		}
		out = get(a[0], n)
		if len(a) == 3 {
			old := get(dst, n)
			for i := range n / size {
				if m.k[index(a[1])]>>i&1 == 0 {
					copy(out[i*size:(i+1)*size], old[i*size:])
				}
			}
		}
		put(&out, n)
	case "VMOVSD":
		out = get(a[0], 8)
		if width(dst) > 0 {
			panic("a load by VMOVSD")
		}
		put(&out, 8)
	case "VBROADCASTSS", "VBROADCASTSD", "VPBROADCASTD":
		size := 4
		if op == "VBROADCASTSD" {
			size = 8
		}
		out = m.source(&instruction{broadcast: true}, a[0], n, size)
		put(&out, n)
	case "VXORPS", "VPXORD", "VPXOR":
		lanewise(8, func(x, y uint64) uint64 { return x ^ y })
	case "VANDPS", "VANDPD", "VPANDD":
		lanewise(4, func(x, y uint64) uint64 { return x & y })
	case "VORPS", "VPORD", "VPOR":
		lanewise(4, func(x, y uint64) uint64 { return x | y })
	case "VPADDD":
		lanewise(4, func(x, y uint64) uint64 { return y + x })
	case "VPADDW":
		lanewise(2, func(x, y uint64) uint64 { return y + x })
	case "VPSUBW":
		lanewise(2, func(x, y uint64) uint64 { return y - x })
	case "VPADDQ":
		lanewise(8, func(x, y uint64) uint64 { return y + x })
	case "VPSUBD":
		lanewise(4, func(x, y uint64) uint64 { return y - x })
	case "VPSUBQ":
		lanewise(8, func(x, y uint64) uint64 { return y - x })
	case "VPTERNLOGD":
		x, y, z := get(a[1], n), get(a[2], n), m.v[index(dst)]
		table := m.value(a[0], 8)
		for i := range 8 * n {
			bit := func(v *[64]byte) int { return int(v[i/8]) >> (i % 8) & 1 }
			out[i/8] |= byte(table>>(bit(&z)<<2|bit(&y)<<1|bit(&x))&1) << (i % 8)
		}
		put(&out, n)
	case "VPCMPEQW", "VPCMPEQD":
		size := map[byte]int{'W': 2, 'D': 4}[op[len(op)-1]]
		n := width(a[0])
		x, y, set := get(a[0], n), get(a[1], n), uint64(0)
		for i := range n / size {
			if word(&x, i, size) == word(&y, i, size) {
				set |= 1 << i
			}
		}
		if dst[0] == 'K' {
			m.k[index(dst)] = set
		} else {
			put(spread(set, n/size, size), n)
		}
	case "VEXTRACTF128", "VEXTRACTI128", "VEXTRACTF64X4", "VEXTRACTI64X4":
		src := m.v[index(a[1])]
		copy(out[:], src[int(m.value(a[0], 8))*n:][:n])
		put(&out, n)
	case "VMOVMSKPS", "VMOVMSKPD":
		size := map[string]int{"S": 4, "D": 8}[op[8:]]
		x, set := m.v[index(a[0])], uint64(0)
		for i := range width(a[0]) / size {
			set |= uint64(x[(i+1)*size-1]>>7) << i
		}
		m.set(dst, set, 8)
	case "VBLENDVPS", "VBLENDVPD", "VPBLENDVB":
		size := map[string]int{"VBLENDVPS": 4, "VBLENDVPD": 8, "VPBLENDVB": 1}[op]
		mask, x, y := get(a[0], n), get(a[1], n), get(a[2], n)
		for i := range n / size {
			from := &y
			if mask[(i+1)*size-1]>>7 == 1 {
				from = &x
			}
			copy(out[i*size:(i+1)*size], from[i*size:])
		}
		put(&out, n)
	case "VPSLLD", "VPSRLD":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range n / 4 {
			if op == "VPSLLD" {
				setWord(&out, i, 4, word(&x, i, 4)<<by)
			} else {
				setWord(&out, i, 4, word(&x, i, 4)>>by)
			}
		}
		put(&out, n)
	case "VPSRAW":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range n / 2 {
			setWord(&out, i, 2, uint64(int16(word(&x, i, 2))>>by))
		}
		put(&out, n)
	case "VPTESTMW":
		n := width(a[0])
		x, y, set := get(a[0], n), get(a[1], n), uint64(0)
		for i := range n / 2 {
			if word(&x, i, 2)&word(&y, i, 2) != 0 {
				set |= 1 << i
			}
		}
		m.k[index(dst)] = set
	case "VPMOVMSKB":
		x, set := m.v[index(a[0])], uint64(0)
		for i := range width(a[0]) {
			set |= uint64(x[i]>>7) << i
		}
		m.set(dst, set, 8)
	case "VPACKSSWB":
		x, y := get(a[0], n), get(a[1], n)
		for i := range n {
			lane, k := i/16, i%16
			from := &y
			if k >= 8 {
				from, k = &x, k-8
			}
			w := int64(int16(word(from, 8*lane+k, 2)))
			out[i] = byte(min(max(w, math.MinInt8), math.MaxInt8))
		}
		put(&out, n)
	case "VPMOVZXWD", "VPMOVSXWD", "VPMOVSXDQ":
		size := map[string]int{"WD": 2, "DQ": 4}[op[7:]]
		x := get(a[0], n/2)
		for i := range n / 2 / size {
			w := word(&x, i, size)
			if op[5] == 'S' {
				w = uint64(int64(w<<(64-8*size)) >> (64 - 8*size))
			}
			setWord(&out, i, 2*size, w)
		}
		put(&out, n)
	case "VPSHUFD":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range 4 {
			setWord(&out, i, 4, word(&x, int(by>>(2*i)&3), 4))
		}
		put(&out, n)
	case "VPERMQ":
		x, by := get(a[1], n), m.value(a[0], 8)
		for i := range 4 {
			setWord(&out, i, 8, word(&x, int(by>>(2*i)&3), 8))
		}
		put(&out, n)
	case "VSHUFPS":
		x, y, by := get(a[1], n), get(a[2], n), m.value(a[0], 8)
		for i := range 4 {
			from := &y
			if i >= 2 {
				from = &x
			}
			setWord(&out, i, 4, word(from, int(by>>(2*i)&3), 4))
		}
		put(&out, n)
	case "VUNPCKHPD":
		x, y := get(a[0], n), get(a[1], n)
		setWord(&out, 0, 8, word(&y, 1, 8))
		setWord(&out, 1, 8, word(&x, 1, 8))
		put(&out, n)
	case "VPACKUSDW", "VPACKSSDW":
		x, y := get(a[0], n), get(a[1], n)
		for i := range n / 2 {
			lane, k := i/8, i%8
			from := &y
			if k >= 4 {
				from, k = &x, k-4
			}
			w := int64(int32(word(from, 4*lane+k, 4)))
			if op == "VPACKUSDW" {
				w = min(max(w, 0), 0xffff)
			} else {
				w = min(max(w, math.MinInt16), math.MaxInt16)
			}
			setWord(&out, i, 2, uint64(w))
		}
		put(&out, n)
	case "VPERMW.Z":
		x, at := get(a[0], n), get(a[1], n)
		for i := range n / 2 {
			if m.k[index(a[2])]>>i&1 == 1 {
				setWord(&out, i, 2, word(&x, int(word(&at, i, 2)&31), 2))
			}
		}
		put(&out, n)
	case "VPERMT2W":
		x, at, old := get(a[0], n), get(a[1], n), m.v[index(dst)]
		for i := range n / 2 {
			from, k := &old, word(&at, i, 2)
			if k&32 != 0 {
				from = &x
			}
			setWord(&out, i, 2, word(from, int(k&31), 2))
		}
		put(&out, n)
	default:
		return false
	}
	return true
}
