package convert

import "strings"

// architectureNamed returns the architecture that the name of a base speaks of, "" if it is
// unknown. It chooses among architectures whose modules have the names of the adapter's: those of
// Flux.1 and of HunyuanVideo have the same names in diffusers.
func architectureNamed(base string) string {
	base = strings.NewReplacer("_", "-", " ", "-").Replace(strings.ToLower(base))
	for _, known := range knownBases {
		if strings.Contains(base, known.word) {
			return known.architecture
		}
	}
	return ""
}

// knownBases has words in the names of bases, as ss_base_model_version, modelspec.architecture and
// model cards have them. The first one that fits counts.
var knownBases = []struct{ word, architecture string }{
	{"sdxl", "sdxl"}, {"stable-diffusion-xl", "sdxl"},
	{"sd3", "sd3"}, {"stable-diffusion-3", "sd3"},
	{"sd-v1", "sd1"}, {"sd-v2", "sd1"}, {"stable-diffusion-v1", "sd1"},
	{"stable-diffusion-v2", "sd1"}, {"stable-diffusion-1", "sd1"}, {"stable-diffusion-2", "sd1"},
	{"flux1", "flux"}, {"flux.1", "flux"}, {"flux-1", "flux"},
	{"hunyuanvideo", "hunyuan_video"}, {"hunyuan-video", "hunyuan_video"},
	{"qwen-image", "qwen_image"}, {"wan2", "wan"}, {"wan-2", "wan"}, {"z-image", "z_image"},
}
