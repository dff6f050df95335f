package convert

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// peftConfigOut holds the fields of LoraConfig that we write; PEFT sets the rest to its defaults.
type peftConfigOut struct {
	AlphaPattern map[string]float64 `json:"alpha_pattern"`
	Base         *string            `json:"base_model_name_or_path"`
	Bias         string             `json:"bias"`
	WeightTying  bool               `json:"ensure_weight_tying,omitempty"`
	FanInFanOut  bool               `json:"fan_in_fan_out"`
	Inference    bool               `json:"inference_mode"`
	Alpha        float64            `json:"lora_alpha"`
	LoRABias     bool               `json:"lora_bias"`
	Dropout      float64            `json:"lora_dropout"`
	Save         []string           `json:"modules_to_save"`
	Type         string             `json:"peft_type"`
	R            int                `json:"r"`
	Version      string             `json:"peft_version,omitempty"`
	RankPattern  map[string]int     `json:"rank_pattern"`
	Revision     *string            `json:"revision"`
	Targets      targets            `json:"target_modules"`
	Parameters   []string           `json:"target_parameters,omitempty"`
	Task         *string            `json:"task_type"`
	Tokens       map[string][]int64 `json:"trainable_token_indices"`
	DoRA         bool               `json:"use_dora"`
	RSLoRA       bool               `json:"use_rslora"`
}

// targets lists the modules with factors. PEFT refuses an empty list for an adapter without any
// factors, but accepts "dummy-target-modules".
type targets struct {
	names []string
	// exact is for models in which a name is also the end of others: the proj_out of Flux is the
	// end of those of its blocks, and PEFT would give these factors, too. It matches a pattern, in
	// place of a list, against whole names.
	exact bool
}

func (t targets) MarshalJSON() ([]byte, error) {
	isTop := func(name string) bool { return !strings.Contains(name, ".") }
	switch {
	case t.names == nil:
		return json.Marshal("dummy-target-modules")
	case t.exact && slices.ContainsFunc(t.names, isTop):
		return json.Marshal(strings.ReplaceAll(strings.Join(t.names, "|"), ".", `\.`))
	}
	return json.Marshal(t.names)
}

// expertLayout is the first release of PEFT whose layout of expert factors is the one written here.
const expertLayout = "0.19.1"

// written lists the features that a PEFT configuration and its keys can express.
var written = map[format.Feature]bool{format.FeatureLoRABias: true, format.FeatureWeightTying: true, format.FeatureConvolution: true, format.FeatureDoRA: true,
	format.FeatureExperts: true}

// peftFrom returns the configuration for an adapter, and the key of every tensor.
func peftFrom(m *format.Manifest) (config []byte, names map[int]string, err error) {
	a := &m.Adapters[0]
	for _, r := range a.Requires {
		if !written[r.Feature] {
			e := fault.New(fault.Unsupported, "the adapter requires %q (%s), which PEFT's format cannot express", r.Feature, r.Where)
			if r.Feature == format.FeatureOpaque {
				e.Msg = "the tensors were archived without their meaning, which PEFT's format needs"
				e.Hint = "convert.RestoreTo gives the file back"
			}
			if r.IsOfRows() {
				e.Hint = "name the base, whose config.json says its type and the size of its heads (CreateOptions.Base)"
			}
			return nil, nil, e
		}
	}
	c := &peftConfigOut{
		AlphaPattern: map[string]float64{}, RankPattern: map[string]int{}, Targets: targets{names: []string{}}, Bias: "none", Inference: true, Type: "LORA",
		FanInFanOut: a.Orientation == format.NxM,
	}
	if a.Base.Name != "" {
		c.Base = &a.Base.Name
	}
	if a.Base.Revision != "" {
		c.Revision = &a.Base.Revision
	}
	for _, r := range a.Requires {
		c.WeightTying = c.WeightTying || r.Feature == format.FeatureWeightTying
		c.DoRA = c.DoRA || r.Feature == format.FeatureDoRA
		c.LoRABias = c.LoRABias || r.Feature == format.FeatureLoRABias
		if r.Feature == format.FeatureExperts {
			c.Parameters = append(c.Parameters, r.Where)
			c.Version = expertLayout
		}
	}
	names = make(map[int]string)
	if err := c.layers(a, names); err != nil {
		return nil, nil, err
	}
	if err := c.beside(a, m, names); err != nil {
		return nil, nil, err
	}
	if len(c.Targets.names) == 0 && len(c.Parameters) == 0 {
		c.Targets.names = nil
	}
	config, err = json.MarshalIndent(c, "", "  ")
	return append(config, '\n'), names, err
}

// peftTail returns the end of a key for a role in a kind of layer.
func peftTail(kind format.Kind, role format.Role) (string, bool) {
	switch role {
	case format.RoleA, format.RoleB:
		if kind == format.Embedding {
			return "lora_embedding_" + string(role), true
		}
		return "lora_" + string(role) + ".weight", true
	case format.RoleBias:
		return "lora_B.bias", true
	case format.RoleMagnitude:
		return "lora_magnitude_vector", true
	}
	return "", false
}

