package safetensors_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/safetensors"
)

// TestComposeGivesTheHeaderOfTheFormatsOwnWriter: the text is what safetensors 0.8.0 for Python
// returns for these tensors and this metadata.
func TestComposeGivesTheHeaderOfTheFormatsOwnWriter(t *testing.T) {
	tensors := []safetensors.Tensor{
		{Name: "b", DType: dtype.F16, Shape: []uint64{2}, NBytes: 4},
		{Name: "z", DType: dtype.BF16, Shape: []uint64{1}, NBytes: 2},
		{Name: "a", DType: dtype.F32, Shape: []uint64{}, NBytes: 4},
		{Name: "c", DType: dtype.I64, Shape: []uint64{3}, NBytes: 24},
	}
	slices.SortFunc(tensors, func(x, y safetensors.Tensor) int {
		return safetensors.CompareData(x.DType, y.DType, x.Name, y.Name)
	})
	metadata := map[string]string{"ss_b": "x\n\t\x01\x7f\u2028é<>&\"\\/"}
	const want = "\x10\x01\x00\x00\x00\x00\x00\x00" +
		`{"__metadata__":{"ss_b":"x\n\t\u0001` + "\x7f\u2028é" + `<>&\"\\/"},` +
		`"c":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},` +
		`"a":{"dtype":"F32","shape":[],"data_offsets":[24,28]},` +
		`"z":{"dtype":"BF16","shape":[1],"data_offsets":[28,30]},` +
		`"b":{"dtype":"F16","shape":[2],"data_offsets":[30,34]}}`
	if got := string(safetensors.Compose(tensors, metadata)); got != want {
		t.Errorf("Compose = %q, want %q", got, want)
	}
}

// TestDescribeReturnsTheHeaderThatReadsBack: for tensors in their order, with and without metadata,
// Describe equals what the reader makes of the composed text.
func TestDescribeReturnsTheHeaderThatReadsBack(t *testing.T) {
	two := []safetensors.Tensor{
		{Name: "a\"\n.é", DType: dtype.F32, Shape: []uint64{3, 0}},
		{Name: "b", DType: dtype.BF16, Shape: []uint64{1, 2, 300}, NBytes: 1200},
		{Name: "c", DType: dtype.F4, Shape: []uint64{4}, NBytes: 2},
	}
	for _, tensors := range [][]safetensors.Tensor{nil, two[:1], two} {
		for _, metadata := range []map[string]string{nil, {}, {"format": "pt"}, {"x": "{\"", "y\t": ""}} {
			want, err := safetensors.ReadAlone(safetensors.Compose(tensors, metadata))
			if err != nil {
				t.Fatal(err)
			}
			got, err := safetensors.Describe(slices.Clone(tensors), metadata)
			if err != nil {
				t.Fatal(err)
			}
			raw := safetensors.Compose(tensors, metadata)
			if have, is := got.WithMetadata(raw, "k", "v"), want.WithMetadata(raw, "k", "v"); !bytes.Equal(have, is) {
				t.Errorf("%d tensors, metadata %q: WithMetadata = %q, want %q", len(tensors), metadata, have, is)
			}
			if len(got.Tensors) == 0 {
				got.Tensors, want.Tensors = nil, nil
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("Describe(%d tensors, %q) = %+v, want %+v", len(tensors), metadata, got, want)
			}
		}
	}
}

// TestDescribeRefusesWhatNoReaderAccepts: tensors that cannot be in a safetensors file.
func TestDescribeRefusesWhatNoReaderAccepts(t *testing.T) {
	for what, tensor := range map[string]safetensors.Tensor{
		"the name of the metadata": {Name: safetensors.MetadataName, DType: dtype.U8, Shape: []uint64{1}, NBytes: 1},
		"a name that is no text":   {Name: "\xff", DType: dtype.U8, Shape: []uint64{1}, NBytes: 1},
		"another size":             {Name: "a", DType: dtype.U8, Shape: []uint64{2}, NBytes: 1},
		"half a byte":              {Name: "a", DType: dtype.F4, Shape: []uint64{1}},
		"65 dimensions":            {Name: "a", DType: dtype.U8, Shape: slices.Repeat([]uint64{1}, 65), NBytes: 1},
		"a header over the limit":  {Name: strings.Repeat("a", safetensors.MaxHeaderBytes), DType: dtype.U8, Shape: []uint64{1}, NBytes: 1},
	} {
		if h, err := safetensors.Describe([]safetensors.Tensor{tensor}, nil); err == nil {
			t.Errorf("Describe of %s = %+v, want an error", what, h.DataOff)
		}
	}
}
