package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/testkit"
)

// counted is an fs.FS that counts how often each file is read. Its files cannot be read by
// position.
type counted struct {
	fs.FS
	reads map[string]int
}

type sequential struct {
	fs.File
	begin func()
}

func (s *sequential) Read(p []byte) (int, error) {
	s.begin()
	s.begin = func() {}
	return s.File.Read(p)
}

func (c counted) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err != nil {
		return nil, err
	}
	if dir, ok := f.(fs.ReadDirFile); ok {
		if info, err := f.Stat(); err == nil && info.IsDir() {
			return dir, nil
		}
	}
	return &sequential{f, func() { c.reads[name]++ }}, nil
}

// TestAnFSIsOpenedLikeADirectory opens every adapter of the test data by its path and through an
// fs.FS, compares the two, and checks that no file is read twice.
func TestAnFSIsOpenedLikeADirectory(t *testing.T) {
	n := 0
	for _, dir := range adapters(t) {
		want, err := convert.Open(t.Context(), dir, convert.Options{})
		files := counted{os.DirFS(filepath.Dir(dir)), map[string]int{}}
		got, errFS := convert.OpenFS(t.Context(), files, filepath.Base(dir), convert.Options{})
		if (err == nil) != (errFS == nil) || err != nil && kindOf(err) != kindOf(errFS) {
			t.Errorf("%s: OpenFS = %v, Open = %v", dir, errFS, err)
		}
		for name, n := range files.reads {
			if n > 1 {
				t.Errorf("%s: %s was read %d times", dir, name, n)
			}
		}
		if err != nil || errFS != nil {
			continue
		}
		n++
		if !reflect.DeepEqual(got.Manifest(), want.Manifest()) {
			t.Errorf("%s: the manifest of OpenFS is not that of Open", dir)
		}
		a, err1 := format.ContentID(t.Context(), got)
		b, err2 := format.ContentID(t.Context(), want)
		if a != b || err1 != nil || err2 != nil {
			t.Errorf("%s: content id %s (%v), by its path %s (%v)", dir, a, err1, b, err2)
		}
		if err := errors.Join(got.Close(), want.Close()); err != nil {
			t.Error(err)
		}
	}
	if n < 100 {
		t.Errorf("%d adapters were opened, want at least 100", n)
	}
}

