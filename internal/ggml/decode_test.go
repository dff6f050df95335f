package ggml_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/loratool/loratool/internal/ggml"
	"github.com/loratool/loratool/internal/gguf"
)

// fixtures are llama.cpp's: make_truth.py there made truth.json with its C code.
var fixtures = filepath.Join("..", "..", "testdata", "ggml")

// truth says what llama.cpp's decoder makes of the blocks of a type.
type truth struct {
	File      string            // SHA-256 of the values in all_types.gguf as float32
	Every97th []float64         `json:"every_97th"`
	Random    string            // SHA-256 of those of random blocks
	Encoded   map[string]string // SHA-256s of the blocks of random rows, by their kind
}

func readTruth(t testing.TB) (all map[string]truth) {
	text, err := os.ReadFile(filepath.Join(fixtures, "truth.json"))
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) != 28 {
		t.Fatalf("truth.json has %d types, want 28 (%v)", len(all), err)
	}
	return all
}

// typeOf returns the type with a name.
func typeOf(t testing.TB, name string) ggml.Type {
	for typ := range ggml.Type(100) {
		if typ.String() == name {
			return typ
		}
	}
	t.Fatalf("no type is called %s", name)
	return 0
}

func TestDecodeAgreesWithLlamaCppOnItsOwnBlocks(t *testing.T) {
	file, err := os.ReadFile(filepath.Join(fixtures, "all_types.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Read(t.Context(), bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Tensors) != 27 {
		t.Errorf("the file has %d tensors, want 27", len(f.Tensors))
	}
	all := readTruth(t)
	for i := range f.Tensors {
		x := &f.Tensors[i]
		want := all[x.Type.String()]
		values := decode(x.Type, file[x.Off:][:x.Size])
		for k, w := range want.Every97th {
			if got := float64(float32(values[97*k])); got != w {
				t.Errorf("%v: value %d is %v, llama.cpp has %v", x.Type, 97*k, got, w)
				break
			}
		}
		if digest(values) != want.File {
			t.Errorf("%v: the values are not those of llama.cpp", x.Type)
		}
	}
}

// The blocks have all codes, and all scales, NaN and infinities too.
func TestDecodeAgreesWithLlamaCppOnRandomBlocks(t *testing.T) {
	for name, want := range readTruth(t) {
		typ := typeOf(t, name)
		if typ.IsFloat() {
			continue
		}
		_, size := typ.Block()
		if got := digest(decode(typ, randomBytes(name, 4096*size))); got != want.Random {
			t.Errorf("%s: the values are not those of llama.cpp", name)
		}
	}
}

func decode(typ ggml.Type, blocks []byte) []float64 {
	elements, size := typ.Block()
	values := make([]float64, int64(len(blocks))/size*elements)
	typ.Decode(values, blocks)
	return values
}

// digest is the SHA-256 of values as float32 numbers. Every NaN counts as the same.
func digest(values []float64) string {
	p := make([]byte, 4*len(values))
	for i, v := range values {
		bits := math.Float32bits(float32(v))
		if v != v {
			bits = 0x7fc00000
		}
		binary.LittleEndian.PutUint32(p[4*i:], bits)
	}
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// randomBytes are those of make_truth.py.
func randomBytes(name string, n int64) (p []byte) {
	for i := 0; int64(len(p)) < n; i++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i))
		p = append(p, sum[:]...)
	}
	return p[:n]
}

// All types of weights are decoded, and no type of something else.
func TestCanDecode(t *testing.T) {
	all := readTruth(t)
	for typ := range ggml.Type(100) {
		_, want := all[typ.String()]
		if want = want || typ == ggml.F64; typ.CanDecode() != want {
			t.Errorf("%v: CanDecode = %v, want %v", typ, typ.CanDecode(), want)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	var dst [4 * ggml.MaxElements]float64
	blocks := make([]byte, 4*ggml.MaxBytes)
	for typ := range ggml.Type(100) {
		if !typ.CanDecode() {
			continue
		}
		elements, size := typ.Block()
		if n := testing.AllocsPerRun(10, func() { typ.Decode(dst[:4*elements], blocks[:4*size]) }); n > 0 {
			t.Errorf("%v: Decode allocates %v times", typ, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint32(8), []byte(strings.Repeat("\x3c", 40)))
	f.Fuzz(func(t *testing.T, number uint32, p []byte) {
		typ := ggml.Type(number)
		elements, size := typ.Block()
		if !typ.CanDecode() {
			return
		}
		n := int64(len(p)) / size
		values := decode(typ, p[:n*size])
		for i := range n { // a block alone has the values that it has among others
			one := decode(typ, p[i*size:][:size])
			for j, v := range one {
				if w := values[i*elements+int64(j)]; math.Float64bits(v) != math.Float64bits(w) {
					t.Fatalf("%v: element %d of block %d is %v, and %v alone", typ, j, i, w, v)
				}
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	random := rand.NewChaCha8([32]byte{1})
	for typ := range ggml.Type(100) {
		if !typ.CanDecode() {
			continue
		}
		elements, size := typ.Block()
		const n = 1 << 16
		blocks, values := make([]byte, n/elements*size), make([]float64, n)
		random.Read(blocks)
		b.Run(typ.String(), func(b *testing.B) {
			b.SetBytes(int64(len(blocks)))
			for b.Loop() {
				typ.Decode(values, blocks)
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds()/1e6, "Mvalues/s")
		})
	}
}
