package format

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/parallel"
)

func TestOpenNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("Open of a directory = %v", err)
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing = %v, want ErrNotExist", err)
	}
	path := filepath.Join(dir, "short.lora")
	if err := os.WriteFile(path, tiny(t)[:100], 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), path) {
		t.Errorf("Open of a cut file = %v, want a truncated file with its name", err)
	}
}

func TestReadersShareAFile(t *testing.T) {
	src := plain(dtype.BF16, 20, 1024, 8, 1)
	file, _ := written(t, src, smallChunks)
	r, err := NewReader(bytes.NewReader(file), int64(len(file)), ReaderOptions{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := contents(t, r)
	err = parallel.For(context.Background(), 8, 400, func(_, i int) error {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		blob := rng.IntN(len(want))
		off := rng.IntN(len(want[blob]))
		p := make([]byte, rng.IntN(len(want[blob])-off+1))
		if err := r.ReadBlobAt(p, blob, int64(off)); err != nil {
			return err
		}
		if !bytes.Equal(p, want[blob][off:off+len(p)]) {
			return errors.New("the bytes differ")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// failing is a reader that fails at every read after the first n.
type failing struct {
	io.ReaderAt
	left atomic.Int64
}

var errDisk = errors.New("disk error")

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.left.Add(-1) < 0 {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestErrorsOfTheDiskAreNotTheFiles(t *testing.T) {
	file, _ := written(t, plain(dtype.F32, 20, 1024, 8, 1), smallChunks)
	f := &failing{ReaderAt: bytes.NewReader(file)}
	for n := range int64(4) {
		f.left.Store(n)
		_, err := Verify(context.Background(), f, int64(len(file)), ReaderOptions{})
		if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTruncated) {
			t.Errorf("Verify with a disk that fails after %d reads = %v", n, err)
		}
	}
	f.left.Store(2)
	r, err := NewReader(f, int64(len(file)), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, 10)
	if err := r.ReadBlobAt(p, 0, 0); !errors.Is(err, errDisk) {
		t.Errorf("ReadBlobAt = %v, want the disk's error", err)
	}
	f.left.Store(10)
	if err := r.ReadBlobAt(p, 0, 0); err != nil {
		t.Errorf("ReadBlobAt after the disk has recovered = %v", err)
	}
}

func TestAWriterThatFailsEndsWrite(t *testing.T) {
	src := plain(dtype.F32, 6, 1024, 8, 1)
	file, _ := written(t, src, smallChunks)
	for _, n := range []int{0, 100, len(file) / 2, len(file) - 1} {
		w := &limitedWriter{n: n}
		if sum, err := Write(context.Background(), w, src, smallChunks); !errors.Is(err, errDisk) || sum != nil {
			t.Errorf("Write to a disk with room for %d bytes = %v, %v", n, sum, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Write(ctx, io.Discard, src, smallChunks); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after its context has ended = %v", err)
	}
}

type limitedWriter struct{ n int }

func (w *limitedWriter) Write(p []byte) (int, error) {
	if len(p) > w.n {
		return w.n, errDisk
	}
	w.n -= len(p)
	return len(p), nil
}

func TestAVisitorCanEndAStream(t *testing.T) {
	file, _ := written(t, plain(dtype.F32, 6, 1024, 8, 1), smallChunks)
	s, err := NewStreamReader(bytes.NewReader(file), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	_, err = s.each(context.Background(), func(int, int64, []byte) error {
		if calls++; calls == 3 {
			return errDisk
		}
		return nil
	})
	if !errors.Is(err, errDisk) || calls != 3 {
		t.Errorf("Each = %v after %d calls, want the visitor's error after 3", err, calls)
	}
}

// TestFingerprint has values from sha256sum.
func TestFingerprint(t *testing.T) {
	for _, c := range []struct {
		dtype dtype.Type
		shape []uint64
		want  string
	}{
		{dtype.BF16, []uint64{2, 1}, "c03eb9ce2eb19c27167f9bd52a9a1e3ed23a7f8fd05799d22705c59e5cbdae03"}, // printf 'BF16 2,1\nabcd'
		{dtype.F32, nil, "c2e6c7da71f0d41bb2bbcdbce1284532fb9a307c875850eed3e93bd0f182d0bb"},             // printf 'F32 \nabcd'
	} {
		got, err := Fingerprint(c.dtype, c.shape, strings.NewReader("abcd"))
		if err != nil || got != c.want {
			t.Errorf("Fingerprint(%v, %d) = %s, %v, want %s", c.dtype, c.shape, got, err, c.want)
		}
	}
	for _, bytes := range []string{"abc", "abcde"} {
		if _, err := Fingerprint(dtype.F32, nil, strings.NewReader(bytes)); err == nil {
			t.Errorf("Fingerprint accepts %d bytes for a scalar of 4", len(bytes))
		}
	}
}
