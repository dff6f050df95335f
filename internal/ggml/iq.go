package ggml

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// The IQ types take 4 or 8 neighbours at once from a grid g, a list of vectors of small integers.
// Signs are bits of their own, which are 1 for −, or are part of the vectors (llama.cpp pull
// requests 4773, 4856, 5453, 5676).

// decodeIQ2_XXS: d(s+½)/4·±g for groups of 32, stored as d, and 8 bytes for each group: four
// numbers of vectors, four times seven signs, and s in the last four bits.
func decodeIQ2_XXS(dst []float64, block []byte) {
	d, grid := half(block), gridIQ2_XXS()
	for i := range 8 {
		at := block[2+8*i:]
		rest := binary.LittleEndian.Uint32(at[4:])
		scale := d * (0.5 + float64(rest>>28)) * 0.25
		for j := range 4 {
			signed(dst[32*i+8*j:], grid, 8, int(at[j]), scale, eighth(rest>>(7*j)))
		}
	}
}

// decodeIQ2_XS: d(s+½)/4·±g for groups of 16, stored as d, 9 bits of number and 7 signs for each
// vector, and s in four bits.
func decodeIQ2_XS(dst []float64, block []byte) {
	d, grid := half(block), gridIQ2_XS()
	for i := range 32 {
		scale := d * (0.5 + float64(block[66+i/4]>>(i/2%2*4)&15)) * 0.25
		n := binary.LittleEndian.Uint16(block[2+2*i:])
		signed(dst[8*i:], grid, 8, int(n&511), scale, eighth(uint32(n>>9)))
	}
}

// decodeIQ2_S: d(s+½)/4·±g for groups of 16, stored as d, the low bytes of the numbers of vectors,
// signs, the upper two bits of the numbers, and s in four bits.
func decodeIQ2_S(dst []float64, block []byte) {
	d, grid := half(block), gridIQ2_S()
	for i := range 32 {
		scale := d * (0.5 + float64(block[74+i/4]>>(i/2%2*4)&15)) * 0.25
		n := int(block[2+i]) | int(block[66+i/4]>>(i%4*2)&3)<<8
		signed(dst[8*i:], grid, 8, n, scale, block[34+i])
	}
}

// decodeIQ3_XXS: d(s+½)/2·±g for groups of 32, stored as d, the numbers of vectors, and four bytes
// for each group: four times seven signs, and s in the last four bits.
func decodeIQ3_XXS(dst []float64, block []byte) {
	d, grid := half(block), gridIQ3_XXS()
	for i := range 64 {
		rest := binary.LittleEndian.Uint32(block[66+i/8*4:])
		scale := d * (0.5 + float64(rest>>28)) * 0.5
		signs := eighth(rest >> (i / 2 % 4 * 7))
		signed(dst[4*i:], grid, 4, int(block[2+i]), scale, signs>>(i%2*4))
	}
}

// decodeIQ3_S: d(1+2s)·±g for groups of 32, stored as d, the low bytes of the numbers of vectors,
// their ninth bits, signs, and s in four bits.
func decodeIQ3_S(dst []float64, block []byte) {
	d, grid := half(block), gridIQ3_S()
	for i := range 64 {
		scale := d * float64(1+2*int(block[106+i/16]>>(i/8%2*4)&15))
		n := int(block[2+i]) | int(block[66+i/8]>>(i%8)&1)<<8
		signed(dst[4*i:], grid, 4, n, scale, block[74+i/2]>>(i%2*4))
	}
}

// decodeIQ1_S: d(2s+1)(g±⅛) for groups of 32, stored as d, the low bytes of the numbers of vectors,
// and two bytes for each group: the upper three bits of its four numbers, s in three bits, and the
// sign of ⅛.
func decodeIQ1_S(dst []float64, block []byte) {
	d, grid := half(block), gridIQ1()
	for i := range 32 {
		rest := binary.LittleEndian.Uint16(block[34+i/4*2:])
		scale := d * float64(2*(rest>>12&7)+1)
		n := int(block[2+i]) | int(rest>>(i%4*3)&7)<<8
		shifted(dst[8*i:], grid, n, scale, rest>>15 == 1)
	}
}

// decodeIQ1_M: d(2s+1)(g±⅛) for groups of 16, stored as the low bytes of the numbers of vectors,
// their upper three bits with the sign of ⅛, and four words with s of four groups in three bits
// each, and above them four bits of d.
func decodeIQ1_M(dst []float64, block []byte) {
	scales := block[48:56]
	word := func(i int) uint16 { return binary.LittleEndian.Uint16(scales[2*i:]) }
	high := word(0)>>12 | word(1)>>12<<4 | word(2)>>12<<8 | word(3)>>12<<12
	d, grid := halfOf(high), gridIQ1()
	for i := range 32 {
		scale := d * float64(2*(word(i/8)>>(i/2%4*3)&7)+1)
		rest := block[32+i/2] >> (i % 2 * 4)
		shifted(dst[8*i:], grid, int(block[i])|int(rest&7)<<8, scale, rest&8 != 0)
	}
}

// eighth adds to seven signs the one that makes the number of minuses even.
func eighth(signs uint32) byte {
	signs &= 127
	return byte(signs | uint32(bits.OnesCount32(signs)&1)<<7)
}

// signed decodes vector n of a grid with signs. The grid's vectors have so many elements.
func signed(dst []float64, grid []int8, elements, n int, scale float64, signs byte) {
	by := [2]float64{scale, -scale}
	vector := grid[elements*n:][:elements]
	dst = dst[:len(vector)]
	for i, g := range vector {
		dst[i] = by[signs>>i&1] * float64(g)
	}
}

// shifted decodes vector n of the grid of IQ1_S and IQ1_M.
func shifted(dst []float64, grid []int8, n int, scale float64, isDown bool) {
	shift := 0.125
	if isDown {
		shift = -shift
	}
	vector := grid[8*n:][:8]
	dst = dst[:len(vector)]
	for i, g := range vector {
		dst[i] = scale * (float64(g) + shift)
	}
}

// unpack reads a grid from hexadecimal digits. The vectors are stored in the numbers of their
// values, of two bits for up to four values, and else of four, the low ones first.
func unpack(digits string, values ...int8) []int8 {
	packed, err := hex.DecodeString(digits)
	if err != nil {
		panic(err)
	}
	width := 2
	if len(values) > 4 {
		width = 4
	}
	var grid []int8
	for _, b := range packed {
		for shift := 0; shift < 8; shift += width {
			grid = append(grid, values[b>>shift&(1<<width-1)])
		}
	}
	return grid
}
