package quant

import (
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/ggml"
)

// Encoding is a scheme that programs quantise weights to, with the rule by which one of them
// chooses the scales.
type Encoding int

const (
	// FP8 has codes of F8_E4M3, and a scale in F32 for 128×128 elements: that of transformers'
	// Fp8Quantize, 1/(448/amax) in F32. transformers leaves a weight alone whose sides are no
	// multiples of 128; here its last blocks are short, as DeepSeek's are.
	FP8 Encoding = iota + 1
	// MXFP4 has codes of 4 bits, and a power of two for 32 elements of a row: that of the OCP
	// Microscaling specification 1.0, section 6.3, 2^(⌊log₂ amax⌋ − 2). Its codes are rounded to
	// even, and larger values become ±6.
	MXFP4
	// NF4 has codes of 4 bits, and amax in F32 for 64 elements of the flattened weight, as
	// bitsandbytes without double quantisation.
	NF4
	// NVFP4 has codes of 4 bits, and a scale in F8_E4M3 for 16 elements of a row, divided by one of
	// the whole matrix in F32: those of compressed-tensors for weights in F32, RN(g · amax/6) with
	// g = 2688/amax of the matrix. Its codes are rounded to even.
	NVFP4
	// INT4 has integers from −8 to 7, and a scale in F32 for 128 elements of a row, amax/7.5, as
	// compressed-tensors has them for weights in F32. compressed-tensors does not quantise a weight
	// whose rows end within a group; here their last groups are short.
	INT4
	// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are types of GGUF: blocks of 32 elements of a row, as
	// llama-quantize makes them on x86-64.
	Q8_0
	Q4_0
	Q4_1
	Q5_0
	Q5_1
)

// Encodings lists the names of the encodings, in the order of their values from 1 on.
var Encodings = []string{"fp8", "mxfp4", "nf4", "nvfp4", "int4", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}

// ParseEncoding returns the encoding with a name.
func ParseEncoding(name string) (e Encoding, ok bool) {
	i := slices.Index(Encodings, name)
	return Encoding(i + 1), i >= 0
}

func (e Encoding) String() string { return Encodings[e-1] }

// ofGGML returns the type of GGUF that the encoding is.
func (e Encoding) ofGGML() (t ggml.Type, ok bool) {
	t, ok = map[Encoding]ggml.Type{
		Q8_0: ggml.Q8_0, Q4_0: ggml.Q4_0, Q4_1: ggml.Q4_1, Q5_0: ggml.Q5_0, Q5_1: ggml.Q5_1,
	}[e]
	return t, ok
}

// Stores reports whether a scheme of Weight.Scheme has codes of the encoding that can change while
// the scales stay. Programs choose the scales of GGUF's blocks anew.
func (e Encoding) Stores(scheme string) bool {
	switch e {
	case FP8:
		return strings.HasPrefix(scheme, "FP8") || scheme == "MXFP8"
	case MXFP4:
		return scheme == "MXFP4"
	case NF4:
		return strings.HasPrefix(scheme, "NF4 ")
	case NVFP4:
		return strings.HasPrefix(scheme, "NVFP4 ")
	case INT4:
		return strings.HasPrefix(scheme, "INT4 of compressed-tensors") && !strings.Contains(scheme, "zero points")
	}
	return false
}

// FitsAlong reports whether programs quantise rows of n elements so.
func (e Encoding) FitsAlong(n int) bool {
	t, ok := e.ofGGML()
	elements, _ := t.Block()
	return !ok || n%int(elements) == 0
}

// NeedsLargest reports whether Encode needs the largest magnitude of the whole matrix.
func (e Encoding) NeedsLargest() bool { return e == NVFP4 }

// RowsAtOnce returns a number of rows whose multiples can be encoded alone: no block begins in such
// a part of the weight and ends in another.
func (e Encoding) RowsAtOnce(cols int) int {
	switch e {
	case FP8:
		return blockFP8
	case NF4:
		n := blockNF4
		for n > 1 && n/2*cols%blockNF4 == 0 {
			n /= 2
		}
		return n
	}
	return 1
}

