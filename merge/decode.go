package merge

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/outline"
)

// decoding is the part of a plan that turns quantised weights of the base into plain ones.
type decoding struct {
	exact    *checkpoint.Checkpoint // shows every quantised weight as its values in F64
	weights  []decodable            // all of the base, sorted by name
	nDecoded int                    // how many of them are
	dtype    dtype.Type             // Options.OutDType

	isSimulated bool // Options.BaseAs: the files have plain weights
}

// decodable is a quantised weight of the base.
type decodable struct {
	checkpoint.Quantised
	as        dtype.Type // of its values
	isDecoded bool       // the output has these in place of the codes
	target    *target    // nil if the plan does not change the weight
}

// showDecoded makes the description of the base show every quantised weight as a plain one of the
// dtype that the output would give it. settle decides which ones the output decodes; until then the
// base is that with the values in F64.
func showDecoded(p *planner) {
	all := checkpoint.QuantisedOf(p.base)
	d := &decoding{
		exact: p.base, weights: make([]decodable, len(all)), dtype: p.options.OutDType,
		isSimulated: p.options.BaseAs != "",
	}
	for i, q := range all {
		d.weights[i] = decodable{Quantised: q, as: d.dtypeOf(&q)}
		t := p.names.Tensors[q.Name]
		t.DType = d.weights[i].as
		p.names.Tensors[q.Name] = t
	}
	p.decoding = d
}

// weight returns a quantised weight, nil if there is none of the name. d may be nil.
func (d *decoding) weight(name string) *decodable {
	if d == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(d.weights, name, func(w decodable, name string) int { return strings.Compare(w.Name, name) })
	if !ok {
		return nil
	}
	return &d.weights[i]
}

// dtypeOf returns the dtype of a decoded weight: 16 bits, unless the caller wants another one.
func (d *decoding) dtypeOf(q *checkpoint.Quantised) dtype.Type {
	switch {
	case d.dtype != dtype.Invalid:
		return d.dtype
	case d.isSimulated:
		return q.DType
	case q.DType == dtype.F16:
		return dtype.F16
	}
	return dtype.BF16
}

// settle decodes the weights that change and get no new codes, and those that programs can only
// load in the same way, and keeps the codes of all others.
func (d *decoding) settle(ctx context.Context, p *planner) error {
	recoded := make(recoding)
	if err := recoded.choose(p, d); err != nil {
		return err
	}
	for i := range d.weights {
		w := &d.weights[i]
		w.target = p.targets[present(p, w.Name)]
		w.isDecoded = recoded[w.Name] == nil && (w.target != nil || p.options.Dequantise || feeds(p, w.Name))
	}
	d.addTogether()
	if err := recoded.check(p, d); err != nil {
		return err
	}
	switch {
	case d.nDecoded > 0 && p.options.wantsRecord():
		return fault.New(fault.Unsupported, "the merge decodes %s of the base, such as %q, and an undo record cannot bring the codes back",
			fault.Count(d.nDecoded, "quantised weight"), d.decoded()[0]).
			WithHint("merge without Options.Undo, and keep the base")
	case p.options.Dequantise && len(checkpoint.UnreadableOf(d.exact)) > 0:
		return checkpoint.UnreadableOf(d.exact)[0].Err
	}
	as := make([]dtype.Type, len(d.weights))
	for i := range d.weights {
		if w := &d.weights[i]; w.isDecoded {
			as[i] = w.as
		}
	}
	changed := func(yield func(int) bool) {
		for i := range d.weights {
			if (d.weights[i].isDecoded || recoded[d.weights[i].Name] != nil) && !yield(i) {
				return
			}
		}
	}
	if err := checkpoint.CheckCodes(ctx, d.exact, changed); err != nil {
		return err
	}
	base, err := checkpoint.Decoding(d.exact, as)
	if err != nil {
		return err
	}
	if p.base, err = outline.Reshaped(base, p.shaped.Edits); err != nil {
		return err
	}
	recoded.settle(p, d.exact)
	for _, t := range p.targets {
		t.ref, _ = p.base.Lookup(t.Name)
	}
	for i := range d.weights {
		d.setExact(&d.weights[i], d.weights[i].target)
	}
	for _, e := range p.shaped.Edits {
		for _, t := range e.Tensors {
			d.setExact(d.weight(t.From), p.targets[t.Name]) // an untied head
		}
	}
	recoded.announce(p, d.nDecoded)
	if d.nDecoded == 0 {
		return nil
	}
	if err := p.editIndex(true); err != nil {
		return err
	}
	d.warn(p)
	return d.editQuantisation(p)
}

