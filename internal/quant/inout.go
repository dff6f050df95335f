package quant

import (
	"context"
	"encoding/binary"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// inOut is a weight of out×in elements that GPTQ or AWQ store transposed, as unsigned codes in
// words of 32 bits, with a scale and a whole zero point for a group of inputs of each output:
//
//	w[o][i] = (code[i][o] − zero[g][o]) · scale[g][o], g = index[i] or i / group
//
// Part 0 holds the codes, part 1 the zero points [groups, out·bits/32], part 2 the scales [groups,
// out], and part 3 the index, if there is one.
type inOut struct {
	name            string // of the weight, for errors
	in, out, groups int64
	bits            int64 // of a code: 2, 4 or 8
	scales          dtype.Type
	group           int64 // inputs of a group, 0 if there is an index
	inOrder         int64 // inputs of a group that the index must not contradict, 0 for any index
	zeros           zeroRule
	order           *[8]uint8 // of AWQ: the outputs of the codes of a word; GPTQ's are inputs, in order
}

// zeroRule says which zero point a stored one stands for.
type zeroRule int

const (
	zeroAsStored  zeroRule = iota
	zeroLessOne            // 1 less, and programs that differ about it must agree
	zeroWordsLess          // 1 less in each code, by one subtraction from the whole word
)

// orderAWQ holds the outputs of the codes of a word of AWQ, beginning with the lowest bits.
var orderAWQ = [8]uint8{0, 2, 4, 6, 1, 3, 5, 7}

// The parts of an inOut weight, in their order.
const (
	partWords = iota
	partZeros
	partGroupScales
	partIndex
)

// inOutElements bounds the elements that are decoded together. Many rows at once read long pieces
// of the stored rows.
const inOutElements = 1 << 20

// RowsAtOnce implements Columnar: the codes of these rows are 256 bytes of each stored row.
func (w *inOut) RowsAtOnce() int64 { return max(1, min(64, inOutElements/2/w.in)) }

// KeptBytes implements Columnar: nothing is kept.
func (w *inOut) KeptBytes() int64 { return 0 }

// Decode implements Codec. A row of the weight is a column of the codes, so it reads codes of many
// rows at once. Its errors are also about an index or zero points that no weight has.
func (w *inOut) Decode(ctx context.Context, dst []float64, at int64, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	for len(dst) > 0 {
		row, from := at/w.in, at%w.in
		nRows, n := int64(1), min(int64(len(dst)), w.in-from, pieceElements)
		if whole := int64(len(dst)) / w.in; whole > 0 && n == w.in {
			nRows = min(whole, max(1, inOutElements/w.in))
		}
		t := strip{weight: w, parts: parts, row: row, nRows: nRows, from: from, n: n, buffers: b}
		if err := t.decode(ctx, dst[:nRows*n]); err != nil {
			return err
		}
		dst, at = dst[nRows*n:], at+nRows*n
	}
	return nil
}

// Check implements Checker: it reads the index and the zero points.
func (w *inOut) Check(ctx context.Context, parts Parts) error {
	b := takeBuffers()
	defer b.giveBack()
	for from := int64(0); from < w.in; from += pieceElements {
		t := strip{weight: w, parts: parts, from: from, n: min(pieceElements, w.in-from), buffers: b}
		if err := t.readIndex(ctx); err != nil {
			return err
		}
	}
	for row := int64(0); row < w.out; row += inOutElements/w.groups/8*8 + 8 {
		t := strip{weight: w, parts: parts, row: row, nRows: min(inOutElements/w.groups/8*8+8, w.out-row), nGroups: w.groups, buffers: b}
		if err := t.readZeros(ctx); err != nil {
			return err
		}
	}
	return nil
}

// strip decodes elements from, from+1, … of rows of the weight.
type strip struct {
	weight     *inOut
	parts      Parts
	row, nRows int64
	from, n    int64
	group      int64 // the first of those that the elements belong to
	nGroups    int64
	*buffers
}

func (t *strip) decode(ctx context.Context, dst []float64) error {
	if err := t.readIndex(ctx); err != nil {
		return err
	}
	if err := t.readZeros(ctx); err != nil {
		return err
	}
	if err := t.readScales(ctx); err != nil {
		return err
	}
	if err := t.readCodes(ctx); err != nil {
		return err
	}
	for r := range t.nRows {
		zeros, scales := t.values[r*t.nGroups:][:t.nGroups], t.lines[r*t.nGroups:][:t.nGroups]
		codes, row := t.codes[r*t.n:][:t.n], dst[r*t.n:][:t.n]
		for i, g := range t.index[:len(row)] {
			row[i] = (float64(codes[i]) - zeros[g]) * scales[g]
		}
	}
	return nil
}

// readIndex finds the group of each element, counted from the first that any of them belongs to.
func (t *strip) readIndex(ctx context.Context) error {
	w := t.weight
	t.index = sized(&t.index, t.n)
	if w.group > 0 {
		t.group = t.from / w.group
		t.nGroups = (t.from+t.n-1)/w.group + 1 - t.group
		for i := range t.index {
			t.index[i] = int32((t.from+int64(i))/w.group - t.group)
		}
		return nil
	}
	raw := t.scalesOf(4 * t.n)
	if err := t.parts.ReadPart(ctx, raw, partIndex, 4*t.from); err != nil {
		return err
	}
	first, last := int32(w.groups-1), int32(0)
	for i := range t.index {
		g := int32(binary.LittleEndian.Uint32(raw[4*i:]))
		if g < 0 || int64(g) >= w.groups {
			return fault.New(fault.Corrupt, "%q is stored as GPTQ, and its g_idx puts input %d into group %d, want 0 to %d", w.name, t.from+int64(i), g, w.groups-1).WithHint(Hint)
		}
		if at := t.from + int64(i); w.inOrder > 0 && int64(g) != at/w.inOrder {
			return fault.New(fault.Mismatch, "%q is stored as GPTQ, and its g_idx puts input %d into group %d, want %d, since desc_act is false", w.name, at, g, at/w.inOrder).WithHint(Hint)
		}
		t.index[i], first, last = g, min(first, g), max(last, g)
	}
	for i := range t.index {
		t.index[i] -= first
	}
	t.group, t.nGroups = int64(first), int64(last-first)+1
	return nil
}

// readZeros reads the zero points of the rows and groups.
func (t *strip) readZeros(ctx context.Context) error {
	w := t.weight
	perWord := 32 / w.bits
	first := t.row / perWord
	nWords := (t.row+t.nRows-1)/perWord + 1 - first
	zeros := t.valuesOf(t.nRows * t.nGroups)
	mask := uint32(1)<<w.bits - 1
	return t.eachStrip(ctx, partZeros, t.group, t.nGroups, w.out/perWord*4, first*4, nWords*4, func(group int64, raw []byte) error {
		for i := range nWords {
			word, ok := w.zerosOf(binary.LittleEndian.Uint32(raw[4*i:]))
			if !ok {
				return fault.New(fault.Mismatch, "%q is stored as GPTQ, whose zero points are stored 1 less; word %d of group %d is %#08x, to which programs add 1 in different ways",
					w.name, first+i, t.group+group, binary.LittleEndian.Uint32(raw[4*i:])).
					WithHint("%s; if GPTQModel wrote it, state so in meta.quantizer of quantization_config", Hint)
			}
			for j := range perWord {
				o := (first+i)*perWord + w.place(j) - t.row
				if o >= 0 && o < t.nRows {
					zeros[o*t.nGroups+group] = float64(word >> (j * w.bits) & mask)
				}
			}
		}
		return nil
	})
}

// zerosOf returns the zero points of a stored word. ok is false if they depend on the program.
func (w *inOut) zerosOf(word uint32) (zeros uint32, ok bool) {
	if w.zeros == zeroAsStored {
		return word, true
	}
	mask := uint32(1)<<w.bits - 1
	ones := ^uint32(0) / mask
	zeros = word + ones
	if w.zeros == zeroWordsLess {
		return zeros, true
	}
	for shift := int64(0); shift < 32; shift += w.bits {
		if (word>>shift+1)&mask != zeros>>shift&mask {
			return 0, false
		}
	}
	return zeros, true
}

// place returns the output of code j of a word of zero points, counted from the first in the word.
func (w *inOut) place(j int64) int64 {
	if w.order != nil {
		return int64(w.order[j])
	}
	return j
}

// readScales reads the scales of the rows and groups.
func (t *strip) readScales(ctx context.Context) error {
	w := t.weight
	size := int64(w.scales.Size())
	scales := t.linesOf(t.nRows * t.nGroups)
	return t.eachStrip(ctx, partGroupScales, t.group, t.nGroups, w.out*size, t.row*size, t.nRows*size, func(group int64, raw []byte) error {
		for o := range t.nRows {
			scales[o*t.nGroups+group] = dtype.Load(w.scales, raw, int(o))
		}
		return nil
	})
}

// readCodes reads the codes, row by row of the tile.
func (t *strip) readCodes(ctx context.Context) error {
	w := t.weight
	perWord := 32 / w.bits
	codes := t.codesOf(t.nRows * t.n)
	mask := uint32(1)<<w.bits - 1
	if w.order != nil {
		first := t.row / perWord
		nWords := (t.row+t.nRows-1)/perWord + 1 - first
		return t.eachStrip(ctx, partWords, t.from, t.n, w.out/perWord*4, first*4, nWords*4, func(i int64, raw []byte) error {
			for c := range nWords {
				word := binary.LittleEndian.Uint32(raw[4*c:])
				for j := range perWord {
					if o := (first+c)*perWord + w.place(j) - t.row; o >= 0 && o < t.nRows {
						codes[o*t.n+i] = byte(word >> (j * w.bits) & mask)
					}
				}
			}
			return nil
		})
	}
	first := t.from / perWord
	nLines := (t.from+t.n-1)/perWord + 1 - first
	return t.eachStrip(ctx, partWords, first, nLines, w.out*4, t.row*4, t.nRows*4, func(line int64, raw []byte) error {
		at := (first+line)*perWord - t.from // of the lowest code in the tile
		skip, end := max(0, -at), min(perWord, t.n-at)
		for o := range t.nRows {
			word := binary.LittleEndian.Uint32(raw[4*o:]) >> (skip * w.bits)
			row := codes[o*t.n+at+skip:][:end-skip]
			for j := range row {
				row[j] = byte(word & mask)
				word >>= w.bits
			}
		}
		return nil
	})
}

// stripBytes is the number of bytes of stored rows that are read together where the tile takes most
// of each row.
const stripBytes = 1 << 18

// eachStrip calls f with n bytes from off of each of some stored rows of a part. It reads several
// rows at once where it needs most of their bytes.
func (t *strip) eachStrip(ctx context.Context, part int, row, nRows, rowBytes, off, n int64, f func(row int64, raw []byte) error) error {
	atOnce := int64(1)
	if 4*n >= rowBytes {
		atOnce = max(1, stripBytes/rowBytes)
	}
	for r := int64(0); r < nRows; r += atOnce {
		k := min(atOnce, nRows-r)
		raw := t.scalesOf((k-1)*rowBytes + n)
		if err := t.parts.ReadPart(ctx, raw, part, (row+r)*rowBytes+off); err != nil {
			return err
		}
		for i := range k {
			if err := f(r+i, raw[i*rowBytes:][:n]); err != nil {
				return err
			}
		}
	}
	return nil
}
