package merge_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestVectorsThatMayNotBeApplied: files that a reader accepts and that say less or more than they
// hold (R70 and R74 to R76 of spec/FORMAT.md and its draft) are not merged.
func TestVectorsThatMayNotBeApplied(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base.safetensors")
	testkit.Write(t, base, testkit.Encode(nil,
		testkit.Tensor{Name: "q.bias", DType: dtype.F32, Shape: []uint64{2}, Data: make([]byte, 8)},
		testkit.Tensor{Name: "q.weight", DType: dtype.F32, Shape: []uint64{2, 2}, Data: make([]byte, 16)},
		testkit.Tensor{Name: "r.weight", DType: dtype.F32, Shape: []uint64{2, 2}, Data: make([]byte, 16)}))
	seen := 0
	for _, v := range testkit.Vectors(t, "../testdata") {
		if v.Stage != "apply" {
			continue
		}
		seen++
		src, err := convert.Open(t.Context(), v.Path, convert.Options{})
		if err != nil {
			t.Errorf("%s: %v", v.Name(), err)
			continue
		}
		p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: v.Name(), Weight: 1}}, merge.Options{})
		if !errors.Is(err, format.ErrUnsupported) || format.Hint(err) == "" {
			t.Errorf("%s: %v, want a refusal with a hint", v.Name(), err)
		}
		if err == nil {
			p.Close()
		}
		src.Close()
	}
	if seen < 17 {
		t.Errorf("%d vectors of applying, want 17 or more", seen)
	}
}
