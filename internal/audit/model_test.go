package audit_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
)

// model is a checkpoint in memory, to be edited.
type model struct {
	tensors map[string]testkit.Tensor
	config  map[string]any // nil for a file without one
}

func readModel(t *testing.T, path string) *model {
	t.Helper()
	m := &model{tensors: readTensors(t, path)}
	config := filepath.Join(path, "config.json")
	if _, err := os.Stat(config); err == nil {
		readJSON(t, config, &m.config)
	}
	return m
}

func readTensors(t *testing.T, path string) map[string]testkit.Tensor {
	t.Helper()
	c := openCheckpoint(t, path)
	tensors := make(map[string]testkit.Tensor)
	for _, name := range c.Names() {
		ref, _ := c.Lookup(name)
		b := make([]byte, ref.Tensor.NBytes)
		if err := ref.Tensor.ReadAt(t.Context(), b, 0); err != nil && len(b) > 0 {
			t.Fatal(err)
		}
		tensors[name] = testkit.Tensor{Name: name, DType: ref.Tensor.DType, Shape: ref.Tensor.Shape, Data: b}
	}
	return tensors
}

// write writes the model as one file, in a directory if it has a configuration.
func (m *model) write(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "model.safetensors")
	testkit.Write(t, file, encodeTensors(m.tensors))
	if m.config == nil {
		return file
	}
	writeJSON(t, filepath.Join(dir, "config.json"), m.config)
	return dir
}

func (m *model) configure(t *testing.T, fields map[string]any) {
	t.Helper()
	if m.config == nil && fields != nil {
		t.Fatal("the base has no configuration to change")
	}
	maps.Copy(m.config, fields)
}

// each calls f with the names that match one of the patterns. Each pattern must match one at least.
func (m *model) each(t *testing.T, patterns []string, f func(name string)) {
	t.Helper()
	for _, pattern := range patterns {
		n := 0
		for _, name := range slices.Sorted(maps.Keys(m.tensors)) {
			if matches(pattern, name) {
				f(name)
				n++
			}
		}
		if n == 0 {
			t.Fatalf("no tensor matches %q", pattern)
		}
	}
}

// copyRows replaces the first rows of a tensor by those of another, all of them if rows is 0.
func (m *model) copyRows(name string, from testkit.Tensor, rows int) {
	if rows == 0 {
		m.tensors[name] = from
		return
	}
	x := m.tensors[name]
	x.Data = slices.Clone(x.Data)
	n := rows * len(x.Data) / int(x.Shape[0])
	copy(x.Data[:n], from.Data[:n])
	m.tensors[name] = x
}

// pad adds rows of zeros.
func (m *model) pad(name string, rows int) {
	x := m.tensors[name]
	n := rows * len(x.Data) / int(x.Shape[0])
	x.Data = append(slices.Clone(x.Data), make([]byte, n)...)
	x.Shape = slices.Clone(x.Shape)
	x.Shape[0] += uint64(rows)
	m.tensors[name] = x
}

// truncate stores an F32 tensor as BF16 by leaving out the lower half of each element.
func (m *model) truncate(name string) {
	x := m.tensors[name]
	var data []byte
	for i := 0; i < len(x.Data); i += 4 {
		data = append(data, x.Data[i+2], x.Data[i+3])
	}
	m.tensors[name] = testkit.Tensor{Name: name, DType: dtype.BF16, Shape: x.Shape, Data: data}
}

// noise adds normal numbers, or their product of a rank, of a norm relative to the tensor's.
func (m *model) noise(name string, size float64, rank int) {
	x := m.tensors[name]
	v := values(x)
	rng := rand.New(rand.NewPCG(7, uint64(len(name))))
	normal := func(n int) []float64 {
		all := make([]float64, n)
		for i := range all {
			all[i] = rng.NormFloat64()
		}
		return all
	}
	change := normal(len(v))
	if rank > 0 {
		columns := int(x.Shape[len(x.Shape)-1])
		left, right := normal(len(v)/columns*rank), normal(rank*columns)
		clear(change)
		for i := range change {
			for k := range rank {
				change[i] += left[i/columns*rank+k] * right[k*columns+i%columns]
			}
		}
	}
	factor := size * norm(v) / norm(change)
	for i := range v {
		v[i] += factor * change[i]
	}
	m.tensors[name] = testkit.Values(name, x.DType, x.Shape, v...)
}

func norm(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x * x
	}
	return math.Sqrt(sum)
}

func (m *model) set(t *testing.T, name string, index int, value string) {
	t.Helper()
	var number float64
	if _, err := fmt.Sscan(value, &number); err != nil {
		t.Fatal(err)
	}
	x := m.tensors[name]
	x.Data = slices.Clone(x.Data)
	dtype.Store(x.DType, x.Data, index, number)
	m.tensors[name] = x
}

func (m *model) flip(name string, index, bit int) {
	x := m.tensors[name]
	x.Data = slices.Clone(x.Data)
	x.Data[index*x.DType.Size()+bit/8] ^= 1 << (bit % 8)
	m.tensors[name] = x
}

// cast rounds a tensor to a dtype.
func (m *model) cast(t *testing.T, name, to string) {
	t.Helper()
	d, ok := dtype.Parse(to)
	if !ok {
		t.Fatalf("no dtype %q", to)
	}
	x := m.tensors[name]
	m.tensors[name] = testkit.Values(name, d, x.Shape, values(x)...)
}

// values returns the elements of a tensor.
func values(x testkit.Tensor) []float64 {
	v := make([]float64, len(x.Data)/x.DType.Size())
	for i := range v {
		v[i] = dtype.Load(x.DType, x.Data, i)
	}
	return v
}

// replace gives a tensor another dtype and shape (nil keeps it), and zeros for values.
func (m *model) replace(t *testing.T, name, to string, shape []uint64) {
	t.Helper()
	d, ok := dtype.Parse(to)
	if !ok {
		t.Fatalf("no dtype %q", to)
	}
	if shape == nil {
		shape = m.tensors[name].Shape
	}
	n := 1
	for _, k := range shape {
		n *= int(k)
	}
	m.tensors[name] = testkit.Tensor{Name: name, DType: d, Shape: shape, Data: make([]byte, n*d.Bits()/8)}
}
