// Package gguf reads and writes the container of ggml's files, GGUF version 2 and 3: key-value
// pairs, and tensors of ggml's types. It knows no model and no adapter.
//
// [Read] checks a file as strictly as ggml's own loader, and more: counts and lengths against the
// bytes that are left, names, dimensions, and that the tensors fill the rest of the file in their
// order. It reads nothing of the tensors themselves. The memory that it takes is bounded by a small
// multiple of the metadata, and that by the file and by MaxMetadataBytes.
package gguf

import (
	"bytes"
	"context"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// Magic begins every file.
const Magic = "GGUF"

// The bounds of this package. The other bounds are those of ggml's loader.
const (
	MaxMetadataBytes = 256 << 20 // of all that precedes the tensors
	MaxKeyBytes      = 1<<16 - 1 // of a key
	MaxNameBytes     = 63        // of a tensor's name: ggml has room for 64 with a zero byte
	MaxDims          = 4         // of a tensor
	MaxAlignment     = 1 << 20   // of the tensors; the metadata are padded to it in memory

	alignmentKey     = "general.alignment"
	defaultAlignment = 32
	// A key takes 8 bytes of length, a character, 4 bytes of type, and a value of at least one. A
	// tensor takes 8 bytes of length, 4 of the number of dimensions, 4 of type and 8 of offset.
	minKVBytes, minTensorBytes = 14, 24
)

// File is the table of contents of a file.
type File struct {
	Version   uint32 // 2 or 3, which have the same layout
	KVs       []KV   // in the order of the file
	Tensors   []Tensor
	Alignment int64 // of the tensors, a power of two
	DataOff   int64 // where the first tensor begins

	at map[string]int // of keys
}

// Tensor describes a tensor.
type Tensor struct {
	Name string
	Type Type
	Dims []uint64 // the first counts neighbours in memory: NumPy's shape in reverse
	Off  int64    // in the file
	Size int64    // bytes
}

// Shape returns the dimensions in NumPy's order, the last for neighbours in memory.
func (t *Tensor) Shape() []uint64 {
	shape := make([]uint64, len(t.Dims))
	for i, d := range t.Dims {
		shape[len(shape)-1-i] = d
	}
	return shape
}

// Value returns the value of a key; ok is false if the file has no such key.
func (f *File) Value(key string) (v Value, ok bool) {
	i, ok := f.at[key]
	if !ok {
		return v, false
	}
	return f.KVs[i].Value, true
}

// Text returns the value of a key that must be a string: "" if there is no such key.
func (f *File) Text(key string) (string, error) {
	v, ok := f.Value(key)
	if !ok {
		return "", nil
	}
	s, isText := v.Text()
	if !isText {
		return "", fault.New(fault.Corrupt, "%s is of type %v, want a string", key, v.Type)
	}
	return s, nil
}

// Read reads the table of contents of a file of size bytes.
func Read(ctx context.Context, r io.ReaderAt, size int64) (*File, error) {
	f, end, err := readMetadata(ctx, r, size)
	if err != nil {
		return nil, err
	}
	return f, f.layOut(end, size)
}

// ReadHead reads the table of contents from the bytes of a file that precede its first tensor.
func ReadHead(head []byte) (*File, error) {
	f, end, err := readMetadata(context.Background(), bytes.NewReader(head), int64(len(head)))
	if err != nil {
		return nil, err
	}
	if err := f.place(end, maxFileBytes); err != nil {
		return nil, err
	}
	if f.DataOff != int64(len(head)) {
		return nil, fault.New(fault.Corrupt, "the first tensor is at byte %d, and the head has %d bytes", f.DataOff, len(head))
	}
	return f, nil
}

// maxFileBytes is more than any file has, so that sums of sizes below it do not overflow.
const maxFileBytes = 1 << 62

// readMetadata reads all that precedes the tensors. Their offsets count from the first one. end is
// where the metadata end.
func readMetadata(ctx context.Context, r io.ReaderAt, size int64) (_ *File, end int64, err error) {
	s := &scanner{ctx: ctx, r: r, size: size}
	f := &File{at: make(map[string]int)}
	if err := s.start(f); err != nil {
		return nil, 0, err
	}
	nTensors, nKVs := s.number(8), s.number(8)
	if err := s.count("tensors", nTensors, minTensorBytes); err != nil {
		return nil, 0, err
	}
	if err := s.count("key-value pairs", nKVs, minKVBytes); err != nil {
		return nil, 0, err
	}
	for range nKVs {
		if err := s.kv(f); err != nil {
			return nil, 0, err
		}
	}
	if err := f.readAlignment(); err != nil {
		return nil, 0, err
	}
	if err := s.tensors(f, nTensors); err != nil {
		return nil, 0, err
	}
	return f, s.off, nil
}

// start reads the magic and the version.
func (s *scanner) start(f *File) error {
	magic := s.take(4)
	if s.err == nil && string(magic) != Magic {
		return fault.New(fault.Corrupt, "the file begins with %q, want %q", magic, Magic)
	}
	f.Version = uint32(s.number(4))
	switch {
	case s.err != nil:
		return s.err
	case f.Version&0xffff == 0 && f.Version != 0:
		return fault.New(fault.Unsupported, "this GGUF file is big-endian").
			WithHint("convert it on a machine with little-endian numbers, as gguf-py's gguf_convert_endian.py does")
	case f.Version == 1:
		return fault.New(fault.Unsupported, "this is GGUF version 1 of August 2023, want 2 or 3").
			WithHint("convert the model again with a newer llama.cpp")
	case f.Version != 2 && f.Version != 3:
		return fault.New(fault.Unsupported, "this is GGUF version %d, want 2 or 3", f.Version)
	}
	return nil
}

func (f *File) readAlignment() error {
	f.Alignment = defaultAlignment
	v, ok := f.Value(alignmentKey)
	if !ok {
		return nil
	}
	n, isUint := v.Uint()
	if v.Type != Uint32 || !isUint || n == 0 || n&(n-1) != 0 {
		return fault.New(fault.Corrupt, "%s is %v, want a power of two of type uint32", alignmentKey, v)
	}
	if n > MaxAlignment {
		return fault.New(fault.Limit, "%s is %d, the limit is %d", alignmentKey, n, MaxAlignment)
	}
	f.Alignment = int64(n)
	return nil
}

// layOut places the tensors behind the metadata, which end at off, and checks that they fill the
// rest of the file.
func (f *File) layOut(off, size int64) error {
	if err := f.place(off, size); err != nil {
		return err
	}
	end := f.DataOff // of the last tensor
	if n := len(f.Tensors); n > 0 {
		end = f.Tensors[n-1].Off + f.Tensors[n-1].Size
	}
	if rest := size - end; rest >= f.Alignment && rest > f.pad(end-f.DataOff)-(end-f.DataOff) {
		return fault.New(fault.Corrupt, "%s after the last tensor belong to nothing",
			fault.Count(rest, "byte")).At(end)
	}
	return nil
}

// pad returns the next multiple of the alignment.
func (f *File) pad(n int64) int64 { return (n + f.Alignment - 1) &^ (f.Alignment - 1) }

// place places the tensors of a file of at most size bytes. Every offset that the file states must
// be the sum of the padded sizes before it.
func (f *File) place(off, size int64) error {
	if len(f.Tensors) > 0 && f.pad(off) > size {
		return fault.New(fault.Truncated, "the file ends before its tensors").At(off)
	}
	f.DataOff = min(f.pad(off), size)
	next := int64(0) // of the tensors so far, padded
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if t.Off != next {
			return fault.New(fault.Corrupt, "tensor %q is at offset %d, want %d, where the tensor before it ends",
				t.Name, t.Off, next)
		}
		left := size - f.DataOff - next
		if t.Size > left {
			return fault.New(fault.Truncated, "tensor %q has %d bytes, and %d are left in the file",
				t.Name, t.Size, max(left, 0)).At(f.DataOff + next)
		}
		t.Off += f.DataOff
		next += f.pad(t.Size)
	}
	return nil
}
