package quant

import (
	"context"
	"encoding/binary"

	"github.com/loratool/loratool/format/dtype"
)

// packing says where the codes of a row lie. A code of few bits follows the one before it, from the
// low bits of a byte or word to the high ones.
type packing struct {
	bits     int64 // of a code, up to 8
	rowBytes int64
	perWord  int64 // the codes of a word of 32 bits whose last bits are unused; 0 for codes without gaps
}

// dense returns the packing of rows of codes without gaps.
func dense(bits, cols int64) packing { return packing{bits: bits, rowBytes: (bits*cols + 7) / 8} }

// wordsOf returns the number of words of 32 bits of n codes.
func (p *packing) wordsOf(n int64) int64 {
	if p.perWord > 0 {
		return (n + p.perWord - 1) / p.perWord
	}
	return (n*p.bits + 31) / 32
}

// isPlain reports whether the codes are bytes, or halves of bytes.
func (p *packing) isPlain() bool { return p.perWord == 0 && (p.bits == 8 || p.bits == 4) }

// bitOf returns the first bit of a row that holds the code of a column.
func (p *packing) bitOf(col int64) int64 {
	if p.perWord > 0 {
		return col/p.perWord*32 + col%p.perWord*p.bits
	}
	return col * p.bits
}

// byteOf returns the first byte of a row that holds the code of a column, or the first of its word.
func (p *packing) byteOf(col int64) int64 {
	if p.perWord > 0 {
		return col / p.perWord * 4
	}
	return col * p.bits / 8
}

// endOf returns the first byte after the code of a column.
func (p *packing) endOf(col int64) int64 {
	if p.perWord > 0 {
		return p.byteOf(col) + 4
	}
	return (col*p.bits+p.bits-1)/8 + 1
}

// unpack writes the codes of columns from col on, one to a byte. raw begins with byteOf(col).
func (p *packing) unpack(codes, raw []byte, col int64) []byte {
	bits, mask := uint(p.bits), uint32(1)<<p.bits-1
	if p.perWord > 0 {
		at := uint(col % p.perWord)
		for i := range codes {
			codes[i] = byte(binary.LittleEndian.Uint32(raw) >> (at * bits) & mask)
			if at++; at == uint(p.perWord) {
				at, raw = 0, raw[4:]
			}
		}
		return codes
	}
	have, held := uint(0), uint32(0)
	if skip := uint(col*p.bits) % 8; skip > 0 {
		have, held, raw = 8-skip, uint32(raw[0])>>skip, raw[1:]
	}
	for i := range codes {
		if have < bits {
			held |= uint32(raw[0]) << have
			have, raw = have+8, raw[1:]
		}
		codes[i] = byte(held & mask)
		held >>= bits
		have -= bits
	}
	return codes
}

// plainZeros are zero points that are stored like scales.
type plainZeros struct {
	part  int
	dtype dtype.Type
}

func (z plainZeros) read(ctx context.Context, values []float64, from int64, parts Parts, b *buffers) error {
	size := int64(z.dtype.Size())
	raw := b.scalesOf(int64(len(values)) * size)
	if err := parts.ReadPart(ctx, raw, z.part, from*size); err != nil {
		return err
	}
	widen(values, z.dtype, raw)
	return nil
}

// packedZeros are zero points that are packed along the rows: word k of a group has those of rows
// 32·k/bits and on, as codes has it for columns.
type packedZeros struct {
	part         int
	codes        packing
	rows, across int64 // of a matrix of zero points
	words        int64 // of a group of a matrix
	table        []float64
}

func (z *packedZeros) read(ctx context.Context, values []float64, from int64, parts Parts, b *buffers) error {
	for len(values) > 0 {
		row, col := from/z.across, from%z.across
		matrix, first := row/z.rows, row%z.rows
		n := min(int64(len(values)), (z.rows-first)*z.across-col)
		word, end := z.codes.bitOf(first)/32, (z.codes.bitOf(first+(col+n-1)/z.across)+z.codes.bits+31)/32
		raw := b.scalesOf(4 * z.across * (end - word))
		if err := parts.ReadPart(ctx, raw, z.part, 4*z.across*(matrix*z.words+word)); err != nil {
			return err
		}
		for i := range n {
			values[i] = z.table[z.code(raw, z.codes.bitOf(first+(col+i)/z.across)-32*word, (col+i)%z.across)]
		}
		values, from = values[n:], from+n
	}
	return nil
}

// code returns the code that begins with a bit of the words of a group.
func (z *packedZeros) code(raw []byte, bit, group int64) byte {
	at, shift := 4*(bit/32*z.across+group), bit%32
	x := uint64(binary.LittleEndian.Uint32(raw[at:])) >> shift
	if shift+z.codes.bits > 32 {
		x |= uint64(binary.LittleEndian.Uint32(raw[at+4*z.across:])) << (32 - shift)
	}
	return byte(x & (1<<z.codes.bits - 1))
}
