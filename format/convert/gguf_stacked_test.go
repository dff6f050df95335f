package convert_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
)

const peftData = "../../testdata/peft"

func openPEFTCase(t *testing.T, name string) format.Source {
	t.Helper()
	src, err := convert.Open(t.Context(), filepath.Join(peftData, "merge", name, "adapter"), convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func configOfPEFT(t *testing.T, base string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peftData, "bases", base, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// elementsOf returns a tensor as float64 and its shape.
func elementsOf(t *testing.T, src format.Source, i int) ([]float64, []int) {
	t.Helper()
	x := &src.Manifest().Tensors[i]
	p, values := blobOf(t, src, i), make([]float64, x.Elements())
	for k := range values {
		values[k] = dtype.Load(x.DType, p, k)
	}
	var shape []int
	for _, d := range x.Shape {
		shape = append(shape, int(d))
	}
	return values, shape
}

// gpt-oss interleaves the rows of gate and up, and stores experts as in×out. The truth is PEFT's
// formula: the update of expert e is Σ B[i, k·E+e]·A[e·r+k, j], for two parameters of a model that
// is 32 wide and whose experts are 24 wide.
func TestGGUFOfStackedExpertsOfGPTOSS(t *testing.T) {
	const nExperts, width = 3, 32
	for _, name := range []string{"experts-gpt-oss", "experts-0.18-gpt-oss"} {
		src := openPEFTCase(t, name)
		file := ggufOf(t, src, convert.CreateOptions{BaseConfig: configOfPEFT(t, "gpt-oss")})
		got, err := convert.OpenReader(t.Context(), bytes.NewReader(file), int64(len(file)), convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		found := products(t, got)
		want := make(map[string]float64)
		for i := range src.Manifest().Adapters[0].Layers {
			l := &src.Manifest().Adapters[0].Layers[i]
			a, shapeA := elementsOf(t, src, l.Roles[format.RoleA])
			b, shapeB := elementsOf(t, src, l.Roles[format.RoleB])
			r, n, m := shapeA[0]/nExperts, shapeA[1], shapeB[0]
			isGateUp := n+m == 80 // 32 and 48; down has 24 and 32
			for at := range nExperts * m * n {
				e, out, in := at/(m*n), at/n%m, at%n
				sum := 0.0
				for k := range r {
					sum += l.Scale() * b[out*r*nExperts+k*nExperts+e] * a[(e*r+k)*n+in]
				}
				if readsInputs := isGateUp == (n == width); !readsInputs {
					out, in = in, out
				}
				module := "model.layers.0.mlp.experts.down_proj"
				if isGateUp {
					module = "model.layers.0.mlp.experts." + []string{"gate", "up"}[out%2] + "_proj"
					out /= 2
				}
				want[fmt.Sprint(module, e, out, in)] = sum
			}
		}
		for at, x := range want {
			if found[at] != x {
				t.Fatalf("%s: %s is %v, want %v", name, at, found[at], x)
			}
		}
		if len(found) != len(want) {
			t.Errorf("%s: %d elements, want %d", name, len(found), len(want))
		}
	}
}

// products returns s·B·A of each expert, by module, expert, row and column.
func products(t *testing.T, src format.Source) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for i := range src.Manifest().Adapters[0].Layers {
		l := &src.Manifest().Adapters[0].Layers[i]
		a, shapeA := elementsOf(t, src, l.Roles[format.RoleA])
		b, shapeB := elementsOf(t, src, l.Roles[format.RoleB])
		r, n, m := shapeA[1], shapeA[2], shapeB[1]
		for at := range shapeA[0] * m * n {
			e, out, in := at/(m*n), at/n%m, at%n
			sum := 0.0
			for k := range r {
				sum += l.Scale() * b[(e*m+out)*r+k] * a[(e*r+k)*n+in]
			}
			all[fmt.Sprint(l.Module, e, out, in)] = sum
		}
	}
	return all
}

func TestGGUFRefusesStackedExpertsByName(t *testing.T) {
	square := configOfPEFT(t, "mixtral-square-stacked")
	for _, c := range []struct {
		name, base, want string
		options          convert.CreateOptions
	}{
		{name: "experts", want: "how wide the model is", options: convert.CreateOptions{Architecture: "qwen3moe"}},
		{name: "experts", want: "nothing says which architecture"},
		{name: "experts", base: "qwen3-moe-stacked", want: "are for 2 experts, and the base has 3"},
		{name: "experts", want: "the base is 64 wide", options: convert.CreateOptions{
			BaseConfig: []byte(`{"model_type": "mixtral", "hidden_size": 64}`)}},
		{name: "experts-router", base: "mixtral-stacked", want: `for the parameter "weight"`},
		{name: "experts", want: `architecture "gemma" are known for the parameter`, options: convert.CreateOptions{
			BaseConfig: bytes.Replace(square, []byte(`"mixtral"`), []byte(`"llama2"`), 1), Architecture: "gemma"}},
		{name: "experts-square-alone", want: "are square, 32×32", options: convert.CreateOptions{
			BaseConfig: bytes.Replace(square, []byte(`"mixtral"`), []byte(`"qwen3_vl_moe"`), 1), Architecture: "qwen3moe"}},
	} {
		if c.base != "" {
			c.options.BaseConfig = configOfPEFT(t, c.base)
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		err := convert.Check(t.Context(), path, convert.GGUF(), openPEFTCase(t, c.name), c.options)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s: %v, want %q", c.name, c.base, err, c.want)
		}
	}
}
