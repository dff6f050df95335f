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
	exact   *checkpoint.Checkpoint // shows every quantised weight as its values in F64
	weights map[string]checkpoint.Quantised
	byCodes map[string]string     // names of weights by those of their codes
	as      map[string]dtype.Type // dtypes of the weights that the output has as plain values
	dtype   dtype.Type            // Options.OutDType

	isSimulated bool // Options.BaseAs: the files have plain weights
}

// showDecoded makes the description of the base show every quantised weight as a plain one of the
// dtype that the output would give it. settle decides which ones the output decodes; until then the
// base is that with the values in F64.
func showDecoded(p *planner) {
	all := checkpoint.QuantisedOf(p.base)
	d := &decoding{
		exact: p.base, weights: make(map[string]checkpoint.Quantised, len(all)), byCodes: make(map[string]string, len(all)), as: make(map[string]dtype.Type, len(all)), dtype: p.options.OutDType,
		isSimulated: p.options.BaseAs != "",
	}
	for _, q := range all {
		d.weights[q.Name], d.byCodes[q.Parts[0]], d.as[q.Name] = q, q.Name, d.dtypeOf(&q)
		t := p.names.Tensors[q.Name]
		t.DType = d.as[q.Name]
		p.names.Tensors[q.Name] = t
	}
	p.decoding = d
}

// weightOf returns the weight that a tensor of codes holds, and the name itself of any other
// tensor. d may be nil.
func (d *decoding) weightOf(codes string) string {
	if d != nil {
		if name, ok := d.byCodes[codes]; ok {
			return name
		}
	}
	return codes
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
	if err := recoded.choose(p, d.exact, d.weights); err != nil {
		return err
	}
	wanted := make(map[string]dtype.Type)
	for name := range d.weights {
		if recoded[name] == nil && (p.targets[present(p, name)] != nil || p.options.Dequantise || feeds(p, name)) {
			wanted[name] = d.as[name]
		}
	}
	d.addTogether(wanted)
	if err := recoded.check(p, wanted, d.weights); err != nil {
		return err
	}
	switch {
	case len(wanted) > 0 && p.options.wantsRecord():
		return fault.New(fault.Unsupported, "the merge decodes %s of the base, such as %q, and an undo record cannot bring the codes back",
			fault.Count(len(wanted), "quantised weight"), slices.Min(slices.Collect(maps.Keys(wanted)))).
			WithHint("merge without Options.Undo, and keep the base")
	case p.options.Dequantise && len(checkpoint.UnreadableOf(d.exact)) > 0:
		return checkpoint.UnreadableOf(d.exact)[0].Err
	}
	if err := checkpoint.CheckCodes(ctx, d.exact, maps.Keys(wanted)); err != nil {
		return err
	}
	if err := checkpoint.CheckCodes(ctx, d.exact, maps.Keys(recoded)); err != nil {
		return err
	}
	d.as = wanted
	base, err := checkpoint.Decoding(d.exact, wanted)
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
	for name := range wanted {
		d.setExact(p, name, present(p, name))
	}
	for _, e := range p.shaped.Edits {
		for _, t := range e.Tensors {
			d.setExact(p, t.From, t.Name) // an untied head
		}
	}
	recoded.announce(p, len(wanted))
	if len(wanted) == 0 {
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
		p.announce("%s of the base's linear layers get the values of NF4, also those that no adapter changes", fault.Count(len(d.as), "weight"))
		return
	}
	changed := 0
	for name := range d.as {
		if p.targets[present(p, name)] != nil || feeds(p, name) {
			changed++
		}
	}
	p.announce("the merge decodes %d of %s of the base; the output is larger by %s",
		len(d.as), fault.Count(len(d.weights), "quantised weight"), fileio.FormatBytes(p.base.Bytes()-checkpoint.Stored(d.exact).Bytes()))
	rounded := make(map[string]int)
	for name := range d.as {
		if q := d.weights[name]; q.IsRounded {
			rounded[q.Scheme]++
		}
	}
	for _, scheme := range slices.Sorted(maps.Keys(rounded)) {
		p.warn("the values of %s in %s have more bits than a float64, and are rounded to one first", fault.Count(rounded[scheme], "weight"), scheme)
	}
	if len(d.as) < len(d.weights) && p.base.Config.Architecture == "" {
		which := "not every program loads"
		if p.base.Config.QuantizationMethod == "mxfp4" {
			which = "vLLM does not load: it has all experts in MXFP4, or none"
		}
		p.announce("the output holds quantised and plain weights, which %s; set Options.Dequantise to decode all", which)
	}
	if n := len(d.as) - changed; n > 0 && !p.options.Dequantise {
		p.announce("%s that no adapter changes %s decoded, because programs load %s together with one that changes",
			fault.Count(n, "weight"), fault.Choose(n, "is", "are"), fault.Choose(n, "it", "each"))
	}
	d.warnTwice(p)
}

