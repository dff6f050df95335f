package quant

import (
	"context"
	"math"
	"slices"
	"sync"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/ggml"
)

// Recoder gives the elements of a weight new codes. Its Decode has the elements in the order in
// which they are stored.
type Recoder interface {
	Codec
	// RowBytes returns the number of bytes of part 0 that hold a row of cols elements.
	RowBytes(cols int64) int64
	// Recode gives elements of whole rows new codes. parts must read r.Codes as they are before.
	Recode(ctx context.Context, r *Recoding, parts Parts) error
}

// Recoding has elements of whole rows that get new codes.
type Recoding struct {
	Codes []byte    // the bytes of part 0 that hold the rows; Recode changes them
	At    int64     // the first element
	Was   []float64 // the values of Codes
	Now   []float64 // gets the values of the new codes

	// Sum has the numbers that the elements should have, rounded to float32, or to float64.
	Sum []float64
	// Side returns the sign of the difference of a number of Sum, before it was rounded, and m.
	// Recode asks for it where both have the same float32.
	Side func(i int, m float64) (int, error)

	// Dither chooses between the codes below and above a number; nil takes the nearest.
	Dither *Dither
	// Clamped counts the numbers that are beyond all codes by more than half a step.
	Clamped int64

	scales, offsets []float64
	codes           []byte
	narrow          []float32
}

// RecoderOf returns the Recoder of a codec, nil if there is none. isTransposed says that the
// checkpoint stores the matrices of the weight transposed.
//
// Where a value is a code times a scale, the scales stay, and an element gets the code whose value
// is nearest to its number: of two the even one, and the last one beyond the ends. A code stays
// that has the value already, and so does every code of a scale that is 0 or not finite.
//
// Blocks of ggml with a number that changes are encoded anew, as llama-quantize encodes the float32
// numbers.
func RecoderOf(c Codec) (r Recoder, isTransposed bool) {
	switch c := c.(type) {
	case *scaled:
		return newRecoded(c), false
	case *turned:
		return newRecoded(&c.stored), true
	case *inBlocks:
		if slices.Contains(recodedBlocks, c.blocks) {
			return c, false
		}
	}
	return nil, false
}

// recodedBlocks are the types whose scales follow from a block alone, by a rule without a search.
var recodedBlocks = []ggml.Type{ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q5_1, ggml.MXFP4}

// recoded is a weight of scaled codes that can change.
type recoded struct {
	*scaled
	scales, offsets *scaled // decode to the scale of each element, and to −zero · scale; no offsets are nil
	ladder          *ladder
}

func newRecoded(s *scaled) *recoded {
	r := &recoded{scaled: s, ladder: ladderOf(s.table, s.codes.bits)}
	r.scales = s.with(ones[:len(s.table)], nil)
	if s.zeros != nil {
		r.offsets = s.with(noughts[:len(s.table)], s.zeros)
	}
	return r
}

var noughts [256]float64

// with returns the weight with other values of codes and other zero points.
func (s *scaled) with(table []float64, zeros zeroPoints) *scaled {
	u := *s
	u.table, u.zeros = table, zeros
	return &u
}

// RowBytes implements Recoder.
func (s *recoded) RowBytes(int64) int64 { return s.scaled.codes.rowBytes }

// Recode implements Recoder.
func (s *recoded) Recode(ctx context.Context, r *Recoding, parts Parts) error {
	scales, offsets := sized(&r.scales, int64(len(r.Was))), []float64(nil)
	if err := s.scales.Decode(ctx, scales, r.At, parts); err != nil {
		return err
	}
	if s.offsets != nil {
		offsets = sized(&r.offsets, int64(len(r.Was)))
		if err := s.offsets.Decode(ctx, offsets, r.At, parts); err != nil {
			return err
		}
	}
	p := &s.scaled.codes
	cols, isBytes := int(s.cols), p.isPlain() && p.bits == 8
	for first := 0; first < len(r.Was); first += cols {
		row := r.Codes[int64(first/cols)*p.rowBytes:][:p.rowBytes]
		line := line{r: r, ladder: s.ladder, first: first, scales: scales[first:][:cols], codes: row}
		if !isBytes {
			line.codes = p.unpack(sized(&r.codes, s.cols), row, 0)
		}
		if offsets != nil {
			line.offsets = offsets[first:][:cols]
		}
		if err := line.recode(); err != nil {
			return err
		}
		if !isBytes {
			p.pack(row, line.codes)
		}
	}
	return nil
}

// line is a row whose elements get new codes.
type line struct {
	r               *Recoding
	ladder          *ladder
	first           int
	scales, offsets []float64 // no offsets are nil
	codes           []byte    // one to an element
}

