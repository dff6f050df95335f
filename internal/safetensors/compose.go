package safetensors

import (
	"cmp"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

// CompareData orders tensors a and b as the format's own writer orders their data: the last dtypes
// of package dtype first, then by name.
func CompareData(a, b dtype.Type, nameA, nameB string) int {
	return cmp.Or(cmp.Compare(b, a), cmp.Compare(nameA, nameB))
}

// Compose returns a header, length prefix included, for tensors whose data follow one another in
// the given order. It ignores their offsets. The data begin at a multiple of 8 bytes, as in the
// files of the format's own writer.
func Compose(tensors []Tensor, metadata map[string]string) []byte {
	const entryBytes = 96 // beside the name; a text that grows costs several times as much
	out, at := appendStart(nil, metadata), int64(0)
	size := entryBytes
	for i := range tensors {
		size += len(tensors[i].Name) + entryBytes
	}
	out = slices.Grow(out, size)
	for i := range tensors {
		out = appendEntry(out, i == 0 && metadata == nil, &tensors[i], at)
		at += tensors[i].NBytes
	}
	out = append(out, '}')
	for len(out)%alignment != 0 {
		out = append(out, ' ')
	}
	binary.LittleEndian.PutUint64(out, uint64(len(out)-8))
	return out
}

// alignment of the data in a composed file.
const alignment = 8

// Describe returns the header that Compose writes, as Read would return it. It keeps the tensors
// and gives them their offsets. It looks for all that Read refuses but two tensors of one name.
func Describe(tensors []Tensor, metadata map[string]string) (*Header, error) {
	text := appendStart(nil, metadata)
	h := &Header{Tensors: tensors, Metadata: metadata, hasMeta: metadata != nil, insertAt: 1, noTensors: len(tensors) == 0}
	if h.hasMeta {
		h.insertAt, h.emptyMeta = len(`{"":{`)+len(MetadataName), len(metadata) == 0
	}
	size, next := len(text)+len("}"), int64(0)
	for i := range tensors {
		t := &tensors[i]
		n, ok := dtype.NElements(t.Shape)
		want, ok2 := t.DType.NBytes(n)
		switch {
		case !ok || !ok2 || want != t.NBytes || t.NBytes > math.MaxInt64-MaxHeaderBytes-next:
			return nil, fault.New(fault.Corrupt, "tensor %q of %v and shape %d cannot have %d bytes", t.Name, t.DType, t.Shape, t.NBytes)
		case t.Name == MetadataName || !utf8.ValidString(t.Name):
			return nil, fault.New(fault.Unsupported, "a safetensors file cannot hold a tensor called %q", t.Name)
		case len(t.Shape) > maxDims:
			return nil, fault.New(fault.Limit, "tensor %q has more than %d dimensions", t.Name, maxDims)
		}
		text = appendEntry(text[:0], i == 0 && metadata == nil, t, next)
		t.Off, next, size = next, next+t.NBytes, size+len(text)
	}
	size += -size & (alignment - 1)
	if size > MaxHeaderBytes {
		return nil, fault.New(fault.Limit, "the header would have %d bytes, the format allows %d", size, MaxHeaderBytes)
	}
	h.DataOff = int64(size)
	for i := range tensors {
		tensors[i].Off += h.DataOff
	}
	return h, nil
}

// appendStart appends the length prefix, to be filled in later, and the text up to the first
// tensor.
func appendStart(dst []byte, metadata map[string]string) []byte {
	dst = append(dst, "\x00\x00\x00\x00\x00\x00\x00\x00{"...)
	if metadata == nil {
		return dst
	}
	dst = append(append(append(dst, '"'), MetadataName...), `":{`...)
	for i, key := range slices.Sorted(maps.Keys(metadata)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, key), ':')
		dst = appendString(dst, metadata[key])
	}
	return append(dst, '}')
}

// appendEntry appends the member of a tensor whose data begin at at. Only the first member of all
// has no comma in front.
func appendEntry(dst []byte, isFirst bool, t *Tensor, at int64) []byte {
	if !isFirst {
		dst = append(dst, ',')
	}
	dst = append(appendString(dst, t.Name), `:{"dtype":"`...)
	dst = append(append(dst, t.DType.String()...), `","shape":[`...)
	for i, n := range t.Shape {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendUint(dst, n, 10)
	}
	dst = strconv.AppendInt(append(dst, `],"data_offsets":[`...), at, 10)
	dst = strconv.AppendInt(append(dst, ','), at+t.NBytes, 10)
	return append(dst, "]}"...)
}
