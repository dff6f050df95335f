package checkpoint_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
	"github.com/loratool/loratool/rank"
)

// scaledInt8 shows X.codes (I8, m×n) times X.scales (F32, m) as X.weight.
func scaledInt8(d dtype.Type) checkpoint.Storage {
	return func(_ context.Context, c *checkpoint.Checkpoint) (*checkpoint.Checkpoint, error) {
		return c.View(func(_ int, f *checkpoint.File) []checkpoint.Shown {
			shown, isCoded := []checkpoint.Shown{}, false
			for i := range f.Tensors {
				t := &f.Tensors[i]
				module, ok := strings.CutSuffix(t.Name, ".codes")
				scales, _ := c.Lookup(module + ".scales")
				switch {
				case ok:
					isCoded = true
					values := &decoder{d, int64(t.Shape[1]), t, scales.Tensor}
					n, _ := d.NBytes(uint64(t.Elements()))
					shown = append(shown, checkpoint.Shown{
						Name: module + ".weight", DType: d, Shape: t.Shape, Pieces: []checkpoint.Piece{{Source: values, N: n}},
					})
				case !strings.HasSuffix(t.Name, ".scales"):
					shown = append(shown, t.Shown())
				}
			}
			if !isCoded {
				return nil
			}
			return shown
		})
	}
}

// decoder reads codes times scales as values of dtype d.
type decoder struct {
	d             dtype.Type
	nCols         int64
	codes, scales *checkpoint.Tensor
}

func (x *decoder) ReadAt(ctx context.Context, p []byte, off int64) error {
	size := int64(x.d.Size())
	first, end := off/size, (off+int64(len(p))+size-1)/size
	if first == end {
		return nil
	}
	row0, row1 := first/x.nCols, (end-1)/x.nCols+1
	codes, scales := make([]byte, end-first), make([]byte, 4*(row1-row0))
	if err := x.codes.ReadAt(ctx, codes, first); err != nil {
		return err
	}
	if err := x.scales.ReadAt(ctx, scales, 4*row0); err != nil {
		return err
	}
	values := make([]byte, (end-first)*size)
	for i := range codes {
		row := (first+int64(i))/x.nCols - row0
		dtype.Store(x.d, values, i, float64(int8(codes[i]))*dtype.Load(dtype.F32, scales, int(row)))
	}
	copy(p, values[off-first*size:])
	return nil
}

// coded returns a model with two coded matrices and other tensors around them, and the same model
// with values of dtype d in place of the codes.
func coded(rng *rand.Rand, d dtype.Type, m, n uint64) (codes, plain []testkit.Tensor) {
	norm := testkit.Random(rng, "norm.weight", dtype.F16, 1, 5)
	codes, plain = append(codes, norm), append(plain, norm)
	for i := range 2 {
		name := fmt.Sprintf("layers.%d.q_proj", i)
		code := testkit.Tensor{Name: name + ".codes", DType: dtype.I8, Shape: []uint64{m, n}, Data: make([]byte, m*n)}
		scale := testkit.Tensor{Name: name + ".scales", DType: dtype.F32, Shape: []uint64{m}}
		size := uint64(d.Size())
		value := testkit.Tensor{Name: name + ".weight", DType: d, Shape: []uint64{m, n}, Data: make([]byte, m*n*size)}
		for row := range m {
			s := rng.Float32() / 1000
			scale.Data = binary.LittleEndian.AppendUint32(scale.Data, math.Float32bits(s))
			for j := row * n; j < (row+1)*n; j++ {
				code.Data[j] = byte(rng.IntN(256))
				dtype.Store(d, value.Data, int(j), float64(int8(code.Data[j]))*float64(s))
			}
		}
		codes, plain = append(codes, code, scale), append(plain, value)
	}
	last := testkit.Random(rng, "head.weight", dtype.F32, 1, 7, 3)
	return append(codes, last), append(plain, last)
}

// TestStorageIsReadByMergeAndExtract: merge and extract read a storage known only to its own file
// as if its values were stored plainly.
func TestStorageIsReadByMergeAndExtract(t *testing.T) {
	for _, d := range []dtype.Type{dtype.F32, dtype.BF16} {
		t.Run(d.String(), func(t *testing.T) {
			t.Cleanup(checkpoint.WithStorage(scaledInt8(d)))
			rng := rand.New(rand.NewPCG(11, 12))
			const m, n, r = 33, 47, 4
			codes, plain := coded(rng, d, m, n)
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			testkit.Write(t, in("codes.safetensors"), testkit.Encode(map[string]string{"format": "pt"}, codes...))
			testkit.Write(t, in("plain.safetensors"), testkit.Encode(map[string]string{"format": "pt"}, plain...))
			testkit.WriteAdapter(t, in("adapter"), r, r,
				testkit.Random(rng, "base_model.model.layers.1.q_proj.lora_A.weight", dtype.F32, 0.1, r, n),
				testkit.Random(rng, "base_model.model.layers.1.q_proj.lora_B.weight", dtype.F32, 0.1, m, r))

			checkSame(t, contents(t, open(t, in("codes.safetensors"))), contents(t, open(t, in("plain.safetensors"))))
			for _, block := range []int{0, 1000} {
				a := mergeInto(t, in("codes.safetensors"), in("adapter"), block)
				b := mergeInto(t, in("plain.safetensors"), in("adapter"), block)
				checkSame(t, contents(t, open(t, a)), contents(t, open(t, b)))
				checkSameAdapter(t, extract(t, in("codes.safetensors"), a, r), extract(t, in("plain.safetensors"), b, r))
			}
		})
	}
}

// checkSame compares tensors. contents says which file holds each one, and these files have
// different names here.
func checkSame(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, values := range []map[string]string{got, want} {
		for name, v := range values {
			_, values[name], _ = strings.Cut(v, " ")
		}
	}
	if len(want) == 0 || !reflect.DeepEqual(got, want) {
		t.Errorf("%d tensors of the codes are not the %d of the values", len(got), len(want))
	}
}

func mergeInto(t *testing.T, base, adapter string, block int) (out string) {
	t.Helper()
	src, err := convert.Open(t.Context(), adapter, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{BlockBytes: block})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out = filepath.Join(t.TempDir(), "out.safetensors")
	if _, err := p.Run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func extract(t *testing.T, base, tuned string, r int) format.Source {
	t.Helper()
	e, err := rank.OpenExtraction(t.Context(), base, tuned, rank.ExtractOptions{Rule: rank.FixedRank{K: r}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	src, _, err := e.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func checkSameAdapter(t *testing.T, got, want format.Source) {
	t.Helper()
	tensors := want.Manifest().Tensors
	if len(tensors) == 0 || !reflect.DeepEqual(got.Manifest().Tensors, tensors) {
		t.Fatalf("extracted %v, want %v", got.Manifest().Tensors, tensors)
	}
	for i := range tensors {
		a, b := make([]byte, tensors[i].NBytes()), make([]byte, tensors[i].NBytes())
		if err := got.ReadBlobAt(a, i, 0); err != nil {
			t.Fatal(err)
		}
		if err := want.ReadBlobAt(b, i, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("the factor %s differs", tensors[i].Name)
		}
	}
}
