package convert

import (
	"context"
	"errors"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/gguf"
)

// GGUF returns the dialect of llama.cpp: one GGUF file, whose tensors have the names of llama.cpp.
// The modules of an opened adapter have those of transformers. The rows of q and k keep the order
// of the file where it differs (format.FeatureRotaryPairs).
func GGUF() Dialect { return ggufDialect{} }

type ggufDialect struct{}

func (ggufDialect) Name() string           { return "gguf" }
func (ggufDialect) String() string         { return "gguf" }
func (ggufDialect) Writes(ext string) bool { return weightsExt[ext] == ggufFile }

// The keys of an adapter.
const (
	ggufType         = "general.type"
	ggufArchitecture = "general.architecture"
	ggufAdapterType  = "adapter.type"
	ggufAlpha        = "adapter.lora.alpha"
	ggufTokens       = "adapter.alora.invocation_tokens"
	ggufBaseName     = "general.base_model.0.name"
	ggufBaseURL      = "general.base_model.0.repo_url"

	ggufA, ggufB  = ".lora_a", ".lora_b"
	ggufEmbedding = "token_embd.weight"
	hubURL        = "https://huggingface.co/"
)

// Recognise returns true for a damaged GGUF file, too, and false for a model.
func (ggufDialect) Recognise(in *Input) bool {
	if !strings.HasPrefix(string(in.Start()), gguf.Magic) {
		return false
	}
	var e *fault.Error
	return !errors.As(in.readTable(), &e) || !e.Misplaced
}

func (d ggufDialect) Open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	if err := in.readTable(); err != nil {
		return nil, err
	}
	g := in.table.gguf
	if g == nil {
		return nil, fault.New(fault.Unsupported, "this is no GGUF file")
	}
	if err := o.refuseScale(ggufAlpha + ", whose absence means the scale 1"); err != nil {
		return nil, err
	}
	f := &tensorFile{table: in.table, sign: ggufType + " = adapter"}
	f.manifest.Tensors = in.table.tensors
	f.manifest.Provenance.Source = in.weights.source()
	readme, err := in.ReadFile(format.ModelCard, maxSideBytes)
	if err != nil {
		return nil, err
	}
	if readme != nil {
		f.attach(format.ModelCard, readme)
	}
	r := &ggufReader{collector: f.collector(), file: g}
	a, err := r.adapter(ctx)
	if err != nil {
		return nil, err
	}
	f.manifest.Adapters = []format.Adapter{a}
	f.manifest.Metadata = map[string]string{ggufArchitecture: r.model.Name} // a .lora file keeps it
	if n := f.nBlocked(); n > 0 {
		f.note("%d of %s are stored as %v; F32 holds their values exactly",
			n, fault.Count(int64(len(g.Tensors)), "tensor"), gguf.Q8_0)
	}
	return f, nil
}

// nBlocked counts the tensors of a GGUF file that are stored in blocks.
func (t *table) nBlocked() (n int) {
	for i := range t.gguf.Tensors {
		if !t.gguf.Tensors[i].Type.IsFloat() {
			n++
		}
	}
	return n
}

// ggufTable lists the tensors of a GGUF file. One that is stored turned, as A of the embedding is,
// is listed and read as the transposed matrix, and one of blocks as their values.
func ggufTable(ctx context.Context, f *fileio.Input) (*table, error) {
	g, err := gguf.Read(ctx, f, f.Size)
	if err != nil {
		return nil, err
	}
	if err := checkIsAdapter(g); err != nil {
		return nil, err
	}
	n := len(g.Tensors)
	t := &table{file: f, gguf: g, tensors: make([]format.Tensor, n), offs: make([]int64, n), turned: make([]bool, n)}
	for i := range g.Tensors {
		x := &g.Tensors[i]
		plain, ok := ggufTypes[x.Type]
		if x.Type == gguf.Q8_0 {
			plain, ok = dtype.F32, true // which holds all of its values exactly
		}
		if !ok {
			return nil, fault.New(fault.Unsupported, "the tensor %q is stored as %v, and adapters are read in "+
				"F64, F32, F16, BF16 and Q8_0", x.Name, x.Type).
				WithHint("convert it again with convert_lora_to_gguf.py of llama.cpp, whose default type is F32")
		}
		shape := x.Shape()
		if x.Name == ggufEmbedding+ggufA && len(shape) == 2 {
			shape[0], shape[1] = shape[1], shape[0]
			t.turned[i] = true
		}
		t.tensors[i] = format.Tensor{Name: x.Name, DType: plain, Shape: shape}
		t.offs[i] = x.Off
	}
	return t, nil
}

// ggufTypes maps the float types.
var ggufTypes = map[gguf.Type]dtype.Type{
	gguf.F64: dtype.F64, gguf.F32: dtype.F32, gguf.F16: dtype.F16, gguf.BF16: dtype.BF16,
}

// checkIsAdapter refuses a file with other content than an adapter.
func checkIsAdapter(g *gguf.File) error {
	kind, err := g.Text(ggufType)
	if err != nil {
		return err
	}
	if kind == "adapter" {
		return nil
	}
	if kind == "" {
		kind = "model"
	}
	e := fault.New(fault.Unsupported, "this GGUF file holds a %s, not an adapter", kind)
	e.Misplaced = true
	return e.WithHint("an adapter has the key %s = adapter", ggufType)
}

// readDecoded fills p with the values of tensor i of a GGUF file, in the order of the file, from
// their offset off.
func (t *table) readDecoded(p []byte, i int, off int64) error {
	x := &t.gguf.Tensors[i]
	if x.Type.IsFloat() {
		return readFull(t.file, p, x.Off+off)
	}
	elements, blockBytes := x.Type.Block()
	plain := t.tensors[i].DType
	valueBytes := elements * int64(plain.Size()) // of a block
	const maxBlocks = 1 << 11
	first, last := off/valueBytes, (off+int64(len(p))-1)/valueBytes
	n := min(last-first+1, maxBlocks)
	blocks, numbers, values := make([]byte, n*blockBytes), make([]float64, n*elements), make([]byte, n*valueBytes)
	for at := first; at <= last; at += n {
		n = min(last-at+1, n)
		if err := readFull(t.file, blocks[:n*blockBytes], x.Off+at*blockBytes); err != nil {
			return err
		}
		x.Type.Decode(numbers, blocks[:n*blockBytes])
		for k, v := range numbers[:n*elements] {
			dtype.Store(plain, values, k, v)
		}
		put(p, values[:n*valueBytes], at*valueBytes-off)
	}
	return nil
}
