package format_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// many is a source of empty tensors with long names.
type many struct{ manifest format.Manifest }

func (s *many) Manifest() *format.Manifest          { return &s.manifest }
func (s *many) ReadBlobAt([]byte, int, int64) error { return nil }
func (s *many) Close() error                        { return nil }

// TestWritersStayWithinTheLimitOfReaders: with default options, Write writes no file that a default
// reader refuses. With a larger limit it writes a file for readers with that limit.
func TestWritersStayWithinTheLimitOfReaders(t *testing.T) {
	src := new(many)
	adapter := format.Adapter{Dialect: "peft", Method: "lora"}
	for i := range 6_000 {
		name := fmt.Sprintf("%05d.%s", i, strings.Repeat("x", 900))
		src.manifest.Tensors = append(src.manifest.Tensors, format.Tensor{Name: name, DType: dtype.F32, Shape: []uint64{0}})
		adapter.Beside = append(adapter.Beside, format.Beside{Target: name, Action: format.Replace, Tensor: i})
	}
	src.manifest.Adapters = []format.Adapter{adapter}
	write := func(limit int64) (*bytes.Buffer, error) {
		var file bytes.Buffer
		_, err := format.Write(context.Background(), &file, src, format.WriterOptions{MaxManifestBytes: limit})
		return &file, err
	}
	file, err := write(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if n := file.Len(); n < 20 {
		t.Fatalf("a file of %d bytes", n)
	}
	read := func(limit int64) error {
		_, err := format.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()), format.ReaderOptions{MaxManifestBytes: limit})
		return err
	}
	small := int64(8 << 20) // the manifest has 11 million bytes
	if _, err := write(small); !errors.Is(err, format.ErrLimit) || !strings.Contains(err.Error(), "6000 tensors") {
		t.Errorf("writing with the limit of %d: %v, want a limit that names the tensors", small, err)
	}
	if err := read(small); !errors.Is(err, format.ErrLimit) {
		t.Errorf("reading with the limit of %d: %v, want a limit", small, err)
	}
	if err := read(0); err != nil {
		t.Errorf("reading with the default limit: %v", err)
	}
}

// TestWritersRefuseALargeManifestBeforeTheWork: names and numbers alone show that the manifest
// exceeds the limit. The estimate is at most the exact size, and not far below it.
func TestWritersRefuseALargeManifestBeforeTheWork(t *testing.T) {
	src := new(many)
	adapter := format.Adapter{Dialect: "peft", Method: "lora"}
	for i := range 1000 {
		module := fmt.Sprintf("model.layers.%d.self_attn.q_proj", i)
		roles := make(map[format.Role]int)
		for _, role := range []format.Role{format.RoleA, format.RoleB} {
			roles[role] = len(src.manifest.Tensors)
			shape := []uint64{1, 4}
			if role == format.RoleB {
				shape = []uint64{4, 1}
			}
			name := fmt.Sprintf("base_model.model.%s.lora_%s.weight", module, role)
			src.manifest.Tensors = append(src.manifest.Tensors, format.Tensor{Name: name, DType: dtype.F16, Shape: shape})
		}
		adapter.Layers = append(adapter.Layers, format.Layer{Module: module, Kind: format.Linear, Rank: 1, Scaling: format.AlphaOverR, Alpha: 1, Roles: roles})
	}
	src.manifest.Adapters = []format.Adapter{adapter}
	refused := func(limit int64) error { return format.WriterOptions{MaxManifestBytes: limit}.Check(&src.manifest) }
	var enough int64 // the first power of two that is enough for Write
	for limit := int64(1); enough == 0; limit *= 2 {
		_, err := format.Write(t.Context(), new(bytes.Buffer), src, format.WriterOptions{MaxManifestBytes: limit})
		switch {
		case err == nil:
			enough = limit
		case !errors.Is(err, format.ErrLimit):
			t.Fatal(err)
		}
	}
	if err := refused(enough); err != nil {
		t.Errorf("Check with a limit of %d, which Write keeps: %v", enough, err)
	}
	if err := refused(enough / 4); !errors.Is(err, format.ErrLimit) || !strings.Contains(err.Error(), "2000 tensors") {
		t.Errorf("Check with a limit of %d = %v, want a limit that names the tensors", enough/4, err)
	}
}
