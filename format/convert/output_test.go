package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
)

// demos opens a PEFT adapter, which is restored, and one from a Builder, which is composed.
var demos = map[string]func(t *testing.T) format.Source{
	"restored": func(t *testing.T) format.Source {
		src, err := convert.OpenDigested(t.Context(), "../../testdata/demo/adapter-r8", convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return src
	},
	"composed": func(t *testing.T) format.Source {
		b := format.NewBuilder("test")
		b.Linear("model.q_proj", 1, 0.5, format.Float32s([]float32{1, 2}), format.Float32s([]float32{3}))
		src, err := b.Source()
		if err != nil {
			t.Fatal(err)
		}
		return src
	},
}

// anyModel are the dialects that are written for models of any kind.
var anyModel = []convert.Dialect{convert.LoRA(), convert.PEFT()}

// filesOf reads the files at a path; a single file gets the name "".
func filesOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(at)
		name, _ := filepath.Rel(path, at)
		if at == path {
			name = ""
		}
		files[filepath.ToSlash(name)] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestMemoryGetsWhatAPathGets: in each dialect, memory and disk get the same files and bytes.
func TestMemoryGetsWhatAPathGets(t *testing.T) {
	for name, open := range demos {
		for _, d := range anyModel {
			t.Run(name+" "+d.Name(), func(t *testing.T) {
				src := open(t)
				defer src.Close()
				path := filepath.Join(t.TempDir(), "out")
				to, err := convert.Create(path, d, convert.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if err := format.Copy(t.Context(), to, src); err != nil {
					t.Fatal(err)
				}
				var m output.Memory
				to, err = convert.CreateTo(&m, d, convert.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if m.Files() != nil {
					t.Error("there are files before Store")
				}
				if err := format.Copy(t.Context(), to, src); err != nil {
					t.Fatal(err)
				}
				got, want := m.Files(), filesOf(t, path)
				for name := range want {
					if !bytes.Equal(got[name], want[name]) {
						t.Errorf("%q: %d bytes in memory, another %d on the disk",
							name, len(got[name]), len(want[name]))
					}
				}
				if len(got) != len(want) {
					t.Errorf("%d files in memory, %d on the disk", len(got), len(want))
				}
			})
		}
	}
}

// narrowOutput has room for only a few files and records its calls.
type narrowOutput struct {
	output.Memory
	room  int
	calls []string
}

var errNarrow = errors.New("no room for one more file")

func (o *narrowOutput) Create(info output.Info) (output.File, error) {
	if o.room--; o.room < 0 {
		return nil, errNarrow
	}
	return o.Memory.Create(info)
}

func (o *narrowOutput) Commit() error {
	o.calls = append(o.calls, "commit")
	return o.Memory.Commit()
}

func (o *narrowOutput) Abort() {
	o.calls = append(o.calls, "abort")
	o.Memory.Abort()
}

// changedSource reports at the end that its file has been written to.
type changedSource struct{ format.Source }

var errChanged = errors.New("the file changed")

func (changedSource) Unchanged() error { return errChanged }

// TestAnAdapterThatFailsIsAborted: if the second file has no room, the source has changed or the
// context has ended, nothing is committed and the output is aborted.
func TestAnAdapterThatFailsIsAborted(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	change := func(s format.Source) format.Source { return changedSource{s} }
	for _, c := range []struct {
		name string
		d    convert.Dialect
		room int
		ctx  context.Context
		wrap func(format.Source) format.Source
		want error
	}{
		{"no room", convert.PEFT(), 1, t.Context(), nil, errNarrow},
		{"no room at all", convert.LoRA(), 0, t.Context(), nil, errNarrow},
		{"changed", convert.PEFT(), 9, t.Context(), change, errChanged},
		{"changed", convert.LoRA(), 9, t.Context(), change, errChanged},
		{"ended", convert.PEFT(), 9, ended, nil, context.Canceled},
		{"ended", convert.LoRA(), 9, ended, nil, context.Canceled},
	} {
		src := demos["composed"](t)
		if c.wrap != nil {
			src = c.wrap(src)
		}
		out := &narrowOutput{room: c.room}
		to, err := convert.CreateTo(out, c.d, convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Store(c.ctx, src); !errors.Is(err, c.want) {
			t.Errorf("%s, %s: Store() = %v, want %v", c.name, c.d.Name(), err, c.want)
		}
		if want := []string{"abort"}; !slices.Equal(out.calls, want) || out.Files() != nil {
			t.Errorf("%s, %s: the output was asked to %q, want %q", c.name, c.d.Name(), out.calls, want)
		}
	}
}

// TestADialectWithoutOutputsIsRefusedByName: CreateTo must not write to a path instead.
func TestADialectWithoutOutputsIsRefusedByName(t *testing.T) {
	_, err := convert.CreateTo(new(output.Memory), toy{}, convert.CreateOptions{})
	if !errors.Is(err, format.ErrUnsupported) {
		t.Errorf("CreateTo(toy) = %v, want an error of the kind %v", err, format.ErrUnsupported)
	}
}

// TestAnAdapterInMemoryIsOpenedAgain, in each dialect, with the same content.
func TestAnAdapterInMemoryIsOpenedAgain(t *testing.T) {
	src := demos["restored"](t)
	defer src.Close()
	for _, d := range anyModel {
		var m output.Memory
		to, err := convert.CreateTo(&m, d, convert.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := format.Copy(t.Context(), to, src); err != nil {
			t.Fatal(err)
		}
		files := make(fstest.MapFS)
		for name, content := range m.Files() {
			files["adapter/"+name] = &fstest.MapFile{Data: content}
		}
		at := "adapter"
		if one := files["adapter/"]; one != nil {
			files, at = fstest.MapFS{"adapter.lora": one}, "adapter.lora"
		}
		back, err := convert.OpenFS(t.Context(), files, at, convert.Options{})
		if err != nil {
			t.Fatalf("%s: %v", d.Name(), err)
		}
		got, err1 := format.ContentID(t.Context(), back)
		want, err2 := format.ContentID(t.Context(), src)
		if err := errors.Join(err1, err2, back.Close()); err != nil || got != want {
			t.Errorf("%s: content %v, want %v; %v", d.Name(), got, want, err)
		}
	}
}