// warnTwice says which values the libraries round twice.
func (d *decoding) warnTwice(p *planner) {
	for _, library := range []string{"MLX", "HQQ"} {
		n := 0
		for name := range d.as {
			if strings.HasPrefix(d.weights[name].Scheme, library+" in ") {
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
func (d *decoding) setExact(p *planner, weight, tensor string) {
	ref, ok := d.exact.Lookup(weight)
	t := p.targets[tensor]
	if _, isDecoded := d.as[weight]; ok && isDecoded && t != nil && t.Replace == nil && ref.Tensor.Elements() == t.ref.Tensor.Elements() {
		t.exact = ref.Tensor
	}
}

// addTogether adds the weights that must be decoded with those that are wanted.
func (d *decoding) addTogether(wanted map[string]dtype.Type) {
	units := make(map[string]bool)
	for name := range wanted {
		units[unit(name)] = true
	}
	for name := range d.weights {
		if units[unit(name)] {
			wanted[name] = d.as[name]
		}
	}
}

// hfQuantConfig is the file beside config.json in which ModelOpt describes the quantisation.
const hfQuantConfig = "hf_quant_config.json"

// quantizeConfig is that of AutoGPTQ and GPTQModel. AutoAWQ calls its own quant_config.json.
const quantizeConfig = "quantize_config.json"

// editQuantisation makes the files beside the weights say which modules are quantised.
func (d *decoding) editQuantisation(p *planner) error {
	isWhole := len(d.as) == len(d.weights) && len(checkpoint.UnreadableOf(d.exact)) == 0
	if isWhole {
		for _, name := range []string{hfQuantConfig, quantizeConfig, "quant_config.json"} {
			p.base = checkpoint.WithoutSide(p.base, name)
		}
	}
	mixed := config.Mixed{Decoded: skipped(maps.Keys(d.as), p.base.Config.QuantizationMethod), Plain: d.plainModules(), Quantised: d.quantised()}
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
	for name := range d.weights {
		if _, ok := d.as[name]; !ok {
			modules = append(modules, strings.TrimSuffix(name, ".weight"))
		}
	}
	slices.Sort(modules)
	return modules
}

// checkMix refuses a mixed output that no configuration can describe: HQQ's loaders know the
// modules of all layers by one name.
func (d *decoding) checkMix(m *config.Mixed) error {
	if !slices.ContainsFunc(m.Decoded, func(module string) bool {
		return strings.HasPrefix(d.weights[module+".weight"].Scheme, "HQQ")
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
	if _, isQuantised := d.weights["lm_head.weight"]; !isQuantised {
		modules["lm_head"] = true
	}
	stored := checkpoint.Stored(d.exact)
	for _, f := range stored.Files {
		for i := range f.Tensors {
			t := &f.Tensors[i]
			if module, ok := strings.CutSuffix(t.Name, ".weight"); ok && t.DType.IsFloat() && len(t.Shape) == 2 {
				if _, isQuantised := d.weights[t.Name]; !isQuantised {
					modules[module] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(modules))
}
