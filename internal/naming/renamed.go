package naming

import (
	"regexp"
	"strings"
)

// diskNames are names of modules on disk that these models rename in memory from transformers 5 on,
// and that PEFT does not translate. Names that another model uses in memory are left out: ViT's
// attention.output.dense on disk is also BERT's in memory.
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

// OnlyOnDisk returns the first module that the named models rename in memory, "" if there is none.
// It goes by names alone and does not know the model.
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