// FitsAcross reports whether the blocks of a transposed weight end with its rows, which have this
// many elements: then AcrossAtOnce elements of each row can be encoded alone, and multiples of
// them.
func (e Encoding) FitsAcross(n int) bool {
	return e.FitsAlong(n) && (e != NF4 || n%blockNF4 == 0)
}

// AcrossAtOnce is a multiple of the sides of all blocks.
const AcrossAtOnce = blockFP8

// Sides of blocks.
const (
	blockFP8  = 128
	blockNF4  = 64
	groupINT4 = 128
)

// Memory is kept between calls of RoundTrip. The zero value is ready.
type Memory struct {
	codes  []byte
	scales []float32
}

// RoundTrip writes the values of a matrix after a quantisation with fresh scales: of all rows, or
// of a multiple of RowsAtOnce from such a multiple on. amax is Largest of the whole matrix, if the
// encoding needs it. FitsAlong(cols) must be true.
func (e Encoding) RoundTrip(dst []float64, x []float32, rows, cols int, amax float32, m *Memory) {
	if t, ok := e.ofGGML(); ok {
		elements, size := t.Block()
		blocks := sized(&m.codes, int64(len(x))/elements*size)
		t.Encode(blocks, x)
		t.Decode(dst, blocks)
		return
	}
	codes := sized(&m.codes, int64(len(x)))
	m.scales = e.Encode(codes, m.scales[:0], x, rows, cols, amax)
	e.Decode(dst, codes, m.scales, rows, cols)
}

// group returns the number of elements of a row that share a scale, 0 for other blocks.
func (e Encoding) group() int {
	switch e {
	case MXFP4:
		return groupMX
	case NVFP4:
		return groupNV
	case INT4:
		return groupINT4
	}
	return 0
}

// Encode quantises the rows of a matrix with fresh scales: all rows, or a multiple of RowsAtOnce
// from such a multiple on. amax is Largest of the whole matrix, if the encoding needs it. Encode
// writes a code for each element, and appends the scales to scales. The types of GGUF have no codes
// apart from their blocks, and no scales; RoundTrip knows them.
func (e Encoding) Encode(codes []byte, scales []float32, x []float32, rows, cols int, amax float32) []float32 {
	switch e {
	case FP8:
		for i := 0; i < rows; i += blockFP8 {
			for j := 0; j < cols; j += blockFP8 {
				b := tile{x, i, j, min(rows, i+blockFP8), min(cols, j+blockFP8), cols}
				scales = append(scales, b.encode(codes))
			}
		}
	case MXFP4, NVFP4, INT4:
		global := globalNVFP4(amax)
		for i := range rows {
			for j := 0; j < cols; j += e.group() {
				at, end := i*cols+j, i*cols+min(cols, j+e.group())
				scales = append(scales, e.encodeGroup(codes[at:end], x[at:end], global))
			}
		}
	case NF4:
		for at := 0; at < len(x); at += blockNF4 {
			end := min(len(x), at+blockNF4)
			scales = append(scales, encodeNF4(codes[at:end], x[at:end]))
		}
	}
	return scales
}

// Decode writes the values of codes and scales that Encode wrote.
func (e Encoding) Decode(dst []float64, codes []byte, scales []float32, rows, cols int) {
	width, height := e.group(), 1
	switch e {
	case FP8:
		width, height = blockFP8, blockFP8
	case NF4:
		rows, cols, width = 1, rows*cols, blockNF4
	}
	table := e.table()
	across := (cols + width - 1) / width
	for i := range rows {
		for block := range across {
			from, end := i*cols+block*width, i*cols+min(cols, (block+1)*width)
			scale := float64(scales[i/height*across+block])
			values := dst[from:end]
			for j, code := range codes[from:end] {
				values[j] = table[code] * scale
			}
		}
	}
}

