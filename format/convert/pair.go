package convert

import (
	"context"
	"errors"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// pairDialects are in the order in which they claim keys.
var pairDialects = []*pairDialect{
	peftAlone, comfyUI, xLabs, kohya, mistral, torchtune, diffusers, loralib, megatron,
}

// Recognise looks at the keys of factors, each of which one dialect at most owns.
func (d *pairDialect) Recognise(in *Input) bool { return claimsOf(in)[d.name] != "" }

// claimsOf returns the names of the dialects that own keys of the input, each with one of its keys.
// It returns none for a file that has mostly other tensors, such as a model with adapters in its
// layers.
func claimsOf(in *Input) map[string]string {
	if in.claimed != nil || in.readTable() != nil {
		return in.claimed
	}
	in.claimed = make(map[string]string)
	known, biases := 0, 0
	var k pairKey // one for all: its address goes to functions of the dialects
	for i := range in.table.tensors {
		t := &in.table.tensors[i]
		if strings.HasSuffix(t.Name, ".bias") {
			biases++ // those of models and of adapters look the same
		}
		k = parsePair(t.Name)
		if k.feature.Feature != format.FeatureUnknownTensor {
			known++
		}
		if !k.isFactor() && !k.isMethod() {
			continue
		}
		if d := ownerOf(&k); d != nil && in.claimed[d.name] == "" {
			in.claimed[d.name] = t.Name
		}
	}
	if in.claimed[mistral.name] != "" {
		delete(in.claimed, diffusers.name) // the feed-forward layers of Z-Image have Mistral's names
	}
	if 2*known < len(in.table.tensors)-biases || naming.HaveBaseLayers(in.table.keys()) {
		clear(in.claimed)
	}
	return in.claimed
}

// ownerOf returns the dialect that owns a key, or nil.
func ownerOf(k *pairKey) *pairDialect {
	for _, d := range pairDialects {
		if d.owns(k) {
			return d
		}
	}
	return nil
}

// Open opens a file of weights, safetensors or pickle.
func (d *pairDialect) Open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	if err := in.readTable(); err != nil {
		return nil, err
	}
	if err := d.checkRivals(in, o); err != nil {
		return nil, err
	}
	p := pairReader{
		dialect: d.name, modules: d.modules, needsScale: d.needsScale, adapt: d.adapt, fused: d.fused,
		rows: d.rows, options: o,
	}
	if d.beside != nil {
		var err error
		if p.beside, err = d.beside(in); err != nil {
			return nil, err
		}
	}
	assign := func(p *pairReader) error { return p.assign(ctx) }
	src, err := openPairs(ctx, in, in.table, d.sign(in), p, assign)
	if errors.Is(err, errNoScale) && d.hintScale != "" {
		err = fault.New(fault.Unsupported, "a file of %s does not say its scale", d.name).WithHint("%s", d.hintScale)
	}
	return src, err
}

// openPairs opens the weights in a table with a reader that knows its dialect. The function assign
// sorts the tensors by module and role.
func openPairs(
	ctx context.Context, in *Input, t *table, sign string, p pairReader,
	assign func(*pairReader) error,
) (format.Source, error) {
	if len(t.tensors) == 0 {
		return nil, fault.New(fault.Corrupt, "the file holds no tensors")
	}
	f := &tensorFile{table: t, sign: sign}
	f.manifest.Tensors = t.tensors
	f.manifest.Provenance.Source = in.weights.source()
	readme, err := in.ReadFile(format.ModelCard, maxSideBytes)
	if err != nil {
		return nil, err
	}
	if readme != nil {
		f.attach(format.ModelCard, readme)
	}
	f.describe()
	p.collector, p.values, p.card = f.collector(), f, readme
	p.metadata = f.metadata()
	a, err := p.adapter(ctx, assign)
	if err != nil {
		return nil, err
	}
	f.manifest.Adapters = []format.Adapter{a}
	return f, nil
}

// checkRivals refuses a file with the keys of several dialects, unless the user has chosen one.
func (d *pairDialect) checkRivals(in *Input, o Options) error {
	var names []string
	for _, rival := range pairDialects {
		if key := claimsOf(in)[rival.name]; key != "" {
			names = append(names, rival.name+" ("+key+")")
		}
	}
	if len(names) < 2 || o.From != "" {
		return nil
	}
	return fault.New(fault.Unsupported, "the keys are those of several dialects: %s",
		strings.Join(names, ", ")).WithHint("choose one of them with Options.From")
}

// sign says how the dialect was recognised.
func (d *pairDialect) sign(in *Input) string {
	var signs []string
	if key := claimsOf(in)[d.name]; key != "" {
		signs = append(signs, "keys such as "+key)
	}
	if d.inHeader != nil {
		if text := d.inHeader(in.Metadata()); text != "" {
			signs = append(signs, text)
		}
	}
	if signs == nil {
		return "Options.From"
	}
	return strings.Join(signs, ", and ")
}