// layers fills in the fields for the layers: the most frequent rank and alpha as the global values,
// the others as patterns.
func (c *peftConfigOut) layers(a *format.Adapter, names map[int]string) error {
	ranks, alphas := make(map[int]int), make(map[float64]int)
	byRoot := func(l format.Layer) bool { return l.Scaling == format.AlphaOverSqrtR }
	c.RSLoRA = len(a.Layers) > 0 && !slices.ContainsFunc(a.Layers, func(l format.Layer) bool { return !byRoot(l) })
	inexact := "" // a layer whose scale no alpha gives
	alphaOf := func(l *format.Layer) float64 {
		switch {
		case l.Scaling == format.Fixed:
			return l.Fixed * float64(l.Rank)
		case byRoot(*l) && !c.RSLoRA:
			n := newLayer{name: l.Module}
			if n.setScale(l.Scale(), l.Rank) != nil {
				inexact = l.Module
			}
			return n.alpha
		}
		return l.Alpha
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		switch l.Kind {
		case format.ExpertOutputs, format.ExpertFirst, format.ExpertSecond:
			return fault.New(fault.Unsupported, "%q has kind %s, but in PEFT lora_A of square experts reads their inputs", l.Module, l.Kind).
				WithHint("keep the adapter as a .lora file")
		}
		// PEFT warns that it ignores a pattern for a parameter, although it applies it. Making the
		// experts' rank the global one avoids the warning.
		weight := 1
		if l.Kind.IsExpert() {
			weight = len(a.Layers)
		}
		ranks[l.Rank] += weight
		alphas[alphaOf(l)] += weight
		if inexact != "" {
			return fault.New(fault.Unsupported, "some layers scale by alpha/r and others by alpha/sqrt(r), and no alpha over r is the scale of %q", inexact)
		}
		for role, t := range l.Roles {
			if role == format.RoleAlpha {
				continue // the configuration has the number
			}
			tail, ok := peftTail(l.Kind, role)
			if !ok || l.Kind == format.Other {
				return fault.New(fault.Unsupported, "layer %q of kind %s has the role %q, which PEFT's format cannot express", l.Module, l.Kind, role)
			}
			names[t] = peftPrefix + l.Module + "." + tail
		}
		if !l.Kind.IsExpert() { // the requirements name the parameters of experts
			c.Targets.names = append(c.Targets.names, l.Module)
		}
	}
	c.R, c.Alpha = mode(ranks), mode(alphas)
	for i := range a.Layers {
		l := &a.Layers[i]
		// PEFT takes a key as a regular expression that may match the end of a name. An anchored
		// full name matches only itself.
		name := "^" + c.patternName(l)
		if l.Rank != c.R {
			c.RankPattern[name] = l.Rank
		}
		if alpha := alphaOf(l); alpha != c.Alpha {
			c.AlphaPattern[name] = alpha
		}
	}
	return nil
}

// patternName returns the name that PEFT looks up in its patterns: that of the module, or that of
// the parameter if the factors belong to one.
func (c *peftConfigOut) patternName(l *format.Layer) string {
	module, depth := naming.CutNesting(l.Module)
	names := naming.ParametersOf(module, c.Parameters)
	if !l.Kind.IsExpert() || depth >= len(names) {
		return l.Module
	}
	return module + "." + names[len(names)-1-depth]
}

// mode returns the most frequent value; of several, the smallest.
func mode[T int | float64](counts map[T]int) (best T) {
	n := 0
	for v, k := range counts {
		if k > n || k == n && v < best {
			best, n = v, k
		}
	}
	if n == 0 {
		return defaultRank
	}
	return best
}

// beside fills in the fields for modules that are saved whole, biases, and token rows.
func (c *peftConfigOut) beside(a *format.Adapter, m *format.Manifest, names map[int]string) error {
	layer := make(map[string]bool)
	for i := range a.Layers {
		layer[a.Layers[i].Module] = true
	}
	for _, b := range a.Beside {
		module, parameter := b.Target, ""
		if i := strings.LastIndex(b.Target, "."); i >= 0 {
			module, parameter = b.Target[:i], b.Target[i+1:]
		}
		switch {
		case b.Action == format.Opaque || parameter == "":
			return fault.New(fault.Unsupported, "tensor %q has no place in a PEFT adapter", m.Tensors[b.Tensor].Name)
		case b.Action == format.Rows:
			if c.Tokens == nil {
				c.Tokens = make(map[string][]int64)
			}
			c.Tokens[module] = b.Rows
			names[b.Tensor] = fmt.Sprintf("%s%s.token_adapter.trainable_tokens_delta", peftPrefix, module)
		case layer[module] && parameter == "bias":
			names[b.Tensor] = fmt.Sprintf("%s%s.base_layer.%s", peftPrefix, module, parameter)
			if c.Bias == "none" {
				c.Bias = "lora_only"
			}
		case parameter == "bias" && hasBelow(a, module):
			names[b.Tensor] = peftPrefix + b.Target
			c.Bias = "all" // PEFT then saves the other biases, too; their keys are the same
		default:
			names[b.Tensor] = peftPrefix + b.Target
			module, err := savedModule(a, b.Target)
			if err != nil {
				return err
			}
			if !slices.Contains(c.Save, module) {
				c.Save = append(c.Save, module)
			}
		}
	}
	sort.Strings(c.Save)
	// A module inside another listed module is saved with it.
	all := slices.Clone(c.Save)
	c.Save = slices.DeleteFunc(c.Save, func(module string) bool {
		return slices.ContainsFunc(all, func(outer string) bool { return strings.HasPrefix(module, outer+".") })
	})
	return nil
}

// hasBelow reports whether the adapter changes a module inside the given one. Then the given module
// must not be saved whole just for its own bias.
func hasBelow(a *format.Adapter, module string) bool {
	below := module + "."
	return slices.ContainsFunc(a.Layers, func(l format.Layer) bool { return strings.HasPrefix(l.Module, below) }) ||
		slices.ContainsFunc(a.Beside, func(b format.Beside) bool {
			rest, isBelow := strings.CutPrefix(b.Target, below)
			return isBelow && strings.Contains(rest, ".") && !strings.HasPrefix(rest, "parametrizations.")
		})
}