// recode changes the codes. Most elements are far from the middle between two rungs, and the
// product with the inverse of a scale tells the rung for sure.
func (n *line) recode() error {
	r, l := n.r, n.ladder
	was, sums, now := r.Was[n.first:][:len(n.codes)], r.Sum[n.first:][:len(n.codes)], r.Now[n.first:][:len(n.codes)]
	copy(now, was)
	scale, inverse, offset := math.NaN(), 0.0, 0.0
	for i, code := range n.codes {
		if n.scales[i] != scale {
			scale = n.scales[i]
			inverse = 1 / scale
			if inverse == 0 {
				inverse = math.NaN() // no rung is sure
			}
		}
		if n.offsets != nil {
			offset = n.offsets[i]
		}
		x := sums[i]
		u := (x - offset) * inverse
		rung := l.near(u)
		near := math.Abs(x*inverse) * 0x1p-22
		if !(l.low[rung]+near < u && u < l.high[rung]-near) || !l.isNumber[code] || r.Dither != nil {
			var err error
			e := element{r, l, n.first + i, scale, offset}
			if rung, err = e.find(code); err != nil {
				return err
			}
			if rung < 0 {
				continue
			}
		}
		// Whether a code changes can be as random as a coin, so this has no branches.
		var isNew uint64
		if byte(rung) != l.rung[code] {
			isNew = 1
		}
		keep := isNew - 1
		value, to := float64(l.numbers[rung]*scale)+offset, l.codes[rung]
		if u < 0 {
			to = l.negative[rung]
		}
		now[i] = math.Float64frombits(math.Float64bits(was[i])&keep | math.Float64bits(value)&^keep)
		n.codes[i] = code&byte(keep) | to&^byte(keep)
	}
	return nil
}

// element is one that gets a new code: the value of a rung is number·scale + offset.
type element struct {
	r             *Recoding
	ladder        *ladder
	at            int
	scale, offset float64
}

// value returns the value of a rung.
func (e *element) value(rung int) float64 { return float64(e.ladder.values[rung]*e.scale) + e.offset }

// find returns the rung of an element, −1 if its code stays.
func (e *element) find(code byte) (int, error) {
	r, l, x := e.r, e.ladder, e.r.Sum[e.at]
	if !l.isNumber[code] || x != x || e.scale == 0 || e.scale-e.scale != 0 {
		return -1, nil
	}
	u := (x - e.offset) / e.scale
	if u > l.above || u < l.below {
		r.Clamped++
	}
	if r.Dither != nil {
		return e.dithered(l.near(u), u, x), nil
	}
	return e.settle(l.near(u), x)
}

// settle moves a rung to the nearest one.
func (e *element) settle(rung int, x float64) (int, error) {
	l, start := e.ladder, rung
	for ; rung > 0; rung-- {
		side, err := e.side(l.middles[rung-1], x)
		if err != nil {
			return rung, err
		}
		if side == 0 && l.codes[rung]&1 == 1 {
			return rung - 1, nil
		}
		if side >= 0 {
			break
		}
	}
	if rung < start {
		return rung, nil
	}
	for ; rung < len(l.middles); rung++ {
		side, err := e.side(l.middles[rung], x)
		if err != nil {
			return rung, err
		}
		if side == 0 && l.codes[rung]&1 == 1 {
			return rung + 1, nil
		}
		if side <= 0 {
			break
		}
	}
	return rung, nil
}

// side returns the side of a middle between rungs on which the number is: 1 for that of the rung
// above.
func (e *element) side(middle, x float64) (side int, err error) {
	m := float64(middle*e.scale) + e.offset
	switch {
	case float32(m) == float32(x):
		side, err = e.r.Side(e.at, m)
	case x < m:
		side = -1
	default:
		side = 1
	}
	if e.scale < 0 {
		side = -side
	}
	return side, err
}

// dithered returns the rung below or above the number, with the probabilities that make the mean of
// the value right. rung is near u, the number in units of the rungs.
func (e *element) dithered(rung int, u, x float64) int {
	l, last := e.ladder, len(e.ladder.values)-1
	if u < l.values[rung] {
		rung--
	}
	if rung < 0 || rung >= last {
		return max(0, min(last, rung))
	}
	from, to := e.value(rung), e.value(rung+1)
	if share := (x - from) / (to - from); e.r.Dither.of(e.r.At+int64(e.at)) < share {
		rung++
	}
	return rung
}

// ladder has the numbers that codes stand for in order. A rung is one of them.
type ladder struct {
	values       []float64
	middles      []float64 // between each rung and the next
	below, above float64   // half a step beyond the ends
	codes        [256]byte // of each rung; of two zeros the positive one
	negative     [256]byte // the same for negative numbers; of two zeros the negative one

	cells [1 << cellBits]byte
	// Of a rung, for the loop over all elements: its value, the middle above it, and the numbers
	// between which it is the nearest one and clamps none.
	numbers, up, low, high [256]float64
	rung                   [256]byte // of each code
	isNumber               [256]bool
}

// ladders has the ladders that were asked for, by the address of the table and the number of codes.
var ladders sync.Map

type ladderKey struct {
	table *float64
	n     int
}

// ladderOf returns the ladder of the codes of so many bits.
func ladderOf(table []float64, bits int64) *ladder {
	n := min(len(table), 1<<bits)
	key := ladderKey{&table[0], n}
	if l, ok := ladders.Load(key); ok {
		return l.(*ladder)
	}
	l := newLadder(table[:n])
	ladders.Store(key, l)
	return l
}

