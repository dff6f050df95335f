package checkpoint_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/safetensors"
)

// contents reads every file of a checkpoint whole, checks its header, and returns the values of its
// tensors.
func contents(t *testing.T, c *checkpoint.Checkpoint) map[string]string {
	t.Helper()
	values := make(map[string]string)
	for _, f := range c.Files {
		whole := make([]byte, f.Size)
		if err := f.ReadAt(t.Context(), whole, 0); err != nil {
			t.Fatal(err)
		}
		h, err := safetensors.Read(t.Context(), f.ReaderAt(t.Context()), f.Size)
		if err != nil {
			t.Fatal(err)
		}
		for _, tensor := range h.Tensors {
			values[tensor.Name] = f.Name + " " + string(whole[tensor.Off:tensor.Off+tensor.NBytes])
		}
	}
	return values
}

// TestReshapeAddsZeros: a new tensor comes last in the last file, a reshaped one stays in its
// place, and the tensors around them keep their values.
func TestReshapeAddsZeros(t *testing.T) {
	dir := directory(t, map[string][]byte{
		"1.safetensors": weights("a", "b"), "2.safetensors": weights("c", "d", "e"),
		"model.safetensors.index.json": index(t, map[string]string{
			"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors", "d": "2.safetensors", "e": "2.safetensors",
		}),
	})
	three := &checkpoint.Tensor{DType: dtype.U8, Shape: []uint64{3}, NBytes: 3}
	c, err := open(t, dir).Reshape([]checkpoint.Change{{Name: "new", Zeros: three}, {Name: "d", Zeros: three}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"a": "1.safetensors \x00", "b": "1.safetensors \x01", "c": "2.safetensors \x00",
		"d": "2.safetensors \x00\x00\x00", "e": "2.safetensors \x02", "new": "2.safetensors \x00\x00\x00",
	}
	if got := contents(t, c); !maps.Equal(got, want) {
		t.Errorf("the tensors are %q, want %q", got, want)
	}
	if last := c.Files[1].Tensors; last[1].Name != "d" || last[3].Name != "new" {
		t.Errorf("the order of the last file is %v, want c, d, e, new", last)
	}
}

// TestRenameKeepsValues: names change, values and places do not, and two tensors cannot get the
// same name.
func TestRenameKeepsValues(t *testing.T) {
	dir := directory(t, map[string][]byte{"model.safetensors": weights("a", "b", "c")})
	c, err := open(t, dir).Rename(map[string]string{"a": "trunk.a", "c": "trunk.c"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"b", "trunk.a", "trunk.c"}; !slices.Equal(c.Names(), want) {
		t.Errorf("the names are %q, want %q", c.Names(), want)
	}
	got := contents(t, c)
	if got["trunk.a"] != "model.safetensors \x00" || got["b"] != "model.safetensors \x01" || got["trunk.c"] != "model.safetensors \x02" {
		t.Errorf("the tensors are %q", got)
	}
	if _, err := open(t, dir).Rename(map[string]string{"a": "b"}); err == nil {
		t.Error("two tensors have got the name b")
	}
}

// TestViewReadsAnyRange: a range of a view may begin and end anywhere: in the header, in zeros, or
// in the bytes of the file.
func TestViewReadsAnyRange(t *testing.T) {
	dir := directory(t, map[string][]byte{"model.safetensors": weights("a", "b", "c")})
	two := &checkpoint.Tensor{DType: dtype.U8, Shape: []uint64{2}, NBytes: 2}
	c, err := open(t, dir).Reshape([]checkpoint.Change{{Name: "b", Zeros: two}, {Name: "copy", From: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	f := c.Files[0]
	whole := make([]byte, f.Size)
	if err := f.ReadAt(t.Context(), whole, 0); err != nil {
		t.Fatal(err)
	}
	if want := "\x00\x00\x00\x02\x02"; string(whole[f.DataOff:]) != want {
		t.Fatalf("the data are % x, want % x", whole[f.DataOff:], want)
	}
	for off := range f.Size {
		for end := off; end <= f.Size; end++ {
			part := make([]byte, end-off)
			if err := f.ReadAt(t.Context(), part, off); err != nil || string(part) != string(whole[off:end]) {
				t.Fatalf("bytes %d to %d are % x, %v; want % x", off, end, part, err, whole[off:end])
			}
		}
	}
	if err := f.ReadAt(t.Context(), make([]byte, 2), f.Size-1); err == nil {
		t.Error("bytes beyond the end were read")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.ReadAt(ended, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read after the context ended: %v", err)
	}
}

// TestViewKeepsPermissions: a file made from a view is readable for the same users as the file
// behind the view.
func TestViewKeepsPermissions(t *testing.T) {
	dir := directory(t, map[string][]byte{"model.safetensors": weights("a", "b")})
	path := filepath.Join(dir, "model.safetensors")
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(path) // Windows knows fewer permissions
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, dir)
	view, err := c.Rename(map[string]string{"a": "x"})
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]*checkpoint.File{"the file": c.Files[0], "a view of it": view.Files[0]} {
		if got := f.Like().Mode; got != want.Mode().Perm() {
			t.Errorf("what is made from %s gets the permissions %v, want %v", what, got, want.Mode().Perm())
		}
	}
}
