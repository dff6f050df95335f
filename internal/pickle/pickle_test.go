package pickle_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/parallel"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
)

// fixtures holds the files that testdata/pickle/make.py wrote with torch 2.15.
const fixtures = "../../testdata/pickle"

// marker is the file that the hostile fixtures create when Python loads them.
const marker = "the-pickle-was-run"

func glob(t testing.TB, pattern string, atLeast int) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(fixtures, pattern))
	if err != nil || len(paths) < atLeast {
		t.Fatalf("%s matches %d files, want at least %d", pattern, len(paths), atLeast)
	}
	return paths
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(b []byte) (*pickle.File, error) { return pickle.Read(bytes.NewReader(b), int64(len(b))) }

// TestReadEqualsTorchInEveryByte compares names, dtypes, shapes and values with the same tensors
// that torch saved as safetensors. It reads values whole, and in pieces that begin inside an
// element.
func TestReadEqualsTorchInEveryByte(t *testing.T) {
	compareWithTorch(t, glob(t, "read/*.bin", 17), pickle.Read)
}

// TestReadNestedEqualsTorch: ReadNested finds the tensors in lists and nested dictionaries under
// the names of their paths, and those that Read finds under the same names.
func TestReadNestedEqualsTorch(t *testing.T) {
	compareWithTorch(t, glob(t, "deep/*.bin", 4), pickle.ReadNested)
	compareWithTorch(t, glob(t, "read/plain*.bin", 2), pickle.ReadNested)
}

func compareWithTorch(t *testing.T, paths []string, open func(io.ReaderAt, int64) (*pickle.File, error)) {
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			content := readFile(t, path)
			f, err := open(bytes.NewReader(content), int64(len(content)))
			if err != nil {
				t.Fatal(err, fault.Hint(err))
			}
			truth := readFile(t, strings.TrimSuffix(strings.TrimSuffix(path, ".bin"), "-legacy")+".safetensors")
			h, err := safetensors.Read(t.Context(), bytes.NewReader(truth), int64(len(truth)))
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Tensors) != len(h.Tensors) {
				t.Errorf("%d tensors, want %d", len(f.Tensors), len(h.Tensors))
			}
			byName := make(map[string]int)
			for i := range f.Tensors {
				byName[f.Tensors[i].Name] = i
			}
			for _, want := range h.Tensors {
				i, ok := byName[want.Name]
				if !ok {
					t.Errorf("no tensor %q", want.Name)
					continue
				}
				got := &f.Tensors[i]
				if got.DType != want.DType || !equal(got.Shape, want.Shape) || got.NBytes() != want.NBytes {
					t.Errorf("%q is %v of shape %d, want %v of %d", want.Name, got.DType, got.Shape, want.DType, want.Shape)
					continue
				}
				values := truth[want.Off : want.Off+want.NBytes]
				for _, piece := range []int{len(values), 7} {
					if p := readAll(t, f, i, len(values), piece); !bytes.Equal(p, values) {
						t.Errorf("%q, read in pieces of %d bytes, is % x, want % x", want.Name, piece, p[:min(32, len(p))], values[:min(32, len(p))])
					}
				}
			}
		})
	}
}

