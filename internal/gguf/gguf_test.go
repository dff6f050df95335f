package gguf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/fault"
)

func read(p []byte) (*File, error) {
	return Read(context.Background(), bytes.NewReader(p), int64(len(p)))
}

// raw composes files by hand, so that they can be wrong.
type raw []byte

func (p raw) u32(n uint32) raw  { return binary.LittleEndian.AppendUint32(p, n) }
func (p raw) u64(n uint64) raw  { return binary.LittleEndian.AppendUint64(p, n) }
func (p raw) text(s string) raw { return append(p.u64(uint64(len(s))), s...) }
func (p raw) zeros(n int) raw   { return append(p, make([]byte, n)...) }

func begin(version uint32, nTensors, nKVs uint64) raw {
	return raw(Magic).u32(version).u64(nTensors).u64(nKVs)
}

func (p raw) tensor(name string, t Type, off uint64, dims ...uint64) raw {
	p = p.text(name).u32(uint32(len(dims)))
	for _, d := range dims {
		p = p.u64(d)
	}
	return p.u32(uint32(t)).u64(off)
}

// padded pads to the default alignment and adds n bytes of tensors.
func (p raw) padded(n int) raw { return p.zeros(-len(p) & 31).zeros(n) }

// hostile are files that Read must refuse, with a part of the message.
var hostile = map[string]struct {
	file raw
	kind fault.Kind
	want string
}{
	"empty":            {raw{}, fault.Truncated, "want 4 bytes more"},
	"magic alone":      {raw(Magic), fault.Truncated, "want 4 bytes more"},
	"another magic":    {raw("GGML").zeros(40), fault.Corrupt, `begins with "GGML"`},
	"big-endian":       {begin(3<<24, 0, 0), fault.Unsupported, "big-endian"},
	"big-endian 2":     {begin(2<<24, 0, 0), fault.Unsupported, "big-endian"},
	"version 1":        {begin(1, 0, 0), fault.Unsupported, "version 1"},
	"version 4":        {begin(4, 0, 0), fault.Unsupported, "version 4"},
	"version 0":        {begin(0, 0, 0), fault.Unsupported, "version 0"},
	"tensors claimed":  {begin(3, math.MaxUint64, 0), fault.Corrupt, "18446744073709551615 tensors"},
	"keys claimed":     {begin(3, 0, 1<<62), fault.Corrupt, "4611686018427387904 key-value pairs"},
	"key cut":          {begin(3, 0, 1).u64(100).zeros(20), fault.Corrupt, "a length of 100 bytes"},
	"key of 2^64-1":    {begin(3, 0, 1).u64(math.MaxUint64).zeros(20), fault.Corrupt, "a key has a length"},
	"key too long":     {begin(3, 0, 1).text(strings.Repeat("k", 1<<16)).u32(0).zeros(9), fault.Limit, "limit is 65535"},
	"key empty":        {begin(3, 0, 1).text("").u32(0).zeros(9), fault.Corrupt, "key is empty"},
	"key twice":        {begin(3, 0, 2).text("a").u32(0).zeros(1).text("a").u32(0).zeros(1), fault.Corrupt, `"a" is there twice`},
	"type 13":          {begin(3, 0, 1).text("a").u32(13).zeros(9), fault.Corrupt, "unknown type 13"},
	"bool 2":           {append(begin(3, 0, 1).text("a").u32(7), 2), fault.Corrupt, "the byte 2"},
	"string cut":       {begin(3, 0, 1).text("a").u32(8).u64(7).zeros(6), fault.Corrupt, "a length of 7 bytes, and 6"},
	"array of arrays":  {begin(3, 0, 1).text("a").u32(9).u32(9).u64(1).u32(4).u64(0), fault.Unsupported, "array of arrays"},
	"array of 2^61":    {begin(3, 0, 1).text("a").u32(9).u32(12).u64(1 << 61), fault.Corrupt, "2305843009213693952 elements"},
	"array of strings": {begin(3, 0, 1).text("a").u32(9).u32(8).u64(2).text("b").u64(1 << 63), fault.Corrupt, "a length of 9223372036854775808"},
	"array of type 99": {begin(3, 0, 1).text("a").u32(9).u32(99).u64(1).zeros(9), fault.Corrupt, "unknown type 99"},
	"alignment 0":      {begin(3, 0, 1).text(alignmentKey).u32(4).u32(0), fault.Corrupt, "power of two"},
	"alignment 48":     {begin(3, 0, 1).text(alignmentKey).u32(4).u32(48), fault.Corrupt, "power of two"},
	"alignment of u64": {begin(3, 0, 1).text(alignmentKey).u32(10).u64(32), fault.Corrupt, "power of two"},
	"alignment text":   {begin(3, 0, 1).text(alignmentKey).u32(8).text("32"), fault.Corrupt, "power of two"},
	"name empty":       {begin(3, 1, 0).tensor("", F32, 0, 1).padded(32), fault.Corrupt, "empty"},
	"name with zero":   {begin(3, 1, 0).tensor("a\x00b", F32, 0, 1).padded(32), fault.Corrupt, "zero byte"},
	"name of 64":       {begin(3, 1, 0).tensor(strings.Repeat("n", 64), F32, 0, 1).padded(32), fault.Limit, "limit is 63"},
	"name twice":       {begin(3, 2, 0).tensor("a", F32, 0, 1).tensor("a", F32, 32, 1).padded(64), fault.Corrupt, `"a" is there twice`},
	"five dimensions":  {begin(3, 1, 0).tensor("a", F32, 0, 1, 1, 1, 1, 1).padded(32), fault.Limit, "5 dimensions"},
	"dimensions cut":   {begin(3, 1, 0).text("abcdefgh").u32(4).u64(1).u64(1), fault.Truncated, "more"},
	"product wraps":    {begin(3, 1, 0).tensor("a", F32, 0, 1<<32, 1<<32).padded(32), fault.Limit, "too many elements"},
	"product wraps at 0": {begin(3, 1, 0).tensor("a", F32, 0, 0, 1<<63, 1<<63).padded(32), fault.Limit,
		"too many elements"},
	"negative":         {begin(3, 1, 0).tensor("a", F32, 0, math.MaxUint64).padded(32), fault.Limit, "too many elements"},
	"bytes wrap":       {begin(3, 1, 0).tensor("a", F64, 0, 1<<61).padded(32), fault.Limit, "too many elements"},
	"type unknown":     {begin(3, 1, 0).tensor("a", 99, 0, 1).padded(32), fault.Unsupported, "type 99"},
	"type removed":     {begin(3, 1, 0).tensor("a", 31, 0, 32).padded(32), fault.Unsupported, "has removed, Q4_0_4_4"},
	"row of 31":        {begin(3, 1, 0).tensor("a", 2, 0, 31).padded(32), fault.Corrupt, "multiple of 32 for Q4_0"},
	"row of no blocks": {begin(3, 1, 0).tensor("a", 2, 0).padded(32), fault.Corrupt, "multiple of 32 for Q4_0"},
	"offset of another": {begin(3, 2, 0).tensor("a", F32, 0, 1).tensor("b", F32, 0, 1).padded(64), fault.Corrupt,
		`"b" is at offset 0, want 32`},
	"gap":            {begin(3, 2, 0).tensor("a", F32, 0, 1).tensor("b", F32, 64, 1).padded(96), fault.Corrupt, "want 32"},
	"misaligned":     {begin(3, 1, 0).tensor("a", F32, 4, 1).padded(32), fault.Corrupt, "offset 4, want 0"},
	"offset 2^63":    {begin(3, 1, 0).tensor("a", F32, 1<<63, 1).padded(32), fault.Corrupt, "offset 9223372036854775808"},
	"data cut":       {begin(3, 1, 0).tensor("a", F32, 0, 8).padded(31), fault.Truncated, "32 bytes, and 31 are left"},
	"no data":        {begin(3, 1, 0).tensor("a", F32, 0, 8), fault.Truncated, "ends before its tensors"},
	"trailing bytes": {begin(3, 1, 0).tensor("a", F32, 0, 8).padded(64), fault.Corrupt, "32 bytes after the last tensor"},
	"a zip behind":   {begin(3, 0, 0).padded(100), fault.Corrupt, "bytes after the last tensor"},
	"huge alignment": {begin(3, 1, 1).text(alignmentKey).u32(4).u32(1<<31).tensor("a", F32, 0, 1).padded(32), fault.Limit, "the limit is 1048576"},
}

