package output_test

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/loratool/loratool/format/output"
)

// kinds are the outputs of this package, each with a function that reads its files; nil means none.
var kinds = map[string]func(t *testing.T) (output.Output, func() map[string]string){
	"memory": func(*testing.T) (output.Output, func() map[string]string) {
		m := new(output.Memory)
		return m, func() map[string]string {
			var files map[string]string
			for name, content := range m.Files() {
				if files == nil {
					files = make(map[string]string)
				}
				files[name] = string(content)
			}
			return files
		}
	},
	"directory": func(t *testing.T) (output.Output, func() map[string]string) {
		dir := t.TempDir()
		d := newDisk(t, filepath.Join(dir, "out"), output.DiskOptions{IsDir: true})
		return d, func() map[string]string {
			return tree(t, filepath.Join(dir, "out"))
		}
	},
	"files": func(t *testing.T) (output.Output, func() map[string]string) {
		dir := t.TempDir()
		d := newDisk(t, filepath.Join(dir, "main"), output.DiskOptions{})
		return d, func() map[string]string {
			files := tree(t, dir)
			if content, ok := files["main"]; ok {
				delete(files, "main")
				files[""] = content
			}
			return files
		}
	},
}

func newDisk(t *testing.T, path string, o output.DiskOptions) *output.Disk {
	t.Helper()
	d, err := output.NewDisk(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tree reads all files below a directory that are not hidden.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	var files map[string]string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err == nil && path != dir && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case err != nil || d.IsDir():
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		if files == nil {
			files = make(map[string]string)
		}
		files[filepath.ToSlash(name)] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// fill writes two files with four writers: one of known size, its end first, and one that grows.
func fill(t *testing.T, out output.Output, known, grows string) {
	t.Helper()
	f := create(t, out, output.Info{Name: known, Size: 10})
	steps := []error{f.CopyRange(7, strings.NewReader("...xyz"), 3, 3)}
	_, err := f.WriteAt([]byte("0123456"), 0)
	g := create(t, out, output.Info{Name: grows})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if _, err := g.WriteAt([]byte{byte('a' + i)}, int64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	steps = append(steps, err, g.CopyRange(4, strings.NewReader("-e"), 1, 1), f.Close(), g.Close())
	for i, err := range steps {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func create(t *testing.T, out output.Output, info output.Info) output.File {
	t.Helper()
	f, err := out.Create(info)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestEveryOutputHasItsFilesAfterCommitOnly looks at an output before Commit, and again after the
// Abort that a caller defers.
func TestEveryOutputHasItsFilesAfterCommitOnly(t *testing.T) {
	for kind, begin := range kinds {
		t.Run(kind, func(t *testing.T) {
			out, files := begin(t)
			main := map[bool]string{true: "sub/w", false: ""}[kind == "directory"]
			fill(t, out, main, "side")
			if got := files(); got != nil {
				t.Errorf("before Commit there is %q", got)
			}
			if err := out.Commit(); err != nil {
				t.Fatal(err)
			}
			out.Abort()
			want := map[string]string{main: "0123456xyz", "side": "abcde"}
			if got := files(); !maps.Equal(got, want) {
				t.Errorf("after Commit there is %q, want %q", got, want)
			}
		})
	}
}

// TestAbortLeavesNothing, hidden or not, even if a file is still open. A second Abort is allowed.
func TestAbortLeavesNothing(t *testing.T) {
	for kind, begin := range kinds {
		t.Run(kind, func(t *testing.T) {
			out, files := begin(t)
			fill(t, out, "known", "grows")
			create(t, out, output.Info{Name: "open", Size: 5})
			out.Abort()
			out.Abort()
			if got := files(); got != nil {
				t.Errorf("after Abort there is %q", got)
			}
		})
	}
	dir := t.TempDir()
	d := newDisk(t, filepath.Join(dir, "out"), output.DiskOptions{})
	create(t, d, output.Info{Name: "beside"})
	if _, err := d.CreateAt(filepath.Join(dir, "record"), output.Info{}); err != nil {
		t.Fatal(err)
	}
	d.Abort()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("an output that was aborted left %v, %v", left, err)
	}
	var m output.Memory
	m.Abort()
	if err := m.Commit(); err == nil {
		t.Error("an output in memory was committed after Abort")
	}
}

// TestAllFilesOfADiskAppearOrNone: if one file may not be replaced, none appears.
func TestAllFilesOfADiskAppearOrNone(t *testing.T) {
	for _, taken := range []string{"beside", "main", "record"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, taken), []byte("theirs"), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, replace := range []bool{false, true} {
			d := newDisk(t, filepath.Join(dir, "main"), output.DiskOptions{Replace: replace})
			fill(t, d, "", "beside")
			f, err := d.CreateAt(filepath.Join(dir, "record"), output.Info{Name: "ignored"})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			err = d.Commit()
			d.Abort()
			want := map[string]string{taken: "theirs"}
			if replace {
				want = map[string]string{"main": "0123456xyz", "beside": "abcde", "record": ""}
			}
			if got := tree(t, dir); (err == nil) != replace || !maps.Equal(got, want) {
				t.Errorf("%s is taken, replace %v: Commit() = %v and there is %q, want %q",
					taken, replace, err, got, want)
			}
		}
	}
}

// TestMemoryHoldsAFileToItsSize: a write beyond the known size is an error.
func TestMemoryHoldsAFileToItsSize(t *testing.T) {
	var m output.Memory
	f := create(t, &m, output.Info{Name: "f", Size: 4})
	if _, err := f.WriteAt([]byte("12"), 3); err == nil {
		t.Error("WriteAt beyond the end is no error")
	}
	if err := f.CopyRange(3, strings.NewReader("12"), 0, 2); err == nil {
		t.Error("CopyRange beyond the end is no error")
	}
	if err := f.CopyRange(0, strings.NewReader("12"), 0, 3); err == nil {
		t.Error("CopyRange from a source that is too short is no error")
	}
	if _, err := m.Create(output.Info{Name: "f"}); err == nil {
		t.Error("a name was used twice")
	}
}

// TestScratchIsGoneWhenItIsClosed: it lies beside an output on disk, in memory for other outputs,
// and in a temporary file without an output.
func TestScratchIsGoneWhenItIsClosed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, dir)
	}
	d := newDisk(t, filepath.Join(dir, "out"), output.DiskOptions{})
	for _, out := range []output.Output{d, new(output.Memory), nil} {
		s, err := output.NewScratch(out)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteAt([]byte("wait"), 2); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 7)
		if n, err := s.ReadAt(p, 0); n != 6 || err != io.EOF || string(p[:n]) != "\x00\x00wait" {
			t.Errorf("%T: ReadAt() = %d, %v with %q, want 6, EOF, two zeros and wait", out, n, err, p[:n])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	d.Abort()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a scratch file left %v, %v", left, err)
	}
}