// warn says which weights the output decodes although no adapter changes them, and which it keeps.
func (d *decoding) warn(p *planner) {
	if d.isSimulated {
		p.announce("%s of the base's linear layers get the values of NF4, also those that no adapter changes", fault.Count(d.nDecoded, "weight"))
		return
	}
	changed := 0
	rounded := make(map[string]int)
	for i := range d.weights {
		w := &d.weights[i]
		if !w.isDecoded {
			continue
		}
		if w.target != nil || feeds(p, w.Name) {
			changed++
		}
		if w.IsRounded {
			rounded[w.Scheme]++
		}
	}
	p.announce("the merge decodes %d of %s of the base; the output is larger by %s",
		d.nDecoded, fault.Count(len(d.weights), "quantised weight"), fileio.FormatBytes(p.base.Bytes()-checkpoint.Stored(d.exact).Bytes()))
	for _, scheme := range slices.Sorted(maps.Keys(rounded)) {
		p.warn("the values of %s in %s have more bits than a float64, and are rounded to one first", fault.Count(rounded[scheme], "weight"), scheme)
	}
	if d.nDecoded < len(d.weights) && p.base.Config.Architecture == "" {
		which := "not every program loads"
		if p.base.Config.QuantizationMethod == "mxfp4" {
			which = "vLLM does not load: it has all experts in MXFP4, or none"
		}
		p.announce("the output holds quantised and plain weights, which %s; set Options.Dequantise to decode all", which)
	}
	if n := d.nDecoded - changed; n > 0 && !p.options.Dequantise {
		p.announce("%s that no adapter changes %s decoded, because programs load %s together with one that changes",
			fault.Count(n, "weight"), fault.Choose(n, "is", "are"), fault.Choose(n, "it", "each"))
	}
	d.warnTwice(p)
}

// warnTwice says which values the libraries round twice.
func (d *decoding) warnTwice(p *planner) {
	for _, library := range []string{"MLX", "HQQ"} {
		n := 0
		for i := range d.weights {
			if w := &d.weights[i]; w.isDecoded && strings.HasPrefix(w.Scheme, library+" in ") {
				n++
			}
		}
		if n > 0 {
			p.warn("%s of the base %s the exact values of the codes; %s rounds them twice, so training saw values that can differ from these in the last bit",
				fault.Count(n, "weight"), fault.Choose(n, "has", "have"), library)
		}
	}
}

// setExact gives the target of a tensor that holds the values of a decoded weight those values as
// they are, so that the sum alone is rounded. A grown weight has zeros at its end, and is not such.
// Either may be nil.
func (d *decoding) setExact(w *decodable, t *target) {
	if w == nil || !w.isDecoded || t == nil || t.Replace != nil {
		return
	}
	if ref, _ := d.exact.Lookup(w.Name); ref.Tensor.Elements() == t.ref.Tensor.Elements() {
		t.exact = ref.Tensor
	}
}

// decoded lists the names of the weights that the output has as plain values, sorted.
func (d *decoding) decoded() (names []string) {
	for i := range d.weights {
		if d.weights[i].isDecoded {
			names = append(names, d.weights[i].Name)
		}
	}
	return names
}

// addTogether adds the weights that must be decoded with those that are, and counts all.
func (d *decoding) addTogether() {
	units := make(map[string]bool)
	for i := range d.weights {
		if w := &d.weights[i]; w.isDecoded {
			units[unit(w.Name)] = true
		}
	}
	for i := range d.weights {
		w := &d.weights[i]
		if w.isDecoded = w.isDecoded || units[unit(w.Name)]; w.isDecoded {
			d.nDecoded++
		}
	}
}