func (e Encoding) table() []float64 {
	switch e {
	case FP8:
		return e4m3[:]
	case MXFP4, NVFP4:
		return e2m1[:]
	case INT4:
		return offsetCodes[4][:16]
	}
	return nf4[:]
}

// Nearest writes the values that are nearest to x where each element keeps its scale. Of two
// equally near ones it takes the even code.
func (e Encoding) Nearest(dst, x, scales []float64) {
	for i, s := range scales {
		if s == 0 {
			dst[i] = 0
			continue
		}
		y := x[i] / s
		switch e {
		case FP8:
			y = e4m3[codeE4M3.of(y)]
		case MXFP4, NVFP4:
			y = e2m1[codeE2M1.of(y)]
		case INT4:
			y = math.RoundToEven(min(7, max(-8, y)))
		case NF4:
			y = nf4[nearestNF4(y)]
		}
		dst[i] = y * s
		if x[i] != x[i] {
			dst[i] = x[i]
		}
	}
}

// tile is a block of a matrix with cols columns.
type tile struct {
	x                            []float32
	row0, col0, row1, col1, cols int
}

// encode quantises a block to F8_E4M3, and returns its scale.
func (b *tile) encode(codes []byte) float32 {
	var amax float32
	for i := b.row0; i < b.row1; i++ {
		amax = max(amax, Largest(b.x[i*b.cols+b.col0:i*b.cols+b.col1]))
	}
	by := float32(1)
	if amax > 0 {
		by = 1 / amax * 448 // torch divides a number by a tensor so
	}
	for i := b.row0; i < b.row1; i++ {
		for at := i*b.cols + b.col0; at < i*b.cols+b.col1; at++ {
			codes[at] = codeE4M3.of(float64(b.x[at] * by))
		}
	}
	return 1 / by
}

// encodeGroup quantises elements of a row that share a scale, and returns it. global is that of the
// matrix, for NVFP4.
func (e Encoding) encodeGroup(codes []byte, x []float32, global float32) float32 {
	switch e {
	case NVFP4:
		return encodeNVFP4(codes, x, global)
	case INT4:
		return encodeINT4(codes, x)
	}
	return encodeMXFP4(codes, x)
}

// globalNVFP4 returns the scale of a matrix by which those of its groups are divided.
func globalNVFP4(amax float32) float32 {
	g := 1 / max(amax, 0x1p-126) * (448 * 6) // torch divides a number by a tensor so
	if g-g != 0 {
		return 1
	}
	return g
}

// encodeNVFP4 quantises a group of NVFP4, and returns its scale, divided by that of the matrix.
func encodeNVFP4(codes []byte, x []float32, global float32) float32 {
	const least = 0.125 // in place of 0
	scale := float32(e4m3[codeE4M3.of(float64(global*(Largest(x)/6)))])
	if scale == 0 {
		scale = least
	}
	scale /= global
	for i, v := range x {
		if v /= scale; v == 0 {
			v = 0 // without a sign
		}
		codes[i] = codeE2M1.of(float64(v))
	}
	return scale
}

// encodeINT4 quantises a group of INT4, and returns its scale. A code is an integer and 8.
func encodeINT4(codes []byte, x []float32) float32 {
	scale := Largest(x) / 7.5
	if scale == 0 {
		scale = 0x1p-23 // least
	}
	for i, v := range x {
		q := float64(v / scale)
		if q != q {
			q = 0
		}
		codes[i] = byte(8 + math.RoundToEven(min(7, max(-8, q))))
	}
	return scale
}

// encodeMXFP4 quantises a block of MXFP4, and returns its scale.
func encodeMXFP4(codes []byte, x []float32) float32 {
	amax := Largest(x)
	exponent := max(0, int(math.Float32bits(amax)>>23)-2)
	if amax != amax {
		exponent = 255
	}
	scale := e8m0(byte(exponent))
	by := math.Max(scale, 0x1p-126) // torchao's least, only for blocks of less than 2⁻¹²⁴
	for i, v := range x {
		codes[i] = codeE2M1.of(float64(v) / by)
	}
	return float32(scale)
}

