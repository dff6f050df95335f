package format

import (
	"encoding/binary"
	"math/bits"
)

// The coding planes (spec section 9): coded byte p·k + i is the p-th highest byte of element i, of
// k elements, after rotating the element left by one bit. Both directions handle eight elements at
// a time. They transpose a matrix of eight rows and w/8 columns of bytes by swapping ever smaller
// squares (Warren, Hacker's Delight, 7-3). The same steps in reverse undo it.

// split writes the planes of src to dst. Elements have width bytes. dst is as long as src and must
// not overlap it.
func split(dst, src []byte, width int) {
	k := len(src) / width
	n := k &^ 7
	switch width {
	case 2:
		split2(dst, src, k, n)
	case 4:
		split4(dst, src, k, n)
	case 8:
		split8(dst, src, k, n)
	}
	for i := n; i < k; i++ {
		e := rotl(load(src[i*width:], width), width, 1)
		for p := range width {
			dst[p*k+i] = byte(e >> (8 * (width - 1 - p)))
		}
	}
}

// join writes the elements of the planes in src to dst; it undoes split.
func join(dst, src []byte, width int) {
	k := len(src) / width
	n := k &^ 7
	switch width {
	case 2:
		join2(dst, src, k, n)
	case 4:
		join4(dst, src, k, n)
	case 8:
		join8(dst, src, k, n)
	}
	for i := n; i < k; i++ {
		var e uint64
		for p := range width {
			e = e<<8 | uint64(src[p*k+i])
		}
		e = rotl(e, width, 8*width-1)
		for b := range width {
			dst[i*width+b] = byte(e >> (8 * b))
		}
	}
}

// load returns the element of width bytes at the beginning of p.
func load(p []byte, width int) uint64 {
	var e uint64
	for b := range width {
		e |= uint64(p[b]) << (8 * b)
	}
	return e
}

// rotl rotates an element of width bytes left by n bits.
func rotl(e uint64, width, n int) uint64 {
	return (e<<n | e>>(8*width-n)) & (1<<(8*width-1)<<1 - 1)
}

// Masks: the lower half of every 64-, 32- and 16-bit lane; the lowest bit of every 32- and 16-bit
// lane.
const (
	half64 = 0x00000000FFFFFFFF
	half32 = 0x0000FFFF0000FFFF
	half16 = 0x00FF00FF00FF00FF
	ones32 = 0x0000000100000001
	ones16 = 0x0001000100010001
)

// swap exchanges the upper halves of a's lanes with the lower halves of b's. shift is half the
// width of a lane.
func swap(a, b uint64, shift uint, lower uint64) (uint64, uint64) {
	t := (a>>shift ^ b) & lower
	return a ^ t<<shift, b ^ t
}

func left32(x uint64) uint64  { return x<<1&^ones32 | x>>31&ones32 }
func right32(x uint64) uint64 { return x>>1&^(ones32<<31) | x&ones32<<31 }
func left16(x uint64) uint64  { return x<<1&^ones16 | x>>15&ones16 }
func right16(x uint64) uint64 { return x>>1&^(ones16<<15) | x&ones16<<15 }

func split2(dst, src []byte, k, n int) {
	hi, lo := dst[:n], dst[k:k+n]
	src = src[:2*n]
	for len(src) >= 16 && len(hi) >= 8 && len(lo) >= 8 {
		a := left16(binary.LittleEndian.Uint64(src))
		b := left16(binary.LittleEndian.Uint64(src[8:]))
		a, b = swap(a, b, 32, half64)
		a, b = swap(a, b, 16, half32)
		a, b = swap(a, b, 8, half16)
		binary.LittleEndian.PutUint64(lo, a)
		binary.LittleEndian.PutUint64(hi, b)
		src, hi, lo = src[16:], hi[8:], lo[8:]
	}
}

func join2(dst, src []byte, k, n int) {
	hi, lo := src[:n], src[k:k+n]
	dst = dst[:2*n]
	for len(dst) >= 16 && len(hi) >= 8 && len(lo) >= 8 {
		a := binary.LittleEndian.Uint64(lo)
		b := binary.LittleEndian.Uint64(hi)
		a, b = swap(a, b, 8, half16)
		a, b = swap(a, b, 16, half32)
		a, b = swap(a, b, 32, half64)
		binary.LittleEndian.PutUint64(dst, right16(a))
		binary.LittleEndian.PutUint64(dst[8:], right16(b))
		dst, hi, lo = dst[16:], hi[8:], lo[8:]
	}
}

