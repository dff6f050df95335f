package convert

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// PEFT's files hold the adapter of one model, and an image or video model has several. Those of one
// component have the names of diffusers, without the component's, as PeftModel.from_pretrained and
// load_adapter of the component look for them.

// peftComponent writes the adapter of a component. Its layers have PEFT's prefix already.
var peftComponent = &pairDialect{
	readOnly: readOnly{"peft"},
	writing: &pairWriting{
		names: naming.OfDiffusers, shape: diffusersShape, features: writeDiffusers.features,
		tail: func(kind format.Kind, role format.Role) string {
			if kind == format.Embedding {
				tail, _ := peftTail(kind, role)
				return tail
			}
			return diffusersTail(kind, role)
		},
		metadata: func(
			ctx context.Context, f *pairFile, source map[string]string,
		) (map[string]string, error) {
			all := map[string]string{"format": "pt"}
			maps.Copy(all, source)
			delete(all, headerAlpha)
			delete(all, diffusersMetadata)
			return renewHashes(ctx, all, f.plainTensors(), f.reader(ctx))
		},
	},
}

// IsOfImages reports whether a source is one adapter of an image or video model. It comes from one
// of their dialects, or each of its modules begins with a component and is in a table of
// architectures.
func IsOfImages(src format.Source) bool {
	m := src.Manifest()
	if len(m.Adapters) != 1 {
		return false
	}
	a := &m.Adapters[0]
	isOther := func(d *pairDialect) bool { return d.name == a.Dialect && !d.ofLanguage }
	switch {
	case a.Dialect == peftComponent.name:
		return false
	case a.Dialect == cloneofsimo.name || slices.ContainsFunc(pairDialects, isOther):
		return true
	}
	updates := newWeaver(context.Background(), src).updates()
	isBare := func(u naming.Update) bool { return naming.ComponentOf(u.Name) == "" }
	return len(updates) > 0 && !slices.ContainsFunc(updates, isBare) &&
		naming.Respell(naming.OfDiffusers, updates, nil, nil, architectureNamed(a.Base.Name)).IsWhole()
}

// composeComponent returns the configuration, and the writer of the weights, for an adapter of one
// component, or for the one that the options choose.
func composeComponent(ctx context.Context, src format.Source, o *CreateOptions) (
	config []byte, weights func(io.Writer) error, remarks []string, err error) {
	d := peftComponent
	if err := d.checkFeatures(src.Manifest(), o); err != nil {
		return nil, nil, nil, err
	}
	f := &pairFile{src: src, last: -1}
	if err := f.plan(ctx, d, o); err != nil {
		return nil, nil, nil, err
	}
	component, err := f.onlyComponent()
	if err != nil {
		return nil, nil, nil, err
	}
	if config, err = f.configAlone(component); err != nil {
		return nil, nil, nil, err
	}
	if err := f.prepare(ctx, d); err != nil {
		return nil, nil, nil, err
	}
	return config, f.write, f.remarks, nil
}

// onlyComponent returns the one component that all layers belong to.
func (f *pairFile) onlyComponent() (string, error) {
	has := make(map[string]bool)
	for _, l := range f.layers {
		has[l.component] = true
	}
	names := slices.Sorted(maps.Keys(has))
	if len(names) > 1 {
		return "", fault.New(fault.Unsupported, "the adapter has layers of %s, and PEFT's files hold "+
			"those of one model", strings.Join(names, ", ")).
			WithHint("choose one with CreateOptions.Only=%s", names[len(names)-1])
	}
	return strings.Join(names, ""), nil
}

// configAlone makes the configuration of a component, and gives the layers their names in PEFT's
// files.
func (f *pairFile) configAlone(component string) ([]byte, error) {
	prefix := component + "."
	fields, err := configOfComponent(prefix, f.layers)
	if err != nil {
		return nil, err
	}
	a := &f.src.Manifest().Adapters[0]
	c := &peftConfigOut{
		Bias: "none", Inference: true, Type: "LORA", R: fields.r, Alpha: fields.alpha,
		RankPattern: map[string]int{}, AlphaPattern: map[string]float64{}, DoRA: fields.doRA,
		RSLoRA: fields.rsLoRA, LoRABias: fields.loRABias, Targets: targets{exact: true},
	}
	if a.Base.Name != "" {
		c.Base = &a.Base.Name
	}
	if a.Base.Revision != "" {
		c.Revision = &a.Base.Revision
	}
	for _, l := range f.layers {
		module := f.nameInMemory(component, strings.TrimPrefix(l.name, prefix))
		l.name = peftPrefix + module
		c.Targets.names = append(c.Targets.names, module)
		if l.rank != c.R {
			c.RankPattern["^"+module] = l.rank
		}
		if l.alpha != c.Alpha {
			c.AlphaPattern["^"+module] = l.alpha
		}
	}
	config, err := json.MarshalIndent(c, "", "  ")
	return append(config, '\n'), err
}

// nameInMemory returns the name that transformers 5 gives a module in memory. Its CLIPTextModel has
// no "text_model.". CLIPTextModelWithProjection still has it: both text encoders of SD 3, and the
// second one of SDXL.
func (f *pairFile) nameInMemory(component, module string) string {
	isSD3 := f.denoiser == "sd3" || architectureNamed(f.src.Manifest().Adapters[0].Base.Name) == "sd3"
	if component != "text_encoder" || isSD3 {
		return module
	}
	return strings.TrimPrefix(module, "text_model.")
}
