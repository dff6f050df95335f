package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	safefile "github.com/loratool/loratool/format/safetensors"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/naming"
)

// mlxWriter plans a directory of mlx-lm.
type mlxWriter struct {
	ctx     context.Context
	src     format.Source
	m       *format.Manifest
	a       *format.Adapter
	base    config.Model
	tails   map[string]bool // ends of the base's modules; nil if the base is unknown
	layers  []*mlxLayer
	rank    int     // of all layers
	scale   float64 // of all layers
	isDoRA  bool
	blocks  int // num_layers
	keys    []string
	card    []byte
	remarks []string

	content []byte // of the tensor last
	last    int
}

// mlxLayer is a layer of the file.
type mlxLayer struct {
	newLayer
	scale    float64
	nExperts uint64 // 0 for a matrix
	n, m     uint64 // A reads n numbers, and B writes m
}

func composeMLX(ctx context.Context, src format.Source, o *CreateOptions) (w *mlxWriter, err error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	if len(m.Adapters) != 1 {
		return nil, fault.New(fault.Unsupported, "the source is a bundle of %d adapters, but a directory of MLX "+
			"holds one", len(m.Adapters)).WithHint("name one of them, as in FILE#%s", m.Adapters[0].Name)
	}
	w = &mlxWriter{ctx: ctx, src: src, m: m, a: &m.Adapters[0]}
	if o.BaseConfig != nil {
		if w.base, err = config.Parse(o.BaseConfig); err != nil {
			return nil, err
		}
	}
	if w.card, err = attachment(src, format.ModelCard); err != nil {
		return nil, err
	}
	if err := refuseMegatron(w.a); err != nil {
		return nil, err
	}
	w.tails = tailsOf(o.Base)
	for _, step := range []func() error{w.checkFeatures, w.makeLayers, w.setScale} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	w.chooseModules()
	return w, safefile.Check(w.listed())
}

const hintKeep = "keep the adapter as a .lora file"

// checkFeatures refuses by name what mlx-lm cannot express.
func (w *mlxWriter) checkFeatures() error {
	for _, r := range w.a.Requires {
		switch r.Feature {
		case format.FeatureDoRA, format.FeatureExpertFactors, format.FeatureWeightTying:
		default:
			return fault.New(fault.Unsupported, "the adapter requires %q (%s), which mlx-lm cannot express",
				r.Feature, r.Where).WithHint(hintKeep)
		}
	}
	for _, b := range w.a.Beside {
		return fault.New(fault.Unsupported, "the tensor %q has no place in an adapter of MLX, which holds factors alone",
			w.m.Tensors[b.Tensor].Name).WithHint("merge the adapter, and convert the merged model")
	}
	return nil
}

// makeLayers gives every layer its name and its factors.
func (w *mlxWriter) makeLayers() error {
	stacks := make(expertStacks)
	for i := range w.a.Layers {
		l := &w.a.Layers[i]
		if err := w.checkLayer(l); err != nil {
			return err
		}
		if stacks.add(l) {
			continue
		}
		if err := w.add(l); err != nil {
			return err
		}
	}
	for module, experts := range stacks {
		if err := w.stack(module, experts); err != nil {
			return err
		}
	}
	slices.SortFunc(w.layers, func(a, b *mlxLayer) int { return strings.Compare(a.name, b.name) })
	for i, l := range w.layers {
		if i > 0 && l.name == w.layers[i-1].name {
			return fault.New(fault.Unsupported, "two layers of the adapter are for the module %q of mlx-lm", l.name)
		}
		w.rank = max(w.rank, l.rank)
		w.isDoRA = w.isDoRA || l.factors[roleMagnitude] != nil
	}
	for _, l := range w.layers {
		if w.isDoRA && l.factors[roleMagnitude] == nil {
			return fault.New(fault.Unsupported, "layer %q has no magnitudes and others have, and in mlx-lm all layers are DoRA's or none is",
				l.name).WithHint(hintKeep)
		}
	}
	return nil
}

