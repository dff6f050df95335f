package ggml

// The K types have blocks of 256 elements in groups of 16 or 32 (llama.cpp pull request 1684). A
// scale s of a group is an integer that d multiplies, and a minimum m one that dmin multiplies.

// decodeQ2_K: d·s·q − dmin·m for groups of 16, stored as s and m in the halves of bytes, q in two
// bits, d, dmin.
func decodeQ2_K(dst []float64, block []byte) {
	d, dmin := half(block[80:]), half(block[82:])
	for i := range 16 {
		scale, least := d*float64(block[i]&15), dmin*float64(block[i]>>4)
		shift, out := i/2%4*2, (*[16]float64)(dst[16*i:])
		for j, q := range (*[16]byte)(block[16+i/8*32+i%2*16:]) {
			out[j] = scale*float64(q>>(shift&7)&3) - least
		}
	}
}

// decodeQ3_K: d(s−32)(q−4) for groups of 16, stored as the third bits of all q, the others, s in
// six bits, d.
func decodeQ3_K(dst []float64, block []byte) {
	d, scales := half(block[108:]), block[96:108]
	for i := range 16 {
		s := int(scales[i%8]>>(i/8*4)&15) | int(scales[8+i%4]>>(i/4*2)&3)<<4
		scale := d * float64(s-32)
		high, out := (*[16]byte)(block[i%2*16:]), (*[16]float64)(dst[16*i:])
		shift, bit := i/2%4*2, i/2
		for j, q := range (*[16]byte)(block[32+i/8*32+i%2*16:]) {
			q = q>>(shift&7)&3 | high[j]>>(bit&7)&1<<2
			out[j] = scale * float64(int(q)-4)
		}
	}
}

// decodeQ4_K: d·s·q − dmin·m for groups of 32, stored as d, dmin, s and m in six bits, q. Of 32
// bytes of q, the low halves are a group, and the high halves the next.
func decodeQ4_K(dst []float64, block []byte) {
	d, dmin := half(block), half(block[2:])
	for i := range 4 {
		s, m := pairsOf(block[4:16], 2*i, d, dmin)
		out := (*[64]float64)(dst[64*i:])
		for j, q := range (*[32]byte)(block[16+32*i:]) {
			out[j], out[32+j] = s[0]*float64(q&15)-m[0], s[1]*float64(q>>4)-m[1]
		}
	}
}

// decodeQ5_K: as Q4_K, with the fifth bits of all q before the rest: bit i of 32 bytes for group i.
func decodeQ5_K(dst []float64, block []byte) {
	d, dmin := half(block), half(block[2:])
	high := (*[32]byte)(block[16:])
	for i := range 4 {
		s, m := pairsOf(block[4:16], 2*i, d, dmin)
		out := (*[64]float64)(dst[64*i:])
		for j, q := range (*[32]byte)(block[48+32*i:]) {
			h := high[j] >> (2 * i & 7)
			out[j], out[32+j] = s[0]*float64(q&15|h&1<<4)-m[0], s[1]*float64(q>>4|h&2<<3)-m[1]
		}
	}
}

// pairsOf returns d·s and dmin·m of groups i and i+1 of Q4_K and Q5_K. Of the 12 bytes p, the first
// eight have s and m of groups 0 to 3 in their low bits, and the upper two bits of the other
// groups' above.
func pairsOf(p []byte, i int, d, dmin float64) (s, m [2]float64) {
	for k := range 2 {
		scale, least := p[i&3+k]&63, p[i&3+k+4]&63
		if i >= 4 {
			scale, least = p[i+k+4]&15|p[i+k-4]>>6<<4, p[i+k+4]>>4|p[i+k]>>6<<4
		}
		s[k], m[k] = d*float64(scale), dmin*float64(least)
	}
	return s, m
}

// decodeQ6_K: d·s(q−32) for groups of 16, stored as the low four bits of all q, their high two, s
// in signed bytes, d. A half of the block has 64 bytes of low bits, and the low halves of them come
// first, and 32 bytes of high bits.
func decodeQ6_K(dst []float64, block []byte) {
	d := half(block[208:])
	for i := range 4 { // 16 of each 32 neighbours in four runs
		first := i/2*128 + i%2*16
		low, up := (*[16]byte)(block[i/2*64+i%2*16:]), (*[16]byte)(block[i/2*64+32+i%2*16:])
		high := (*[16]byte)(block[128+16*i:])
		out := (*[112]float64)(dst[first:])
		scale := func(k int) float64 { return d * float64(int8(block[192+first/16+k])) }
		s0, s2, s4, s6 := scale(0), scale(2), scale(4), scale(6)
		for j, h := range high {
			a, b := low[j], up[j]
			out[j], out[32+j] = s0*float64(int(a&15|h&3<<4)-32), s2*float64(int(b&15|h>>2&3<<4)-32)
			out[64+j], out[96+j] = s4*float64(int(a>>4|h>>4&3<<4)-32), s6*float64(int(b>>4|h>>6<<4)-32)
		}
	}
}
