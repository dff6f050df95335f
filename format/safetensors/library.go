package safetensors

import (
	"context"
	"errors"
	"io"

	"github.com/loratool/loratool/format"
	nlp "github.com/nlpodyssey/safetensors"
)

// libraryTypes returns the library's dtypes of tensors. ok is false if it lacks one: it has no
// 8-bit floats, no dtype of less than a byte, and no complex numbers.
func libraryTypes(tensors []format.Tensor) (types []nlp.DType, ok bool) {
	types = make([]nlp.DType, len(tensors))
	for i := range tensors {
		var err error
		if types[i], err = nlp.ParseDType(tensors[i].DType.String()); err != nil {
			return nil, false
		}
	}
	return types, true
}

// writeByLibrary is Write for tensors whose dtypes the library has. Unlike Write itself it sorts
// the entries of the header by name.
func writeByLibrary(ctx context.Context, w io.Writer, tensors []format.Tensor, types []nlp.DType, metadata map[string]string, read func(p []byte, i int, off int64) error) error {
	views := make(map[string]view, len(tensors))
	var failure error
	for i := range tensors {
		t := &tensors[i]
		load := func() ([]byte, error) {
			p := make([]byte, t.NBytes())
			return p, errors.Join(ctx.Err(), read(p, i, 0))
		}
		views[t.Name] = view{tensor: t, dtype: types[i], load: load, failure: &failure}
	}
	err := nlp.SerializeToWriter(views, metadata, w)
	return errors.Join(failure, err)
}

// view is a tensor that is read when the library writes it. The library's interface has no error,
// so view keeps the first one and reads nothing after it.
type view struct {
	tensor  *format.Tensor
	dtype   nlp.DType
	load    func() ([]byte, error)
	failure *error
}

func (v view) DType() nlp.DType { return v.dtype }
func (v view) DataLen() uint64  { return uint64(v.tensor.NBytes()) }
func (v view) Shape() []uint64  { return append([]uint64{}, v.tensor.Shape...) } // a nil slice would be written as null

func (v view) Data() []byte {
	if *v.failure != nil {
		return nil
	}
	p, err := v.load()
	*v.failure = err
	return p
}
