package naming

import (
	"regexp"
	"strings"
)

// diskNames are names of modules on the disk that the named models have otherwise in memory, from
// transformers 5 on, and that PEFT does not translate. Those that other models have in memory as
// well are not among them: BERT's attention.output.dense is one of ViT's on the disk.
var diskNames = []struct {
	name   *regexp.Regexp
	models string
}{
	{regexp.MustCompile(`^embed_out$`), "GPT-NeoX"},
	{regexp.MustCompile(`\.attention\.attention\.(query|key|value)$`), "ViT, DINOv2 and their kin"},
	{regexp.MustCompile(`\.blocks\.\d+\.attention\.self\.(query|key|value)$`), "Swin"},
	{regexp.MustCompile(`\.block\.\d+\.\d+\.attention\.self\.(query|key|value)$`), "SegFormer"},
	{regexp.MustCompile(`^visual\.blocks\.\d+\.`), "Qwen2-VL and its kin"},
	{regexp.MustCompile(`^language_model\.model\.layers\.\d+\.`), "LLaVA and its kin"},
	{regexp.MustCompile(`^h\.\d+\.(attn|mlp|self_attention)\.`), "GPT-2 and BLOOM with a head"},
}

// OnlyOnDisk returns the first of the modules that the named models have under another name in
// memory, "" where there is none. It does not know the model: the names alone tell.
func OnlyOnDisk(modules []string) (module, models string) {
	for _, module := range modules {
		plain := StripWrappers(strings.TrimSuffix(module, ".weight"))
		for _, d := range diskNames {
			if d.name.MatchString(plain) {
				return module, d.models
			}
		}
	}
	return "", ""
}
