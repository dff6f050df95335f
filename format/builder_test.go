package format_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// TestABuiltAdapterIsTheSameAsOneByHand compares the content ids, which cover every layer, role,
// name, shape and value.
func TestABuiltAdapterIsTheSameAsOneByHand(t *testing.T) {
	b := format.NewBuilder("")
	b.Adapter().Base.Name = "example/base"
	b.Linear("model.layers.0.self_attn.q_proj", 2, 0,
		format.Float32s([]float32{1, 2, 3, 4, 5, 6, 7, 8}).Named("q_proj.lora_A"),
		format.Float32s([]float32{0.5, 0, 0, 0.5, 1, 1}).Named("q_proj.lora_B")).Alpha(4, format.AlphaOverR)
	built, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	got, err1 := format.ContentID(t.Context(), built)
	want, err2 := format.ContentID(t.Context(), adapter())
	if got != want || err1 != nil || err2 != nil {
		t.Errorf("content id %s (%v), want %s (%v)", got, err1, want, err2)
	}
}

// everything uses every method of a Builder.
func everything() *format.Builder {
	b := format.NewBuilder("toy")
	half := []byte{0, 0x3c, 0, 0x40, 0, 0x42, 0, 0x44} // 1, 2, 3, 4 in F16
	b.Embedding("embed", 1, 2, format.Float64s([]float64{1, 2, 3}), format.Bytes(dtype.F16, half))
	b.Linear("q", 2, 0.5, format.Float32s(make([]float32, 6)), format.At(dtype.F32, bytes.NewReader(make([]byte, 100)), 4, 4, 2)).
		Magnitude(format.Float32s([]float32{1, 2, 3, 4})).Bias(format.Float32s([]float32{5, 6, 7, 8}))
	b.Conv("conv", 1, 1, format.Float32s(make([]float32, 9), 1, 1, 3, 3), format.Float32s(make([]float32, 2), 2, 1, 1, 1))
	b.Replace("head.bias", format.Float32s([]float32{9}, 1))
	b.Rows("embed.weight", []int64{7, 3}, format.Float32s([]float32{1, 2, 3, 4, 5, 6, 7, 8}))
	b.Opaque("mystery", format.Bytes(dtype.U8, []byte{1, 2, 3}, 3), "riddle", "nobody knows")
	b.Attach("README.md", []byte("hello"))
	b.Manifest().Metadata = map[string]string{"k": "v"}
	return b
}

