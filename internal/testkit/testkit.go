// Package testkit holds helpers for the tests of several packages: tensors and files to write
// (Random, Values, Write, WriteAdapter), digests of outputs (Tree, Hash), test vectors (Vectors)
// and interruptions (EndsAnywhere). Only tests import it.
package testkit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// Tensor is a tensor to write.
type Tensor struct {
	Name  string
	DType dtype.Type
	Shape []uint64
	Data  []byte
}

// Random returns a tensor of normal numbers with standard deviation sigma.
func Random(rng *rand.Rand, name string, d dtype.Type, sigma float64, shape ...uint64) Tensor {
	n, _ := dtype.NElements(shape)
	t := Tensor{Name: name, DType: d, Shape: shape, Data: make([]byte, int(n)*d.Size())}
	for i := range int(n) {
		dtype.Store(d, t.Data, i, sigma*rng.NormFloat64())
	}
	return t
}

// Values returns a tensor of the given numbers.
func Values(name string, d dtype.Type, shape []uint64, values ...float64) Tensor {
	t := Tensor{Name: name, DType: d, Shape: shape, Data: make([]byte, len(values)*d.Size())}
	for i, x := range values {
		dtype.Store(d, t.Data, i, x)
	}
	return t
}

// Encode returns a safetensors file with the tensors in their order. It shares no code with the
// readers.
func Encode(metadata map[string]string, tensors ...Tensor) []byte {
	header := []byte("{")
	if metadata != nil {
		header = fmt.Appendf(header, `"__metadata__":%s`, marshal(metadata))
	}
	var data []byte
	for _, t := range tensors {
		if len(header) > 1 {
			header = append(header, ',')
		}
		shape := append([]uint64{}, t.Shape...)
		header = fmt.Appendf(header, `%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, marshal(t.Name), t.DType, marshal(shape), len(data), len(data)+len(t.Data))
		data = append(data, t.Data...)
	}
	return Raw(string(append(header, '}')), data)
}

// Raw returns a file of a length prefix, a header text and data, even if these do not match.
func Raw(header string, data []byte) []byte {
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(file, header...), data...)
}

func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// Write writes a file and makes the directories above it.
func Write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o666); err != nil {
		t.Fatal(err)
	}
}

// WriteAdapter writes a PEFT adapter with the given rank, alpha and tensors, whose names are PEFT's
// keys.
func WriteAdapter(t testing.TB, dir string, rank int, alpha float64, tensors ...Tensor) {
	t.Helper()
	Write(t, filepath.Join(dir, "adapter_config.json"), fmt.Appendf(nil, `{"peft_type":"LORA","r":%d,"lora_alpha":%v}`, rank, alpha))
	Write(t, filepath.Join(dir, "adapter_model.safetensors"), Encode(map[string]string{"format": "pt"}, tensors...))
}

// Tree returns the SHA-256 of every file below dir by slash-separated path, and "dir" or "link" for
// other entries. Equal trees have equal maps.
func Tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		what := "link"
		switch {
		case d.IsDir():
			what = "dir"
		case d.Type().IsRegular():
			what = Hash(t, path)
		}
		tree[filepath.ToSlash(name)] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// Hash returns the SHA-256 of a file, in hex.
func Hash(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
