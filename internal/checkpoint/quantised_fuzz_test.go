package checkpoint_test

import (
	"bytes"
	"cmp"
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
		var as []dtype.Type
		for _, q := range checkpoint.QuantisedOf(c) {
			as = append(as, dtype.BF16)
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
			if codes := checkpoint.CodesOf(c, q.Name); codes != nil {
				checkCodes(t, q.Name, codes)
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

// checkCodes: values that the codes have already change none, and after others the values are those
// that Recode says.
func checkCodes(t *testing.T, name string, codes *checkpoint.Codes) {
	t.Helper()
	raw := make([]byte, codes.Tensor.NBytes)
	if err := codes.Tensor.ReadAt(t.Context(), raw, 0); err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	n := codes.Tensor.NBytes / max(1, codes.RowBytes()) * codes.Cols
	r := &checkpoint.Recoding{Codes: bytes.Clone(raw), Was: make([]float64, n), Now: make([]float64, n)}
	if err := codes.Values(t.Context(), r.Was, raw, 0); err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	r.Sum, r.Side = r.Was, func(i int, m float64) (int, error) { return cmp.Compare(r.Sum[i], m), nil }
	isExact := !strings.HasPrefix(codes.Scheme, "NVFP4 of compressed") && !strings.HasPrefix(codes.Scheme, "INT8 of bitsandbytes")
	if err := codes.Recode(t.Context(), r, 0); err != nil || isExact && !bytes.Equal(r.Codes, raw) {
		t.Fatalf("%q: the values of the codes change them: %v", name, err)
	}
	r.Sum = make([]float64, n)
	for i, x := range r.Was {
		r.Sum[i] = x*1.25 - 0.01
	}
	r.Codes = bytes.Clone(raw)
	if err := codes.Recode(t.Context(), r, 0); err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	after := make([]float64, n)
	if err := codes.Values(t.Context(), after, r.Codes, 0); err != nil {
		t.Fatalf("%q: %v", name, err)
	}
	for i, x := range after {
		if y := r.Now[i]; isExact && x != y && (x == x || y == y) {
			t.Fatalf("%q: element %d is %v after it got the code of %v", name, i, x, y)
		}
	}
}
