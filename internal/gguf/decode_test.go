package gguf

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"testing"
)

// Scales of every exponent times integers are exact in F32: the truth is the product of fractions.
func TestDecodeIsExact(t *testing.T) {
	numbers := []int8{-128, -127, -85, -1, 0, 1, 2, 3, 90, 127}
	for bits := 0; bits < 1<<16; bits += 13 {
		if bits>>10&31 == 31 {
			continue // infinities and NaN
		}
		block := binary.LittleEndian.AppendUint16(nil, uint16(bits))
		for i := range 32 {
			block = append(block, byte(numbers[i%len(numbers)]))
		}
		var values [4 * 32]byte
		Decode(values[:], block)
		for i := range 32 {
			got := math.Float32frombits(binary.LittleEndian.Uint32(values[4*i:]))
			want := new(big.Rat).Mul(halfOf(bits), big.NewRat(int64(numbers[i%len(numbers)]), 1))
			if new(big.Rat).SetFloat64(float64(got)).Cmp(want) != 0 {
				t.Fatalf("scale %#04x times %d is %v, want %v", bits, numbers[i%len(numbers)], got, want)
			}
		}
	}
}

// halfOf returns the number that the bits of an F16 are.
func halfOf(bits int) *big.Rat {
	exponent, n := bits>>10&31, int64(bits&1023)
	if exponent > 0 {
		n += 1024
	} else {
		exponent = 1
	}
	if bits>>15 == 1 {
		n = -n
	}
	return new(big.Rat).Mul(big.NewRat(n, 1<<24), big.NewRat(1<<(exponent-1), 1))
}

func TestDecodeTakesBlockAfterBlock(t *testing.T) {
	one := binary.LittleEndian.AppendUint16(nil, 0x3c00)
	blocks := append(append(one, bytes.Repeat([]byte{3}, 32)...), append(one, bytes.Repeat([]byte{0xfe}, 32)...)...)
	values := make([]byte, 4*64)
	Decode(values, blocks)
	for i := range 64 {
		want := map[bool]float32{true: 3, false: -2}[i < 32]
		if got := math.Float32frombits(binary.LittleEndian.Uint32(values[4*i:])); got != want {
			t.Errorf("value %d is %v, want %v", i, got, want)
		}
	}
}
