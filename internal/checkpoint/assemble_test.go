package checkpoint_test

import (
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
)

// TestAssembleJoinsAndDividesTensors: rows of tensors of two files become one tensor, one tensor
// becomes several, and what is not used keeps its name.
func TestAssembleJoinsAndDividesTensors(t *testing.T) {
	dir := t.TempDir()
	bytes := func(name string, rows, columns uint64, values ...byte) testkit.Tensor {
		return testkit.Tensor{Name: name, DType: dtype.U8, Shape: []uint64{rows, columns}, Data: values}
	}
	testkit.Write(t, filepath.Join(dir, "model_index.json"), []byte("{}"))
	testkit.Write(t, filepath.Join(dir, "unet/model.safetensors"), testkit.Encode(nil,
		bytes("q", 2, 2, 1, 2, 3, 4), bytes("both", 3, 1, 5, 6, 7)))
	testkit.Write(t, filepath.Join(dir, "vae/model.safetensors"), testkit.Encode(nil,
		bytes("k", 1, 2, 8, 9), bytes("part", 2, 1, 10, 11)))
	c, err := open(t, dir).Assemble([]checkpoint.Assembled{
		{Name: "qk", Shape: []uint64{3, 2, 1}, From: []checkpoint.Rows{
			{Tensor: "vae.k", N: 1}, {Tensor: "unet.q", N: 2}}},
		{Name: "one", Shape: []uint64{1, 1}, From: []checkpoint.Rows{{Tensor: "unet.both", At: 2, N: 1}}},
		{Name: "two", Shape: []uint64{2}, From: []checkpoint.Rows{{Tensor: "unet.both", N: 2}}},
		{Name: "three", Shape: []uint64{1}, From: []checkpoint.Rows{{Tensor: "vae.part", At: 1, N: 1}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"qk": "\x08\x09\x01\x02\x03\x04", "one": "\x07", "two": "\x05\x06",
		"three": "\x0b", "vae.part": "\x0a\x0b"}
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		got := make([]byte, ref.Tensor.NBytes)
		if err := ref.Tensor.ReadAt(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		if string(got) != want[name] {
			t.Errorf("%s is %q, want %q", name, got, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("no tensor %s", name)
	}
}
