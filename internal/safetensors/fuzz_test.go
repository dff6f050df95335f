package safetensors_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/testkit"
)

// maxSeedBytes bounds the data of a seed; the header is kept whole.
const maxSeedBytes = 1 << 16

// FuzzHeader: whatever the bytes, Read returns. What it accepts is contiguous to the end of the
// file, has no name twice, and stays readable, with the same tensors, when an entry is added to its
// metadata.
func FuzzHeader(f *testing.F) {
	for _, pattern := range []string{"bases/*/*.safetensors", "merge/*/adapter*/*.safetensors", "refuse/*/adapter/*.safetensors"} {
		paths, err := filepath.Glob("../../testdata/peft/" + pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("%s matches %d files, want some: %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			file, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			if len(file) <= maxSeedBytes {
				f.Add(file)
			}
		}
	}
	for _, c := range refused {
		if len(c.header) <= maxSeedBytes {
			f.Add(testkit.Raw(strings.Replace(c.header, mark, "", 1), make([]byte, c.nData)))
		}
	}
	for _, header := range []string{
		"{}", `{"__metadata__":{}}`, `{"__metadata__":{"k":"v"}}`, "{" + u8("a", 0, 1) + "," + u8("b", 1, 0) + "} ",
		`{"\ud83d\ude00":` + u8("a", 0, 1)[4:] + `,"__metadata__":{"\u0000":"\"\\"}}`, shaped("F4", "[2]", 1), shaped("F32", "[]", 4),
	} {
		f.Add(testkit.Raw(header, make([]byte, strings.Count(header, "[0,1]")+4*strings.Count(header, "[0,4]"))))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		h, err := read(file)
		if err != nil {
			_ = err.Error()
			return
		}
		at := h.DataOff
		names := make(map[string]bool)
		for _, tensor := range h.Tensors {
			if tensor.Off != at || tensor.NBytes < 0 {
				t.Errorf("tensor %q has %d bytes at %d, want it at %d", tensor.Name, tensor.NBytes, tensor.Off, at)
			}
			if names[tensor.Name] {
				t.Errorf("the name %q is there twice", tensor.Name)
			}
			names[tensor.Name] = true
			at += tensor.NBytes
			if n, ok := tensor.DType.NBytes(uint64(tensor.Elements())); !ok || n != tensor.NBytes {
				t.Errorf("tensor %q: %d elements of %v take %d bytes, the header says %d", tensor.Name, tensor.Elements(), tensor.DType, n, tensor.NBytes)
			}
		}
		if at != int64(len(file)) {
			t.Errorf("the tensors end at %d, the file at %d", at, len(file))
		}
		const key = "loratool.merge.1"
		if _, taken := h.Metadata[key]; !taken {
			checkStamped(t, file, addMetadata(file, h, key, "\"\n"), key, "\"\n")
		}
	})
}
