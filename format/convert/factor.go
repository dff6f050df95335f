package convert

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// factor is a tensor of a new file, made of tensors of a source.
type factor struct {
	dtype  dtype.Type
	shape  []uint64
	blocks []block
}

// block is a part of a factor that comes from one tensor of the source.
type block struct {
	tensor int
	times  float64 // what each element is multiplied by
	rounds bool    // the products may be rounded

	// The rest is for a factor of several blocks, seen as a matrix: the dimensions behind the first
	// one are its columns.
	row, col int   // where the block begins
	rows     []int // of the tensor; nil takes the whole tensor
	to       []int // where each of rows goes; nil lists them from row on
	cols     []int // nil takes all columns
	isVector bool  // each element of the tensor is a row

	arrange func(data []byte) []byte // for a factor of one block: gives the elements another order
}

// wholeOf returns a factor that is a tensor of the source as it is.
func wholeOf(m *format.Manifest, i int) *factor {
	t := &m.Tensors[i]
	return &factor{dtype: t.DType, shape: t.Shape, blocks: []block{{tensor: i, times: 1}}}
}

// isWhole reports whether the factor is a tensor of the source, byte for byte.
func (f *factor) isWhole(m *format.Manifest) bool {
	b := &f.blocks[0]
	return len(f.blocks) == 1 && b.rows == nil && b.arrange == nil && b.times == 1 && f.dtype == m.Tensors[b.tensor].DType
}

// content returns the data of the factor.
func (f *factor) content(ctx context.Context, src format.Source) ([]byte, error) {
	n, _ := dtype.NElements(f.shape)
	size, _ := f.dtype.NBytes(n)
	out := make([]byte, size)
	for i := range f.blocks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := f.put(out, src, &f.blocks[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// put writes a block into the data of the factor.
func (f *factor) put(out []byte, src format.Source, b *block) error {
	t := &src.Manifest().Tensors[b.tensor]
	data, err := dataOf(src, b.tensor)
	if err != nil {
		return err
	}
	if data, err = multiplied(t, data, b.times, f.dtype, b.rounds); err != nil {
		return err
	}
	if b.arrange != nil {
		data = b.arrange(data)
	}
	if b.rows == nil {
		copy(out, data)
		return nil
	}
	size := f.dtype.Size()
	n := int(t.Shape[0])
	if b.isVector {
		n = int(t.Elements()) // the magnitudes of a convolution are 1×m×1×1 in PEFT
	}
	line, stride := len(data)/n, len(out)/int(f.shape[0])
	for i, row := range b.rows {
		from := data[row*line : (row+1)*line]
		at := b.row + i
		if b.to != nil {
			at = b.to[i]
		}
		to := out[at*stride+b.col*size:]
		if b.cols == nil {
			copy(to, from)
			continue
		}
		for k, col := range b.cols {
			copy(to[k*size:(k+1)*size], from[col*size:])
		}
	}
	return nil
}

// dataOf reads a tensor of a source.
func dataOf(src format.Source, i int) ([]byte, error) {
	p := make([]byte, src.Manifest().Tensors[i].NBytes())
	return p, src.ReadBlobAt(p, i, 0)
}

// multiplied returns the elements of a tensor times x in another dtype. Rounding them is an error
// unless it is allowed; a number that becomes infinite always is one.
func multiplied(
	t *format.Tensor, data []byte, x float64, to dtype.Type, rounds bool,
) ([]byte, error) {
	if x == 1 && to == t.DType {
		return data, nil
	}
	if !t.DType.IsFloat() || !to.IsFloat() {
		return nil, fault.New(fault.Unsupported, "%s has dtype %v, and only F64, F32, F16 and BF16 "+
			"can be joined or multiplied", t.Name, t.DType)
	}
	n := len(data) / t.DType.Size()
	out := make([]byte, n*to.Size())
	for i := range n {
		v := dtype.Load(t.DType, data, i)
		dtype.Store(to, out, i, v*x)
		switch y := dtype.Load(to, out, i); {
		case !rounds && !isProduct(y, v, x):
			return nil, newInexact(t.Name, v, x, to)
		case math.IsInf(y, 0) && !math.IsInf(v*x, 0):
			return nil, fault.New(fault.Unsupported, "%s holds %v, which does not fit the range of %v", t.Name, v*x, to).
				WithHint("store the factors in BF16 or F32 (CreateOptions.DType)")
		}
	}
	return out, nil
}

// isProduct reports whether y is x·v, exactly.
func isProduct(y, v, x float64) bool {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return math.IsNaN(y) == math.IsNaN(v*x) && math.IsInf(y, 0) == math.IsInf(v*x, 0)
	}
	return !math.IsInf(y, 0) && math.FMA(v, x, -y) == 0 && (y != 0 || v == 0 || x == 0)
}

// inexactError reports a product that a dtype does not hold.
type inexactError struct {
	name    string
	x       float64
	to      dtype.Type
	ofRange bool // another exponent would do
}

func newInexact(name string, v, x float64, to dtype.Type) *inexactError {
	digits, _ := math.Frexp(v * x)
	p := make([]byte, to.Size())
	dtype.Store(to, p, 0, digits)
	fits := dtype.Load(to, p, 0) == digits && math.FMA(v, x, -v*x) == 0
	return &inexactError{name, x, to, fits}
}

func (e *inexactError) Error() string {
	return fmt.Sprintf("%s times %v is not exact in %v", e.name, e.x, e.to)
}

// common returns the narrowest dtype that holds the elements of all given ones.
func common(types []dtype.Type) (dtype.Type, bool) {
	all := slices.Compact(slices.Sorted(slices.Values(types)))
	if len(all) == 1 {
		return all[0], true
	}
	for _, t := range all {
		if !t.IsFloat() {
			return dtype.Invalid, false
		}
	}
	if slices.Contains(all, dtype.F64) {
		return dtype.F64, true
	}
	return dtype.F32, true
}
