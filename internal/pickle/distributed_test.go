package pickle_test

import (
	"archive/zip"
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fault"
)

// archive makes an archive whose pickle is a program of protocol 2.
func archive(t *testing.T, program string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: "m/data.pkl", Method: zip.Store})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("\x80\x02" + program + "."))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestErrorsDescribeValuesOfAnySize: tuples of tuples that share their items have 2^64 items in
// writing and a few hundred bytes in the file. An error names their kind.
func TestErrorsDescribeValuesOfAnySize(t *testing.T) {
	const tensor, wrapper = "ctorch._utils\n_rebuild_tensor_v2\n", "ctorch._utils\n_rebuild_wrapper_subclass\n"
	large := ")q\x00" + strings.Repeat("h\x00h\x00\x86q\x00", 64)
	for name, program := range map[string]string{
		"the offset of a tensor":  tensor + "(N" + large + "NNNNtR",
		"the layout of a tensor":  "ctorch.serialization\n_get_layout\n" + large + "R",
		"the class of a tensor":   "ctorch._tensor\n_rebuild_from_type_v2\n(" + wrapper + large + ")}tR",
		"the dtype of a DTensor":  "ctorch._tensor\n_rebuild_from_type_v2\n(" + wrapper + "ctorch.distributed.tensor\nDTensor\nq\x01(h\x01" + large + "NNNNNNt}tR",
		"a placement of a tensor": "}X\x01\x00\x00\x00w" + large + "s",
	} {
		_, err := open(archive(t, program))
		var input *fault.Error
		if !errors.As(err, &input) || len(err.Error()) > 1000 {
			t.Errorf("%s: %v, want an error of a kind in few words", name, err)
		}
	}
}

// TestAttributesAreBounded: any number of DTensors can share one dictionary of any size, which is
// not searched for each of them.
func TestAttributesAreBounded(t *testing.T) {
	attributes := "}q\x02(" + strings.Repeat("X\x01\x00\x00\x00aN", 1000) + "X\x0d\x00\x00\x00_local_tensorNu"
	program := "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_wrapper_subclass\n" +
		"ctorch.distributed.tensor\nDTensor\nq\x01(h\x01ctorch\nfloat32\n))K\x00NNNt" + attributes + "tR"
	if _, err := open(archive(t, program)); !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "a DTensor of None") {
		t.Errorf("Read of a DTensor with 1001 attributes = %v, want a refusal", err)
	}
}