func newLadder(table []float64) *ladder {
	l := new(ladder)
	var order []int
	for code, x := range table {
		if l.isNumber[code] = x-x == 0; l.isNumber[code] {
			order = append(order, code)
		}
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case table[i] < table[j]:
			return -1
		case table[i] > table[j]:
			return 1
		}
		return 0
	})
	for _, code := range order {
		last := len(l.values) - 1
		if last < 0 || l.values[last] != table[code] {
			l.values = append(l.values, table[code])
			last++
			l.codes[last] = byte(code)
		}
		l.rung[code], l.negative[last] = byte(last), byte(code)
	}
	for i := range l.values[1:] {
		l.middles = append(l.middles, (l.values[i]+l.values[i+1])/2)
	}
	l.fillCells()
	last := len(l.values) - 1
	l.below, l.above = l.values[0]+(l.values[0]-l.middles[0]), l.values[last]+(l.values[last]-l.middles[last-1])
	l.values = append(l.numbers[:0], l.values...)
	copy(l.up[:], l.middles)
	copy(l.high[:], l.middles)
	copy(l.low[1:], l.middles)
	l.up[last], l.high[last], l.low[0] = math.Inf(1), l.above, l.below
	return l
}

// cellBits is the number of bits of a float32 number that tell its cell: sign, exponent, and five
// bits of the fraction.
const cellBits = 14

// near returns the rung nearest to u, or where u is within the rounding of a float32 of a middle,
// one beside it.
func (l *ladder) near(u float64) int {
	rung := l.cells[math.Float32bits(float32(u))>>(32-cellBits)]
	for l.up[rung] < u {
		rung++
	}
	return int(rung)
}

// fillCells writes for each cell the rung nearest to its least number.
func (l *ladder) fillCells() {
	for c := range l.cells {
		low := math.Float32frombits(uint32(c) << (32 - cellBits))
		if c >= len(l.cells)/2 { // a negative number: the least one is the largest magnitude
			low = math.Float32frombits(uint32(c)<<(32-cellBits) | (1<<(32-cellBits) - 1))
		}
		rung, isMiddle := slices.BinarySearch(l.middles, float64(low))
		if isMiddle {
			rung++
		}
		l.cells[c] = byte(rung)
	}
}

// pack writes the codes of a row, one from a byte.
func (p *packing) pack(row, codes []byte) {
	for col, code := range codes {
		at := p.bitOf(int64(col))
		for left, x := p.bits, uint16(code); left > 0; {
			shift := at % 8
			n := min(left, 8-shift)
			mask := byte(1<<n-1) << shift
			row[at/8] = row[at/8]&^mask | byte(x<<shift)&mask
			x >>= n
			at, left = at+n, left-n
		}
	}
}

// RowBytes implements Recoder.
func (w *inBlocks) RowBytes(cols int64) int64 {
	elements, size := w.blocks.Block()
	return cols / elements * size
}

// Recode implements Recoder.
func (w *inBlocks) Recode(ctx context.Context, r *Recoding, _ Parts) error {
	elements, size := w.blocks.Block()
	narrow := sized(&r.narrow, elements)
	for first, codes := 0, r.Codes; first < len(r.Was); first, codes = first+int(elements), codes[size:] {
		isSame, isNumber := true, true
		for i := range narrow {
			narrow[i] = float32(r.Sum[first+i])
			isSame = isSame && (narrow[i] == float32(r.Was[first+i]) && (r.Dither == nil || r.Sum[first+i] == r.Was[first+i]))
			isNumber = isNumber && narrow[i]-narrow[i] == 0
		}
		now := r.Now[first:][:elements]
		if copy(now, r.Was[first:]); isSame {
			continue
		}
		if !isNumber { // no block holds it
			copy(now, r.Sum[first:])
			continue
		}
		if w.blocks.Encode(codes[:size], narrow); r.Dither != nil && w.blocks == ggml.Q8_0 {
			r.Dither.eights(codes[:size], r.Sum[first:][:elements], r.At+int64(first))
		}
		w.blocks.Decode(now, codes[:size])
	}
	return ctx.Err()
}

// Dither has a random number for each element of a weight.
type Dither struct{ key uint64 }

// NewDither returns the numbers that belong to a seed and the name of a weight.
func NewDither(seed int64, name string) *Dither {
	key := mixed(uint64(seed))
	for _, c := range []byte(name) {
		key = mixed(key ^ uint64(c))
	}
	return &Dither{key}
}

// of returns the number of an element, at least 0 and below 1.
func (d *Dither) of(element int64) float64 {
	return float64(mixed(d.key+uint64(element)*0x9e3779b97f4a7c15)>>11) * 0x1p-53
}

// mixed is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
// generators", 2014).
func mixed(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// eights chooses the codes of a block of Q8_0 at random, with its scale as it is.
func (d *Dither) eights(block []byte, x []float64, at int64) {
	scale := dtype.Load(dtype.F16, block, 0)
	for i, v := range x {
		if q := math.Floor(v/scale + d.of(at+int64(i))); q-q == 0 {
			block[len(block)-len(x)+i] = byte(int8(max(-127, min(127, q))))
		}
	}
}