func TestReadRefusesHostileFiles(t *testing.T) {
	for name, c := range hostile {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := read(c.file)
		runtime.ReadMemStats(&after)
		if err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Read = %v, want kind %v and %q", name, err, c.kind, c.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: a file of %d bytes took %d bytes of memory", name, len(c.file), n)
		}
	}
}

func TestReadAcceptsWhatGGMLDoes(t *testing.T) {
	for name, file := range map[string]raw{
		"nothing":          begin(3, 0, 0),
		"version 2":        begin(2, 1, 0).tensor("a", F32, 0, 8).padded(32),
		"last not padded":  begin(3, 1, 0).tensor("a", F32, 0, 1).padded(4),
		"no dimension":     begin(3, 1, 0).tensor("a", F32, 0).padded(32),
		"no elements":      begin(3, 2, 0).tensor("a", F32, 0, 0, 7).tensor("b", F16, 0, 1).padded(2),
		"padding, no data": begin(3, 0, 0).padded(0),
		"alignment 1": begin(3, 2, 1).text(alignmentKey).u32(4).u32(1).
			tensor("a", F16, 0, 1).tensor("b", F16, 2, 1).zeros(4),
	} {
		if _, err := read(file); err != nil {
			t.Errorf("%s: Read = %v", name, err)
		}
	}
}

