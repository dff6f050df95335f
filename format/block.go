package format

import "slices"

// This file decodes data frames by the letter of RFC 8878. It is slower than the library, and used
// only for frames that the library refuses: the library cannot read Huffman weights whose series
// ends with an update that needs more bits than remain, of which there are some.

// plainDecoder decodes the blocks of one frame. What a block can reuse of those before it is here.
type plainDecoder struct {
	out     []byte // decoded so far; at most its capacity
	huffman *huffmanTable
	tables  [3]*fseTable // of literal lengths, offsets, match lengths
	recent  [3]int       // offsets
}

// decodePlainly decodes the blocks of a frame that walkFrame has accepted, into dst. It returns
// the number of bytes, at most len(dst).
func decodePlainly(dst, frame []byte) (n int, ok bool) {
	d := plainDecoder{out: dst[:0:len(dst)], recent: [3]int{1, 4, 8}}
	p := frame[prefixBytes+sizeWidth(frame[4]):]
	for last := false; !last; {
		b := parseBlock(p)
		last = b.last
		content := p[blockBytes:][:b.stored]
		p = p[blockBytes+b.stored:]
		switch b.kind {
		case rawBlock:
			ok = d.append(content)
		case rleBlock:
			ok = d.append(slices.Repeat(content, int(b.size)))
		default:
			ok = d.compressed(content)
		}
		if !ok {
			return len(d.out), false
		}
	}
	return len(d.out), true
}

// append appends bytes to the output, if there is room.
func (d *plainDecoder) append(p []byte) (ok bool) {
	if len(p) > cap(d.out)-len(d.out) {
		return false
	}
	d.out = append(d.out, p...)
	return true
}

// The types of literals.
const (
	rawLiterals = iota
	rleLiterals
	_ // huffmanLiterals
	treelessLiterals
)

// number reads a number of n bytes from the beginning of p; without them it is −1.
func number(p []byte, n int) (x int64) {
	if len(p) < n {
		return -1
	}
	for k := range n {
		x |= int64(p[k]) << (8 * k)
	}
	return x
}

// compressed decodes a compressed block (section 3.1.1.3).
func (d *plainDecoder) compressed(p []byte) (ok bool) {
	literals, n, ok := d.literals(p)
	if !ok {
		return false
	}
	start := len(d.out)
	return d.sequences(p[n:], literals) && len(d.out)-start <= maxBlockBytes
}

// literals decodes the literals of a block and returns the number of bytes their section takes.
func (d *plainDecoder) literals(p []byte) (literals []byte, n int, ok bool) {
	if len(p) == 0 {
		return nil, 0, false
	}
	kind, format := int(p[0]&3), int(p[0]>>2&3)
	if kind >= huffmanLiterals {
		return d.huffmanLiterals(p, kind, format)
	}
	width, shift := 1, 3
	if format&1 != 0 {
		width, shift = 2+format>>1, 4
	}
	size := int(number(p, width) >> shift)
	if size < 0 || size > maxBlockBytes {
		return nil, 0, false
	}
	if kind == rleLiterals {
		if len(p) == width {
			return nil, 0, false
		}
		return slices.Repeat(p[width:width+1], size), width + 1, true
	}
	if size > len(p)-width {
		return nil, 0, false
	}
	return p[width:][:size], width + size, true
}

// huffmanLiterals decodes literals under a new Huffman code, or under that of the block before.
func (d *plainDecoder) huffmanLiterals(p []byte, kind, format int) (literals []byte, n int, ok bool) {
	width, sizeBits := 3, 10
	if format > 1 {
		width, sizeBits = format+2, 6+4*format
	}
	header := number(p, width)
	if header < 0 {
		return nil, 0, false
	}
	size, stored := int(header>>4&(1<<sizeBits-1)), int(header>>(4+sizeBits))
	if size > maxBlockBytes || stored > len(p)-width {
		return nil, 0, false
	}
	n = width + stored
	streams := p[width:n]
	if kind != treelessLiterals {
		t, k, ok := readHuffman(streams)
		if !ok {
			return nil, 0, false
		}
		d.huffman, streams = &t, streams[k:]
	}
	if d.huffman == nil {
		return nil, 0, false
	}
	literals = make([]byte, size)
	if format == 0 {
		return literals, n, d.huffman.decode(literals, streams)
	}
	return literals, n, d.fourStreams(literals, streams)
}

