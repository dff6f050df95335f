package format

import "math/bits"

// This file holds the two entropy coders of Zstandard (RFC 8878, section 4): finite state entropy
// (FSE), and Huffman codes. Every function reports with ok whether its input is valid.

// reverseBits reads a bitstream from its last bit to its first. The highest set bit of the last
// byte marks the end.
type reverseBits struct {
	p    []byte
	left int // bits not read yet; negative after reading more than there are, which gives zeros
}

func newReverseBits(p []byte) (r reverseBits, ok bool) {
	if len(p) == 0 || p[len(p)-1] == 0 {
		return r, false
	}
	return reverseBits{p, 8*(len(p)-1) + bits.Len8(p[len(p)-1]) - 1}, true
}

// read returns the next n bits, at most 32.
func (r *reverseBits) read(n int) uint32 {
	r.left -= n
	return r.bitsAt(r.left, n)
}

// peek returns the next n bits and stays where it is.
func (r *reverseBits) peek(n int) uint32 { return r.bitsAt(r.left-n, n) }

// bitsAt returns n bits from bit i upwards; bits before the first are zeros.
func (r *reverseBits) bitsAt(i, n int) uint32 {
	if i < 0 {
		if n += i; n <= 0 {
			return 0
		}
		return r.bitsAt(0, n) << -i
	}
	var x uint64
	first := i / 8
	for k, b := range r.p[first:min(first+5, len(r.p))] {
		x |= uint64(b) << (8 * k)
	}
	return uint32(x >> (i % 8) & (1<<n - 1))
}

// fseState is one cell of a decoding table.
type fseState struct {
	symbol byte
	nBits  uint8
	base   uint16 // the next state, before the bits are added
}

// fseTable is a decoding table of 2^log states.
type fseTable struct {
	log    int
	states []fseState
}

// readFSE reads the description of a table (section 4.1.1) from the beginning of p, for symbols up
// to maxSymbol, and returns the number of bytes it takes.
func readFSE(p []byte, maxLog, maxSymbol int) (t fseTable, n int, ok bool) {
	at := 0
	take := func(n int) (x int) {
		for k := range n {
			if i := (at + k) / 8; i < len(p) {
				x |= int(p[i]>>((at+k)%8)&1) << k
			}
		}
		at += n
		return x
	}
	log := take(4) + 5
	if log > maxLog {
		return t, 0, false
	}
	var probabilities []int
	for remaining := 1 << log; remaining > 0; {
		width := bits.Len(uint(remaining + 1))
		value := take(width - 1)
		if small := 1<<width - 1 - (remaining + 1); value >= small { // the lowest values have one bit less
			if value |= take(1) << (width - 1); value >= 1<<(width-1) {
				value -= small
			}
		}
		probability := value - 1
		remaining -= max(probability, -probability)
		probabilities = append(probabilities, probability)
		for repeat := 3; probability == 0 && repeat == 3; {
			repeat = take(2)
			probabilities = append(probabilities, make([]int, repeat)...)
			if len(probabilities) > maxSymbol {
				return t, 0, false
			}
		}
		if remaining < 0 || len(probabilities) > maxSymbol+1 {
			return t, 0, false
		}
	}
	n = (at + 7) / 8
	return newFSE(log, probabilities), n, n <= len(p)
}

// newFSE makes a table of probabilities in 1/2^log, where −1 means less than one.
func newFSE(log int, probabilities []int) fseTable {
	size := 1 << log
	t := fseTable{log, make([]fseState, size)}
	next := make([]int, len(probabilities))
	high := size
	for symbol, probability := range probabilities {
		next[symbol] = probability
		if probability < 0 {
			high--
			t.states[high].symbol = byte(symbol)
			next[symbol] = 1
		}
	}
	at := 0
	for symbol, probability := range probabilities {
		for range probability {
			t.states[at].symbol = byte(symbol)
			for at = (at + size>>1 + size>>3 + 3) % size; at >= high; {
				at = (at + size>>1 + size>>3 + 3) % size
			}
		}
	}
	for i := range t.states {
		s := &t.states[i]
		x := next[s.symbol]
		next[s.symbol]++
		s.nBits = uint8(log - bits.Len(uint(x)) + 1)
		s.base = uint16(x<<s.nBits - size)
	}
	return t
}

