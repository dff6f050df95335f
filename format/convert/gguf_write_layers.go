package convert

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/gguf"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// ggufWriter plans a GGUF file.
type ggufWriter struct {
	ctx     context.Context
	src     format.Source
	m       *format.Manifest
	a       *format.Adapter
	model   *naming.LlamaCpp
	base    config.Model
	dtype   dtype.Type
	layers  []*ggufLayer
	alpha   float32 // of the file, 0 if the layers have the scale 1
	tokens  []uint32
	keys    []gguf.KV
	remarks []string
}

// ggufLayer is a layer of the file.
type ggufLayer struct {
	newLayer
	shapes map[format.Role][]uint64 // of the tensors, in NumPy's order
	scale  float64
}

func composeGGUF(ctx context.Context, src format.Source, o *CreateOptions) (*ggufWriter, error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	isByModel := func(r format.Requirement) bool { return r.Feature == format.FeatureRotaryByModel }
	if o.BaseConfig != nil && len(m.Adapters) == 1 && slices.ContainsFunc(m.Adapters[0].Requires, isByModel) {
		var err error
		if src, err = WithHeads(src, o.BaseConfig); err != nil {
			return nil, err
		}
		m = src.Manifest()
	}
	if len(m.Adapters) != 1 {
		return nil, fault.New(fault.Unsupported, "the source is a bundle of %d adapters, but a GGUF file "+
			"holds one", len(m.Adapters)).WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	w := &ggufWriter{ctx: ctx, src: src, m: m, a: &m.Adapters[0], dtype: cmp.Or(o.DType, keptDType(m), dtype.F32)}
	if t := w.dtype; t != dtype.F32 && t != dtype.F16 && t != dtype.BF16 {
		return nil, fault.New(fault.Unsupported, "the factors of a GGUF file cannot have dtype %v, want F32, F16 or BF16", t)
	}
	if err := w.readBase(o); err != nil {
		return nil, err
	}
	if err := w.checkFeatures(); err != nil {
		return nil, err
	}
	if err := w.makeLayers(); err != nil {
		return nil, err
	}
	if err := w.setScales(); err != nil {
		return nil, err
	}
	w.setKeys()
	return w, nil
}

// keptDType returns the dtype of an adapter that comes from a GGUF file: 0 if it does not, or if
// its tensors have several.
func keptDType(m *format.Manifest) (kept dtype.Type) {
	if m.Metadata[ggufArchitecture] == "" {
		return 0
	}
	for i := range m.Tensors {
		d := m.Tensors[i].DType
		if d == dtype.F64 || i > 0 && d != kept {
			return 0
		}
		kept = d
	}
	return kept
}

// CheckArchitecture returns an error if CreateOptions.Architecture cannot have the value.
func CheckArchitecture(name string) error {
	if naming.LlamaCppNamed(name) == nil {
		return fault.New(fault.Unsupported, "the architecture %q is not known here; known are %s", name, naming.LlamaCppArchitectures())
	}
	return nil
}

// readBase finds the architecture: that of the options, of the base, or of the GGUF file that the
// adapter comes from.
func (w *ggufWriter) readBase(o *CreateOptions) (err error) {
	if o.BaseConfig != nil {
		if w.base, err = config.Parse(o.BaseConfig); err != nil {
			return err
		}
	}
	const hint = "name the base (CreateOptions.BaseConfig) or its architecture (CreateOptions.Architecture)"
	name := o.Architecture
	if !w.base.Found {
		name = cmp.Or(name, w.m.Metadata[ggufArchitecture])
	}
	switch {
	case name != "":
		w.model = naming.LlamaCppNamed(name)
		return CheckArchitecture(name)
	case !w.base.Found:
		return fault.New(fault.Unsupported, "nothing says which architecture of llama.cpp the adapter is for").
			WithHint(hint)
	default:
		if w.model = naming.LlamaCppOfType(w.base.ModelType); w.model == nil {
			return fault.New(fault.Unsupported, "the names that llama.cpp gives the modules of a %q are not known here; known architectures are %s",
				w.base.ModelType, naming.LlamaCppArchitectures())
		}
	}
	return nil
}

// checkFeatures refuses by name what a GGUF file cannot express.
func (w *ggufWriter) checkFeatures() error {
	for _, r := range w.a.Requires {
		switch r.Feature {
		case format.FeatureRotaryPairs, format.FeatureExpertFactors, format.FeatureExperts:
		case format.FeatureALoRA:
			if err := w.readTokens(r.Where); err != nil {
				return err
			}
		default:
			hint := "keep the adapter as a .lora file"
			if r.Feature == format.FeatureRotaryByModel {
				hint = "name the base, whose config.json says its type (CreateOptions.BaseConfig)"
			}
			return fault.New(fault.Unsupported, "the adapter requires %q (%s), which a GGUF file cannot express",
				r.Feature, r.Where).WithHint("%s", hint)
		}
	}
	for _, b := range w.a.Beside {
		return fault.New(fault.Unsupported, "the tensor %q has no place in a GGUF file, which holds factors alone",
			w.m.Tensors[b.Tensor].Name).WithHint("merge the adapter, and convert the merged model")
	}
	return nil
}

// readTokens reads the tokens of an activated LoRA: from the requirement, or else from PEFT's
// configuration.
func (w *ggufWriter) readTokens(where string) error {
	text, found := strings.CutPrefix(where, tokensField+" = ")
	if !found {
		file, err := attachment(w.src, format.PEFTConfig)
		if err != nil {
			return err
		}
		var c map[string]json.RawMessage
		jsontext.Decode(file, &c)
		text = string(c[tokensField])
	}
	if err := jsontext.Decode([]byte(text), &w.tokens); err != nil || len(w.tokens) == 0 {
		return fault.New(fault.Unsupported, "the adapter is an aLoRA, and nothing says its invocation tokens (%s)", where)
	}
	return nil
}

// makeLayers gives every layer its name and its factors.
func (w *ggufWriter) makeLayers() error {
	stacks := make(expertStacks)
	var parameters []*format.Layer
	for i := range w.a.Layers {
		l := &w.a.Layers[i]
		if err := w.checkLayer(l); err != nil {
			return err
		}
		if l.Kind.IsExpert() {
			parameters = append(parameters, l)
			continue
		}
		if stacks.add(l) {
			continue
		}
		if err := w.add(l); err != nil {
			return err
		}
	}
	if err := (ggufStacks{w}).addAll(parameters); err != nil {
		return err
	}
	for module, experts := range stacks {
		if err := w.stack(module, experts); err != nil {
			return err
		}
	}
	slices.SortFunc(w.layers, func(a, b *ggufLayer) int {
		return cmp.Or(cmp.Compare(naming.BlockOf(a.name), naming.BlockOf(b.name)), strings.Compare(a.name, b.name))
	})
	for i := 1; i < len(w.layers); i++ {
		if w.layers[i].name == w.layers[i-1].name {
			return fault.New(fault.Unsupported, "two layers of the adapter are for the tensor %q", w.layers[i].name)
		}
	}
	return nil
}

// checkLayer refuses by name a layer that no tensors of a GGUF file can be.
func (w *ggufWriter) checkLayer(l *format.Layer) error {
	for role := range l.Roles {
		if role != roleA && role != roleB && role != format.RoleAlpha {
			return fault.New(fault.Unsupported, "layer %q has the role %q, which a GGUF file cannot express",
				l.Module, role).WithHint("keep the adapter as a .lora file")
		}
	}
	if naming.IsHead(l.Module) && w.base.TieWordEmbeddings != nil && *w.base.TieWordEmbeddings {
		return fault.New(fault.Unsupported, "layer %q is for the head, which a GGUF file of this base lacks: it is tied to the embedding",
			l.Module)
	}
	switch l.Kind {
	case format.Linear, format.Embedding, format.Expert, format.ExpertInputs, format.ExpertOutputs,
		format.ExpertFirst, format.ExpertSecond:
		return nil
	case format.Other:
		a, b := w.m.Tensors[l.Roles[roleA]].Shape, w.m.Tensors[l.Roles[roleB]].Shape
		if len(a) == 3 && len(b) == 3 && a[0] == b[0] {
			return nil
		}
	}
	return fault.New(fault.Unsupported, "layer %q has kind %s, which cannot be written to a GGUF file yet",
		l.Module, l.Kind).WithHint("keep the adapter as a .lora file")
}

// name returns the tensor of a module.
func (w *ggufWriter) name(module string) (string, error) {
	name, ok := w.model.Tensor(module)
	if !ok {
		return "", fault.New(fault.Unsupported, "no tensor of the architecture %q is known for the module %q",
			w.model.Name, module)
	}
	return name, nil
}

// add adds a layer with its own tensors.
func (w *ggufWriter) add(l *format.Layer) error {
	name, err := w.name(l.Module)
	if err != nil {
		return err
	}
	if isEmbedding := name == ggufEmbedding; isEmbedding != (l.Kind == format.Embedding) {
		return fault.New(fault.Unsupported, "layer %q has kind %s, which the tensor %q cannot have", l.Module, l.Kind, name)
	}
	x := w.newLayer(name, l)
	a, b := w.m.Tensors[l.Roles[roleA]].Shape, w.m.Tensors[l.Roles[roleB]].Shape
	x.shapes = map[format.Role][]uint64{roleA: a, roleB: b}
	if name == ggufEmbedding {
		x.shapes[roleA] = []uint64{a[1], a[0]}
	}
	x.factors[roleA], x.factors[roleB] = w.factor(l.Roles[roleA]), w.factor(l.Roles[roleB])
	isRequired := slices.Contains(w.a.Requires, format.Requirement{Feature: format.FeatureRotaryPairs, Where: l.Module})
	switch {
	case isRequired && !w.model.HasPairs(name):
		return fault.New(fault.Mismatch, "%q has the rows of q or k in the order of llama.cpp, which models of the architecture %q do not have",
			l.Module, w.model.Name)
	case w.model.HasPairs(name) && !isRequired:
		rows, err := w.pairs(l.Module, b[0])
		if err != nil {
			return err
		}
		x.factors[roleB].blocks[0].rows = rows
	}
	w.layers = append(w.layers, x)
	return nil
}

func (w *ggufWriter) newLayer(name string, l *format.Layer) *ggufLayer {
	return &ggufLayer{
		newLayer: newLayer{
			name: name, kind: l.Kind, rank: l.Rank, alphaAt: -1, factors: make(map[format.Role]*factor),
		},
		scale: l.Scale(),
	}
}

// factor returns a tensor in the dtype of the file. It may be rounded.
func (w *ggufWriter) factor(i int) *factor {
	f := wholeOf(w.m, i)
	f.dtype = w.dtype
	if narrows(w.m.Tensors[i].DType, w.dtype) {
		f = f.rounded()
		w.remark("the factors are rounded to %v", w.dtype)
	}
	return f
}

// narrows reports whether a dtype does not hold all numbers of another.
func narrows(from, to dtype.Type) bool { return from != to && (to != dtype.F32 || from == dtype.F64) }

func (w *ggufWriter) remark(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(w.remarks, text) {
		w.remarks = append(w.remarks, text)
	}
}

// pairs returns the rows of q or k in the order of llama.cpp (spec/METHODS.md, section 6).
func (w *ggufWriter) pairs(module string, n uint64) ([]int, error) {
	size := w.base.HeadSize
	if size == 0 || size%2 != 0 || n%size != 0 {
		return nil, fault.New(fault.Unsupported, "llama.cpp has the %d rows of %q in another order within each attention head, "+
			"and the size of a head, %d, is unknown or does not fit", n, module, size).
			WithHint("name the base, whose config.json says it (CreateOptions.BaseConfig)")
	}
	rows, d := make([]int, n), int(size)
	for i := range rows {
		head, within := i/d, i%d
		rows[i] = head*d + within%2*(d/2) + within/2
	}
	return rows, nil
}

// stack adds a layer of the experts of a module.
func (w *ggufWriter) stack(module string, experts map[int]*format.Layer) error {
	name, err := w.name(module)
	if err != nil {
		return err
	}
	s, err := stackExperts(w.m, module, experts, int(w.base.NExperts), w.factor, "a GGUF file")
	if err != nil {
		return err
	}
	x := w.newLayer(name, s.first)
	x.factors, x.shapes = s.factors, s.shapes
	w.layers = append(w.layers, x)
	return nil
}

// setKeys makes the keys of the file, in the order of llama.cpp's own converter.
func (w *ggufWriter) setKeys() {
	w.keys = []gguf.KV{
		gguf.TextKV(ggufArchitecture, w.model.Name), gguf.TextKV(ggufType, "adapter"), gguf.TextKV(ggufAdapterType, "lora"),
	}
	if name := w.a.Base.Name; name != "" {
		w.keys = append(w.keys, gguf.Uint32KV("general.base_model.count", 1), gguf.TextKV(ggufBaseName, name))
		if hubName.MatchString(name) {
			w.keys = append(w.keys, gguf.TextKV(ggufBaseURL, hubURL+name))
		}
	}
	if w.alpha != 0 {
		w.keys = append(w.keys, gguf.Float32KV(ggufAlpha, w.alpha))
	}
	if w.tokens != nil {
		w.keys = append(w.keys, gguf.Uint32sKV(ggufTokens, w.tokens))
	}
}

// hubName matches the name of a repository on the hub.
var hubName = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$`)
