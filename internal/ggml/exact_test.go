package ggml_test

import (
	"encoding/binary"
	"math/big"
	"testing"

	"github.com/loratool/loratool/internal/ggml"
)

// The truth are fractions: d·q of Q8_0, and d·q + m of Q4_1, which float32 cannot hold.
func TestDecodeIsExact(t *testing.T) {
	for bits := 0; bits < 1<<16; bits += 13 {
		least := (bits*7 + 1) & 0xffff
		if bits>>10&31 == 31 || least>>10&31 == 31 {
			continue // infinities and NaN
		}
		scale := binary.LittleEndian.AppendUint16(nil, uint16(bits))
		signed, both := append([]byte{}, scale...), binary.LittleEndian.AppendUint16(scale, uint16(least))
		for i := range 32 {
			signed = append(signed, byte(37*i))
		}
		for i := range 16 {
			both = append(both, byte(i|(15-i)<<4))
		}
		q8, q4 := decode(ggml.Q8_0, signed), decode(ggml.Q4_1, both)
		for i := range 32 {
			want := new(big.Rat).Mul(fractionOf(bits), big.NewRat(int64(int8(37*i)), 1))
			if new(big.Rat).SetFloat64(q8[i]).Cmp(want) != 0 {
				t.Fatalf("scale %#04x times %d is %v, want %v", bits, int8(37*i), q8[i], want)
			}
			q := i
			if i >= 16 {
				q = 31 - i
			}
			want.Mul(fractionOf(bits), big.NewRat(int64(q), 1))
			if want.Add(want, fractionOf(least)); new(big.Rat).SetFloat64(q4[i]).Cmp(want) != 0 {
				t.Fatalf("scale %#04x times %d, and %#04x, is %v, want %v", bits, q, least, q4[i], want)
			}
		}
	}
}

// fractionOf returns the number that the bits of an F16 are.
func fractionOf(bits int) *big.Rat {
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
