package convert_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
)

// npzOf makes an archive of NumPy. Each array has a name, whether it is in Fortran's order, and a
// shape. Its bytes count upwards.
func npzOf(t *testing.T, arrays ...[3]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, a := range arrays {
		n := 1
		for _, d := range strings.Split(strings.Trim(a[2], "(,)"), ",") {
			var size int
			fmt.Sscan(d, &size)
			n *= size
		}
		dict := fmt.Sprintf("{'descr': '<f4', 'fortran_order': %s, 'shape': %s, }\n", a[1], a[2])
		p := binary.LittleEndian.AppendUint16([]byte("\x93NUMPY\x01\x00"), uint16(len(dict)))
		p = append(p, dict...)
		for i := range 4 * n {
			p = append(p, byte(i))
		}
		e, err := w.Create(a[0] + ".npy") // compressed
		if err != nil {
			t.Fatal(err)
		}
		e.Write(p)
	}
	w.Close()
	return b.Bytes()
}

// TestArchivesOfNumPyAreRead as other files of weights, and matrices in Fortran's order as NumPy
// shows them.
func TestArchivesOfNumPyAreRead(t *testing.T) {
	const module = "lora_unet_mid_block_attentions_0_proj_in"
	file := npzOf(t,
		[3]string{module + ".lora_down.weight", "True", "(2, 6)"}, [3]string{module + ".lora_up.weight", "False", "(4, 2)"})
	src, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	l := src.Manifest().Adapters[0].Layers[0]
	a := src.Manifest().Tensors[l.Roles[format.RoleA]]
	if l.Rank != 2 || fmt.Sprint(a.Shape) != "[2 6]" {
		t.Errorf("rank %d, A %v, want 2 and [2 6]", l.Rank, a.Shape)
	}
	whole := make([]byte, a.NBytes())
	if err := src.ReadBlobAt(whole, l.Roles[format.RoleA], 0); err != nil {
		t.Fatal(err)
	}
	for row := range 2 {
		for col := range 6 {
			if got, want := whole[4*(6*row+col)], byte(4*(2*col+row)); got != want {
				t.Errorf("A[%d, %d] begins with %d, want %d", row, col, got, want)
			}
		}
	}
	for off := range whole {
		for n := 1; off+n <= len(whole); n += 5 {
			piece := make([]byte, n)
			if err := src.ReadBlobAt(piece, l.Roles[format.RoleA], int64(off)); err != nil || !bytes.Equal(piece, whole[off:off+n]) {
				t.Fatalf("%d bytes from %d: %x, %v, want %x", n, off, piece, err, whole[off:off+n])
			}
		}
	}
}

func TestArchivesOfNumPyThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		file []byte
		want string
	}{
		{npzOf(t, [3]string{"a", "True", "(2, 3, 4)"}), "in Fortran's order, which is read for matrices alone"},
		{npzOf(t, [3]string{"a", "False", "(2,"}), "want a tuple"},
		{npzOf(t, [3]string{"", "False", "(2,)"}), "a tensor name has 0 bytes"},
		{npzOf(t, [3]string{"a", "False", "(2,)"}), "those of no known LoRA dialect"},
	} {
		_, err := convert.OpenReader(t.Context(), bytes.NewReader(c.file), int64(len(c.file)), convert.Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			!errors.Is(err, format.ErrUnsupported) && !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("Open = %v, want %q", err, c.want)
		}
	}
}
