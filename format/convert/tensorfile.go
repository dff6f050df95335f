package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
)

// tensorFile is a source whose tensors lie in a safetensors file or in a pickle, in the order of the file, and whose
// attachments are in memory, but for the header of safetensors, which is read from the file.
type tensorFile struct {
	file        *os.File
	header      *safetensors.Header // nil for a pickle
	pickle      *pickle.File        // nil for a safetensors file
	manifest    format.Manifest
	attachments [][]byte // nil: the header of the file
	beside      []string // WeightsBeside

	inputs fileio.Identities // the file, and those beside it that were read
}

// openTensorFile proves the file's description of its tensors, and fills the tensor table. The content says what kind of file
// it is, whatever its name.
func openTensorFile(path string) (*tensorFile, error) {
	file, size, err := fileio.Open(path)
	if err != nil {
		return nil, err
	}
	f := &tensorFile{file: file}
	id, err := fileio.IdentityOf(file)
	if err == nil {
		f.inputs = append(f.inputs, id)
		err = f.readTable(size)
	}
	for i := range f.manifest.Tensors {
		if err == nil {
			err = checkName(f.manifest.Tensors[i].Name)
		}
	}
	if err != nil {
		file.Close()
		return nil, fault.InFile(err, path)
	}
	return f, nil
}

// readTable fills the tensor table.
func (f *tensorFile) readTable(size int64) error {
	start := make([]byte, min(size, 64))
	if _, err := io.ReadFull(io.NewSectionReader(f.file, 0, size), start); err != nil {
		return err
	}
	var err error
	if pickle.IsPickle(start) && !safetensors.IsHeader(start) {
		if arrays := arraysOf(f.file, size); arrays != nil {
			return refuseArrays(arrays)
		}
		if f.pickle, err = pickle.Read(f.file, size); err != nil {
			return nameLayout(err)
		}
		for i := range f.pickle.Tensors {
			t := &f.pickle.Tensors[i]
			f.manifest.Tensors = append(f.manifest.Tensors, format.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
		}
		return nil
	}
	if f.header, err = safetensors.Read(f.file, size); err != nil {
		return err
	}
	for i := range f.header.Tensors {
		t := &f.header.Tensors[i]
		f.manifest.Tensors = append(f.manifest.Tensors, format.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	return nil
}

// nameLayout names the dialect of a pickle whose tensors do not lie by name in one dictionary.
func nameLayout(err error) error {
	var layout *pickle.LayoutError
	if !errors.As(err, &layout) {
		return err
	}
	var e *fault.Error
	errors.As(err, &e)
	switch dialect := dialectOf(layout.Keys); {
	case dialect != "":
		e.Msg += "; its keys are " + dialect
		e.Hint = hintFor(dialect)
	case layout.NInLists > 0 && len(layout.Keys) == 0:
		e.Msg += "; a list of tensors without names is how cloneofsimo's lora saves an adapter"
		e.Hint = hintNotRead
	}
	return err
}

// checkName refuses a tensor's name that the adapter model does not allow (spec/FORMAT.md, R31 and R32). No module has one.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxNameBytes:
		return fault.New(fault.Unsupported, "a tensor's name has %d bytes, 1 to %d are allowed", len(name), maxNameBytes)
	case strings.ContainsFunc(name, isControl):
		return fault.New(fault.Unsupported, "the name of the tensor %q has control characters", name)
	}
	return nil
}

// maxNameBytes is the limit of R32.
const maxNameBytes = 1024

// isControl reports the characters that R31 excludes.
func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// attach adds an attachment; a nil content stands for the header of the file.
func (f *tensorFile) attach(name string, content []byte) {
	size := int64(len(content))
	if content == nil {
		size = f.header.DataOff
	}
	sum := ""
	if content != nil {
		digest := sha256.Sum256(content)
		sum = hex.EncodeToString(digest[:])
	}
	f.manifest.Attachments = append(f.manifest.Attachments, format.Attachment{Name: name, NBytes: size, SHA256: sum})
	f.attachments = append(f.attachments, content)
}

// note adds what a user should know.
func (f *tensorFile) note(format string, args ...any) {
	f.manifest.Notes = append(f.manifest.Notes, fmt.Sprintf(format, args...))
}

func (f *tensorFile) Manifest() *format.Manifest { return &f.manifest }

func (f *tensorFile) ReadBlobAt(p []byte, i int, off int64) error {
	start := int64(0)
	switch n := len(f.manifest.Tensors); {
	case i >= n && f.attachments[i-n] != nil:
		copy(p, f.attachments[i-n][off:])
		return nil
	case i < n && f.pickle != nil:
		return fault.InFile(f.pickle.ReadAt(p, i, off), f.file.Name())
	case i < n:
		start = f.header.Tensors[i].Off
	}
	_, err := io.ReadFull(io.NewSectionReader(f.file, start+off, int64(len(p))), p)
	return fault.InFile(err, f.file.Name())
}

func (f *tensorFile) Close() error { return f.file.Close() }

// Unchanged reports whether the file, and those beside it, are as they were when they were opened.
func (f *tensorFile) Unchanged() error { return f.inputs.Unchanged() }

// readBeside reads a file next to path, and returns nil where there is none.
func (f *tensorFile) readBeside(path, name string, limit int64) ([]byte, error) {
	file := filepath.Join(filepath.Dir(path), name)
	id, err := fileio.Identify(file)
	if errors.Is(err, fs.ErrNotExist) || id.IsDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f.inputs = append(f.inputs, id)
	return fileio.ReadFile(file, limit)
}

// digest computes the SHA-256 of the whole file, with which whoever restores it from a container can prove it. A pickle is not
// restored: it is a program, whose bytes say nothing that its tensors do not.
func (f *tensorFile) digest(ctx context.Context) error {
	if f.header == nil {
		f.note("the weights are a pickle: from a .lora file they come back as safetensors, with the same names and values")
		return nil
	}
	h := sha256.New()
	size := f.header.DataOff
	for i := range f.header.Tensors {
		size += f.header.Tensors[i].NBytes
	}
	buf := make([]byte, 1<<18)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := io.ReadFull(io.NewSectionReader(f.file, off, int64(len(p))), p); err != nil {
			return fault.InFile(err, f.file.Name())
		}
		h.Write(p)
	}
	for i := range f.manifest.Attachments {
		if a := &f.manifest.Attachments[i]; a.Name == format.SourceHeader {
			a.SHA256 = hex.EncodeToString(h.Sum(nil))
		}
	}
	return nil
}
