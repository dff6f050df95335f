package gguf

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"strings"

	"github.com/loratool/loratool/internal/fault"
)

// scanner reads the metadata of a file forwards. After an error it returns zeros.
type scanner struct {
	ctx  context.Context
	r    io.ReaderAt
	size int64
	off  int64 // of the next byte
	buf  []byte
	err  error
}

// left returns the number of bytes that the metadata can still have.
func (s *scanner) left() int64 { return min(s.size, MaxMetadataBytes) - s.off }

// pieceBytes is how much of the file is read at once.
const pieceBytes = 1 << 16

// take returns the next n bytes, which stay valid until the next call.
func (s *scanner) take(n int) []byte {
	if s.err == nil && int64(n) > s.left() {
		s.err = s.tooShort(int64(n))
	}
	if s.err == nil && len(s.buf) < n {
		s.fill(n)
	}
	if s.err != nil {
		return make([]byte, min(n, 8))
	}
	p := s.buf[:n]
	s.buf, s.off = s.buf[n:], s.off+int64(n)
	return p
}

// fill reads on, so that the buffer has n bytes at least.
func (s *scanner) fill(n int) {
	if s.err = s.ctx.Err(); s.err != nil {
		return
	}
	p := make([]byte, min(int64(max(n, pieceBytes)), s.size-s.off))
	if _, err := io.ReadFull(io.NewSectionReader(s.r, s.off, int64(len(p))), p); err != nil {
		s.err = err
		return
	}
	s.buf = p
}

// tooShort is the error for n bytes that the metadata cannot have.
func (s *scanner) tooShort(n int64) error {
	if s.size > MaxMetadataBytes && n <= s.size-s.off {
		return fault.New(fault.Limit, "the metadata have more than %d bytes, which is the limit",
			MaxMetadataBytes).At(s.off)
	}
	return fault.New(fault.Truncated, "the metadata want %s more, and %d are left in the file",
		fault.Count(n, "byte"), s.size-s.off).At(s.off)
}

// number reads an unsigned number of n bytes.
func (s *scanner) number(n int) uint64 {
	p := s.take(n)
	switch n {
	case 4:
		return uint64(binary.LittleEndian.Uint32(p))
	default:
		return binary.LittleEndian.Uint64(p)
	}
}

// count checks the number of things that take at least min bytes each.
func (s *scanner) count(what string, n uint64, min uint64) error {
	if s.err == nil && n > uint64(s.left())/min {
		s.err = fault.New(fault.Corrupt, "the file says that it has %d %s, and it has room for %d",
			n, what, uint64(s.left())/min).At(s.off)
	}
	return s.err
}

// text reads a string of at most limit bytes.
func (s *scanner) text(what string, limit uint64) string {
	n := s.number(8)
	switch {
	case s.err != nil:
		return ""
	case n > uint64(s.left()):
		s.err = fault.New(fault.Corrupt, "%s has a length of %d bytes, and %d are left",
			what, n, s.left()).At(s.off)
	case n > limit:
		s.err = fault.New(fault.Limit, "%s has %d bytes, the limit is %d", what, n, limit).At(s.off)
	}
	if s.err != nil {
		return ""
	}
	return string(s.take(int(n)))
}

// kv reads a key and its value.
func (s *scanner) kv(f *File) error {
	at := s.off
	key := s.text("a key", MaxKeyBytes)
	if s.err != nil {
		return s.err
	}
	if _, twice := f.at[key]; twice {
		return fault.New(fault.Corrupt, "the key %q is there twice", key).At(at)
	}
	if key == "" {
		return fault.New(fault.Corrupt, "a key is empty").At(at)
	}
	v, err := s.value(key)
	if err != nil {
		return err
	}
	f.at[key] = len(f.KVs)
	f.KVs = append(f.KVs, KV{key, v})
	return nil
}

