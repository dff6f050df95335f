package quant

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/loratool/loratool/format/dtype"
)

// grouped is a weight of unsigned codes, in the order of its elements, with a scale and an offset
// for a group of them. Either the offset is added, or it is a zero point that is subtracted from
// the code; it need not be a whole number:
//
//	w[k] = RN64(scale[g]·code[k] + offset[g])      MLX
//	w[k] = RN64((code[k] − offset[g])·scale[g])    HQQ
//
// g is k / size, or k % period. Part 0 holds the codes, part 1 the scales, part 2 the offsets.
type grouped struct {
	codes  codes
	size   int64 // 0 if period counts
	period int64
	dtype  dtype.Type // of scales and offsets
	isZero bool       // the offset is subtracted
}

// codes reads codes k, k+1, …, one to a byte of dst, up to the end that it returns. It has room for
// raw bytes in b.
type codes interface {
	read(ctx context.Context, dst []byte, k int64, parts Parts, b *buffers) (n int64, err error)
}

// Decode implements Codec.
func (w *grouped) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	for len(dst) > 0 {
		n := min(int64(len(dst)), pieceElements)
		if w.size == 0 {
			n = min(n, w.period-at%w.period)
		}
		n, err := w.codes.read(ctx, b.codesOf(n), at, parts, b)
		if err != nil {
			return err
		}
		if err := w.piece(ctx, dst[:n], at, parts, b); err != nil {
			return err
		}
		dst, at = dst[n:], at+n
	}
	return nil
}

// piece decodes elements whose codes are read.
func (w *grouped) piece(ctx context.Context, dst []float64, at int64, parts Parts, b *buffers) error {
	n := int64(len(dst))
	first, count := at%max(w.period, 1), n
	if w.size > 0 {
		first = at / w.size
		count = (at+n-1)/w.size + 1 - first
	}
	size := int64(w.dtype.Size())
	raw := b.scalesOf(count * size)
	scales, offsets := b.valuesOf(count), b.linesOf(count)
	for part, values := range [][]float64{scales, offsets} {
		if err := parts.ReadPart(ctx, raw, part+1, first*size); err != nil {
			return err
		}
		widen(values, w.dtype, raw)
	}
	line := addOffset
	if w.isZero {
		line = subtractZero
	}
	codes := b.codes[:n]
	if w.size == 0 {
		for i := range dst {
			line(dst[i:i+1], codes[i:], scales[i], offsets[i])
		}
		return nil
	}
	for g := int64(0); len(dst) > 0; g++ {
		n := min(int64(len(dst)), (first+g+1)*w.size-at)
		line(dst[:n], codes, scales[g], offsets[g])
		dst, codes, at = dst[n:], codes[n:], at+n
	}
	return nil
}

// addOffset rounds once: the products are exact, of 8 and 24 bits.
func addOffset(dst []float64, codes []byte, scale, offset float64) {
	for i := range dst {
		dst[i] = float64(codes[i])*scale + offset
	}
}

// subtractZero rounds once: both products are exact, while a difference of code and zero is not.
func subtractZero(dst []float64, codes []byte, scale, zero float64) {
	product := zero * scale
	if math.IsNaN(product) || math.IsInf(product, 0) || math.IsInf(scale, 0) {
		for i := range dst {
			dst[i] = (float64(codes[i]) - zero) * scale
		}
		return
	}
	for i := range dst {
		dst[i] = float64(codes[i])*scale - product
	}
}

// stream is a sequence of codes without gaps.
type stream struct{ packing }

func (s stream) read(ctx context.Context, dst []byte, k int64, parts Parts, b *buffers) (int64, error) {
	n := int64(len(dst))
	first := s.byteOf(k)
	raw := b.scalesOf(s.endOf(k+n-1) - first)
	if err := parts.ReadPart(ctx, raw, 0, first); err != nil {
		return 0, err
	}
	s.unpack(dst, raw, k)
	return n, nil
}

// bands is a sequence of codes in words of some bytes. The highest bits of the words hold the codes
// of the first band, of n elements, and so on.
type bands struct {
	bits, top int64 // bits of a code, and the shift of the first band
	wordBytes int64
	n         int64
}

func (s bands) read(ctx context.Context, dst []byte, k int64, parts Parts, b *buffers) (int64, error) {
	band := k / s.n
	n := min(int64(len(dst)), (band+1)*s.n-k)
	raw := b.scalesOf(n * s.wordBytes)
	if err := parts.ReadPart(ctx, raw, 0, k%s.n*s.wordBytes); err != nil {
		return 0, err
	}
	shift, mask := s.top-band*s.bits, byte(uint(1)<<s.bits-1)
	if s.wordBytes == 1 {
		for i := range n {
			dst[i] = raw[i] >> shift & mask
		}
		return n, nil
	}
	for i := range n {
		dst[i] = byte(binary.LittleEndian.Uint32(raw[4*i:])>>shift) & mask
	}
	return n, nil
}
