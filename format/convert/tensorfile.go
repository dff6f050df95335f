package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/npz"
	"github.com/loratool/loratool/internal/pickle"
	"github.com/loratool/loratool/internal/safetensors"
)

// table lists the tensors of a file of weights, safetensors, pickle, GGUF or NumPy's archive, in
// the order of the file, or those of several such files. The content decides which it is, whatever
// the name.
type table struct {
	file    *fileio.Input
	ahead   *ahead // of the file; nil for a pickle, an archive and GGUF
	tensors []format.Tensor
	offs    []int64             // offsets of the tensors; nil for a pickle and an archive
	header  *safetensors.Header // without its tensors; nil for any other file
	pickle  *pickle.File        // nil for any other file
	gguf    *gguf.File          // nil for any other file
	arrays  *npz.File           // nil for any other file
	turned  []bool              // tensors that are stored transposed; nil if none is
	lost    string              // what a .lora file loses of the file; "" for the usual

	parts   []*table // the tables of the shards; nil for one file
	refs    []partRef
	holders map[string]*table // the part that holds a tensor
}

// readTable reads and checks a file's list of tensors. Its errors need not name the file.
func readTable(ctx context.Context, f *fileio.Input) (*table, error) {
	start, err := startOf(f, startBytes)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(start), gguf.Magic) {
		return ggufTable(ctx, f)
	}
	t := &table{file: f}
	if isPickle(start) {
		if npz.IsArchive(f, f.Size) {
			return arraysTable(ctx, f)
		}
		if t.pickle, err = pickle.Read(f, f.Size); err != nil {
			return nil, nameLayout(err)
		}
		return pickleTable(f, t.pickle), nil
	}
	if t.header, err = safetensors.Read(ctx, f, f.Size); err != nil {
		return nil, err
	}
	n := len(t.header.Tensors)
	t.ahead = new(ahead)
	t.tensors, t.offs = make([]format.Tensor, n), make([]int64, n)
	for i := range t.header.Tensors {
		x := &t.header.Tensors[i]
		t.tensors[i] = format.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape}
		t.offs[i] = x.Off
	}
	t.header.Tensors = nil
	return t, nil
}

// pickleTable lists the tensors of a pickle.
func pickleTable(f *fileio.Input, p *pickle.File) *table {
	t := &table{file: f, pickle: p, tensors: make([]format.Tensor, len(p.Tensors))}
	for i := range p.Tensors {
		x := &p.Tensors[i]
		t.tensors[i] = format.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape}
	}
	return t
}

// arraysTable lists the arrays of NumPy's archive.
func arraysTable(ctx context.Context, f *fileio.Input) (*table, error) {
	all, err := npz.Read(ctx, f, f.Size)
	if err != nil {
		return nil, err
	}
	n := len(all.Tensors)
	t := &table{file: f, arrays: all, tensors: make([]format.Tensor, n), turned: make([]bool, n)}
	for i := range all.Tensors {
		x := &all.Tensors[i]
		if t.turned[i] = x.IsTransposed; x.IsTransposed && len(x.Shape) > 2 {
			return nil, fault.New(fault.Unsupported, "the array %q of shape %d is stored in Fortran's order, "+
				"which is read for matrices alone", x.Name, x.Shape).
				WithHint("save numpy.ascontiguousarray of it")
		}
		t.tensors[i] = format.Tensor{Name: x.Name, DType: x.DType, Shape: x.Shape}
	}
	return t, nil
}

// transposed returns a table in which the matrices for which isTurned are listed and read as the
// transposed ones.
func (t *table) transposed(isTurned func(*format.Tensor) bool) *table {
	all := *t
	all.tensors = slices.Clone(t.tensors)
	all.turned = make([]bool, len(t.tensors))
	copy(all.turned, t.turned)
	for i := range all.tensors {
		x := &all.tensors[i]
		if len(x.Shape) == 2 && isTurned(x) {
			x.Shape = []uint64{x.Shape[1], x.Shape[0]}
			all.turned[i] = !all.turned[i]
		}
	}
	return &all
}

// isPickle reports whether a file begins like a file of torch.save or another zip archive.
func isPickle(start []byte) bool { return pickle.IsPickle(start) && !safetensors.IsHeader(start) }

// nameLayout adds the dialect to the error for a pickle that is not a dictionary of named tensors.
func nameLayout(err error) error {
	var layout *pickle.LayoutError
	if !errors.As(err, &layout) {
		return err
	}
	var e *fault.Error
	errors.As(err, &e)
	switch dialect := naming.Dialect(layout.Keys); {
	case dialect != "":
		e.Msg += "; its keys are " + dialect
		e.Hint = hintFor(dialect)
	case layout.NInLists > 0 && len(layout.Keys) == 0:
		e.Msg += "; cloneofsimo's lora saves adapters as lists of tensors without names"
	}
	return err
}

// isList reports whether the weights are a pickled list of tensors.
func isList(in *Input) bool {
	var layout *pickle.LayoutError
	return errors.As(in.err, &layout) && len(layout.Keys) == 0 && layout.NInLists > 1
}

// keys returns the names of the tensors.
func (t *table) keys() []string {
	keys := make([]string, len(t.tensors))
	for i := range t.tensors {
		keys[i] = t.tensors[i].Name
	}
	return keys
}

