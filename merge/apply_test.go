package merge_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestVectorsThatMayNotBeApplied: files that a reader accepts and that say less or more than they
// hold (R70 and R74 to R76 of spec/FORMAT.md) are not merged.
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

// TestExamplesOfTheSpecMerge merges the examples of section 16 of spec/APPLY.md: the rows of its
// table give the bits before and after, and the paragraph below it those of DoRA.
func TestExamplesOfTheSpecMerge(t *testing.T) {
	text, err := os.ReadFile("../spec/APPLY.md")
	if err != nil {
		t.Fatal(err)
	}
	_, examples, _ := strings.Cut(string(text), "## 16. Examples")
	var before, after []byte
	for _, m := range regexp.MustCompile(`(?m)^\| \S+ \| ([0-9A-F]{4}) \| \S+ \| \S+ \| ([0-9A-F]{4}) \|`).FindAllStringSubmatch(examples, -1) {
		for i, p := range []*[]byte{&before, &after} {
			bits, _ := strconv.ParseUint(m[i+1], 16, 16)
			*p = append(*p, byte(bits), byte(bits>>8))
		}
	}
	if len(before) != 8 {
		t.Fatalf("the example has %d elements, want 4", len(before)/2)
	}
	term := format.NewBuilder("example")
	term.Linear("q", 1, 2, format.Float32s([]float32{1, -2.5}, 1, 2), format.Float32s([]float32{0.5, 4}, 2, 1))
	if got := mergeExample(t, term, before); !bytes.Equal(got, after) {
		t.Errorf("the example of a term gives % x, want % x", got, after)
	}

	dora := format.NewBuilder("example")
	l := dora.Linear("q", 1, 1, format.Float32s([]float32{0, 0}, 1, 2), format.Float32s([]float32{0, 0}, 2, 1))
	l.Magnitude(format.Float32s([]float32{2, 2}, 2))
	row := []byte{0x40, 0x40, 0x80, 0x40}                   // 3 and 4
	want := bytes.Repeat([]byte{0x9a, 0x3f, 0xcd, 0x3f}, 2) // 3F9A and 3FCD, as the text has them
	if got := mergeExample(t, dora, bytes.Repeat(row, 2)); !bytes.Equal(got, want) || !strings.Contains(examples, "they are 3F9A (1.203125) and 3FCD") {
		t.Errorf("the example of DoRA gives % x, want % x", got, want)
	}
}

// mergeExample merges an adapter into q.weight, 2×2 in BF16.
func mergeExample(t *testing.T, b *format.Builder, weight []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	base, out := filepath.Join(dir, "base.safetensors"), filepath.Join(dir, "out.safetensors")
	testkit.Write(t, base, testkit.Encode(nil, testkit.Tensor{Name: "q.weight", DType: dtype.BF16, Shape: []uint64{2, 2}, Data: weight}))
	src, err := b.Source()
	if err != nil {
		t.Fatal(err)
	}
	p, err := merge.Open(t.Context(), base, []merge.Adapter{{Source: src, Name: "example", Weight: 1}}, merge.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	return read(t, openCheckpoint(t, out), "q.weight")
}
