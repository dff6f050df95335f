package naming

import "github.com/loratool/loratool/internal/architecture"

// nameOf returns the name of a module of a component in the namespace. ok is false if the namespace
// has no such component.
func (r *respeller) nameOf(key atomKey, module string) (name string, ok bool) {
	if r.to == OfDiffusers {
		return key.component + "." + module, true
	}
	prefix := ""
	switch isText := key.table != nil && kindOf(key.table) == textEncoder; {
	case r.to == Flat && isText:
		prefix = r.flatText(key)
	case r.to == Flat:
		prefix = flatDenoisers[key.component]
	case isText:
		prefix = comfyText(key)
	default:
		prefix = comfyDenoisers[key.component]
	}
	if r.to == Flat {
		module = architecture.Flatten(module)
	}
	return prefix + module, prefix != ""
}

// flatDenoisers and comfyDenoisers begin the names of denoisers. The second one of Wan 2.2 has a
// file of its own in both.
var (
	flatDenoisers = map[string]string{
		"unet": "lora_unet_", "transformer": "lora_unet_", "prior": "lora_prior_unet_",
	}
	comfyDenoisers = map[string]string{
		"unet": "diffusion_model.", "transformer": "diffusion_model.",
	}
)

// flatText returns how kohya begins the names of a text encoder. It numbers them if the model has
// several, and T5 is the third even in Flux.1, which has no second one.
func (r *respeller) flatText(key atomKey) string {
	isNumbered := r.manyTexts || r.denoiser == "sdxl" || r.denoiser == "sd3" || r.denoiser == "flux"
	isT5 := key.table.Name == "t5"
	switch {
	case isT5 && (r.denoiser == "flux" || key.component == "text_encoder_3"):
		return "lora_te3_"
	case isT5:
		return ""
	case key.component == "text_encoder" && isNumbered:
		return "lora_te1_"
	case key.component == "text_encoder" && r.denoiser == "sd1":
		return "lora_te_"
	case key.component == "text_encoder_2":
		return "lora_te2_"
	}
	return ""
}

// comfyText returns how ComfyUI begins the names of a text encoder.
func comfyText(key atomKey) string {
	isT5 := key.table.Name == "t5"
	switch {
	case isT5 && key.component != "text_encoder":
		return "text_encoders.t5xxl.transformer."
	case isT5:
		return ""
	case key.component == "text_encoder":
		return "text_encoders.clip_l.transformer."
	case key.component == "text_encoder_2":
		return "text_encoders.clip_g.transformer."
	}
	return ""
}
