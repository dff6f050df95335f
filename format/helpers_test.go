package format

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/loratool/loratool/format/dtype"
)

// memory is a Source in memory.
type memory struct {
	manifest Manifest
	blobs    [][]byte
}

func (m *memory) Manifest() *Manifest { return &m.manifest }
func (m *memory) Close() error        { return nil }
func (m *memory) ReadBlobAt(p []byte, i int, off int64) error {
	if n := copy(p, m.blobs[i][off:]); n != len(p) {
		return fmt.Errorf("read of %d bytes at %d of blob %d, which has %d", len(p), off, i, len(m.blobs[i]))
	}
	return nil
}

// tensor adds a tensor and returns its index. Attachments come after all tensors.
func (m *memory) tensor(name string, t dtype.Type, p []byte, shape ...uint64) int {
	m.manifest.Tensors = append(m.manifest.Tensors, Tensor{Name: name, DType: t, Shape: shape})
	m.blobs = append(m.blobs, p)
	return len(m.blobs) - 1
}

func (m *memory) attach(name, sha256 string, p []byte) {
	m.manifest.Attachments = append(m.manifest.Attachments, Attachment{Name: name, NBytes: int64(len(p)), SHA256: sha256})
	m.blobs = append(m.blobs, p)
}

// floats returns n values of type t from N(0, sigma).
func floats(rng *rand.Rand, t dtype.Type, n int, sigma float64) []byte {
	p := make([]byte, n*t.Size())
	for i := range n {
		dtype.Store(t, p, i, rng.NormFloat64()*sigma)
	}
	return p
}

// plain returns an adapter with the given number of linear layers of rank r on n×n modules.
func plain(t dtype.Type, layers, n, r int, seed uint64) *memory {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := &memory{}
	a := Adapter{Method: "lora", Dialect: "peft", Base: Base{Name: "base"}}
	for i := range layers {
		module := fmt.Sprintf("model.layers.%d.q_proj", i)
		a.Layers = append(a.Layers, Layer{
			Module: module, Kind: Linear, Rank: r, Alpha: 2 * float64(r), Scaling: AlphaOverR,
			Roles: map[Role]int{
				RoleA: m.tensor(module+".lora_A.weight", t, floats(rng, t, n*r, 0.02), uint64(r), uint64(n)),
				RoleB: m.tensor(module+".lora_B.weight", t, floats(rng, t, n*r, 0.005), uint64(n), uint64(r)),
			},
		})
	}
	m.manifest.Adapters = []Adapter{a}
	return m
}

// rich uses every feature of a manifest, in an order in which no file has it.
func rich() *memory {
	rng := rand.New(rand.NewPCG(9, 9))
	m := &memory{}
	m.manifest.Metadata = map[string]string{"z\"quoted\\": "a\nb\x01", "é\U0001F600": ""}
	m.manifest.Provenance = Provenance{Source: "somewhere", Tool: "test", Version: "0"}
	b := Adapter{Name: "zwei", Method: "other:ia3", Orientation: NxM, Requires: []Requirement{{"peft-type:IA3", ""}}}
	b.Beside = []Beside{
		{Action: Opaque, Target: "x", Tensor: m.tensor("x", dtype.U8, []byte{1, 2, 3}, 3)},
		{Action: Opaque, Target: "empty", Tensor: m.tensor("empty", dtype.F16, nil, 0, 7)},
		{Action: Opaque, Target: "four", Tensor: m.tensor("four", dtype.F4, []byte{0x21}, 2)},
		{Action: Opaque, Target: "scalar", Tensor: m.tensor("scalar", dtype.F64, floats(rng, dtype.F64, 1, 1))},
		{Action: Opaque, Target: "complex", Tensor: m.tensor("complex", dtype.C64, make([]byte, 80), 10)},
	}
	a := Adapter{
		Name: "eins", Method: "dora", Dialect: "peft",
		Base: Base{Name: "org/base", Revision: "main", Fingerprints: map[string]string{"w": fmt.Sprintf("%064x", 1)}},
		Requires: []Requirement{
			{"lora-bias", "h.1"}, {"dora", "h.2"}, {"dora", "h.1"}, {"lora-bias", "h.1"},
		},
	}
	layer := func(module string, kind Kind, t dtype.Type, r, n, k int) {
		l := Layer{Module: module, Kind: kind, Rank: r, Alpha: 0.5, Scaling: AlphaOverSqrtR, Roles: map[Role]int{}}
		l.Roles[RoleMagnitude] = m.tensor(module+".m", t, floats(rng, t, k, 1), 1, uint64(k))
		l.Roles[RoleB] = m.tensor(module+".B", t, floats(rng, t, k*r, 1), uint64(k), uint64(r))
		l.Roles[RoleBias] = m.tensor(module+".bias", t, floats(rng, t, k, 1), uint64(k))
		l.Roles[RoleA] = m.tensor(module+".A", t, floats(rng, t, n*r, 1), uint64(r), uint64(n))
		a.Layers = append(a.Layers, l)
	}
	layer("h.2", Linear, dtype.BF16, 3, 5, 7)
	layer("h.1", Embedding, dtype.F32, 2, 300, 70)
	layer("h.10", Conv, dtype.F64, 2, 9, 11)
	a.Layers = append(a.Layers, Layer{Module: "odd", Kind: Other, Rank: 1, Scaling: Fixed, Fixed: math.Pi,
		Roles: map[Role]int{"t": m.tensor("odd", dtype.I64, make([]byte, 16), 2)}})
	a.Beside = []Beside{
		{Action: Rows, Target: "embed", Tensor: m.tensor("rows", dtype.F16, floats(rng, dtype.F16, 6, 1), 2, 3), Rows: []int64{9, 4}},
		{Action: Replace, Target: "head", Tensor: m.tensor("x", dtype.U8, []byte("other x"), 7)},
	}
	m.manifest.Adapters = []Adapter{b, a}
	m.attach("zwei/README.md", "", []byte("# zwei\n"))
	m.attach("eins/source.safetensors.header", fmt.Sprintf("%064x", 2), bytes.Repeat([]byte("header "), 100))
	m.attach("empty.txt", "", nil)
	return m
}

// written returns src as a file.
func written(tb testing.TB, src Source, opts WriterOptions) ([]byte, *Summary) {
	tb.Helper()
	var b bytes.Buffer
	s, err := Write(context.Background(), &b, src, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes(), s
}

// opened returns a reader of a file in memory.
func opened(tb testing.TB, p []byte) *Reader {
	tb.Helper()
	r, err := NewReader(bytes.NewReader(p), int64(len(p)), ReaderOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

// contents returns all blobs of a source.
func contents(tb testing.TB, src Source) [][]byte {
	tb.Helper()
	m := src.Manifest()
	blobs := make([][]byte, len(m.Tensors)+len(m.Attachments))
	for i := range blobs {
		var n int64
		if i < len(m.Tensors) {
			n = m.Tensors[i].NBytes()
		} else {
			n = m.Attachments[i-len(m.Tensors)].NBytes
		}
		blobs[i] = make([]byte, n)
		if err := src.ReadBlobAt(blobs[i], i, 0); err != nil {
			tb.Fatal(err)
		}
	}
	return blobs
}
