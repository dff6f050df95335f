package audit_test

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/checkpoint"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// exact merges the adapters of the claim with package merge, as an edit says, or as they are if it
// is nil.
func (g *given) exact(t *testing.T, e *edit) *model {
	t.Helper()
	options := merge.Options{Reading: g.Options.Reading, GrowVocabulary: g.Options.GrowVocabulary}
	times := 1
	var edits []adapterEdit
	if e != nil {
		times, edits = max(1, e.Times), e.Adapters
		options.Reading = e.Options
	}
	if edits == nil {
		for i, p := range g.Adapters {
			edits = append(edits, adapterEdit{Path: p, Weight: g.weights()[i]})
		}
	}
	var adapters []merge.Adapter
	for i := range edits {
		adapters = append(adapters, edits[i].open(t, g))
	}
	base, err := checkpoint.Open(t.Context(), filepath.Join(testdata, g.Base))
	for ; times > 1 && err == nil; times-- {
		base, err = checkpoint.OpenFS(t.Context(), mergeOnce(t, base, adapters, options).FS(), ".")
	}
	if err != nil {
		t.Fatal(err)
	}
	return modelOf(t, mergeOnce(t, base, adapters, options).Files())
}

// mergeOnce merges into memory, and closes the base.
func mergeOnce(
	t *testing.T, base *checkpoint.Checkpoint, adapters []merge.Adapter, options merge.Options,
) *output.Memory {
	t.Helper()
	defer base.Close()
	options.AnyBase, options.Again = true, true
	plan, err := merge.New(t.Context(), base, adapters, options)
	if err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	var out output.Memory
	if _, err := plan.RunTo(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// adapterEdit is an adapter with changed configuration and factors.
type adapterEdit struct {
	Path   string  // below testdata; "" is the first of the claim
	Weight float64 // 0 stands for 1
	Config map[string]any
	Drop   []string // parts of names of tensors to leave out
	// Rename replaces a part of a name: the first pair whose first text occurs in it.
	Rename    [][2]string
	Transpose bool  // ΔW, for square layers
	Experts   []int // the expert whose factors each expert gets
}

func (a *adapterEdit) open(t *testing.T, g *given) merge.Adapter {
	t.Helper()
	if a.Path == "" {
		a.Path = g.Adapters[0]
	}
	dir := filepath.Join(testdata, a.Path)
	if a.Config != nil || a.Drop != nil || a.Rename != nil || a.Transpose || a.Experts != nil {
		dir = a.edited(t, dir)
	}
	src, err := convert.Open(t.Context(), dir, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	weight := a.Weight
	if weight == 0 {
		weight = 1
	}
	return merge.Adapter{Source: src, Name: dir, Weight: weight}
}

// edited writes the adapter of PEFT with its edits, and returns its directory.
func (a *adapterEdit) edited(t *testing.T, dir string) string {
	t.Helper()
	var config map[string]any
	readJSON(t, filepath.Join(dir, "adapter_config.json"), &config)
	maps.Copy(config, a.Config)
	tensors := make(map[string]testkit.Tensor)
	for name, x := range readFactors(t, filepath.Join(dir, "adapter_model.safetensors")) {
		if slices.ContainsFunc(a.Drop, func(part string) bool { return strings.Contains(name, part) }) {
			continue
		}
		for _, pair := range a.Rename {
			if strings.Contains(name, pair[0]) {
				name = strings.Replace(name, pair[0], pair[1], 1)
				break
			}
		}
		tensors[name] = x
	}
	if a.Transpose {
		tensors = transposed(tensors)
	}
	if a.Experts != nil {
		for name, x := range tensors {
			tensors[name] = exchangeExperts(name, x, a.Experts)
		}
	}
	out := t.TempDir()
	writeJSON(t, filepath.Join(out, "adapter_config.json"), config)
	testkit.Write(t, filepath.Join(out, "adapter_model.safetensors"), encodeTensors(tensors))
	return out
}

// transposed makes lora_B of lora_A transposed, and the reverse, in square layers. It leaves out
// other layers.
func transposed(tensors map[string]testkit.Tensor) map[string]testkit.Tensor {
	result := make(map[string]testkit.Tensor)
	for name, a := range tensors {
		module, ok := strings.CutSuffix(name, ".lora_A.weight")
		b := tensors[module+".lora_B.weight"]
		if ok && a.Shape[1] == b.Shape[0] {
			result[name], result[module+".lora_B.weight"] = transpose(b), transpose(a)
		}
	}
	return result
}

func transpose(x testkit.Tensor) testkit.Tensor {
	rows, columns := int(x.Shape[0]), int(x.Shape[1])
	v, turned := values(x), make([]float64, rows*columns)
	for i := range v {
		turned[i%columns*rows+i/columns] = v[i]
	}
	return testkit.Values(x.Name, x.DType, []uint64{x.Shape[1], x.Shape[0]}, turned...)
}

// exchangeExperts gives each expert the factors of another. In lora_A the experts' rows follow each
// other. In lora_B the columns of an expert are len(order) apart.
func exchangeExperts(name string, x testkit.Tensor, order []int) testkit.Tensor {
	v, n := values(x), len(order)
	moved := make([]float64, len(v))
	rows, columns := int(x.Shape[0]), int(x.Shape[1])
	for i := range v {
		row, column := i/columns, i%columns
		if strings.Contains(name, "lora_A") {
			r := rows / n
			row = order[row/r]*r + row%r
		} else {
			column = column/n*n + order[column%n]
		}
		moved[i] = v[row*columns+column]
	}
	return testkit.Values(name, x.DType, x.Shape, moved...)
}
