package checkpoint_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
)

// FuzzCut cuts a file to the header of another one, which comes from an undo record. It is refused,
// or every tensor of the view begins with the data that the file has.
func FuzzCut(f *testing.F) {
	const now = `{"a":{"dtype":"U8","shape":[4,2],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}`
	for _, before := range []string{
		now,
		`{"a":{"dtype":"U8","shape":[3,2],"data_offsets":[0,6]}}`,
		`{"b":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[0,2],"data_offsets":[1,1]}}`,
		`{"a":{"dtype":"U8","shape":[5,2],"data_offsets":[0,10]}}`,
		`{"a":{"dtype":"U8","shape":[4,1],"data_offsets":[0,4]}}`,
		`{}`,
	} {
		f.Add(testkit.Raw(now, []byte("abcdefghijk")), testkit.Raw(before, nil))
	}
	for _, name := range []string{"plain", "tied"} {
		file, err := os.ReadFile("../../testdata/gguf/bases/" + name + "/base.gguf")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file, file[:len(file)-len(file)%4096])
	}
	f.Fuzz(func(t *testing.T, file, header []byte) {
		c, err := checkpoint.New(t.Context(), "a", bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		h, err := checkpoint.ParseHeader(header)
		if err != nil {
			return
		}
		v, err := checkpoint.Cut(c, map[int]*checkpoint.Header{0: h}, nil)
		if err != nil {
			return
		}
		if !v.Files[0].Fits(h) {
			t.Error("the view does not fit the header")
		}
		for _, name := range v.Names() {
			cut, _ := v.Lookup(name)
			whole, ok := c.Lookup(name)
			if !ok || !checkpoint.IsCut(cut.Tensor.Shape, whole.Tensor.Shape) {
				t.Fatalf("%q of shape %d, which the file lacks", name, cut.Tensor.Shape)
			}
			n := min(64, cut.Tensor.NBytes)
			got, want := make([]byte, n), make([]byte, n)
			if err := cut.Tensor.ReadAt(t.Context(), got, cut.Tensor.NBytes-n); err != nil {
				t.Fatal(err)
			}
			if err := whole.Tensor.ReadAt(t.Context(), want, cut.Tensor.NBytes-n); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%q is %x, want %x (%v)", name, got, want, err)
			}
		}
	})
}
