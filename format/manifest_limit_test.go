package format_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// many is a source of empty tensors with long names.
type many struct{ manifest format.Manifest }

func (s *many) Manifest() *format.Manifest          { return &s.manifest }
func (s *many) ReadBlobAt([]byte, int, int64) error { return nil }
func (s *many) Close() error                        { return nil }

// TestWritersStayWithinTheLimitOfReaders: by default no file is written that a reader with defaults refuses, and a writer that is
// given a larger limit writes one for a reader that is given it, too.
func TestWritersStayWithinTheLimitOfReaders(t *testing.T) {
	src := new(many)
	adapter := format.Adapter{Dialect: "peft", Method: "lora"}
	for i := range 6_000 {
		name := fmt.Sprintf("%05d.%s", i, strings.Repeat("x", 900))
		src.manifest.Tensors = append(src.manifest.Tensors, format.Tensor{Name: name, DType: dtype.F32, Shape: []uint64{0}})
		adapter.Beside = append(adapter.Beside, format.Beside{Target: name, Action: format.Replace, Tensor: i})
	}
	src.manifest.Adapters = []format.Adapter{adapter}
	write := func(limit int64) (*bytes.Buffer, error) {
		var file bytes.Buffer
		_, err := format.Write(context.Background(), &file, src, format.WriterOptions{MaxManifestBytes: limit})
		return &file, err
	}
	file, err := write(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if n := file.Len(); n < 20 {
		t.Fatalf("a file of %d bytes", n)
	}
	read := func(limit int64) error {
		_, err := format.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()), format.ReaderOptions{MaxManifestBytes: limit})
		return err
	}
	small := int64(8 << 20) // the manifest has 11 million bytes
	if _, err := write(small); !errors.Is(err, format.ErrLimit) || !strings.Contains(err.Error(), "6000 tensors") {
		t.Errorf("writing with the limit of %d: %v, want a limit that names the tensors", small, err)
	}
	if err := read(small); !errors.Is(err, format.ErrLimit) {
		t.Errorf("reading with the limit of %d: %v, want a limit", small, err)
	}
	if err := read(0); err != nil {
		t.Errorf("reading with the default limit: %v", err)
	}
}