// fourStreams decodes literals in four streams, after the lengths of the first three.
func (d *plainDecoder) fourStreams(literals, p []byte) (ok bool) {
	quarter := (len(literals) + 3) / 4
	if len(p) < 6 || len(literals) < 3*quarter {
		return false
	}
	lengths := p[:6]
	p = p[6:]
	for i := range 4 {
		part, n := literals[quarter*i:], len(p)
		if i < 3 {
			part, n = part[:quarter], int(number(lengths[2*i:], 2))
		}
		if n > len(p) || !d.huffman.decode(part, p[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// sequenceCode has the facts about the codes of literal lengths, offsets or match lengths.
type sequenceCode struct {
	maxLog     int
	predefined fseTable
	base       []int
	extra      []int // bits that are added to the base
}

func (c *sequenceCode) max() int { return len(c.base) - 1 }

// The places of the three codes.
const (
	literalLengths = iota
	offsets
	matchLengths
)

var sequenceCodes = [3]sequenceCode{
	literalLengths: newSequenceCode(9, 6, 0,
		[]int{16: 1, 17: 1, 18: 1, 19: 1, 20: 2, 21: 2, 22: 3, 23: 3, 24: 4, 25: 6, 26: 7, 27: 8, 28: 9, 29: 10,
			30: 11, 31: 12, 32: 13, 33: 14, 34: 15, 35: 16},
		4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1),
	offsets: newSequenceCode(8, 5, 1,
		[]int{1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 9: 9, 10: 10, 11: 11, 12: 12, 13: 13, 14: 14, 15: 15, 16: 16,
			17: 17, 18: 18, 19: 19, 20: 20, 21: 21, 22: 22, 23: 23, 24: 24, 25: 25, 26: 26, 27: 27, 28: 28, 29: 29, 30: 30, 31: 31},
		1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1),
	matchLengths: newSequenceCode(9, 6, 3,
		[]int{32: 1, 33: 1, 34: 1, 35: 1, 36: 2, 37: 2, 38: 3, 39: 3, 40: 4, 41: 4, 42: 5, 43: 7, 44: 8, 45: 9, 46: 10,
			47: 11, 48: 12, 49: 13, 50: 14, 51: 15, 52: 16},
		1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1),
}

// newSequenceCode makes a code. Its bases follow from the first one: the ranges are without gaps.
func newSequenceCode(maxLog, log, first int, extra []int, predefined ...int) sequenceCode {
	base := make([]int, len(extra))
	for i, at := 0, first; i < len(extra); i++ {
		base[i] = at
		at += 1 << extra[i]
	}
	return sequenceCode{maxLog, newFSE(log, predefined), base, extra}
}

// sequences decodes the sequences of a block and executes them on its literals.
func (d *plainDecoder) sequences(p, literals []byte) (ok bool) {
	count, n := int(number(p, 1)), 1
	switch {
	case count < 0:
		return false
	case count == 0:
		return len(p) == 1 && d.append(literals)
	case count == 255:
		count, n = int(number(p[1:], 2))+0x7F00, 3
	case count >= 128:
		count, n = (count-128)<<8+int(number(p[1:], 1)), 2
	}
	if count == 0 || len(p) < n+1 || p[n]&3 != 0 {
		return false
	}
	modes := p[n]
	p = p[n+1:]
	for i := range d.tables {
		if n, ok = d.table(i, int(modes>>(6-2*i)&3), p); !ok {
			return false
		}
		p = p[n:]
	}
	return d.execute(count, p, literals)
}

// table sets the table of a code for this block and returns the number of bytes that it takes.
func (d *plainDecoder) table(i, mode int, p []byte) (n int, ok bool) {
	code := &sequenceCodes[i]
	switch mode {
	case 0:
		d.tables[i] = &code.predefined
	case 1:
		if len(p) == 0 || int(p[0]) > code.max() {
			return 0, false
		}
		t := oneSymbol(p[0])
		d.tables[i], n = &t, 1
	case 2:
		t, k, ok := readFSE(p, code.maxLog, code.max())
		if !ok {
			return 0, false
		}
		d.tables[i], n = &t, k
	}
	return n, d.tables[i] != nil
}

// execute decodes count sequences from p, which must have no bit more.
func (d *plainDecoder) execute(count int, p, literals []byte) (ok bool) {
	r, ok := newReverseBits(p)
	if !ok {
		return false
	}
	var states [3]fseState
	for i, t := range d.tables {
		states[i] = t.states[r.read(t.log)]
	}
	value := func(i int) int {
		code, symbol := &sequenceCodes[i], states[i].symbol
		return code.base[symbol] + int(r.read(code.extra[symbol]))
	}
	for k := range count {
		offset, match, length := value(offsets), value(matchLengths), value(literalLengths)
		if r.left < 0 || length > len(literals) || !d.append(literals[:length]) || !d.copy(d.offset(offset, length), match) {
			return false
		}
		literals = literals[length:]
		if k == count-1 {
			break
		}
		for _, i := range []int{literalLengths, matchLengths, offsets} {
			states[i] = d.tables[i].states[int(states[i].base)+int(r.read(int(states[i].nBits)))]
		}
	}
	return r.left == 0 && d.append(literals)
}

// offset returns the offset that a value stands for, and remembers it (section 3.1.1.5).
func (d *plainDecoder) offset(value, length int) int {
	if value < 1 {
		return 0 // beyond the numbers of this machine
	}
	if value > 3 {
		d.recent = [3]int{value - 3, d.recent[0], d.recent[1]}
		return value - 3
	}
	if length == 0 {
		value++
	}
	offset := d.recent[0] - 1
	if value <= 3 {
		offset = d.recent[value-1]
	}
	if value > 1 {
		if value > 2 {
			d.recent[2] = d.recent[1]
		}
		d.recent[1] = d.recent[0]
		d.recent[0] = offset
	}
	return offset
}

// copy appends n bytes from offset bytes before the end of the output.
func (d *plainDecoder) copy(offset, n int) (ok bool) {
	if offset < 1 || offset > len(d.out) || n > cap(d.out)-len(d.out) {
		return false
	}
	for range n {
		d.out = append(d.out, d.out[len(d.out)-offset])
	}
	return true
}
