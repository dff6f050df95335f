package safetensors

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
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
	out := append(make([]byte, 8), '{')
	separate := func() {
		if out[len(out)-1] != '{' {
			out = append(out, ',')
		}
	}
	if metadata != nil {
		out = append(append(out, '"'), MetadataName...)
		out = append(out, `":{`...)
		for _, key := range slices.Sorted(maps.Keys(metadata)) {
			separate()
			out = append(appendString(out, key), ':')
			out = appendString(out, metadata[key])
		}
		out = append(out, '}')
	}
	at := int64(0)
	for i := range tensors {
		t := &tensors[i]
		separate()
		shape := strings.ReplaceAll(fmt.Sprint(t.Shape), " ", ",")
		out = append(appendString(out, t.Name), ':')
		out = fmt.Appendf(out, `{"dtype":"%v","shape":%s,"data_offsets":[%d,%d]}`, t.DType, shape, at, at+t.NBytes)
		at += t.NBytes
	}
	out = append(out, '}')
	for len(out)%8 != 0 {
		out = append(out, ' ')
	}
	binary.LittleEndian.PutUint64(out, uint64(len(out)-8))
	return out
}