// oneSymbol is the table of a code with a single symbol.
func oneSymbol(symbol byte) fseTable { return fseTable{0, []fseState{{symbol: symbol}}} }

const (
	maxHuffmanBits    = 11
	maxHuffmanSymbols = 256
	maxWeightLog      = 6
)

// huffmanCode is one cell of a decoding table: for all bits that begin with a code.
type huffmanCode struct {
	symbol byte
	nBits  uint8
}

// huffmanTable has 2^log cells.
type huffmanTable struct {
	log   int
	codes []huffmanCode
}

// readHuffman reads the description of a Huffman tree (section 4.2.1) from the beginning of p, and
// returns the number of bytes it takes.
func readHuffman(p []byte) (t huffmanTable, n int, ok bool) {
	if len(p) == 0 {
		return t, 0, false
	}
	var weights []byte
	if n = int(p[0]); n < 128 {
		if n++; n > len(p) {
			return t, 0, false
		}
		if weights, ok = readWeights(p[1:n]); !ok {
			return t, 0, false
		}
	} else {
		count := n - 127
		if n = 1 + (count+1)/2; n > len(p) {
			return t, 0, false
		}
		for i := range count {
			weights = append(weights, p[1+i/2]>>(4*(1-i%2))&15)
		}
	}
	t, ok = newHuffman(weights)
	return t, n, ok
}

// readWeights decodes all weights but the last (section 4.2.1.2). Two states take turns. The update
// that needs more bits than remain ends the series, be it one bit or several: the missing bits are
// zeros, and the symbol of the other state is the last.
func readWeights(p []byte) (weights []byte, ok bool) {
	t, n, ok := readFSE(p, maxWeightLog, maxHuffmanSymbols-1)
	if !ok {
		return nil, false
	}
	r, ok := newReverseBits(p[n:])
	if !ok {
		return nil, false
	}
	state := [2]int{int(r.read(t.log)), int(r.read(t.log))}
	if r.left < 0 {
		return nil, false
	}
	for k := 0; len(weights) < maxHuffmanSymbols-2; k ^= 1 {
		s := t.states[state[k]]
		weights = append(weights, s.symbol)
		state[k] = int(s.base) + int(r.read(int(s.nBits)))
		if r.left < 0 {
			return append(weights, t.states[state[k^1]].symbol), true
		}
	}
	return nil, false
}

// newHuffman makes the table for all weights but the last, which makes the sum a power of two.
func newHuffman(weights []byte) (t huffmanTable, ok bool) {
	sum, ones := 0, 0
	for _, w := range weights {
		if w > maxHuffmanBits {
			return t, false
		}
		sum += 1 << w >> 1
		if w == 1 {
			ones++
		}
	}
	t.log = bits.Len(uint(sum))
	if sum == 0 || t.log > maxHuffmanBits {
		return t, false
	}
	left := 1<<t.log - sum
	if left&(left-1) != 0 || left == 1 && ones == 0 || left > 1 && ones < 2 {
		return t, false
	}
	weights = append(weights, byte(bits.Len(uint(left))))
	for w := byte(1); int(w) <= t.log; w++ {
		for symbol := range weights {
			for range 1 << w >> 1 {
				if weights[symbol] == w {
					t.codes = append(t.codes, huffmanCode{byte(symbol), uint8(t.log) + 1 - w})
				}
			}
		}
	}
	return t, true
}

// decode fills dst with the symbols of one stream, which must have no bit more.
func (t *huffmanTable) decode(dst, p []byte) (ok bool) {
	r, ok := newReverseBits(p)
	if !ok {
		return false
	}
	for i := range dst {
		c := t.codes[r.peek(t.log)]
		dst[i] = c.symbol
		r.left -= int(c.nBits)
	}
	return r.left == 0
}