func split4(dst, src []byte, k, n int) {
	p0, p1, p2, p3 := dst[:n], dst[k:k+n], dst[2*k:2*k+n], dst[3*k:3*k+n]
	src = src[:4*n]
	for len(src) >= 32 && len(p0) >= 8 && len(p1) >= 8 && len(p2) >= 8 && len(p3) >= 8 {
		a := left32(binary.LittleEndian.Uint64(src))
		b := left32(binary.LittleEndian.Uint64(src[8:]))
		c := left32(binary.LittleEndian.Uint64(src[16:]))
		d := left32(binary.LittleEndian.Uint64(src[24:]))
		a, c = swap(a, c, 32, half64) // a, c, b, d now hold elements 0 and 4, 1 and 5, 2 and 6, 3 and 7
		b, d = swap(b, d, 32, half64)
		a, b = swap(a, b, 16, half32)
		c, d = swap(c, d, 16, half32)
		a, c = swap(a, c, 8, half16)
		b, d = swap(b, d, 8, half16)
		binary.LittleEndian.PutUint64(p3, a)
		binary.LittleEndian.PutUint64(p2, c)
		binary.LittleEndian.PutUint64(p1, b)
		binary.LittleEndian.PutUint64(p0, d)
		src, p0, p1, p2, p3 = src[32:], p0[8:], p1[8:], p2[8:], p3[8:]
	}
}

func join4(dst, src []byte, k, n int) {
	p0, p1, p2, p3 := src[:n], src[k:k+n], src[2*k:2*k+n], src[3*k:3*k+n]
	dst = dst[:4*n]
	for len(dst) >= 32 && len(p0) >= 8 && len(p1) >= 8 && len(p2) >= 8 && len(p3) >= 8 {
		a := binary.LittleEndian.Uint64(p3)
		c := binary.LittleEndian.Uint64(p2)
		b := binary.LittleEndian.Uint64(p1)
		d := binary.LittleEndian.Uint64(p0)
		a, c = swap(a, c, 8, half16)
		b, d = swap(b, d, 8, half16)
		a, b = swap(a, b, 16, half32)
		c, d = swap(c, d, 16, half32)
		a, c = swap(a, c, 32, half64)
		b, d = swap(b, d, 32, half64)
		binary.LittleEndian.PutUint64(dst, right32(a))
		binary.LittleEndian.PutUint64(dst[8:], right32(b))
		binary.LittleEndian.PutUint64(dst[16:], right32(c))
		binary.LittleEndian.PutUint64(dst[24:], right32(d))
		dst, p0, p1, p2, p3 = dst[32:], p0[8:], p1[8:], p2[8:], p3[8:]
	}
}

func split8(dst, src []byte, k, n int) {
	for i := 0; i < n; i += 8 {
		var e [8]uint64
		in := src[8*i : 8*i+64]
		for j := range e {
			e[j] = bits.RotateLeft64(binary.LittleEndian.Uint64(in[8*j:]), 1)
		}
		for j := range 4 {
			e[j], e[j+4] = swap(e[j], e[j+4], 32, half64)
		}
		for _, j := range [4]int{0, 1, 4, 5} {
			e[j], e[j+2] = swap(e[j], e[j+2], 16, half32)
		}
		for j := 0; j < 8; j += 2 {
			e[j], e[j+1] = swap(e[j], e[j+1], 8, half16)
		}
		for j, plane := range e {
			binary.LittleEndian.PutUint64(dst[(7-j)*k+i:], plane)
		}
	}
}

func join8(dst, src []byte, k, n int) {
	for i := 0; i < n; i += 8 {
		var e [8]uint64
		for j := range e {
			e[j] = binary.LittleEndian.Uint64(src[(7-j)*k+i:])
		}
		for j := 0; j < 8; j += 2 {
			e[j], e[j+1] = swap(e[j], e[j+1], 8, half16)
		}
		for _, j := range [4]int{0, 1, 4, 5} {
			e[j], e[j+2] = swap(e[j], e[j+2], 16, half32)
		}
		for j := range 4 {
			e[j], e[j+4] = swap(e[j], e[j+4], 32, half64)
		}
		out := dst[8*i : 8*i+64]
		for j, x := range e {
			binary.LittleEndian.PutUint64(out[8*j:], bits.RotateLeft64(x, -1))
		}
	}
}
