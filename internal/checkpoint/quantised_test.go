package checkpoint_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
)

const quantFixtures = "../../testdata/quant/"

// quantCases lists the fixtures of quantised checkpoints, each with its truth: the SHA-256 of the
// exact values of each weight.
func quantCases(t *testing.T) map[string]map[string]string {
	t.Helper()
	paths, err := filepath.Glob(quantFixtures + "*/truth.json")
	if err != nil || len(paths) < 10 {
		t.Fatal(err, paths)
	}
	cases := make(map[string]map[string]string)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var truths map[string]struct {
			SHA256 string `json:"sha256"`
		}
		if err := json.Unmarshal(text, &truths); err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(filepath.Dir(path))
		cases[name] = make(map[string]string)
		for weight, truth := range truths {
			cases[name][weight] = truth.SHA256
		}
	}
	return cases
}

func valuesOf(t *testing.T, c *checkpoint.Checkpoint, name string) []byte {
	t.Helper()
	ref, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("%s has no %q", c.Path, name)
	}
	values, err := io.ReadAll(ref.Tensor.Reader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// TestQuantisedWeightsReadAsTheirExactValues: each is one tensor of F64 with its own name and
// shape, and the codes and scales are no longer shown. Stored shows the files.
func TestQuantisedWeightsReadAsTheirExactValues(t *testing.T) {
	for name, truths := range quantCases(t) {
		t.Run(name, func(t *testing.T) {
			c := open(t, quantFixtures+name)
			hidden := make(map[string]bool)
			for _, q := range checkpoint.QuantisedOf(c) {
				for _, part := range q.Parts {
					hidden[part] = true
				}
				ref, _ := c.Lookup(q.Name)
				if ref.Tensor == nil || ref.Tensor.DType != dtype.F64 || ref.Tensor.Scheme != q.Scheme || q.Scheme == "" {
					t.Errorf("%q is shown as %+v, want F64 with the scheme %q", q.Name, ref.Tensor, q.Scheme)
				}
			}
			for _, name := range c.Names() {
				if hidden[name] && truths[name] == "" {
					t.Errorf("%q is still shown", name)
				}
			}
			for weight, want := range truths {
				sum := sha256.Sum256(valuesOf(t, c, weight))
				if hex.EncodeToString(sum[:]) != want {
					t.Errorf("%q does not read as its exact values", weight)
				}
			}
			file, err := os.ReadFile(quantFixtures + name + "/model.safetensors")
			if err != nil {
				t.Fatal(err)
			}
			if got := contentOf(t, checkpoint.Stored(c).Files[0]); !bytes.Equal(got, file) {
				t.Error("Stored does not show the file")
			}
		})
	}
}

// TestQuantisedReadsByPieces reads a few bytes from any place, also from the middle of a value.
func TestQuantisedReadsByPieces(t *testing.T) {
	for _, name := range []string{"fp8_block_ragged_320x200", "gptoss_mxfp4", "bnb_nf4_dq_bfloat16_40x72"} {
		f := open(t, quantFixtures+name).Files[0]
		want := contentOf(t, f)
		for _, n := range []int{1, 7, 4096, 1<<20 + 3} {
			for off := 0; off < len(want); off += max(13*n, len(want)/50) {
				p := make([]byte, min(n, len(want)-off))
				if err := f.ReadAt(t.Context(), p, int64(off)); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, want[off:][:len(p)]) {
					t.Fatalf("%s: %d bytes at %d differ from those of the whole", name, n, off)
				}
			}
		}
	}
}

