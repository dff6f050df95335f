// Package quant knows how quantised models store their weights: which tensors of a checkpoint hold
// the codes and scales of one weight, and which real number each code stands for. It compares
// names, dtypes and shapes, and turns bytes into numbers; it opens no file.
//
// Most values are exact in float64, because a code has at most 8 significant bits and a scale 24.
// The exceptions are INT8 of bitsandbytes and NVFP4 of compressed-tensors, whose values are rounded
// once to float64.
package quant

import (
	"context"

	"github.com/loratool/loratool/format/dtype"
)

// Tensor is a tensor of a checkpoint, as its header describes it.
type Tensor struct {
	Name  string
	DType dtype.Type
	Shape []uint64
}

// Found is the result of Recognise.
type Found struct {
	Weights []Weight
	Refused []Refusal
}

// Weight is a tensor of the model that the checkpoint stores as codes and scales.
type Weight struct {
	Name   string
	Shape  []uint64
	DType  dtype.Type // that of the weight before it was quantised, as far as the checkpoint tells: F16, BF16 or F32
	Scheme string     // such as "FP8 in blocks of 128×128"
	Parts  []string   // the tensors that Codec reads, the codes first
	Beside []string   // tensors that belong to the codes and do not change the values, such as scales of activations
	Codec  Codec

	IsRounded bool // the values are rounded to float64
}

// Refusal is a weight that is stored in a way which this version does not read, or wrongly.
type Refusal struct {
	Name   string   // of the weight, as other checkpoints of the model call it
	Scheme string   // such as "GPTQ"
	Parts  []string // the tensors of the checkpoint that hold it
	Err    error    // wraps a kind of package fault
}

// Codec computes the values of a weight. Any number of goroutines may use one.
type Codec interface {
	// Decode writes elements at, at+1, … of the weight, in row-major order, to dst. The elements
	// must exist. Its errors are those of parts, those that Checker tells of, and those of lists of
	// groups that changed since Recognise read them.
	Decode(ctx context.Context, dst []float64, at int64, parts Parts) error
}

// Checker is implemented by codecs of weights whose tensors can hold what no weight has, such as an
// index beyond its end. Decode returns the same errors.
type Checker interface {
	Check(ctx context.Context, parts Parts) error
}

// Columnar is a Codec of a weight that is stored transposed, so that every row takes codes from all
// over it.
type Columnar interface {
	// RowsAtOnce returns the number of rows that a call of Decode should ask for.
	RowsAtOnce() int64
	// KeptBytes returns how much of the weight a Keeper is asked to keep for a call of Decode.
	KeptBytes() int64
}

// Keeper is a kind of Parts that keeps bytes in memory, for all that decode the weight.
type Keeper interface {
	// KeepPart returns n bytes of Weight.Parts[part] from offset off as arrange has moved them, or
	// nil if they are too many. The caller must not change them. Calls for the same bytes must
	// arrange them in the same way.
	KeepPart(ctx context.Context, part int, off, n int64, arrange func(raw []byte) []byte) ([]byte, error)
}

// Parts reads the stored tensors of a weight.
type Parts interface {
	// ReadPart fills p with the bytes of Weight.Parts[part] from offset off.
	ReadPart(ctx context.Context, p []byte, part int, off int64) error
}