// checkLayer refuses by name a layer that mlx-lm does not have.
func (w *mlxWriter) checkLayer(l *format.Layer) error {
	_, hasMagnitude := l.Roles[roleMagnitude]
	for role := range l.Roles {
		isKnown := role == roleA || role == roleB || role == format.RoleAlpha || role == roleMagnitude && l.Kind == format.Linear
		if !isKnown {
			return fault.New(fault.Unsupported, "layer %q of kind %s has the role %q, which mlx-lm cannot express",
				l.Module, l.Kind, role).WithHint(hintKeep)
		}
	}
	isTied := w.base.TieWordEmbeddings != nil && *w.base.TieWordEmbeddings
	isMeant := slices.ContainsFunc(w.a.Requires, func(r format.Requirement) bool { return r.Feature == format.FeatureWeightTying })
	switch {
	case isTied && naming.IsHead(l.Module):
		return fault.New(fault.Unsupported, "layer %q is for the head, which mlx-lm lacks in this base: it is tied to the embedding", l.Module)
	case isTied && l.Kind == format.Embedding && !isMeant:
		return fault.New(fault.Unsupported, "layer %q is for the embedding alone, and mlx-lm would change the head, too, "+
			"which is tied to it in this base", l.Module).WithHint(hintKeep)
	case hasMagnitude && oneExpert.MatchString(l.Module):
		return fault.New(fault.Unsupported, "layer %q has magnitudes, which experts cannot have in mlx-lm", l.Module).WithHint(hintKeep)
	}
	if why := w.whyNoModule(l.Module); why != "" {
		return fault.New(fault.Unsupported, "mlx-lm has no module %q: %s", l.Module, why).WithHint(hintKeep)
	}
	switch l.Kind {
	case format.Linear, format.Embedding:
		return nil
	case format.Other:
		a, b := w.m.Tensors[l.Roles[roleA]].Shape, w.m.Tensors[l.Roles[roleB]].Shape
		if len(a) == 3 && len(b) == 3 && a[0] == b[0] {
			return nil
		}
	}
	return fault.New(fault.Unsupported, "layer %q has kind %s, which cannot be written as mlx-lm has it", l.Module, l.Kind).
		WithHint(hintKeep)
}

// whyNoModule returns the reason why mlx-lm has no module of this name, "" if it may have one.
// mlx-lm has the modules of the base, except that experts are stacked and GPT-2 has other names.
func (w *mlxWriter) whyNoModule(module string) string {
	switch {
	case strings.HasPrefix(module, "transformer.h."):
		return "it calls the blocks of GPT-2 model.h"
	case naming.IsExpertOfUnsloth(module):
		return "the experts of gpt-oss are stacked there, with gate and up apart"
	case w.tails != nil && !strings.Contains(module, "experts") && !w.tails[moduleTail(module)]:
		return "the base has no weight of this name, so that it divides the projections in another way, or is another model"
	}
	return ""
}

// tailsOf returns the ends of the modules that have weights, nil without tensors.
func tailsOf(base []format.Tensor) map[string]bool {
	if base == nil {
		return nil
	}
	tails := make(map[string]bool)
	for _, t := range base {
		if module, ok := strings.CutSuffix(t.Name, ".weight"); ok {
			tails[moduleTail(module)] = true
		}
	}
	return tails
}

// moduleTail returns the last two parts of a module's name: wrappers around a model differ.
func moduleTail(module string) string {
	parts := strings.Split(module, ".")
	return strings.Join(parts[max(0, len(parts)-2):], ".")
}

// add adds a layer with its own tensors.
func (w *mlxWriter) add(l *format.Layer) error {
	a, b := w.m.Tensors[l.Roles[roleA]].Shape, w.m.Tensors[l.Roles[roleB]].Shape
	x := w.newLayer(naming.LinearToMLX(l.Module), l)
	for role, i := range l.Roles {
		if role != format.RoleAlpha {
			x.factors[role] = w.factor(i)
		}
	}
	if x.n, x.m = a[len(a)-1], b[len(b)-2]; len(a) == 3 {
		x.nExperts = a[0]
		if err := w.nameStack(x, l.Module); err != nil {
			return err
		}
	}
	w.layers = append(w.layers, x)
	return nil
}

// nameStack gives a stack of experts its name in mlx-lm.
func (w *mlxWriter) nameStack(x *mlxLayer, module string) error {
	name, ok := naming.ToMLX(module, w.base.ModelType)
	if !ok {
		return fault.New(fault.Unsupported, "the experts %q are no module of mlx-lm, whose stacks are gate_proj, up_proj and down_proj", module).
			WithHint(hintKeep)
	}
	if !w.base.Found {
		w.remark("the experts are called %s, as in most models of mlx-lm; the base tells for sure (CreateOptions.BaseConfig)", name)
	}
	x.name = name
	return nil
}

// stack adds a layer of single experts.
func (w *mlxWriter) stack(module string, experts map[int]*format.Layer) error {
	s, err := stackExperts(w.m, module, experts, int(w.base.NExperts), w.factor, "mlx-lm")
	if err != nil {
		return err
	}
	x := w.newLayer("", s.first)
	x.factors = s.factors
	x.nExperts, x.n, x.m = s.shapes[roleA][0], s.shapes[roleA][2], s.shapes[roleB][1]
	w.layers = append(w.layers, x)
	return w.nameStack(x, module)
}

