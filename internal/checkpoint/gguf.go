package checkpoint

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/naming"
)

// A GGUF file reads as it is: its tensors keep the names of llama.cpp, their order and their
// padding, and an output has its keys, byte for byte. A tensor of blocks is one of bytes, with a
// row of blocks in its last dimension and the name of ggml's type as its scheme.

func isGGUF(start []byte) bool { return bytes.HasPrefix(start, []byte(gguf.Magic)) }

// openGGUF reads the header of a GGUF file.
func openGGUF(ctx context.Context, in *fileio.Input, f *File) (*File, error) {
	g, err := gguf.Read(ctx, in, in.Size)
	if err != nil {
		return nil, err
	}
	if kind, err := g.Text("general.type"); err != nil || kind == "adapter" {
		if err == nil {
			e := fault.New(fault.Unsupported, "this GGUF file holds an adapter, not a checkpoint").WithHint("this is an adapter")
			e.Misplaced, err = true, e
		}
		return nil, err
	}
	tensors := listedIn(g)
	return newFile(headingOf(g), g.DataOff, tensors, f), nil
}

// parseGGUF reads a header on its own. The offsets of the tensors are those in the data.
func parseGGUF(raw []byte) (heading, []Tensor, error) {
	g, err := gguf.ReadHead(raw)
	if err != nil {
		return nil, nil, err
	}
	tensors := listedIn(g)
	for i := range tensors {
		tensors[i].Off -= g.DataOff
	}
	return headingOf(g), tensors, nil
}

// listedIn describes the tensors of a file.
func listedIn(g *gguf.File) []Tensor {
	all := make([]Tensor, len(g.Tensors))
	for i := range g.Tensors {
		x := &g.Tensors[i]
		t := Tensor{Name: x.Name, Shape: x.Shape(), Off: x.Off, NBytes: x.Size}
		if t.DType = ggufTypes[x.Type]; t.DType == dtype.Invalid {
			elements, size := x.Type.Block()
			t.DType, t.Scheme = dtype.U8, x.Type.String()
			t.Shape[len(t.Shape)-1] = t.Shape[len(t.Shape)-1] / uint64(elements) * uint64(size)
		}
		all[i] = t
	}
	return all
}

// ggufTypes are the dtypes of the types that are no blocks.
var ggufTypes = map[gguf.Type]dtype.Type{
	gguf.F64: dtype.F64, gguf.F32: dtype.F32, gguf.F16: dtype.F16, gguf.BF16: dtype.BF16,
	gguf.I8: dtype.I8, gguf.I16: dtype.I16, gguf.I32: dtype.I32, gguf.I64: dtype.I64,
}

// ggufHeading is the header of a GGUF file.
type ggufHeading struct {
	*gguf.File          // without its tensors
	was        summary  // of the whole model
	now        *summary // of the model that a view makes of several files; nil for one of a single file
}

// headingOf takes the header of a file without its tensors.
func headingOf(g *gguf.File) *ggufHeading {
	h := &ggufHeading{File: g, was: summaryOf(g.Tensors)}
	g.Tensors = nil
	return h
}

// summary is stated by keys of a file, about all tensors of a model.
type summary struct {
	most    gguf.Type // the type of most elements: of the largest count, the first
	tensors int
}

func summaryOf(tensors []gguf.Tensor) (s summary) {
	s.tensors = len(tensors)
	counts := make(map[gguf.Type]uint64)
	for i := range tensors {
		t := &tensors[i]
		n, _ := dtype.NElements(t.Dims)
		if counts[t.Type] += n; counts[t.Type] > counts[s.most] {
			s.most = t.Type
		}
	}
	return s
}

func (h *ggufHeading) texts() map[string]string {
	texts := make(map[string]string)
	for _, kv := range h.KVs {
		if s, ok := kv.Text(); ok {
			texts[kv.Key] = s
		}
	}
	return texts
}

// shareBytes is the unit in which file systems share data between files.
const shareBytes = 4096

// with adds spaces to the text, so that the header grows by a multiple of shareBytes.
func (h *ggufHeading) with(raw []byte, key, text string) ([]byte, error) {
	grown, err := h.edited(raw, func(kvs []gguf.KV) []gguf.KV { return append(kvs, gguf.TextKV(key, text)) })
	if err != nil {
		return nil, err
	}
	if rest := (len(grown) - len(raw)) % shareBytes; rest > 0 {
		text += strings.Repeat(" ", shareBytes-rest)
	}
	return h.edited(raw, func(kvs []gguf.KV) []gguf.KV { return append(kvs, gguf.TextKV(key, text)) })
}

func (h *ggufHeading) without(raw []byte, key string) ([]byte, error) {
	return h.edited(raw, func(kvs []gguf.KV) []gguf.KV {
		return slices.DeleteFunc(kvs, func(kv gguf.KV) bool { return kv.Key == key })
	})
}