// checkNames checks the names of all tensors.
func (t *table) checkNames() error {
	for i := range t.tensors {
		if err := checkName(t.tensors[i].Name); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses a tensor name that the adapter model does not allow (spec/FORMAT.md, R31 and
// R32). No real module has such a name.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxNameBytes:
		return fault.New(fault.Unsupported, "a tensor name has %d bytes, want 1 to %d", len(name), maxNameBytes)
	case hasControl(name):
		return fault.New(fault.Unsupported, "the tensor name %q contains control characters", name)
	}
	return nil
}

// hasControl compares bytes: isControl accepts no part of a longer character.
func hasControl(name string) bool {
	for i := range len(name) {
		if isControl(rune(name[i])) {
			return true
		}
	}
	return false
}

// isControl reports whether R31 excludes the character.
func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// copyTo writes the whole file to w.
func (t *table) copyTo(ctx context.Context, w io.Writer) error {
	buf := make([]byte, 1<<18)
	for off, size := int64(0), t.file.Size; off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), size-off)]
		if err := readFull(t.file, p, off); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// readBlobAt fills p with the bytes of tensor i from offset off.
func (t *table) readBlobAt(p []byte, i int, off int64) error {
	switch {
	case len(p) == 0:
		return nil
	case t.turned != nil && t.turned[i]:
		return t.readTurned(p, i, off)
	}
	return t.readStored(p, i, off)
}

// readTurned fills p with bytes of the transposed matrix of tensor i from offset off. It reads the
// matrix in the file once, in pieces of whole rows.
func (t *table) readTurned(p []byte, i int, off int64) error {
	x := &t.tensors[i]
	size := int64(x.DType.Size())
	nCols, nRows := int64(x.Shape[1]), int64(x.Shape[0]) // of the result
	perPiece := max(1, min(nCols, turnedBytes/(nRows*size)))
	piece := make([]byte, perPiece*nRows*size)
	first, last := off/size, (off+int64(len(p))-1)/size // elements
	var word [8]byte
	for col := int64(0); col < nCols; col += perPiece {
		n := min(perPiece, nCols-col)
		if err := t.readStored(piece[:n*nRows*size], i, col*nRows*size); err != nil {
			return err
		}
		for row := first / nCols; row <= last/nCols; row++ {
			from, to := max(first-row*nCols-col, 0), min(last-row*nCols-col, n-1)
			for k := from; k <= to; k++ {
				copy(word[:size], piece[(k*nRows+row)*size:])
				put(p, word[:size], (row*nCols+col+k)*size-off)
			}
		}
	}
	return nil
}

// turnedBytes is how much of a turned tensor is read at once.
const turnedBytes = 1 << 20

// put copies word to p from at on, which may lie before p.
func put(p, word []byte, at int64) {
	if at < 0 {
		word, at = word[-at:], 0
	}
	copy(p[at:], word)
}

// readStored fills p with bytes of tensor i from offset off, in the order of the file.
func (t *table) readStored(p []byte, i int, off int64) error {
	switch {
	case t.refs != nil:
		return t.refs[i].part.readBlobAt(p, t.refs[i].i, off)
	case t.pickle != nil:
		return fault.InFile(t.pickle.ReadAt(p, i, off), t.file.Path)
	case t.arrays != nil:
		return fault.InFile(t.arrays.ReadAt(p, i, off), t.file.Path)
	case t.gguf != nil:
		return t.readDecoded(p, i, off)
	}
	return t.ahead.readFull(t.file, p, t.offs[i]+off)
}

// tensorFile is a source whose tensors come from a table. Its attachments are in memory, except the
// safetensors header, which is read from the file.
type tensorFile struct {
	*table
	manifest    format.Manifest
	attachments [][]byte // nil stands for the header of the file
	sign        string   // how the dialect was recognised
}

// attach adds an attachment; nil content stands for the header of the file.
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

// collector returns a collector of the parts of the adapter in the file.
func (f *tensorFile) collector() collector {
	return collector{tensors: f.manifest.Tensors, manifest: &f.manifest}
}

// describe attaches the header of a safetensors file, and notes what a pickle lacks.
func (f *tensorFile) describe() {
	if f.header != nil {
		f.attach(format.SourceHeader, nil)
	}
	f.manifest.Notes = append(f.manifest.Notes, f.notes()...)
}

// note adds a remark for the user.
func (f *tensorFile) note(format string, args ...any) {
	f.manifest.Notes = append(f.manifest.Notes, fmt.Sprintf(format, args...))
}

func (f *tensorFile) Manifest() *format.Manifest { return &f.manifest }

func (f *tensorFile) ReadBlobAt(p []byte, i int, off int64) error {
	n := len(f.tensors)
	switch {
	case i < n:
		return f.readBlobAt(p, i, off)
	case f.attachments[i-n] != nil:
		copy(p, f.attachments[i-n][off:])
		return nil
	}
	return readFull(f.file, p, off)
}

// Close leaves the file open, because it belongs to the input.
func (f *tensorFile) Close() error { return nil }

// digest computes the SHA-256 of the whole file, which proves a restored file. A pickle is not
// restored: it is a program, and its bytes say nothing that its tensors do not.
func (f *tensorFile) digest(ctx context.Context) error {
	if how := f.restoring(); how != "" {
		f.note("%s", how)
		return nil
	}
	h := sha256.New()
	if err := f.copyTo(ctx, h); err != nil {
		return err
	}
	for i := range f.manifest.Attachments {
		if a := &f.manifest.Attachments[i]; a.Name == format.SourceHeader {
			a.SHA256 = hex.EncodeToString(h.Sum(nil))
		}
	}
	return nil
}