// encodeNF4 quantises a block of NF4, and returns its scale. bitsandbytes multiplies by 1/amax, but
// divides the last block of a weight if it is short.
func encodeNF4(codes []byte, x []float32) float32 {
	const least = 1e-38
	amax := Largest(x)
	by := 1 / max(amax, least)
	isShort := len(x) < blockNF4
	if isShort {
		amax = max(amax, least)
	}
	for i, v := range x {
		if v *= by; isShort {
			v = x[i] / amax
		}
		codes[i] = bucketNF4(min(1, max(-1, v)))
	}
	return amax
}

// Largest returns the largest magnitude, NaN if there is one.
func Largest(x []float32) (amax float32) {
	for _, v := range x {
		amax = max(amax, math.Float32frombits(math.Float32bits(v)&^(1<<31)))
	}
	return amax
}

// smallFloat is a code of a sign, an exponent and a fraction, without infinities.
type smallFloat struct {
	fraction uint // bits
	bias     int
	sign     byte
	most     byte // the code of the largest value
	nan      byte
}

var (
	codeE4M3 = smallFloat{fraction: 3, bias: 7, sign: 0x80, most: 0x7e, nan: 0x7f}
	codeE2M1 = smallFloat{fraction: 1, bias: 1, sign: 8, most: 7, nan: 7}
)

// of returns the code that is nearest to y, the even one of two, and the largest for larger values.
func (f *smallFloat) of(y float64) (code byte) {
	bits := math.Float64bits(y) &^ (1 << 63)
	switch a := math.Float64frombits(bits); {
	case a != a:
		code = f.nan
	case int(bits>>52)-1023 < 1-f.bias: // a subnormal code, or the least normal one
		code = byte(math.RoundToEven(math.Ldexp(a, int(f.fraction)+f.bias-1)))
	default:
		drop := 52 - f.fraction
		bits += 1<<(drop-1) - 1 + bits>>drop&1
		code = byte(min(uint64(f.most), bits>>drop-uint64(1023-f.bias)<<f.fraction))
	}
	if math.Signbit(y) {
		code |= f.sign
	}
	return code
}

// nf4 holds the values of the codes of NF4, which are float32 numbers (Dettmers et al.,
// arXiv:2305.14314, appendix E).
var nf4 = [16]float64{
	-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
	-0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
	0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
	0.7229568362236023, 1,
}

// boundsNF4 are the midpoints between values as bitsandbytes computes them, in float32, and one
// that no value is above.
var boundsNF4 = func() (bounds [16]float32) {
	for i := range 15 {
		bounds[i] = (float32(nf4[i]) + float32(nf4[i+1])) / 2
	}
	bounds[15] = 1
	return bounds
}()

// cellNF4 divides the numbers from −1 to 1 into cells, in order, with at most one bound in each.
func cellNF4(v float32) int { return int((v + 1) * 127) }

// belowNF4 is the number of bounds in the cells below a cell.
var belowNF4 = func() (below [255]byte) {
	for c := range below {
		for _, b := range boundsNF4[:15] {
			if cellNF4(b) < c {
				below[c]++
			}
		}
	}
	return below
}()

// bucketNF4 returns the number of bounds below v, which is from −1 to 1 or NaN: a value on a bound
// gets the lower code.
func bucketNF4(v float32) byte {
	if v != v {
		return 15
	}
	code := belowNF4[cellNF4(v)]
	if v > boundsNF4[code] {
		code++
	}
	return code
}

// nearestNF4 returns the code that is nearest to y, the even one of two.
func nearestNF4(y float64) (code byte) {
	for step := byte(8); step > 0; step /= 2 {
		bound := (nf4[code+step-1] + nf4[code+step]) / 2
		if y > bound || y == bound && (code+step)%2 == 0 {
			code += step
		}
	}
	return code
}
