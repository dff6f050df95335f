package checkpoint_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/fault"
)

// FuzzQuantisedBase: whatever the bytes of a model and its configuration, opening returns. The view
// with decoded values is bounded by the file, all of it can be read, and pieces read as the whole.
// A weight that is listed can be decoded.
func FuzzQuantisedBase(f *testing.F) {
	names, err := filepath.Glob("../../testdata/quant/*/model.safetensors")
	if err != nil || len(names) < 15 {
		f.Fatal(names, err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		config, err := os.ReadFile(filepath.Join(filepath.Dir(name), "config.json"))
		if err != nil {
			config = []byte("{}")
		}
		if len(content) < 1<<16 {
			f.Add(content, config)
		}
	}
	f.Fuzz(func(t *testing.T, content, config []byte) {
		files := fstest.MapFS{"m/model.safetensors": {Data: content}, "m/config.json": {Data: config}}
		c, err := checkpoint.OpenFS(t.Context(), files, "m")
		if err != nil {
			if strings.Contains(err.Error(), "internal error") {
				t.Error(err)
			}
			return
		}
		defer c.Close()
		as := make(map[string]dtype.Type)
		for _, q := range checkpoint.QuantisedOf(c) {
			as[q.Name] = dtype.BF16
			ref, ok := c.Lookup(q.Name)
			if !ok || ref.Tensor.DType != dtype.F64 {
				t.Fatalf("%q is quantised, and the view does not have it in F64", q.Name)
			}
			if ref.Tensor.NBytes > 64*int64(len(content)) { // codes of one bit become eight bytes
				t.Fatalf("%q has %d bytes, the file %d", q.Name, ref.Tensor.NBytes, len(content))
			}
			whole := make([]byte, ref.Tensor.NBytes)
			if err := ref.Tensor.ReadAt(t.Context(), whole, 0); errors.As(err, new(*fault.Error)) {
				return // values can be wrong, such as the groups of columns
			} else if err != nil {
				t.Fatalf("%q: %v", q.Name, err)
			}
			part := make([]byte, len(whole)/3)
			if err := ref.Tensor.ReadAt(t.Context(), part, int64(len(whole)/2)); err != nil || !bytes.Equal(part, whole[len(whole)/2:][:len(part)]) {
				t.Fatalf("%q reads differently from its middle on: %v", q.Name, err)
			}
		}
		checkpoint.UnreadableOf(c)
		if len(as) == 0 {
			return
		}
		plain, err := checkpoint.Decoding(c, as)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range plain.Files {
			if _, err := io.Copy(io.Discard, io.NewSectionReader(file.ReaderAt(t.Context()), 0, file.Size)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
