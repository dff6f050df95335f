package ggml

// The K types have blocks of 256 elements in groups of 16 or 32 (llama.cpp pull request 1684). A
// scale s of a group is an integer that d multiplies, and a minimum m one that dmin multiplies.

// decodeQ2_K: d·s·q − dmin·m for groups of 16, stored as s and m in the halves of bytes, q in two
// bits, d, dmin.
func decodeQ2_K(dst []float64, block []byte) {
	d, dmin := half(block[80:]), half(block[82:])
	for i := range 16 {
		scale, least := d*float64(block[i]&15), dmin*float64(block[i]>>4)
		codes, shift := block[16+i/8*32+i%2*16:], i/2%4*2
		for j, q := range codes[:16] {
			dst[16*i+j] = scale*float64(q>>shift&3) - least
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
		high, codes := block[i%2*16:], block[32+i/8*32+i%2*16:]
		for j, q := range codes[:16] {
			q = q>>(i/2%4*2)&3 | high[j]>>(i/2)&1<<2
			dst[16*i+j] = scale * float64(int(q)-4)
		}
	}
}

// decodeQ4_K: d·s·q − dmin·m for groups of 32, stored as d, dmin, s and m in six bits, q. Of 32
// bytes of q, the low halves are a group, and the high halves the next.
func decodeQ4_K(dst []float64, block []byte) {
	for i := range 8 {
		scale, least := scaleAndLeast(block, i)
		codes, shift := block[16+i/2*32:], i%2*4
		for j, q := range codes[:32] {
			dst[32*i+j] = scale*float64(q>>shift&15) - least
		}
	}
}

// decodeQ5_K: as Q4_K, with the fifth bits of all q before the rest: bit i of 32 bytes for group i.
func decodeQ5_K(dst []float64, block []byte) {
	high := block[16:48]
	for i := range 8 {
		scale, least := scaleAndLeast(block, i)
		codes, shift := block[48+i/2*32:], i%2*4
		for j, q := range codes[:32] {
			dst[32*i+j] = scale*float64(q>>shift&15|high[j]>>i&1<<4) - least
		}
	}
}

// decodeQ6_K: d·s(q−32) for groups of 16, stored as the low four bits of all q, their high two, s
// in signed bytes, d. A half of the block has 64 bytes of low bits, and the low halves of them come
// first, and 32 bytes of high bits.
func decodeQ6_K(dst []float64, block []byte) {
	d := half(block[208:])
	for i := range 16 {
		scale := d * float64(int8(block[192+i]))
		low, high := block[i/8*64+i%4*16:], block[128+i/8*32+i%2*16:]
		for j, q := range low[:16] {
			q = q>>(i/4%2*4)&15 | high[j]>>(i/2%4*2)&3<<4
			dst[16*i+j] = scale * float64(int(q)-32)
		}
	}
}

// scaleAndLeast returns d·s and dmin·m of group i of Q4_K and Q5_K. Of the 12 bytes of scales, the
// first eight have s and m of groups 0 to 3 in their low bits, and the upper two bits of the other
// groups' above.
func scaleAndLeast(block []byte, i int) (scale, least float64) {
	p := block[4:16]
	var s, m byte
	if i < 4 {
		s, m = p[i]&63, p[i+4]&63
	} else {
		s, m = p[i+4]&15|p[i-4]>>6<<4, p[i+4]>>4|p[i]>>6<<4
	}
	return half(block) * float64(s), half(block[2:]) * float64(m)
}