// edited returns a header with other keys.
func (h *ggufHeading) edited(raw []byte, edit func([]gguf.KV) []gguf.KV) ([]byte, error) {
	g, err := gguf.ReadHead(raw)
	if err != nil {
		return nil, err
	}
	_, head, err := gguf.Compose(g.Version, edit(slices.Clone(g.KVs)), g.Tensors)
	return head, err
}

func (h *ggufHeading) compose(tensors []Tensor) (raw []byte, _ heading, end int64, err error) {
	list := make([]gguf.Tensor, len(tensors))
	for i := range tensors {
		if list[i], err = ggufTensor(&tensors[i]); err != nil {
			return nil, nil, 0, err
		}
	}
	now := summaryOf(list)
	if h.now != nil {
		now = *h.now
	}
	g, raw, err := gguf.Compose(h.Version, h.keysFor(now), list)
	if err != nil {
		return nil, nil, 0, err
	}
	for i := range tensors {
		tensors[i].Off = g.Tensors[i].Off
	}
	end = g.End()
	composed := headingOf(g)
	composed.was = now
	return raw, composed, end, nil
}

// ggufTensor describes a tensor for a GGUF file.
func ggufTensor(t *Tensor) (gguf.Tensor, error) {
	x := gguf.Tensor{Name: t.Name, Dims: slices.Clone(t.Shape)}
	slices.Reverse(x.Dims)
	for of, d := range ggufTypes {
		if d == t.DType {
			x.Type = of
			return x, nil
		}
	}
	of, ok := gguf.TypeNamed(t.Scheme)
	if t.DType != dtype.U8 || !ok {
		return x, fault.New(fault.Unsupported, "a GGUF file cannot hold %q as %v", t.Name, t.DType)
	}
	elements, size := of.Block()
	x.Type, x.Dims[0] = of, x.Dims[0]/uint64(size)*uint64(elements)
	return x, nil
}

// compare keeps the order: a GGUF file pads its tensors.
func (*ggufHeading) compare(a, b dtype.Type) int { return 0 }

// fileTypes has the numbers of general.file_type for files of which most is of one type: those of
// enum llama_ftype.
var fileTypes = map[string]uint32{
	"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
	"Q5_K": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26,
	"IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "NVFP4": 39,
}

// keysFor returns the keys for a model with other tensors. Where the type of most elements stays,
// the file's own number stays, which says more: Q4_K_M or Q4_K_S.
func (h *ggufHeading) keysFor(now summary) []gguf.KV {
	kvs := h.KVs
	set := func(key string, of gguf.ValueType, kv gguf.KV) {
		i := slices.IndexFunc(kvs, func(kv gguf.KV) bool { return kv.Key == key && kv.Type == of })
		if i >= 0 {
			kvs = slices.Clone(kvs)
			kvs[i] = kv
		}
	}
	if n, known := fileTypes[now.most.String()]; known && now.most != h.was.most {
		set(fileTypeKey, gguf.Uint32, gguf.Uint32KV(fileTypeKey, n))
	}
	if now.tensors != h.was.tensors {
		set(splitTensorsKey, gguf.Int32, gguf.Int32KV(splitTensorsKey, int32(now.tensors)))
	}
	return kvs
}

// Keys of files.
const (
	fileTypeKey     = "general.file_type"
	splitNoKey      = "split.no"
	splitCountKey   = "split.count"
	splitTensorsKey = "split.tensors.count"
)

// inGGUF reports whether the weights of a file are in GGUF.
func inGGUF(f *File) bool {
	_, ok := f.header.(*ggufHeading)
	return ok
}

// configOfGGUF reads the model from the keys of a GGUF file, as config.json describes it for
// others. It is zero for a file of another container. hasHead says whether the model has a head of
// its own.
func configOfGGUF(f *File, hasHead bool) (m config.Model, err error) {
	h, ok := f.header.(*ggufHeading)
	if !ok {
		return m, nil
	}
	architecture, err := h.Text("general.architecture")
	if err != nil {
		return m, fault.InFile(err, f.Path)
	}
	number := func(key string) (n uint64) {
		if v, ok := h.Value(architecture + "." + key); ok {
			n, _ = v.Uint()
		}
		return n
	}
	m = config.Model{
		Found: true, Architecture: cmp.Or(architecture, "unknown"), VocabSize: number("vocab_size"), NExperts: number("expert_count"),
		NBlocks: number("block_count"), HiddenSize: number("embedding_length"), HeadSize: number("attention.key_length"),
	}
	if heads := number("attention.head_count"); m.HeadSize == 0 && heads > 0 && m.HiddenSize%heads == 0 {
		m.HeadSize = m.HiddenSize / heads
	}
	m.ModelType = naming.TypeInLlamaCpp(m.Architecture, m.NExperts > 0)
	isTied := !hasHead
	m.TieWordEmbeddings = &isTied
	return m, nil
}
