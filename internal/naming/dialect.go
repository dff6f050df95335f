package naming

import (
	"slices"
	"strings"
)

// dialects are the dialects whose keys give them away by a part of a key. "^" stands for the start
// of a key, "$" for its end, and "*" for anything in between. The first match names the file.
var dialects = []struct{ part, name string }{
	{".lokr_w", "LoKr, of LyCORIS"},
	{".hada_w", "LoHa, of LyCORIS"},
	{"^lora_*.a1.weight$", "GLoRA, of LyCORIS"},
	{"^lycoris_*.a1.weight$", "GLoRA, of LyCORIS"},
	{".oft_", "OFT, of LyCORIS or kohya"},
	{".lora_down.weight$", "the dialect of kohya's sd-scripts"},
	{"_lora1.down.weight$", "the dialect of XLabs"},
	{"_lora.down.weight$", "an old dialect of diffusers"},
	{".lora.down.weight$", "an old dialect of diffusers"},
	{".lora_linear_layer.", "an old dialect of diffusers"},
	{".lora_a.weight$", "the dialect of torchtune"},
	{".lora_a$", "the dialect of MLX"},
	{".diff$", "differences of whole weights, as LyCORIS and others write them"},
	{".diff_b$", "differences of whole biases, as LyCORIS and others write them"},
	{".on_input$", "IA³, of LyCORIS"},
	{"^w_a_", SamLoRA},
	{":up$", "the dialect of cloneofsimo's lora"},
	{".w_lora_A$", "the dialect of CLIP-LoRA"},
	{".loras.", "the dialect of AdapterHub's adapters"},
	{".lora_E", "those of AdaLoRA, which is not LoRA"},
	{"^base_model.model.", peftKeys},
	{".lora_A.weight$", "PEFT's keys, as diffusers and others write them without a configuration"},
	{".lora_A.default.weight$", peftKeys},
	{".lora_A$", "the dialect of loralib"},
	{"^emb_params$", TextualInversion},
	{"^clip_l$", TextualInversion},
	{"^string_to_param.", TextualInversion},
	{"^<", TextualInversion},
}

const (
	peftKeys = "PEFT's"
	// TextualInversion is Dialect's name for embeddings that were trained alone.
	TextualInversion = "those of a textual inversion, which adds words to a text encoder and is not LoRA"
	// SamLoRA is Dialect's name for the factors of SAM's attention, whose keys are only numbers.
	SamLoRA = "the dialect of Sam_LoRA"
	// unknownDialect is that of keys that all speak of LoRA, in a way that no row above knows.
	unknownDialect = "those of LoRA in a dialect that is not known here"
)

// Dialect says, in words that follow "the keys are", of which dialect of adapters the keys of a
// file are. It returns "" for keys of no dialect that is known here, such as those of a model.
func Dialect(keys []string) string {
	for _, o := range dialects {
		if slices.ContainsFunc(keys, func(key string) bool { return fits(key, o.part) }) {
			return o.name
		}
	}
	if speakOfLoRA(keys) {
		return unknownDialect
	}
	return ""
}

// speakOfLoRA reports whether all keys have LoRA in their names, but for the numbers that many
// dialects keep beside the factors. Of a model with low-rank layers, only some do.
func speakOfLoRA(keys []string) bool {
	n := 0
	for _, key := range keys {
		key = strings.ToLower(key)
		switch {
		case strings.Contains(key, "lora"), strings.HasPrefix(key, "lycoris_"):
			n++
		case !strings.HasSuffix(key, "alpha"):
			return false
		}
	}
	return n > 0
}

func fits(key, part string) bool {
	if before, after, ok := strings.Cut(part, "*"); ok {
		return fits(key, before) && fits(key, after)
	}
	part, atStart := strings.CutPrefix(part, "^")
	part, atEnd := strings.CutSuffix(part, "$")
	switch {
	case atStart && atEnd:
		return key == part
	case atStart:
		return strings.HasPrefix(key, part)
	case atEnd:
		return strings.HasSuffix(key, part)
	}
	return strings.Contains(key, part)
}

// AreOfAdapter reports whether keys are those of an adapter, in a dialect that is read or in
// another. A model that was saved with adapters in its layers has their keys, and its own weights
// as well.
func AreOfAdapter(keys []string) bool { return !HaveBaseLayers(keys) && Dialect(keys) != "" }

// HaveBaseLayers reports whether keys are those of a model that was saved with adapters in its
// layers. PEFT itself saves the base's weights of an embedding and of a head beside their factors.
func HaveBaseLayers(keys []string) bool {
	n := 0
	for _, key := range keys {
		if strings.HasSuffix(key, ".base_layer.weight") {
			n++
		}
	}
	return n > 2
}
