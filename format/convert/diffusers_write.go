package convert

import (
	"context"
	"encoding/json"
	"maps"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// writeDiffusers writes PEFT's keys behind the name of a component, and PEFT's configurations of
// all components in the header, as diffusers saves them since release 0.34.
var writeDiffusers = &pairWriting{
	names: naming.OfDiffusers, tail: diffusersTail, shape: diffusersShape,
	features: []format.Feature{
		format.FeatureConvolution, format.FeatureDoRA, format.FeatureLoRABias,
	},
	metadata: func(
		ctx context.Context, f *pairFile, source map[string]string,
	) (map[string]string, error) {
		all := map[string]string{"format": "pt"}
		maps.Copy(all, source)
		delete(all, headerAlpha)
		text, err := diffusersConfigs(f.layers)
		if err != nil {
			return nil, err
		}
		all[diffusersMetadata] = text
		return renewHashes(ctx, all, f.plainTensors(), f.reader(ctx))
	},
}

func diffusersTail(kind format.Kind, role format.Role) string {
	if kind != format.Linear && kind != format.Conv {
		return ""
	}
	tail, _ := peftTail(kind, role)
	return tail
}

// diffusersShape: PEFT keeps the magnitudes of a linear layer as a vector, and those of a
// convolution as 1×m×1×….
func diffusersShape(l *newLayer, role format.Role, shape []uint64) []uint64 {
	if role != format.RoleMagnitude {
		return shape
	}
	m := []uint64{product(shape)}
	if l.kind != format.Conv {
		return m
	}
	m = append([]uint64{1}, m...)
	for range l.factors[format.RoleA].shape[2:] {
		m = append(m, 1)
	}
	return m
}

// diffusersConfig has the fields of PEFT's LoraConfig that are written for a component; PEFT sets
// the rest to its defaults.
type diffusersConfig struct {
	r            int
	alpha        float64
	rankPattern  map[string]int
	alphaPattern map[string]float64
	targets      []string
	rsLoRA       bool
	doRA         bool
	loRABias     bool
}

// fields returns the fields under PEFT's names. PEFT before 0.15 does not know the field of token
// indices, and says so; it would take the patterns for the ends of names.
func (c *diffusersConfig) fields() map[string]any {
	return map[string]any{
		"r": c.r, "lora_alpha": c.alpha, "rank_pattern": c.rankPattern,
		"alpha_pattern": c.alphaPattern, "target_modules": c.targets, "use_rslora": c.rsLoRA,
		"use_dora": c.doRA, "lora_bias": c.loRABias, "trainable_token_indices": nil,
	}
}

// diffusersConfigs returns the configurations of all components: an object whose names begin with
// the component.
func diffusersConfigs(layers []*newLayer) (string, error) {
	all := make(map[string]any)
	components := make(map[string][]*newLayer)
	for _, l := range layers {
		components[l.component] = append(components[l.component], l)
	}
	for component, layers := range components {
		c, err := configOfComponent(component+".", layers)
		if err != nil {
			return "", err
		}
		for name, value := range c.fields() {
			all[component+"."+name] = value
		}
	}
	text, err := json.MarshalIndent(all, "", "  ")
	return string(text), err
}

func configOfComponent(prefix string, layers []*newLayer) (*diffusersConfig, error) {
	c := &diffusersConfig{rankPattern: map[string]int{}, alphaPattern: map[string]float64{}}
	ranks, alphas := make(map[int]int), make(map[float64]int)
	nDoRA, nRS := 0, 0
	for _, l := range layers {
		if l.factors[format.RoleMagnitude] != nil {
			nDoRA++
		}
		if l.scaling == format.AlphaOverSqrtR {
			nRS++
		}
		c.loRABias = c.loRABias || l.factors[format.RoleBias] != nil
	}
	if c.doRA, c.rsLoRA = nDoRA > 0, nRS == len(layers); c.doRA && nDoRA < len(layers) {
		return nil, fault.New(fault.Unsupported, "only %d of %d layers of %q have magnitudes of DoRA, and "+
			"PEFT gives them to all or to none", nDoRA, len(layers), strings.TrimSuffix(prefix, "."))
	}
	for _, l := range layers {
		if nRS > 0 && !c.rsLoRA {
			if err := l.setScale(l.scale(), l.rank); err != nil {
				return nil, err
			}
		}
		ranks[l.rank]++
		alphas[l.alpha]++
	}
	c.r, c.alpha = mode(ranks), mode(alphas)
	for _, l := range layers {
		// transformers 5 has no "text_model." in the names of some text encoders. PEFT compares the
		// end of a name, so a target without it fits both.
		module, isText := strings.CutPrefix(strings.TrimPrefix(l.name, prefix), "text_model.")
		c.targets = append(c.targets, module)
		if !isText {
			module = "^" + module
		}
		if l.rank != c.r {
			c.rankPattern[module] = l.rank
		}
		if l.alpha != c.alpha {
			c.alphaPattern[module] = l.alpha
		}
	}
	return c, nil
}