// hfQuantConfig is the file beside config.json in which ModelOpt describes the quantisation.
const hfQuantConfig = "hf_quant_config.json"

// quantizeConfig is that of AutoGPTQ and GPTQModel. AutoAWQ calls its own quant_config.json.
const quantizeConfig = "quantize_config.json"

// editQuantisation makes the files beside the weights say which modules are quantised.
func (d *decoding) editQuantisation(p *planner) error {
	isWhole := d.nDecoded == len(d.weights) && len(checkpoint.UnreadableOf(d.exact)) == 0
	if isWhole {
		for _, name := range []string{hfQuantConfig, quantizeConfig, "quant_config.json"} {
			p.base = checkpoint.WithoutSide(p.base, name)
		}
	}
	mixed := config.Mixed{Decoded: skipped(slices.Values(d.decoded()), p.base.Config.QuantizationMethod), Plain: d.plainModules(), Quantised: d.quantised()}
	if err := d.checkMix(&mixed); err != nil && !isWhole {
		return err
	}
	edits := map[string]func(config.Text) config.Text{
		checkpoint.ConfigName: func(t config.Text) config.Text {
			if d.dtype != dtype.Invalid && isWhole {
				t = t.SetDType(map[dtype.Type]string{dtype.F32: "float32", dtype.F16: "float16", dtype.BF16: "bfloat16"}[d.dtype])
			}
			switch {
			case isWhole:
				return t.Dequantise()
			case t.HasQuantisation():
				return t.Skip(mixed)
			}
			return t
		},
		hfQuantConfig:  func(t config.Text) config.Text { return t.SkipModelOpt(mixed.Decoded, mixed.Plain) },
		quantizeConfig: func(t config.Text) config.Text { return t.SkipGPTQ(mixed) },
	}
	for name, edit := range edits {
		if !p.base.IsDir || !slices.Contains(p.base.Side, name) {
			continue
		}
		text, ok := p.side[name]
		if !ok {
			var err error
			if text, err = p.base.Dir.Read(name, checkpoint.MaxJSONBytes); err != nil {
				return err
			}
		}
		p.side[name] = edit(text)
	}
	return nil
}

// quantised lists the modules whose weights the output keeps as codes, sorted.
func (d *decoding) quantised() (modules []string) {
	for i := range d.weights {
		if w := &d.weights[i]; !w.isDecoded {
			modules = append(modules, strings.TrimSuffix(w.Name, ".weight"))
		}
	}
	slices.Sort(modules)
	return modules
}

// checkMix refuses a mixed output that no configuration can describe: HQQ's loaders know the
// modules of all layers by one name.
func (d *decoding) checkMix(m *config.Mixed) error {
	if !slices.ContainsFunc(m.Decoded, func(module string) bool {
		w := d.weight(module + ".weight")
		return w != nil && strings.HasPrefix(w.Scheme, "HQQ")
	}) {
		return nil
	}
	decoded := config.TagsHQQ(m.Decoded)
	for _, module := range m.Quantised {
		if tag := config.TagsHQQ([]string{module}); slices.Contains(decoded, tag[0]) {
			return fault.New(fault.Unsupported, "the merge decodes %q of some layers, and programs that load HQQ cannot tell them from %q, which keeps its codes", tag[0], module).
				WithHint("set Options.Dequantise to decode all weights")
		}
	}
	return nil
}

// plainModules lists the modules of the base whose matrices are not quantised, and the head, which
// may be tied.
func (d *decoding) plainModules() []string {
	modules := make(map[string]bool)
	if d.weight("lm_head.weight") == nil {
		modules["lm_head"] = true
	}
	stored := checkpoint.Stored(d.exact)
	for _, f := range stored.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			if module, ok := strings.CutSuffix(t.Name, ".weight"); ok && t.DType.IsFloat() && len(t.Shape) == 2 {
				if d.weight(t.Name) == nil {
					modules[module] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(modules))
}
