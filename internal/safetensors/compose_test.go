package safetensors_test

import (
	"slices"
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
