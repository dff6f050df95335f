package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/safetensors"
	"github.com/loratool/loratool/internal/testkit"
	reference "github.com/nlpodyssey/safetensors"
)

// addMetadata returns the file with one more metadata entry, as a merge does it.
func addMetadata(file []byte, h *safetensors.Header, key, value string) []byte {
	return append(h.WithMetadata(file[:h.DataOff], key, value), file[h.DataOff:]...)
}

func TestWithMetadataKeepsEveryOtherByte(t *testing.T) {
	x := u8("x", 0, 3)
	for _, c := range []struct {
		name   string
		header string
		nData  int
		before string // the header up to the new entry
		added  string // the new entry and what it needs around it
		after  string // the rest of the header
	}{
		{"no metadata", "{" + x + "}", 3, `{`, `"__metadata__":{"key":"value"},`, x + "}"},
		{"no metadata, white space", "{ \n" + x + "} ", 3, `{`, `"__metadata__":{"key":"value"},`, " \n" + x + "} "},
		{"no tensors", "{}", 0, `{`, `"__metadata__":{"key":"value"}`, `}`},
		{"no tensors, white space", "{ }\n", 0, `{`, `"__metadata__":{"key":"value"}`, " }\n"},
		{"no tensors, empty metadata", `{"__metadata__":{}}`, 0, `{"__metadata__":{`, `"key":"value"`, `}}`},
		{"no tensors, metadata", `{"__metadata__":{"a":"b"}}`, 0, `{"__metadata__":{`, `"key":"value",`, `"a":"b"}}`},
		{"empty metadata", `{"__metadata__":{},` + x + `}`, 3, `{"__metadata__":{`, `"key":"value"`, `},` + x + `}`},
		{"empty metadata, white space", `{ "__metadata__" : { } , ` + x + `}`, 3, `{ "__metadata__" : {`, `"key":"value"`, ` } , ` + x + `}`},
		{"metadata first", `{"__metadata__":{"a":"b"},` + x + `}`, 3, `{"__metadata__":{`, `"key":"value",`, `"a":"b"},` + x + `}`},
		{"metadata first, white space", "{\t\"__metadata__\" : {\n\"a\" : \"b\" } ," + x + `}`, 3, "{\t\"__metadata__\" : {", `"key":"value",`, "\n\"a\" : \"b\" } ," + x + `}`},
		{"metadata last", `{` + x + `,"__metadata__":{"a":"b"}}`, 3, `{` + x + `,"__metadata__":{`, `"key":"value",`, `"a":"b"}}`},
		{"metadata null, as MLX writes it", `{"__metadata__":null,` + x + `}`, 3, `{"__metadata__":`, `{"key":"value"}`, `,` + x + `}`},
		{"metadata under an escaped name", `{` + x + `,"\u005f_metadata__":{"a":"b"}}`, 3, `{` + x + `,"\u005f_metadata__":{`, `"key":"value",`, `"a":"b"}}`},
		{"metadata with braces in its text", `{"__metadata__":{"}":"{"},` + x + `}`, 3, `{"__metadata__":{`, `"key":"value",`, `"}":"{"},` + x + `}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := []byte{1, 2, 3}[:c.nData]
			file := testkit.Raw(c.header, data)
			h, err := read(file)
			if err != nil {
				t.Fatal(err)
			}
			out := addMetadata(file, h, "key", "value")
			text := string(out[8 : len(out)-len(data)])
			if want := c.before + c.added + c.after; strings.TrimRight(text, " ") != strings.TrimRight(want, " ") {
				t.Errorf("WithMetadata(%q) = %q, want %q", c.header, text, want)
			}
			if !bytes.HasSuffix(out, data) {
				t.Errorf("the data are % x, want % x", out[len(out)-len(data):], data)
			}
			checkStamped(t, file, out, "key", "value")
		})
	}
}

// checkStamped holds a file with one more metadata entry against the file that it was made from:
// the header has grown by whole blocks, so that the data keep their alignment, and two readers find
// the same tensors and the metadata with the entry.
func checkStamped(t *testing.T, before, after []byte, key, value string) {
	t.Helper()
	if grown := len(after) - len(before); grown <= 0 || grown%4096 != 0 {
		t.Errorf("the file grew by %d bytes, want a multiple of 4096", grown)
	}
	if got, want := binary.LittleEndian.Uint64(after), binary.LittleEndian.Uint64(before)+uint64(len(after)-len(before)); got != want {
		t.Errorf("the header's length is %d, want %d", got, want)
	}
	h, err := read(before)
	if err != nil {
		t.Fatal(err)
	}
	h2, err := read(after)
	if err != nil {
		t.Fatalf("Read(the new file) = %v", err)
	}
	if got, want := describe(h2), describe(h); got != want {
		t.Errorf("the new file has the tensors %q, want %q", got, want)
	}
	want := map[string]string{key: value}
	maps.Copy(want, h.Metadata)
	if !maps.Equal(h2.Metadata, want) {
		t.Errorf("the new file has the metadata %q, want %q", h2.Metadata, want)
	}
	checkWithReference(t, before, after)
}

// checkWithReference does the same with a reader that is not ours, where it reads the file at all:
// it knows fewer dtypes.
func checkWithReference(t *testing.T, before, after []byte) {
	t.Helper()
	old, err := reference.Deserialize(before)
	if err != nil {
		return
	}
	fresh, err := reference.Deserialize(after)
	if err != nil {
		t.Fatalf("nlpodyssey/safetensors reads the file before, and after: %v", err)
	}
	if old.Len() != fresh.Len() {
		t.Errorf("nlpodyssey/safetensors finds %d tensors, want %d", fresh.Len(), old.Len())
	}
	for _, name := range old.Names() {
		a, _ := old.Tensor(name)
		b, ok := fresh.Tensor(name)
		if !ok || a.DType() != b.DType() || !bytes.Equal(a.Data(), b.Data()) {
			t.Errorf("nlpodyssey/safetensors finds another tensor %q than before", name)
		}
	}
}

func TestTheReferenceReaderReadsTheSimplestFile(t *testing.T) {
	file := testkit.Raw(`{"__metadata__":{"a":"b"},`+u8("x", 0, 3)+"}", []byte{1, 2, 3})
	st, err := reference.Deserialize(file)
	if err != nil || st.Len() != 1 {
		t.Fatalf("Deserialize = %v, %v: what checkWithReference compares is nothing", st.Len(), err)
	}
}

func TestWithMetadataEscapesKeyAndValue(t *testing.T) {
	file := testkit.Raw(`{"__metadata__":{"a":"b"},`+u8("x", 0, 3)+"}", []byte{1, 2, 3})
	h, err := read(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", `"`, `\`, `\"`, "\x00\x01\x1f", "\n\r\t\b\f", "\x7f", "é😀\u2028", "/</script>", `\u0041`, `{"a":"b"}`, strings.Repeat("\x00", 5000)} {
		checkStamped(t, file, addMetadata(file, h, "key"+text, text), "key"+text, text)
	}
}

// TestWithMetadataGrowsByWholeBlocks sweeps the length of the entry over the edges of blocks.
func TestWithMetadataGrowsByWholeBlocks(t *testing.T) {
	file := testkit.Raw(`{"__metadata__":{},`+u8("x", 0, 3)+"}", []byte{1, 2, 3})
	h, err := read(file)
	if err != nil {
		t.Fatal(err)
	}
	const around = len(`"k":""`)
	for _, c := range []struct{ entry, grown int }{{around, 4096}, {4095, 4096}, {4096, 4096}, {4097, 8192}, {8191, 8192}, {8192, 8192}, {8193, 12288}} {
		value := strings.Repeat("v", c.entry-around)
		out := addMetadata(file, h, "k", value)
		if got := len(out) - len(file); got != c.grown {
			t.Errorf("an entry of %d bytes grew the file by %d, want %d", c.entry, got, c.grown)
		}
		checkStamped(t, file, out, "k", value)
	}
}

// TestWithMetadataTwice: a checkpoint can be merged into again and again.
func TestWithMetadataTwice(t *testing.T) {
	file := testkit.Raw("{"+u8("x", 0, 3)+"}", []byte{1, 2, 3})
	for _, key := range []string{"1", "2", "3"} {
		h, err := read(file)
		if err != nil {
			t.Fatal(err)
		}
		next := addMetadata(file, h, key, "value "+key)
		checkStamped(t, file, next, key, "value "+key)
		file = next
	}
}
