package convert

import (
	"io"
	"os"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
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

// headerAttachment is the name under which spec/FORMAT.md, section 7.6, keeps the header of the source file.
const headerAttachment = "source.safetensors.header"

// openTensorFile proves the header and fills the tensor table.
func openTensorFile(path string) (*tensorFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Unsupported, "not a regular file")
	}
	var header *safetensors.Header
	if err == nil {
		header, err = safetensors.Read(file, info.Size())
	}
	if err != nil {
		file.Close()
		return nil, fault.InFile(err, path)
	}
	f := &tensorFile{file: file, header: header}
	for i := range header.Tensors {
		t := &header.Tensors[i]
		f.manifest.Tensors = append(f.manifest.Tensors, format.Tensor{Name: t.Name, DType: t.DType, Shape: t.Shape})
	}
	return f, nil
}

// attach adds an attachment; a nil content stands for the header of the file.
func (f *tensorFile) attach(name string, content []byte) {
	size := int64(len(content))
	if content == nil {
		size = f.header.DataOff
	}
	f.manifest.Attachments = append(f.manifest.Attachments, format.Attachment{Name: name, NBytes: size})
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