// TestABuiltAdapterIsWrittenAndRead: an adapter from a Builder comes back from a file unchanged,
// and lists its requirements.
func TestABuiltAdapterIsWrittenAndRead(t *testing.T) {
	ctx := t.Context()
	src, err := everything().Source()
	if err != nil {
		t.Fatal(err)
	}
	a := &src.Manifest().Adapters[0]
	if a.Method != "dora" || a.Dialect != "toy" {
		t.Errorf("method %q, dialect %q", a.Method, a.Dialect)
	}
	var features []format.Feature
	for _, r := range a.Requires {
		features = append(features, r.Feature)
	}
	if want := []format.Feature{format.FeatureConvolution, format.FeatureDoRA, format.FeatureLoRABias, "riddle"}; !slices.Equal(features, want) {
		t.Errorf("requires %q, want %q", features, want)
	}
	var file bytes.Buffer
	sum, err := format.Write(ctx, &file, src, format.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	back, err := format.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()), format.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if id, err := format.ContentID(ctx, src); id != sum.ContentID || err != nil {
		t.Errorf("content id %s (%v), the file has %s", id, err, sum.ContentID)
	}
	m := back.Manifest()
	values := make(map[string][]float64)
	shapes := make(map[string][]uint64)
	for i := range m.Tensors {
		shapes[m.Tensors[i].Name] = m.Tensors[i].Shape
		v, err := format.ReadFloats(ctx, back, i)
		if m.Tensors[i].Name == "mystery" {
			if !errors.Is(err, format.ErrUnsupported) {
				t.Errorf("ReadFloats of U8 = %v, %v, want unsupported", v, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		values[m.Tensors[i].Name] = v
	}
	for name, want := range map[string][]float64{
		"embed.lora_embedding_A": {1, 2, 3}, "embed.lora_embedding_B": {1, 2, 3, 4}, "q.lora_magnitude_vector": {1, 2, 3, 4},
		"q.lora_B.bias": {5, 6, 7, 8}, "q.lora_B.weight": make([]float64, 8), "head.bias": {9}, "embed.weight.rows": {1, 2, 3, 4, 5, 6, 7, 8},
	} {
		if !slices.Equal(values[name], want) {
			t.Errorf("%s = %v, want %v", name, values[name], want)
		}
	}
	for name, want := range map[string][]uint64{
		"q.lora_A.weight": {2, 3}, "q.lora_B.weight": {4, 2}, "embed.lora_embedding_A": {1, 3}, "embed.lora_embedding_B": {4, 1}, "embed.weight.rows": {2, 4},
	} {
		if !slices.Equal(shapes[name], want) {
			t.Errorf("%s has shape %d, want %d", name, shapes[name], want)
		}
	}
	if text, err := format.ReadAttachment(ctx, back, "README.md", 5); string(text) != "hello" || err != nil {
		t.Errorf("ReadAttachment = %q, %v", text, err)
	}
	if _, err := format.ReadAttachment(ctx, back, "README.md", 4); !errors.Is(err, format.ErrLimit) {
		t.Errorf("ReadAttachment with a limit of 4 = %v, want limit", err)
	}
	if text, err := format.ReadAttachment(ctx, back, "absent", 4); text != nil || err != nil {
		t.Errorf("ReadAttachment of what is not there = %q, %v", text, err)
	}
}

// TestMistakesOfABuilderAreNamed: Source refuses every invalid adapter and says why.
func TestMistakesOfABuilderAreNamed(t *testing.T) {
	ones := func(n int) format.Data { return format.Float32s(slices.Repeat([]float32{1}, n)) }
	for name, c := range map[string]struct {
		build func(b *format.Builder)
		want  string
	}{
		"nothing":            {func(b *format.Builder) {}, "no layer and no tensor"},
		"rank 0":             {func(b *format.Builder) { b.Linear("q", 0, 1, ones(2), ones(2)) }, "R37"},
		"A no multiple of r": {func(b *format.Builder) { b.Linear("q", 2, 1, ones(3), ones(4)) }, `"q.lora_A.weight" has 3 values, which is no multiple of the rank 2`},
		"B no multiple of r": {func(b *format.Builder) { b.Linear("q", 2, 1, ones(4), ones(5)) }, `"q.lora_B.weight" has 5 values, which is no multiple of the rank 2`},
		"a shape that is not the data": {func(b *format.Builder) {
			b.Linear("q", 1, 1, format.Float32s([]float32{1, 2}, 1, 3), ones(2))
		}, "has 2 values, want 3 for F32 of shape [1 3]"},
		"ranks that differ": {func(b *format.Builder) {
			b.Linear("q", 1, 1, format.Float32s([]float32{1, 2}, 2, 1), ones(2))
		}, "R39"},
		"a bias of another length": {func(b *format.Builder) { b.Linear("q", 1, 1, ones(2), ones(2)).Bias(ones(3)) }, "q.lora_B.bias"},
		"a replaced tensor without a shape": {func(b *format.Builder) {
			b.Replace("head", ones(2))
		}, `"head"`},
		"rows that do not divide": {func(b *format.Builder) { b.Rows("e", []int64{1, 2}, ones(3)) }, "e.rows"},
		"a module twice":          {func(b *format.Builder) { b.Linear("q", 1, 1, ones(2), ones(2)); b.Linear("q", 1, 1, ones(2), ones(2)) }, "q"},
	} {
		b := format.NewBuilder("toy")
		c.build(b)
		src, err := b.Source()
		switch {
		case err == nil || !errors.Is(err, format.ErrCorrupt) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: Source = %v, %v, want corrupt with %q", name, src, err, c.want)
		}
	}
}

// TestPiecesEndWhereTheLoopDoes: breaking out of the loop stops the reading, and a complete loop
// yields the same bytes as ReadTensor.
func TestPiecesEndWhereTheLoopDoes(t *testing.T) {
	ctx := t.Context()
	src, err := everything().Source()
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	want, err := format.Write(ctx, &file, src, format.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	start := func() *format.StreamReader {
		s, err := format.NewStreamReader(bytes.NewReader(file.Bytes()), format.ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := start()
	n := 0
	for range s.Pieces(ctx) {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 || s.Summary() != nil {
		t.Errorf("a loop that was left after 2 pieces saw %d, and has the summary %v", n, s.Summary())
	}
	s = start()
	back, err := format.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()), format.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	blobs := make(map[int][]byte)
	for piece, err := range s.Pieces(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		blobs[piece.Blob] = append(blobs[piece.Blob], piece.Bytes...)
	}
	if got := s.Summary(); got == nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Summary = %+v, want %+v", got, want)
	}
	for i := range back.Manifest().Tensors {
		if p, err := format.ReadTensor(ctx, back, i); !bytes.Equal(p, blobs[i]) || err != nil {
			t.Errorf("tensor %d: pieces % x, ReadTensor % x (%v)", i, blobs[i], p, err)
		}
	}
	damaged := bytes.Clone(file.Bytes())
	damaged[len(damaged)-50] ^= 1
	s, err = format.NewStreamReader(bytes.NewReader(damaged), format.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range s.Pieces(ctx) {
		last = err
	}
	if !errors.Is(last, format.ErrCorrupt) || s.Summary() != nil {
		t.Errorf("a damaged tail: %v, summary %v, want corrupt and none", last, s.Summary())
	}
}

// TestReadingATensorCanBeCancelled: the context is checked between two pieces.
func TestReadingATensorCanBeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	b := format.NewBuilder("toy")
	const n = 3 << 20
	b.Replace("x", format.Read(format.Tensor{DType: dtype.U8, Shape: []uint64{n}}, func(p []byte, _ int64) error {
		calls++
		cancel()
		return nil
	}))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := format.ReadTensor(ctx, src, 0); err != context.Canceled || calls != 1 {
		t.Errorf("ReadTensor = %v after %d reads, want context.Canceled after 1", err, calls)
	}
	if err := src.ReadBlobAt(make([]byte, 2), 0, n-1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a read over the end = %v, want an error", err)
	}
}

// TestATensorThatTheSourceLacksIsAnError: the index comes from a program or from a manifest.
func TestATensorThatTheSourceLacksIsAnError(t *testing.T) {
	src, err := everything().Source()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{-1, len(src.Manifest().Tensors)} {
		_, err := format.ReadTensor(t.Context(), src, i)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("no tensor %d", i)) {
			t.Errorf("ReadTensor(%d) = %v, want an error", i, err)
		}
		if _, err := format.ReadFloats(t.Context(), src, i); err == nil {
			t.Errorf("ReadFloats(%d) = nil, want an error", i)
		}
	}
}

// TestErrorfWrapsItsCause: errors.Is and errors.As find the kind and the cause.
func TestErrorfWrapsItsCause(t *testing.T) {
	cause := &fs.PathError{Op: "read", Path: "x.bin", Err: fs.ErrPermission}
	err := fmt.Errorf("outer: %w", format.Errorf(format.ErrCorrupt, "the header of x: %w", cause).In("dir"))
	var path *fs.PathError
	switch {
	case !errors.Is(err, format.ErrCorrupt), !errors.Is(err, fs.ErrPermission):
		t.Errorf("%v is not both corrupt and a missing permission", err)
	case !errors.As(err, &path) || path != cause:
		t.Errorf("errors.As finds %v, want the cause", path)
	case err.Error() != "outer: dir: the header of x: read x.bin: permission denied":
		t.Errorf("the message is %q", err)
	}
	if plain := format.Errorf(format.ErrLimit, "%d of %d", 3, 2); errors.Is(plain, fs.ErrPermission) ||
		plain.Msg != "3 of 2" || !errors.Is(plain, format.ErrLimit) {
		t.Errorf("an error without a cause is %+v", plain)
	}
}

// TestEveryFeatureHasItsType: an untyped constant is a string to %T and to a type switch.
func TestEveryFeatureHasItsType(t *testing.T) {
	for _, f := range []any{format.FeatureUnknownTensor, format.FeatureVeLoRA, format.FeatureUndo} {
		if _, ok := f.(format.Feature); !ok {
			t.Errorf("%v has the type %T, want format.Feature", f, f)
		}
	}
}
