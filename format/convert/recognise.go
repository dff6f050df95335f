package convert

import (
	"strings"

	"github.com/loratool/loratool/format"
)

// others are the dialects that are recognised and not read yet, by a part of their keys; the first match names the file.
var others = []struct{ part, name string }{
	{".lokr_w", "LoKr, of LyCORIS"},
	{".hada_w", "LoHa, of LyCORIS"},
	{".oft_", "OFT, of LyCORIS or kohya"},
	{".lora_down.weight", "the dialect of kohya's sd-scripts"},
	{"_lora.down.weight", "an old dialect of diffusers"},
	{".lora.down.weight", "an old dialect of diffusers"},
	{".lora_linear_layer.", "an old dialect of diffusers"},
	{".lora_a", "the dialect of MLX"},
	{"w_a_", "the dialect of Sam_LoRA"},
	{":up", "the dialect of cloneofsimo's lora"},
	{".lora_E", "those of AdaLoRA, which is not LoRA"},
	{".lora_A.weight", "PEFT's keys, as diffusers and others write them without a configuration"},
	{".lora_A", "the dialect of loralib"},
}

// dialectOf names the dialect of a file that is not PEFT's, by its keys, or says that it is none that is known.
func dialectOf(tensors []format.Tensor) string {
	for _, o := range others {
		for i := range tensors {
			if strings.Contains(tensors[i].Name, o.part) {
				return o.name
			}
		}
	}
	return "no dialect of LoRA that is known here"
}