// value reads the type and the value of a key.
func (s *scanner) value(key string) (v Value, err error) {
	at := s.off
	v.Type, v.N = ValueType(s.number(4)), 1
	item := v.Type
	if v.Type == Array {
		v.Elem, v.N = ValueType(s.number(4)), s.number(8)
		item = v.Elem
	}
	width := item.width()
	switch {
	case s.err != nil:
		return v, s.err
	case item == Array:
		return v, fault.New(fault.Unsupported, "%s is an array of arrays, which ggml does not read, either", key).At(at)
	case width == 0:
		return v, fault.New(fault.Corrupt, "%s is of the unknown type %d", key, uint32(item)).At(at)
	case v.N > uint64(s.left()/width):
		return v, fault.New(fault.Corrupt, "%s has %d elements of at least %s, and %d are left",
			key, v.N, fault.Count(width, "byte"), s.left()).At(at)
	case item == Text:
		v.raw = s.texts(key, v.N)
	default:
		v.raw = append([]byte(nil), s.take(int(v.N)*int(width))...)
	}
	if s.err == nil && item == Bool {
		for _, b := range v.raw {
			if b > 1 {
				return v, fault.New(fault.Corrupt, "%s is the byte %d, want 0 or 1 for a bool", key, b).At(at)
			}
		}
	}
	return v, s.err
}

// texts reads n strings, and returns them as the file has them, with their lengths.
func (s *scanner) texts(key string, n uint64) (raw []byte) {
	for range n {
		length := s.number(8)
		if s.err == nil && length > uint64(s.left()) {
			s.err = fault.New(fault.Corrupt, "a string of %s has a length of %d bytes, and %d are left",
				key, length, s.left()).At(s.off)
		}
		if s.err != nil {
			return nil
		}
		raw = binary.LittleEndian.AppendUint64(raw, length)
		raw = append(raw, s.take(int(length))...)
	}
	return raw
}

// tensors reads the descriptions of n tensors. Their offsets count from the first tensor.
func (s *scanner) tensors(f *File, n uint64) error {
	if err := s.count("tensors", n, minTensorBytes); err != nil {
		return err
	}
	known := make(map[string]bool) // without a hint: n is a claim
	for range n {
		at := s.off
		t, err := s.tensor()
		if err == nil && known[t.Name] {
			err = fault.New(fault.Corrupt, "the tensor %q is there twice", t.Name).At(at)
		}
		if err != nil {
			return err
		}
		known[t.Name] = true
		f.Tensors = append(f.Tensors, t)
	}
	return s.err
}

func (s *scanner) tensor() (t Tensor, err error) {
	at := s.off
	t.Name = s.text("a tensor's name", MaxNameBytes)
	nDims := s.number(4)
	switch {
	case s.err != nil:
		return t, s.err
	case t.Name == "" || strings.IndexByte(t.Name, 0) >= 0:
		return t, fault.New(fault.Corrupt, "the tensor name %q is empty or has a zero byte", t.Name).At(at)
	case nDims > MaxDims:
		return t, fault.New(fault.Limit, "tensor %q has %d dimensions, the limit is %d",
			t.Name, nDims, MaxDims).At(at)
	}
	t.Dims = make([]uint64, nDims)
	for i := range t.Dims {
		t.Dims[i] = s.number(8)
	}
	t.Type = Type(s.number(4))
	off := s.number(8)
	if s.err != nil {
		return t, s.err
	}
	if off > math.MaxInt64 {
		return t, fault.New(fault.Corrupt, "tensor %q is at offset %d", t.Name, off).At(at)
	}
	t.Off = int64(off)
	t.Size, err = sizeOf(&t)
	return t, err
}

// sizeOf returns the bytes of a tensor.
func sizeOf(t *Tensor) (int64, error) {
	perBlock, bytes := t.Type.Block()
	if perBlock == 0 {
		why := "is of an unknown type of ggml"
		if t.Type.IsRemoved() {
			why = "is of a type that ggml has removed"
		}
		return 0, fault.New(fault.Unsupported, "tensor %q %s, %v", t.Name, why, t.Type)
	}
	row := uint64(1)
	if len(t.Dims) > 0 {
		row = t.Dims[0]
	}
	if row%uint64(perBlock) != 0 {
		return 0, fault.New(fault.Corrupt, "tensor %q has rows of %d elements, want a multiple of %d for %v",
			t.Name, row, perBlock, t.Type)
	}
	// The product is taken without the zeros, so that their place does not matter.
	n, isEmpty := uint64(1), false
	for _, d := range t.Dims {
		if d == 0 {
			isEmpty = true
			continue
		}
		if d > math.MaxInt64 || n > math.MaxInt64/d/uint64(bytes) {
			return 0, fault.New(fault.Limit, "tensor %q has dimensions %d, too many elements", t.Name, t.Dims)
		}
		n *= d
	}
	if isEmpty {
		return 0, nil
	}
	return int64(n) / perBlock * bytes, nil
}
