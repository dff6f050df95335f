package gguf

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/loratool/loratool/internal/fault"
)

// Write writes a file of version 3 with the given keys, in their order, and tensors. It asks data
// for the bytes of each tensor in turn, which writes exactly Size bytes; Size and Off of the given
// tensors do not matter. The alignment is that of the key general.alignment, or 32. Write checks
// all that Read checks before it writes anything.
func Write(
	ctx context.Context, w io.Writer, kvs []KV, tensors []Tensor, data func(w io.Writer, i int) error,
) error {
	f, head, err := compose(kvs, tensors)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(w, 1<<18)
	if _, err := b.Write(head); err != nil {
		return err
	}
	off := int64(len(head))
	for i := range f.Tensors {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := &f.Tensors[i]
		if err := writeZeros(b, t.Off-off); err != nil {
			return err
		}
		c := &counter{w: b}
		if err := data(c, i); err != nil {
			return err
		}
		if c.n != t.Size {
			return errors.New("internal error: a tensor of a GGUF file was written with another size")
		}
		off = t.Off + t.Size
	}
	if err := writeZeros(b, -off&(f.Alignment-1)); err != nil {
		return err
	}
	return b.Flush()
}

// Size returns the bytes of the file that Write makes.
func Size(kvs []KV, tensors []Tensor) (int64, error) {
	f, _, err := compose(kvs, tensors)
	if err != nil {
		return 0, err
	}
	return f.End(), nil
}

// compose is Compose for a file that this module makes: with the keys that ggml's documentation
// allows, and in the newest version.
func compose(kvs []KV, tensors []Tensor) (*File, []byte, error) {
	for _, kv := range kvs {
		if !IsKey(kv.Key) {
			return nil, nil, fault.New(fault.Unsupported, "a GGUF file cannot have the key %q", kv.Key)
		}
	}
	return Compose(3, kvs, tensors)
}

// Compose returns the table of contents of a file, and the bytes of all that precedes the tensors,
// padded to where the first one begins. Size and Off of the given tensors do not matter.
func Compose(version uint32, kvs []KV, tensors []Tensor) (*File, []byte, error) {
	f := &File{Version: version, KVs: kvs, at: make(map[string]int)}
	head := binary.LittleEndian.AppendUint32([]byte(Magic), version)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(tensors)))
	head = binary.LittleEndian.AppendUint64(head, uint64(len(kvs)))
	for i, kv := range kvs {
		if _, twice := f.at[kv.Key]; twice {
			return nil, nil, fault.New(fault.Unsupported, "a GGUF file cannot have the key %q twice", kv.Key)
		}
		f.at[kv.Key] = i
		head = append(appendText(head, kv.Key), kv.bytes()...)
	}
	if err := f.readAlignment(); err != nil {
		return nil, nil, err
	}
	known, off := make(map[string]bool, len(tensors)), int64(0)
	for _, t := range tensors {
		if err := checkListed(&t, known); err != nil {
			return nil, nil, err
		}
		var err error
		if t.Size, err = sizeOf(&t); err != nil {
			return nil, nil, err
		}
		known[t.Name], t.Off = true, off
		head = append(head, t.bytes()...)
		f.Tensors = append(f.Tensors, t)
		off += f.pad(t.Size)
	}
	head = append(head, make([]byte, f.pad(int64(len(head)))-int64(len(head)))...)
	f.DataOff = int64(len(head))
	for i := range f.Tensors {
		f.Tensors[i].Off += f.DataOff
	}
	return f, head, nil
}

// checkListed refuses a tensor that a file cannot list beside the known ones.
func checkListed(t *Tensor, known map[string]bool) error {
	switch {
	case t.Name == "" || len(t.Name) > MaxNameBytes:
		return fault.New(fault.Unsupported, "the tensor name %q has %d bytes, and a GGUF file "+
			"holds names of 1 to %d", t.Name, len(t.Name), MaxNameBytes)
	case known[t.Name]:
		return fault.New(fault.Unsupported, "two tensors have the name %q", t.Name)
	case len(t.Dims) > MaxDims:
		return fault.New(fault.Unsupported, "tensor %q has %d dimensions, and a GGUF file holds at most %d",
			t.Name, len(t.Dims), MaxDims)
	}
	return nil
}

// End returns the length of the file: the data of its last tensor end there, padded.
func (f *File) End() int64 {
	if n := len(f.Tensors); n > 0 {
		return f.pad(f.Tensors[n-1].Off + f.Tensors[n-1].Size)
	}
	return f.DataOff
}

// bytes returns the value as a file has it, behind its key.
func (v Value) bytes() []byte {
	p := binary.LittleEndian.AppendUint32(nil, uint32(v.Type))
	if v.Type == Array {
		p = binary.LittleEndian.AppendUint32(p, uint32(v.Elem))
		p = binary.LittleEndian.AppendUint64(p, v.N)
	}
	return append(p, v.raw...)
}

// bytes returns the description of a tensor as a file has it.
func (t *Tensor) bytes() []byte {
	p := appendText(nil, t.Name)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(t.Dims)))
	for _, d := range t.Dims {
		p = binary.LittleEndian.AppendUint64(p, d)
	}
	p = binary.LittleEndian.AppendUint32(p, uint32(t.Type))
	return binary.LittleEndian.AppendUint64(p, uint64(t.Off))
}

// counter counts the bytes that pass.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func writeZeros(w io.Writer, n int64) error {
	_, err := w.Write(make([]byte, n))
	return err
}
