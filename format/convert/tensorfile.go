package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/safetensors"
)

// tensorFile is a source whose tensors lie in a safetensors file, in the order of the file, and whose attachments are in
// memory, but for the header, which is read from the file.
type tensorFile struct {
	file        *os.File
	header      *safetensors.Header
	manifest    format.Manifest
	attachments [][]byte // nil: the header of the file
}

// openTensorFile proves the header and fills the tensor table.
func openTensorFile(path string) (*tensorFile, error) {
	file, size, err := fileio.Open(path)
	if err != nil {
		return nil, err
	}
	header, err := safetensors.Read(file, size)
	if err != nil {
		file.Close()
		return nil, fault.InFile(err, path)
	}
	f := &tensorFile{file: file, header: header}
	for i := range header.Tensors {
		t := &header.Tensors[i]
		if err := checkName(t.Name); err != nil {
			file.Close()
			return nil, err.In(path)
		}
		f.manifest.Tensors = append(f.manifest.Tensors, format.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	return f, nil
}

// checkName refuses a tensor's name that the adapter model does not allow (spec/FORMAT.md, R31 and R32). No module has one.
func checkName(name string) *fault.Error {
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

func (f *tensorFile) Manifest() *format.Manifest { return &f.manifest }

func (f *tensorFile) ReadBlobAt(p []byte, i int, off int64) error {
	start := int64(0)
	if i < len(f.header.Tensors) {
		start = f.header.Tensors[i].Off
	} else if content := f.attachments[i-len(f.header.Tensors)]; content != nil {
		copy(p, content[off:])
		return nil
	}
	_, err := io.ReadFull(io.NewSectionReader(f.file, start+off, int64(len(p))), p)
	return fault.InFile(err, f.file.Name())
}

func (f *tensorFile) Close() error { return f.file.Close() }

// digest computes the SHA-256 of the whole file, with which whoever restores it from a container can prove it.
func (f *tensorFile) digest(ctx context.Context) error {
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
