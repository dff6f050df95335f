package convert

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
)

// Loader is a program that loads adapters: of image and video models, or a server of language
// models.
type Loader struct {
	Name    string // as a user types it: "comfyui"
	Title   string // "ComfyUI"
	Dialect Dialect
	models  []string // the architectures that it runs, as the tables call them; nil for all
	caveats []caveat
}

// caveat is a part of an adapter that a loader ignores, or takes for something else.
type caveat struct {
	part  part
	text  string // after the loader's title
	model string // the architecture that it holds for; "" for all
}

// part is a part that an adapter can have.
type part int

const (
	doRA         part = iota // magnitudes for each output
	doRAOfInputs             // magnitudes for each input
	lyCORIS                  // layers of LyCORIS' methods
	textEncoder              // layers of any text encoder
	t5                       // layers of a T5
	zeroAlpha                // layers of alpha 0
)

// loaders says which dialect each program is given, and what it does with the parts of an adapter.
// Nerogar/OneTrainer pull request 1563 has measured which dialects ComfyUI and diffusers load, for
// each model and method. The sources of the caveats stand above them; "measured" means
// testdata/diffusion/written.py.
var loaders = []Loader{
	{"comfyui", "ComfyUI", ComfyUI(), nil, []caveat{
		// Comfy-Org/ComfyUI pull request 15458, open in November 2026
		{doRA, "takes the norm of the base's weight alone for DoRA's magnitudes of outputs, so the result " +
			"differs from that of the training", ""},
	}},
	{"diffusers", "diffusers", Diffusers(), nil, []caveat{
		{t5, "loads no adapter into a T5 text encoder", ""}, // measured, diffusers 0.42.1
	}},
	{"a1111", "A1111's stable-diffusion-webui", Kohya(), []string{"sd1", "sdxl"}, []caveat{
		// KohakuBlueleaf/LyCORIS issue 196
		{doRA, "applies DoRA at strengths other than 1 in another way than ComfyUI does", ""},
		{doRAOfInputs, "applies DoRA at strengths other than 1 in another way than ComfyUI does", ""},
	}},
	{"forge", "Forge", Kohya(), []string{"sd1", "sdxl", "flux"}, []caveat{
		// lllyasviel/stable-diffusion-webui-forge issues 1229 and 1533, both open
		{textEncoder, "is reported not to load layers of its text encoders", "flux"},
	}},
	{"sd-scripts", "kohya's sd-scripts", Kohya(), nil, []caveat{
		// networks/merge_lora.py and its siblings for SDXL and Flux.1
		{doRA, "ignores the magnitudes of DoRA without an error when it merges", ""},
		{doRAOfInputs, "ignores the magnitudes of DoRA without an error when it merges", ""},
		{lyCORIS, "ignores LoHa and LoKr without an error when it merges", ""},
		{zeroAlpha, "takes alpha 0 for the rank when it generates, so layers without an effect get the scale 1", ""},
	}},
	{"sd.cpp", "stable-diffusion.cpp", Kohya(), nil, []caveat{
		// its lora.hpp, which reads no dora_scale
		{doRA, "ignores the magnitudes of DoRA without an error", ""},
		{doRAOfInputs, "ignores the magnitudes of DoRA without an error", ""},
	}},
	{"wan2gp", "Wan2GP", ComfyUI(), []string{"wan", "hunyuan_video", "flux", "qwen_image", "z_image"}, []caveat{
		// no source says that it does; deepbeepmeep/Wan2GP issues 84 and 106 name the formats
		{textEncoder, "is not known to load layers of text encoders", ""},
	}},
	{"vllm", "vLLM", PEFT(), nil, nil}, // see servers
	{"sglang", "SGLang", PEFT(), nil, nil},
}

// IsServer reports whether the program is a server of language models.
func (l *Loader) IsServer() bool { return servers[l.Name] != nil }

// LoaderNamed returns the loader that a user names.
func LoaderNamed(name string) (*Loader, error) {
	var names []string
	for i := range loaders {
		if l := &loaders[i]; strings.EqualFold(l.Name, name) {
			return l, nil
		}
		names = append(names, loaders[i].Name)
	}
	return nil, fault.New(fault.Unsupported, "unknown program %q", name).
		WithHint("the programs that are known are %s", strings.Join(names, ", "))
}

// Warnings says what the loader does not do with an adapter in its dialect, which Create has
// accepted.
func (l *Loader) Warnings(src format.Source, o CreateOptions) []string {
	m := src.Manifest()
	if len(m.Adapters) != 1 {
		return nil
	}
	var all []string
	model := architectureOf(src, l, o)
	if model != "" && l.models != nil && !slices.Contains(l.models, model) {
		all = append(all, fmt.Sprintf("%s is not known to run models of the architecture %s", l.Title, model))
	}
	parts := partsOfAdapter(&m.Adapters[0])
	for _, c := range l.caveats {
		if where := parts[c.part]; where != nil && (c.model == "" || c.model == model) {
			all = append(all, fmt.Sprintf("%s %s (%s)", l.Title, c.text, fault.List(where, 2)))
		}
	}
	return all
}

// architectureOf returns the architecture of an adapter's denoiser, "" if it is unknown.
func architectureOf(src format.Source, l *Loader, o CreateOptions) string {
	d, ok := l.Dialect.(*pairDialect)
	if !ok || d.writing == nil {
		return ""
	}
	base, shapes := o.indexBase()
	known := architectureNamed(src.Manifest().Adapters[0].Base.Name)
	updates := newWeaver(context.Background(), src).updates()
	return naming.Respell(d.writing.names, updates, base, shapes, known).Denoiser
}

// partsOfAdapter lists the modules that have each part.
func partsOfAdapter(a *format.Adapter) map[part][]string {
	parts := make(map[part][]string)
	add := func(p part, module string, has bool) {
		if has {
			parts[p] = append(parts[p], module)
		}
	}
	for i := range a.Layers {
		l := &a.Layers[i]
		isT5 := strings.Contains(l.Module, "SelfAttention") || strings.Contains(l.Module, "DenseReluDense")
		add(doRA, l.Module, hasRole(l.Roles, format.RoleMagnitude))
		add(doRAOfInputs, l.Module, hasRole(l.Roles, format.RoleInputMagnitude))
		add(lyCORIS, l.Module, methodFeature[l.Kind] != "")
		add(textEncoder, l.Module, strings.HasPrefix(naming.ComponentOf(l.Module), "text_encoder"))
		add(t5, l.Module, isT5)
		add(zeroAlpha, l.Module, l.Scaling != format.Fixed && l.Alpha == 0)
	}
	return parts
}