// TestAContainerInMemoryIsOpened: a .lora file is an adapter wherever its bytes are.
func TestAContainerInMemoryIsOpened(t *testing.T) {
	src, err := convert.Open(t.Context(), filepath.Join(testdata, "demo/adapter-r8"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	var container bytes.Buffer
	sum, err := format.Write(t.Context(), &container, src, format.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	back, err := convert.OpenReader(t.Context(), bytes.NewReader(container.Bytes()), int64(container.Len()), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if id, err := format.ContentID(t.Context(), back); id != sum.ContentID || err != nil {
		t.Errorf("the content id is %s (%v), want %s", id, err, sum.ContentID)
	}
	weights := read(t, filepath.Join(testdata, "demo/adapter-r8/adapter_model.safetensors"))
	_, err = convert.OpenReader(t.Context(), bytes.NewReader(weights), int64(len(weights)), convert.Options{})
	if !errors.Is(err, format.ErrUnsupported) {
		t.Errorf("weights of PEFT without their configuration: %v, want unsupported", err)
	}
}

// toy is a dialect unknown to this package: safetensors files that name it in their metadata.
type toy struct{ convert.Dialect }

func (toy) Name() string           { return "toy" }
func (toy) Writes(ext string) bool { return ext == ".toy" }

func (toy) Recognise(in *convert.Input) bool { return in.Metadata()["toy"] == "yes" }

func (toy) Open(_ context.Context, in *convert.Input, _ convert.Options) (format.Source, error) {
	notes, err := in.ReadFile("notes.txt", 100)
	if err != nil {
		return nil, err
	}
	return &toySource{in: in, m: format.Manifest{
		Tensors: in.Tensors(),
		Notes:   []string{string(notes)},
		Adapters: []format.Adapter{{Method: "lora", Dialect: "toy", Layers: []format.Layer{{
			Module: "q", Kind: format.Linear, Rank: 2, Scaling: format.Fixed, Fixed: 1,
			Roles: map[format.Role]int{format.RoleA: 0, format.RoleB: 1},
		}}}},
	}}, nil
}

func (toy) Create(path string, _ convert.CreateOptions) (format.Sink, error) {
	return toySink{path}, nil
}

type toySink struct{ path string }

var errToyFull = errors.New("the toy box is full")

func (toySink) Check(context.Context, format.Source) error { return errToyFull }
func (toySink) Store(context.Context, format.Source) error { return errToyFull }

type toySource struct {
	in *convert.Input
	m  format.Manifest
}

func (s *toySource) Manifest() *format.Manifest { return &s.m }

func (s *toySource) ReadBlobAt(p []byte, i int, off int64) error { return s.in.ReadBlobAt(p, i, off) }
func (s *toySource) Close() error                                { return nil }

// TestADialectOfTheCallerJoinsTheSet: it opens the inputs that it recognises before the other
// dialects are asked, and the original set does not change.
func TestADialectOfTheCallerJoinsTheSet(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.safetensors")
	testkit.Write(t, file, testkit.Encode(map[string]string{"toy": "yes"}, ones("q.1", "q.2")...))
	testkit.Write(t, filepath.Join(dir, "notes.txt"), []byte("from the nursery"))
	mine := convert.Default().With(toy{})
	for _, path := range []string{dir, file} {
		src, err := mine.Open(t.Context(), path, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m := src.Manifest()
		if m.Adapters[0].Dialect != "toy" || len(m.Notes) != 1 || m.Notes[0] != "from the nursery" {
			t.Errorf("%s: dialect %q, notes %q", path, m.Adapters[0].Dialect, m.Notes)
		}
		if _, err := format.ContentID(t.Context(), src); err != nil {
			t.Errorf("%s: ContentID = %v", path, err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		if err := src.(io.Closer).Close(); err == nil {
			t.Errorf("%s: the file of a closed source was still open", path)
		}
		if !mine.IsAdapter(t.Context(), path) || convert.IsAdapter(t.Context(), path) {
			t.Errorf("%s: IsAdapter = %v with the toy and %v without", path, mine.IsAdapter(t.Context(), path), convert.IsAdapter(t.Context(), path))
		}
		if _, err := convert.Open(t.Context(), path, convert.Options{}); !errors.Is(err, format.ErrUnsupported) {
			t.Errorf("%s: Open without the toy = %v, want unsupported", path, err)
		}
	}
	testkit.Write(t, filepath.Join(dir, "more.safetensors"), testkit.Encode(nil, ones("lm_head.weight")...))
	if _, err := mine.Open(t.Context(), dir, convert.Options{}); err == nil {
		t.Error("two files of weights in a folder, and one of them was opened in silence")
	}
	d, err := mine.For("box.toy")
	if err != nil || d.Name() != "toy" || mine.Named("toy") == nil || convert.Default().Named("toy") != nil {
		t.Errorf("For(box.toy) = %v (%v)", d, err)
	}
	if err := convert.Check(t.Context(), "box.toy", d, nil, convert.CreateOptions{}); err != errToyFull {
		t.Errorf("Check = %v, want that of the Sink", err)
	}
}

// TestOutputsAreNamedForDialects: the ending of an output's name selects the dialect.
func TestOutputsAreNamedForDialects(t *testing.T) {
	for name, want := range map[string]string{
		"a.lora": "lora", "A.LORA": "lora", "a.safetensors": "peft", "dir": "peft", "v1.5": "peft", "dir.d": "peft",
		"a.bin": "", "a.gguf": "gguf", "a.npz": "", "a.pt": "", "a.pth": "",
	} {
		d, err := convert.Default().For(name)
		switch {
		case want == "" && !errors.Is(err, format.ErrUnsupported):
			t.Errorf("For(%s) = %v, %v, want unsupported", name, d, err)
		case want != "" && (err != nil || d.Name() != want):
			t.Errorf("For(%s) = %v, %v, want %s", name, d, err, want)
		}
	}
}

// TestAMissingFileOfAnFSIsNamed: the error names it, as for a file on disk.
func TestAMissingFileOfAnFSIsNamed(t *testing.T) {
	files := fstest.MapFS{"a/readme.txt": {Data: []byte("nothing")}}
	if _, err := convert.OpenFS(t.Context(), files, "b", convert.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenFS(b) = %v, want fs.ErrNotExist", err)
	}
	if _, err := convert.OpenFS(t.Context(), files, "a", convert.Options{}); !errors.Is(err, format.ErrUnsupported) {
		t.Errorf("OpenFS(a) = %v, want unsupported", err)
	}
}

// kindOf returns the kind that an error wraps, nil for another error.
func kindOf(err error) error {
	for _, kind := range []error{format.ErrCorrupt, format.ErrTruncated, format.ErrUnsupported, format.ErrLimit, format.ErrMismatch} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// brokenToy is a toy whose Open fails with an error that names no file.
type brokenToy struct{ toy }

func (brokenToy) Open(context.Context, *convert.Input, convert.Options) (format.Source, error) {
	return nil, format.Errorf(format.ErrCorrupt, "a wheel is missing")
}

// TestAnErrorOfAForeignDialectNamesTheInput: the dialect need not add the path itself.
func TestAnErrorOfAForeignDialectNamesTheInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "box.safetensors")
	testkit.Write(t, file, testkit.Encode(map[string]string{"toy": "yes"}, ones("q.1", "q.2")...))
	_, err := convert.Default().With(brokenToy{}).Open(t.Context(), file, convert.Options{})
	if want := file + ": a wheel is missing"; err == nil || err.Error() != want {
		t.Errorf("Open = %v, want %s", err, want)
	}
}