// testKVs has a key of every type.
func testKVs() []KV {
	kvs := []KV{
		TextKV("general.type", "adapter"), Uint32KV("a.u32", 7), Float32KV("a.f32", 0.5),
		Uint32sKV("a.tokens", []uint32{1, 1 << 31}),
	}
	for typ, n := range map[ValueType]int{Uint8: 1, Int8: 1, Uint16: 2, Int16: 2, Int32: 4, Bool: 1, Uint64: 8, Int64: 8, Float64: 8} {
		kvs = append(kvs, KV{"b." + typ.String(), Value{Type: typ, N: 1, raw: append([]byte{1}, make([]byte, n-1)...)}})
	}
	words := Value{Type: Array, Elem: Text, N: 2, raw: appendText(appendText(nil, "ä"), "")}
	return append(kvs, KV{"c.words", words})
}

func written(t testing.TB, kvs []KV, tensors []Tensor) []byte {
	var b bytes.Buffer
	err := Write(context.Background(), &b, kvs, tensors, func(w io.Writer, i int) error {
		size, err := sizeOf(&tensors[i])
		if err != nil {
			return err
		}
		_, err = w.Write(bytes.Repeat([]byte{byte(i + 1)}, int(size)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	tensors := []Tensor{
		{Name: "blk.0.attn_q.weight.lora_a", Type: F32, Dims: []uint64{3, 2}},
		{Name: "q", Type: 2, Dims: []uint64{64, 3, 2}}, {Name: "none", Type: F16, Dims: []uint64{0, 4}},
		{Name: "one", Type: BF16},
	}
	kvs := testKVs()
	p := written(t, kvs, tensors)
	f, err := read(p)
	if err != nil {
		t.Fatal(err)
	}
	if f.Version != 3 || !reflect.DeepEqual(f.KVs, kvs) {
		t.Errorf("version %d, keys %v, want 3, %v", f.Version, f.KVs, kvs)
	}
	for i, got := range f.Tensors {
		want := tensors[i]
		if got.Name != want.Name || got.Type != want.Type || !slices.Equal(got.Dims, want.Dims) || got.Off%32 != 0 {
			t.Errorf("tensor %d = %v, want %v", i, got, want)
		}
		if data := p[got.Off:][:got.Size]; !bytes.Equal(data, bytes.Repeat([]byte{byte(i + 1)}, len(data))) {
			t.Errorf("%s has other bytes", got.Name)
		}
	}
	if n, err := Size(kvs, tensors); err != nil || n != int64(len(p)) {
		t.Errorf("Size = %d, %v, want %d", n, err, len(p))
	}
	if got := f.Tensors[0].Shape(); !slices.Equal(got, []uint64{2, 3}) {
		t.Errorf("Shape = %d, want [2 3]", got)
	}
	if v, _ := f.Value("a.tokens"); v.N != 2 {
		t.Errorf("a.tokens = %v", v)
	} else if all, ok := v.Uints(); !ok || !slices.Equal(all, []uint64{1, 1 << 31}) {
		t.Errorf("a.tokens = %d, %v", all, ok)
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	for name, c := range map[string]struct {
		kvs     []KV
		tensors []Tensor
	}{
		"key twice":   {kvs: []KV{Uint32KV("a", 1), Uint32KV("a", 2)}},
		"key":         {kvs: []KV{Uint32KV("Ä", 1)}},
		"alignment":   {kvs: []KV{Uint32KV(alignmentKey, 24)}},
		"name":        {tensors: []Tensor{{Name: strings.Repeat("n", 64)}}},
		"names twice": {tensors: []Tensor{{Name: "a"}, {Name: "a"}}},
		"dims":        {tensors: []Tensor{{Name: "a", Dims: []uint64{1, 1, 1, 1, 1}}}},
		"row":         {tensors: []Tensor{{Name: "a", Type: 2, Dims: []uint64{5}}}},
	} {
		if _, err := Size(c.kvs, c.tensors); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The file is gguf-py's own (testdata/gguf/make.py): every type of values and of tensors.
func TestReadAgreesWithGGUFPy(t *testing.T) {
	p, err := os.ReadFile(filepath.Join("..", "..", "testdata", "gguf", "types.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := read(p)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := os.ReadFile(filepath.Join("..", "..", "testdata", "gguf", "types.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, kv := range f.KVs {
		fmt.Fprintf(&b, "key %s %v\n", kv.Key, kv.Type)
	}
	for i := range f.Tensors {
		x := &f.Tensors[i]
		sum := 0
		for _, c := range p[x.Off:][:x.Size] {
			sum += int(c)
		}
		fmt.Fprintf(&b, "tensor %s %v %s %d,%d,%d\n", x.Name, x.Type, commas(x.Dims), x.Off, x.Size, sum)
	}
	if got := b.String(); got != string(listed) {
		t.Errorf("Read found\n%s, gguf-py\n%s", got, listed)
	}
}

func commas(all []uint64) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(all), "[]"), " ", ",")
}

func FuzzRead(f *testing.F) {
	for _, c := range hostile {
		f.Add([]byte(c.file))
	}
	f.Add(written(f, testKVs(), []Tensor{{Name: "a", Type: F32, Dims: []uint64{3, 2}}, {Name: "b", Type: 2, Dims: []uint64{32}}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		first, err := read(p)
		if err != nil {
			return
		}
		for _, kv := range first.KVs {
			_ = kv.String()
			kv.Uints()
			if !IsKey(kv.Key) {
				return
			}
		}
		again, err := read(written(t, first.KVs, first.Tensors))
		if err != nil {
			t.Fatalf("a file that was read, and written again: %v", err)
		}
		if !reflect.DeepEqual(again.KVs, first.KVs) || len(again.Tensors) != len(first.Tensors) {
			t.Error("writing changed the file")
		}
	})
}
