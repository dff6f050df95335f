package checkpoint_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
)

// contentOf reads a whole file of a checkpoint, header included.
func contentOf(t *testing.T, f *checkpoint.File) []byte {
	t.Helper()
	content, err := io.ReadAll(io.NewSectionReader(f.ReaderAt(t.Context()), 0, f.Size))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestPicklesReadLikeSafetensors: a pickle reads, byte by byte, like the file that save_file wrote
// with its tensors: one of a single file, of shards, and of two names for one storage.
func TestPicklesReadLikeSafetensors(t *testing.T) {
	const pickles, peft = "../../testdata/pickle/bases/", "../../testdata/peft/bases/"
	for _, c := range []struct{ pickled, want string }{
		{pickles + "bert", peft + "bert"},
		{pickles + "bert.ckpt", peft + "bert"},
		{pickles + "llama-sharded", peft + "llama-sharded"},
		{pickles + "llama-tied", pickles + "llama-tied.safetensors"},
	} {
		t.Run(c.pickled, func(t *testing.T) {
			got, want := open(t, c.pickled), open(t, c.want)
			if got.IsDir && want.IsDir && !slices.Equal(files(got), files(want)) {
				t.Errorf("files %q, want %q", files(got), files(want))
			}
			if len(got.Files) != len(want.Files) {
				t.Fatalf("%d files, want %d", len(got.Files), len(want.Files))
			}
			for i := range got.Files {
				if !bytes.Equal(contentOf(t, got.Files[i]), contentOf(t, want.Files[i])) {
					t.Errorf("%s does not read like the file of safetensors", got.Files[i].Path)
				}
			}
		})
	}
}

// TestPickleReadsByPieces: every read of a few bytes gives what one read of the whole gives.
func TestPickleReadsByPieces(t *testing.T) {
	f := open(t, "../../testdata/pickle/bases/llama-tied").Files[0]
	want := contentOf(t, f)
	for _, n := range []int{1, 7, 4096} {
		for off := 0; off < len(want); off += 13 * n {
			p := make([]byte, min(n, len(want)-off))
			if err := f.ReadAt(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+len(p)]) {
				t.Fatalf("%d bytes at %d are wrong: %v", n, off, err)
			}
		}
	}
}

// TestDirectoryPrefersSafetensors: pickles beside safetensors are left, and a name decides only
// where to look: the content decides how a file is read.
func TestDirectoryPrefersSafetensors(t *testing.T) {
	pickled, err := os.ReadFile("../../testdata/pickle/bases/bert/pytorch_model.bin")
	if err != nil {
		t.Fatal(err)
	}
	base := open(t, directory(t, map[string][]byte{"model.safetensors": weights("a"), "pytorch_model.bin": pickled}))
	checkNames(t, base, "a")
	if !slices.Equal(base.Left, []string{"pytorch_model.bin"}) {
		t.Errorf("left %q", base.Left)
	}
	base = open(t, directory(t, map[string][]byte{"model.safetensors": pickled}))
	if _, ok := base.Lookup("bert.pooler.dense.weight"); !ok || !slices.Equal(files(base), []string{"model.safetensors"}) {
		t.Errorf("a pickle called model.safetensors: files %q", files(base))
	}
	base = open(t, directory(t, map[string][]byte{"pytorch_model.bin": weights("a")}))
	checkNames(t, base, "a")
	if !slices.Equal(files(base), []string{"model.safetensors"}) {
		t.Errorf("safetensors called pytorch_model.bin: files %q", files(base))
	}
}

// TestPipelineOfPickles: components of either container make one base. One whose pickle is refused
// is copied as it is, and a note says so.
func TestPipelineOfPickles(t *testing.T) {
	dir := t.TempDir()
	for _, from := range []string{"../../testdata/diffusion/bases/sd1", "../../testdata/pickle/bases/sd1"} {
		if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"} {
		if err := os.Remove(filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			t.Fatal(err)
		}
	}
	evil, err := os.ReadFile("../../testdata/pickle/refuse/os-system.bin")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Write(t, filepath.Join(dir, "safety_checker", "pytorch_model.bin"), evil)
	got, want := open(t, dir), open(t, "../../testdata/diffusion/bases/sd1")
	if !slices.Equal(files(got), files(want)) {
		t.Fatalf("files %q, want %q", files(got), files(want))
	}
	for i := range got.Files {
		if !bytes.Equal(contentOf(t, got.Files[i]), contentOf(t, want.Files[i])) {
			t.Errorf("%s does not read like the file of safetensors", got.Files[i].Path)
		}
	}
	const file = "safety_checker/pytorch_model.bin"
	if !slices.Contains(got.Side, file) || !maps.Equal(checkpoint.Unread(got), map[string]string{"safety_checker": file}) {
		t.Errorf("side %q, unread %q", got.Side, checkpoint.Unread(got))
	}
	if len(got.Notes) != 1 || !strings.Contains(got.Notes[0], "the weights of safety_checker cannot be read, and stay as they are") || !strings.Contains(got.Notes[0], "posix.system") {
		t.Errorf("notes %q", got.Notes)
	}
}

// FuzzPickledBase: whatever the bytes, opening returns, and every byte of what it accepts can be
// read.
func FuzzPickledBase(f *testing.F) {
	for _, pattern := range []string{"read/*.bin", "refuse/*.bin", "bases/*/*.bin", "bases/*.ckpt"} {
		names, err := filepath.Glob("../../testdata/pickle/" + pattern)
		if err != nil || len(names) == 0 {
			f.Fatal(pattern, err)
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			if len(content) < 1<<16 {
				f.Add(content)
			}
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := checkpoint.New(context.Background(), "x.bin", bytes.NewReader(content), int64(len(content)))
		if err != nil {
			if strings.Contains(err.Error(), "internal error") {
				t.Error(err)
			}
			return
		}
		defer c.Close()
		for _, file := range c.Files {
			io.Copy(io.Discard, io.NewSectionReader(file.ReaderAt(context.Background()), 0, file.Size))
		}
	})
}