// equal compares shapes; nil equals a shape without dimensions.
func equal(a, b []uint64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func readAll(t *testing.T, f *pickle.File, i, n, piece int) []byte {
	t.Helper()
	p := make([]byte, n)
	for off := 0; off < n; off += piece {
		if err := f.ReadAt(p[off:min(off+piece, n)], i, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// TestReadAtIsSafeForConcurrentUse reads more tensors than are kept, in pieces, by readers that
// take turns.
func TestReadAtIsSafeForConcurrentUse(t *testing.T) {
	f, err := open(readFile(t, filepath.Join(fixtures, "read/strided.bin")))
	if err != nil {
		t.Fatal(err)
	}
	want := make([][]byte, len(f.Tensors))
	for i := range want {
		n := int(f.Tensors[i].NBytes())
		want[i] = readAll(t, f, i, n, n)
	}
	err = parallel.For(context.Background(), 4, 200, func(_, job int) error {
		i := job % len(want)
		got := make([]byte, len(want[i]))
		for off := 0; off < len(got); off += len(got)/3 + 1 {
			if err := f.ReadAt(got[off:min(off+len(got)/3+1, len(got))], i, int64(off)); err != nil {
				return err
			}
		}
		if !bytes.Equal(got, want[i]) {
			return fmt.Errorf("%q is not what it was", f.Tensors[i].Name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLeftNamesWhatIsNoTensor: Left lists the values beside the tensors, so that the user learns of
// them.
func TestLeftNamesWhatIsNoTensor(t *testing.T) {
	for name, want := range map[string]string{
		"nested": "epoch optimizer", "beside": "epoch loss name big negative flag none", "plain": "",
	} {
		f, err := open(readFile(t, filepath.Join(fixtures, "read", name+".bin")))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(f.Left, " "); got != want {
			t.Errorf("Left of %s = %q, want %q", name, got, want)
		}
	}
}

// TestRefusalsNameTheirCause: the error has a kind and the words of words.json, and nothing that
// the file names was run.
func TestRefusalsNameTheirCause(t *testing.T) {
	var words map[string][]string
	if err := json.Unmarshal(readFile(t, filepath.Join(fixtures, "refuse/words.json")), &words); err != nil {
		t.Fatal(err)
	}
	paths := glob(t, "refuse/*.bin", 48)
	if len(paths) != len(words) {
		t.Errorf("%d files and words for %d", len(paths), len(words))
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".bin")
		_, err := open(readFile(t, path))
		var input *fault.Error
		if !errors.As(err, &input) {
			t.Errorf("%s: Read = %v, want an error of a kind", name, err)
			continue
		}
		if len(words[name]) == 0 {
			t.Errorf("%s has no words", name)
		}
		text := input.Error() + "\n" + input.Hint
		for _, w := range words[name] {
			if !strings.Contains(text, w) {
				t.Errorf("%s: Read = %v (hint: %s), which does not mention %q", name, err, input.Hint, w)
			}
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Errorf("%s is there: a pickle was run", marker)
	}
}

// allocated returns the memory that f takes from the heap, freed or not.
func allocated(f func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// maxAllocated bounds the allocations for n bytes. One byte of a pickle makes at most one value of
// about 100 bytes, and a stack that grows by doubling costs the same again. The rest is buffers.
func maxAllocated(n int) int64 { return int64(n)*256 + 1<<20 }

// TestMemoryFollowsTheFile: claims of gigabytes in a file of a kilobyte cost kilobytes.
func TestMemoryFollowsTheFile(t *testing.T) {
	for _, path := range append(glob(t, "refuse/*.bin", 48), glob(t, "read/*.bin", 17)...) {
		b := readFile(t, path)
		if got, most := allocated(func() { open(b) }), maxAllocated(len(b)); got > most {
			t.Errorf("Read(%s) allocates %d bytes for a file of %d, want at most %d", filepath.Base(path), got, len(b), most)
		}
	}
}

// TestValuesAreCounted: a pickle of many values, each one byte in the file and far more in memory,
// is refused.
func TestValuesAreCounted(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "m/data.pkl", Method: zip.Store})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 << 20 {
		w.Write([]byte("]")) // an empty list
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(b.Bytes()); !errors.Is(err, fault.Limit) {
		t.Errorf("Read of five million lists = %v, want a limit", err)
	}
}

// FuzzRead: for any bytes, Read returns and keeps to its memory bound, and every tensor it accepts
// can be read.
func FuzzRead(f *testing.F) {
	for _, path := range append(glob(f, "refuse/*.bin", 48), glob(f, "read/*.bin", 17)...) {
		if b := readFile(f, path); len(b) < 1<<16 {
			f.Add(b)
			f.Add(withoutChecksums(b)) // or hardly a change would get past them
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var file *pickle.File
		var err error
		if got, most := allocated(func() { file, err = open(b) }), maxAllocated(len(b)); got > most {
			t.Errorf("Read allocates %d bytes for a file of %d, want at most %d", got, len(b), most)
		}
		if err != nil {
			var input *fault.Error
			if !errors.As(err, &input) {
				t.Errorf("Read = %v, want an error of a kind", err)
			}
			return
		}
		for i := range file.Tensors {
			p := make([]byte, file.Tensors[i].NBytes())
			var input *fault.Error
			if err := file.ReadAt(p, i, 0); err != nil && (file.Unchecked || !errors.As(err, &input)) {
				t.Errorf("ReadAt(%q) = %v", file.Tensors[i].Name, err)
			}
		}
	})
}

// withoutChecksums replaces every checksum in an archive's directory by 0.
func withoutChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; ; {
		n := bytes.Index(b[at:], []byte("PK\x01\x02"))
		if n < 0 || at+n+20 > len(b) {
			return b
		}
		at += n + 20
		clear(b[at-4 : at])
	}
}