// TestCodesAndScalesMayBeInDifferentFiles: partners are found over all shards, and the weight is in
// the file of its codes.
func TestCodesAndScalesMayBeInDifferentFiles(t *testing.T) {
	whole := open(t, quantFixtures+"gptoss_mxfp4")
	shards := [2][]testkit.Tensor{}
	files := make(map[string]string)
	for i, name := range checkpoint.Stored(whole).Names() {
		ref, _ := checkpoint.Stored(whole).Lookup(name)
		x := testkit.Tensor{Name: name, DType: ref.Tensor.DType, Shape: ref.Tensor.Shape, Data: valuesOf(t, checkpoint.Stored(whole), name)}
		shards[i%2] = append(shards[i%2], x) // sorted names: the codes, then the scales
		files[name] = []string{"a.safetensors", "b.safetensors"}[i%2]
	}
	dir := directory(t, map[string][]byte{
		"a.safetensors": testkit.Encode(nil, shards[0]...), "b.safetensors": testkit.Encode(nil, shards[1]...),
		"model.safetensors.index.json": index(t, files),
	})
	c := open(t, dir)
	for _, q := range checkpoint.QuantisedOf(c) {
		if files[q.Parts[0]] == files[q.Parts[1]] {
			t.Fatalf("the parts of %q are in one file: the test tests nothing", q.Name)
		}
		if got := c.FileOf(q.Name); got != files[q.Parts[0]] {
			t.Errorf("%q is in %q, want the file of its codes", q.Name, got)
		}
		if !bytes.Equal(valuesOf(t, c, q.Name), valuesOf(t, whole, q.Name)) {
			t.Errorf("%q has other values in shards", q.Name)
		}
	}
	if n := len(checkpoint.QuantisedOf(c)); n != 2 {
		t.Errorf("%d weights, want 2", n)
	}
}

// TestUnreadableWeightsStayAsTheyAre: a scheme that is not read is known by name, and its tensors
// and all others are shown.
func TestUnreadableWeightsStayAsTheyAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	file := testkit.Encode(nil,
		testkit.Random(rng, "norm.weight", dtype.BF16, 1, 4),
		testkit.Tensor{Name: "q.qweight", DType: dtype.I32, Shape: []uint64{1, 8}, Data: make([]byte, 32)},
		testkit.Tensor{Name: "q.scales", DType: dtype.F16, Shape: []uint64{1, 8}, Data: make([]byte, 16)},
		testkit.Tensor{Name: "k.weight", DType: dtype.F8E4M3, Shape: []uint64{1, 8}, Data: make([]byte, 8)},
		testkit.Tensor{Name: "k.weight_scale", DType: dtype.F32, Shape: []uint64{1}, Data: make([]byte, 4)},
	)
	c := open(t, directory(t, map[string][]byte{"model.safetensors": file}))
	if want := []string{"k.weight", "norm.weight", "q.qweight", "q.scales"}; !slices.Equal(c.Names(), want) {
		t.Errorf("the names are %q, want %q", c.Names(), want)
	}
	for _, name := range []string{"q.weight", "q.qweight", "q.scales"} {
		if err := checkpoint.Refusal(c, name); err == nil || !strings.Contains(err.Error(), "GPTQ") {
			t.Errorf("Refusal(%q) = %v, want one that names GPTQ", name, err)
		}
	}
	if err := checkpoint.Refusal(c, "k.weight"); err != nil {
		t.Errorf("Refusal(k.weight) = %v", err)
	}
	if u := checkpoint.UnreadableOf(c); len(u) != 1 || u[0].Name != "q.weight" || len(u[0].Parts) != 2 {
		t.Errorf("Unreadable() = %+v, want q.weight of two tensors", u)
	}
}

// TestQuantisedIsReadByExtract: an extraction from a quantised base, and one of a quantised
// fine-tune, are those from the plain values.
func TestQuantisedIsReadByExtract(t *testing.T) {
	const r = 3
	rng := rand.New(rand.NewPCG(7, 8))
	for name := range quantCases(t) {
		if name == "gptoss_mxfp4" {
			continue // has infinite values on purpose
		}
		c := open(t, quantFixtures+name)
		q := checkpoint.QuantisedOf(c)[0]
		ref, _ := c.Lookup(q.Name)
		raw := valuesOf(t, c, q.Name)
		dir := t.TempDir()
		plain, other := filepath.Join(dir, "plain.safetensors"), filepath.Join(dir, "other.safetensors")
		testkit.Write(t, plain, testkit.Encode(nil, testkit.Tensor{Name: q.Name, DType: dtype.F64, Shape: ref.Tensor.Shape, Data: raw}))
		testkit.Write(t, other, testkit.Encode(nil, testkit.Random(rng, q.Name, dtype.BF16, 0.02, ref.Tensor.Shape...)))
		quantised := filepath.Join(quantFixtures, name)
		checkSameAdapter(t, extract(t, quantised, other, r), extract(t, plain, other, r))
		checkSameAdapter(t, extract(t, other, quantised, r), extract(t, other, plain, r))
	}
}
