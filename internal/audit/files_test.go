package audit_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/testkit"
)

func openCheckpoint(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	return (*checkpoint.Handle)(modelAt(t, path)).Checkpoint()
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func encodeTensors(tensors map[string]testkit.Tensor) []byte {
	var sorted []testkit.Tensor
	for _, name := range slices.Sorted(maps.Keys(tensors)) {
		x := tensors[name]
		x.Name = name
		sorted = append(sorted, x)
	}
	return testkit.Encode(map[string]string{"format": "pt"}, sorted...)
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o666); err != nil {
		t.Fatal(err)
	}
}

// modelOf returns the model in some files.
func modelOf(t *testing.T, files map[string][]byte) *model {
	t.Helper()
	m := &model{tensors: make(map[string]testkit.Tensor)}
	for name, content := range files {
		switch {
		case name == "", strings.HasSuffix(name, ".safetensors"):
			maps.Copy(m.tensors, decodeTensors(t, content))
		case name == "config.json":
			if err := json.Unmarshal(content, &m.config); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

// readFactors reads a safetensors file whose names need not be those of a checkpoint.
func readFactors(t *testing.T, file string) map[string]testkit.Tensor {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return decodeTensors(t, content)
}

// decodeTensors decodes a safetensors file.
func decodeTensors(t *testing.T, content []byte) map[string]testkit.Tensor {
	t.Helper()
	n := 8 + int(content[0]) + int(content[1])<<8 + int(content[2])<<16
	var header map[string]struct {
		DType   string   `json:"dtype"`
		Shape   []uint64 `json:"shape"`
		Offsets [2]int   `json:"data_offsets"`
	}
	if err := json.Unmarshal(content[8:n], &header); err != nil {
		t.Fatal(err)
	}
	tensors := make(map[string]testkit.Tensor)
	for name, h := range header {
		if d, ok := dtype.Parse(h.DType); ok && name != "__metadata__" {
			tensors[name] = testkit.Tensor{Name: name, DType: d, Shape: h.Shape, Data: content[n+h.Offsets[0] : n+h.Offsets[1]]}
		}
	}
	return tensors
}
