package safetensors_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"maps"
	"slices"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/format/safetensors"
)

var tensors = []format.Tensor{
	{Name: "b", DType: dtype.U8, Shape: []uint64{3}},
	{Name: "alpha", DType: dtype.F32}, // a scalar
	{Name: "a", DType: dtype.U8, Shape: []uint64{2, 1}},
	{Name: "empty", DType: dtype.F16, Shape: []uint64{0, 4}},
}

var blobs = [][]byte{{1, 2, 3}, {0, 0, 0x80, 0x3f}, {4, 5}, nil}

func readBlob(p []byte, i int, off int64) error {
	copy(p, blobs[i][off:])
	return nil
}

// TestWrittenFilesAreOpened compares names, dtypes, shapes (scalars and empty tensors included),
// metadata and bytes. The order of the tensors does not change the file.
func TestWrittenFilesAreOpened(t *testing.T) {
	metadata := map[string]string{"format": "pt", "who": "me"}
	var file bytes.Buffer
	if err := safetensors.Write(t.Context(), &file, tensors, metadata, readBlob); err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(t.Context(), bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if got := f.Metadata(); !maps.Equal(got, metadata) {
		t.Errorf("metadata %v, want %v", got, metadata)
	}
	var order []string
	for i, got := range f.Tensors() {
		order = append(order, got.Name)
		k := slices.IndexFunc(tensors, func(t format.Tensor) bool { return t.Name == got.Name })
		if k < 0 || got.DType != tensors[k].DType || !slices.Equal(got.Shape, tensors[k].Shape) {
			t.Errorf("tensor %d is %+v", i, got)
			continue
		}
		p := make([]byte, got.NBytes())
		if err := f.ReadBlobAt(p, i, 0); err != nil || !bytes.Equal(p, blobs[k]) {
			t.Errorf("%s = % x (%v), want % x", got.Name, p, err, blobs[k])
		}
		if err := f.ReadBlobAt(make([]byte, 1), i, got.NBytes()); err == nil {
			t.Errorf("%s: a read behind the end was no error", got.Name)
		}
	}
	if want := []string{"alpha", "empty", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("the order of the data is %q, want %q", order, want)
	}
	var again bytes.Buffer
	reversed := slices.Clone(tensors)
	slices.Reverse(reversed)
	err = safetensors.Write(t.Context(), &again, reversed, metadata, func(p []byte, i int, off int64) error {
		return readBlob(p, len(tensors)-1-i, off)
	})
	if err != nil || !bytes.Equal(again.Bytes(), file.Bytes()) {
		t.Errorf("another order of the tensors makes another file (%v)", err)
	}
}

// TestTheFileIsHuggingFaces compares a file with a tensor 1×2 of each dtype, which torch 2.15
// and safetensors 0.8.0 wrote with
//
//	safetensors.torch.save(tensors, metadata={"a": "1"})
//
// The bytes of the k-th dtype are k, k+1, …; BOOL has True and False, and torch's pair of F4 makes
// the shape 1×4. torch has no F6.
func TestTheFileIsHuggingFaces(t *testing.T) {
	const want = "57e4cdf897050ec3c06f8193cc76101ceb1d890085e5be1a2e63f8c325260952"
	var all []format.Tensor
	var data [][]byte
	for _, d := range dtype.All() {
		if d == dtype.F6E2M3 || d == dtype.F6E3M2 {
			continue
		}
		x := format.Tensor{Name: "t." + d.String(), DType: d, Shape: []uint64{1, 2}}
		p := make([]byte, max(2, 2*d.Size()))
		for i := range p {
			p[i] = byte(len(all) + i)
		}
		switch d {
		case dtype.BOOL:
			p = []byte{1, 0}
		case dtype.F4:
			x.Shape = []uint64{1, 4}
		}
		all, data = append(all, x), append(data, p)
	}
	var file bytes.Buffer
	err := safetensors.Write(t.Context(), &file, all, map[string]string{"a": "1"}, func(p []byte, i int, off int64) error {
		copy(p, data[i][off:])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(file.Bytes())); got != want {
		t.Errorf("the file has the SHA-256 %s, want %s: %q", got, want, file.Bytes())
	}
}

// TestWhatCannotBeWrittenIsAnError, and a tensor that cannot be read ends the file.
func TestWhatCannotBeWrittenIsAnError(t *testing.T) {
	failure := errors.New("no such tensor")
	for name, c := range map[string]struct {
		tensors []format.Tensor
		read    func([]byte, int, int64) error
		want    error
	}{
		"half a byte":          {[]format.Tensor{{Name: "x", DType: dtype.F4, Shape: []uint64{3}}}, readBlob, format.ErrUnsupported},
		"no dtype":             {[]format.Tensor{{Name: "x", Shape: []uint64{3}}}, readBlob, format.ErrUnsupported},
		"a name twice":         {[]format.Tensor{tensors[0], tensors[0]}, readBlob, format.ErrUnsupported},
		"the metadata's name":  {[]format.Tensor{{Name: "__metadata__", DType: dtype.U8}}, readBlob, format.ErrUnsupported},
		"a name without UTF-8": {[]format.Tensor{{Name: "\xff", DType: dtype.U8}}, readBlob, format.ErrUnsupported},
		"a bad reader":         {tensors, func([]byte, int, int64) error { return failure }, failure},
	} {
		var file bytes.Buffer
		if err := safetensors.Write(t.Context(), &file, c.tensors, nil, c.read); !errors.Is(err, c.want) {
			t.Errorf("%s: Write = %v, want %v", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := safetensors.Write(ctx, new(bytes.Buffer), tensors, nil, readBlob); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after the end of the context = %v", err)
	}
	var e *format.Error
	if _, err := safetensors.Open(t.Context(), bytes.NewReader([]byte("version https://git-lfs")), 23); !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("a pointer of git-lfs: Open = %v, want a hint", err)
	}
}

// Write a file and read one of its tensors.
func Example() {
	ctx := context.Background()
	table := []format.Tensor{{Name: "greeting", DType: dtype.U8, Shape: []uint64{5}}}
	var file bytes.Buffer
	err := safetensors.Write(ctx, &file, table, map[string]string{"format": "pt"}, func(p []byte, i int, off int64) error {
		copy(p, "hello"[off:])
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	f, err := safetensors.Open(ctx, bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		log.Fatal(err)
	}
	for i, t := range f.Tensors() {
		p := make([]byte, t.NBytes())
		if err := f.ReadBlobAt(p, i, 0); err != nil {
			log.Fatal(err)
		}
		fmt.Println(t.Name, t.DType, t.Shape, string(p), f.Metadata())
	}
	// Output:
	// greeting U8 [5] hello map[format:pt]
}