func (w *mlxWriter) newLayer(name string, l *format.Layer) *mlxLayer {
	return &mlxLayer{
		newLayer: newLayer{name: name, kind: l.Kind, rank: l.Rank, alphaAt: -1, factors: make(map[format.Role]*factor)},
		scale:    l.Scale(),
	}
}

// factor returns a tensor in its own dtype, but F32 for F64, which Metal lacks.
func (w *mlxWriter) factor(i int) *factor {
	f := wholeOf(w.m, i)
	if f.dtype == dtype.F64 {
		f.dtype = dtype.F32
		f = f.rounded()
		w.remark("the factors are rounded to F32")
	}
	return f
}

func (w *mlxWriter) remark(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(w.remarks, text) {
		w.remarks = append(w.remarks, text)
	}
}

// setScale chooses the scale that most layers have. The factors of the others carry the ratio.
func (w *mlxWriter) setScale() error {
	scales := make(map[float64]int)
	for _, l := range w.layers {
		if l.scale != 0 {
			scales[l.scale]++
		}
	}
	w.scale = 1
	if len(scales) > 0 {
		w.scale = mode(scales)
	}
	for _, l := range w.layers {
		if l.scale == w.scale {
			continue
		}
		if factors := foldsExactly(w.ctx, w.src, &l.newLayer, w.scale, l.scale); factors != nil {
			l.factors = factors
			continue
		}
		ratio := l.scale / w.scale
		remark, err := foldRatio(w.ctx, w.src, &l.newLayer, ratio)
		if err != nil {
			return err
		}
		if math.FMA(ratio, w.scale, -l.scale) != 0 {
			remark = fmt.Sprintf("the scale %v of %q is rounded to %v·%v", l.scale, l.name, w.scale, ratio)
		}
		if remark != "" {
			w.remark("%s", remark)
		}
	}
	return nil
}

// inBlock matches a module of a numbered block.
var inBlock = regexp.MustCompile(`^(?:.*?\.)?(?:layers|h|blocks)\.([0-9]{1,9})\.(.+)$`)

// chooseModules lists the modules that mlx-lm adapts, by their names in a block, and counts the
// last blocks, which it adapts. Modules without factors in the file get random A and zero B, or
// DoRA's magnitudes of the base, and stay as they are.
func (w *mlxWriter) chooseModules() {
	keys := make(map[string]bool)
	lowest, highest := math.MaxInt, 0
	for _, l := range w.layers {
		key := l.name
		if b := inBlock.FindStringSubmatch(l.name); b != nil {
			n, _ := strconv.Atoi(b[1])
			lowest, highest, key = min(lowest, n), max(highest, n), b[2]
		}
		keys[key] = true
	}
	w.keys = append([]string{}, slices.Sorted(maps.Keys(keys))...) // no null, which means all
	switch n := int(min(w.base.NBlocks, math.MaxInt32)); {
	case lowest == math.MaxInt:
		w.blocks = 1 // of which the keys name no module
	case n > lowest:
		w.blocks = n - lowest
	case w.blocksOfSource() > highest-lowest:
		w.blocks = w.blocksOfSource()
	default:
		w.blocks = -1
		w.remark("num_layers is -1, which means all blocks since February 2025: nothing says how many the base has (CreateOptions.BaseConfig)")
	}
}

// blocksOfSource returns the num_layers of the MLX file that the source was made from, 0 if there
// is none. It is the number of the last blocks that the training adapted.
func (w *mlxWriter) blocksOfSource() (n int) {
	if w.a.Dialect != MLX().Name() {
		return 0
	}
	text, err := attachment(w.src, format.PEFTConfig)
	var c mlxConfig
	if err != nil || text == nil || c.parse(text) != nil || jsontext.Decode(c.NumLayers, &n) != nil || n > math.MaxInt32 {
		return 0
	}
	return n
}

// config makes adapter_config.json.
func (w *mlxWriter) config() ([]byte, error) {
	kind := "lora"
	if w.isDoRA {
		kind = "dora"
	}
	fields := map[string]any{
		"fine_tune_type": kind, "num_layers": w.blocks,
		"lora_parameters": map[string]any{"rank": w.rank, "scale": w.scale, "dropout": 0, "keys": w.keys},
	}
	if name := w.a.Base.Name; name != "" {
		fields["model"] = name
	}
	text, err := json.MarshalIndent(fields, "", "    ")
	return append(text, '\n'), err
}
