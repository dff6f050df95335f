package checkpoint

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/safetensors"
)

// AsTransformers returns a view of a model in GGUF with the names, the shapes and the order of rows
// that the model has in transformers: experts are apart. A tensor that is not known there keeps its
// name. A checkpoint of another container is returned as it is. Closing either checkpoint closes
// the files of both.
func AsTransformers(c *Checkpoint) (*Checkpoint, error) {
	if c.Config.Architecture == "" {
		return c, nil
	}
	m := naming.LlamaCppNamed(c.Config.Architecture)
	switch {
	case m == nil:
		return nil, fault.New(fault.Unsupported, "this is a GGUF file of the architecture %q, for which this version does not know the names of transformers", c.Config.Architecture).
			In(c.Path).WithHint("known are %s", naming.LlamaCppArchitectures())
	case m.Reshapes():
		return nil, fault.New(fault.Unsupported, "this is a GGUF file of the architecture %q, whose weights have other shapes in transformers", m.Name).
			In(c.Path).WithHint("use the checkpoints for transformers")
	}
	t := &translation{c: c, model: m}
	plain := *c
	plain.Files = make([]*File, len(c.Files))
	for i, f := range c.Files {
		g := *f
		g.header = safetensorsHeading{&safetensors.Header{Metadata: f.header.texts()}}
		plain.Files[i] = &g
	}
	v, err := plain.View(func(_ int, f *File) (shown []Shown) {
		for i := range f.Tensors {
			shown = append(shown, t.shown(&f.Tensors[i])...)
		}
		return shown
	})
	if err = cmp.Or(t.err, err); err != nil {
		return nil, fault.InFile(err, c.Path)
	}
	v.Config.Architecture = ""
	return v, nil
}

// translation shows the tensors of a GGUF file as transformers has them.
type translation struct {
	c     *Checkpoint
	model *naming.LlamaCpp
	err   error
}

func (x *translation) shown(t *Tensor) []Shown {
	s := t.Shown()
	module, leaf, ok := x.model.Translate(t.Name)
	if !ok {
		return []Shown{s}
	}
	s.Name = module + "." + leaf
	if naming.IsStackOfLlamaCpp(t.Name) {
		if len(t.Shape) != 3 || t.Shape[0] == 0 {
			return []Shown{t.Shown()}
		}
		return expertsOf(s, module)
	}
	if x.model.HasPairs(t.Name) {
		size := x.c.Config.HeadSize
		if size == 0 || size%2 != 0 || len(t.Shape) == 0 || t.Shape[0]%size != 0 {
			x.err = fault.New(fault.Unsupported, "the rows of %q of shape %d are in the order of llama.cpp, and the keys say that a head has %d", t.Name, t.Shape, size)
			return nil
		}
		rows := int64(t.Shape[0])
		s.Pieces = []Piece{{inHalves{t, t.NBytes / max(1, rows), int64(size)}, 0, t.NBytes}}
	}
	return []Shown{s}
}

// expertsOf divides a stack of experts.
func expertsOf(s Shown, module string) []Shown {
	all := make([]Shown, s.Shape[0])
	each := s.Pieces[0].N / int64(len(all))
	for e := range all {
		all[e] = s
		all[e].Name = naming.ExpertModule(module, e) + ".weight"
		all[e].Shape = slices.Clone(s.Shape[1:])
		all[e].Pieces = []Piece{{s.Pieces[0].Source, s.Pieces[0].Off + int64(e)*each, each}}
	}
	return all
}

// inHalves reads a tensor whose rows have the order of llama.cpp in that of transformers: of each
// head, the even rows and then the odd ones.
type inHalves struct {
	t        *Tensor
	rowBytes int64
	size     int64 // rows of a head
}

func (r inHalves) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		row, skip := off/r.rowBytes, off%r.rowBytes
		n := min(int64(len(p)), r.rowBytes-skip)
		head, in := row/r.size, row%r.size
		from := head*r.size + 2*(in%(r.size/2)) + in/(r.size/2)
		if err := r.t.ReadAt(ctx, p[:n], from*r.rowBytes+skip); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// KeysAsConfig returns the keys of a model in GGUF as the text of a config.json; nil for
// any other checkpoint.
func KeysAsConfig(c *Checkpoint) ([]byte, error) {
	m := &c.Config
	if m.Architecture == "" {
		return nil, nil
	}
	return json.Marshal(map[string]any{
		"model_type": m.ModelType, "hidden_size": m.HiddenSize, "head_dim": m.HeadSize, "vocab_size": m.VocabSize,
		"num_experts": m.NExperts, "num_hidden_layers": m.NBlocks, "tie_word_embeddings": m.TieWordEmbeddings,
	})
}
