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

// isPlain reports whether the codes are bytes, or halves of bytes.
func (p *packing) isPlain() bool { return p.perWord == 0 && (p.bits == 8 || p.bits == 4) }

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
