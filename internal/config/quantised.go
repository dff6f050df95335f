package config

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// quantization is the field of config.json that says how the weights are quantised.
const quantization = "quantization_config"

// quantizationMLX is that field in configurations of MLX, which repeat it as quantization_config.
const quantizationMLX = "quantization"

// HasQuantisation reports whether the text says how weights are quantised, itself or in the part
// about the text model.
func (t Text) HasQuantisation() bool {
	text, _ := jsontext.Value(t, textConfig)
	return t.statesQuantisation() || Text(text).statesQuantisation()
}

// textConfig is the part of a config.json that describes the text model. Kimi K2.5 says there how
// its weights are quantised.
const textConfig = "text_config"

// statesQuantisation is HasQuantisation for the text itself.
func (t Text) statesQuantisation() bool {
	_, ok := jsontext.Value(t, quantization)
	return ok || t.isMLX()
}

// inTextModel changes the part about the text model, if that says how weights are quantised.
func (t Text) inTextModel(edit func(t Text) Text) Text {
	text, _ := jsontext.Value(t, textConfig)
	if !Text(text).statesQuantisation() {
		return t
	}
	return jsontext.Set(t, string(edit(Text(text))), textConfig)
}

// isMLX reports whether the text is that of a model of MLX.
func (t Text) isMLX() bool {
	value, ok := jsontext.Value(t, quantizationMLX)
	return ok && isMLX([]byte(value))
}

// Dequantise removes the statements about quantised weights, for a model whose weights are all
// plain.
func (t Text) Dequantise() Text {
	for _, field := range []string{quantization, quantizationMLX} {
		t = jsontext.Delete(t, field)
	}
	return t.inTextModel(Text.Dequantise)
}

// Mixed lists the modules of a model of which some weights are quantised, each list sorted.
type Mixed struct {
	Decoded   []string // whose weights were quantised, and are plain now; the experts of a layer are one entry
	Plain     []string // whose weights were plain before
	Quantised []string // whose weights are quantised still
}

// Skip states which modules have plain weights, as the loaders of each method of quantisation read
// it. Most have a list of them. Without one, programs assume that the head and a few others have
// plain weights; a new list gets all that are. Lists as transformers 5.24.0 and vLLM 0.33.0 read
// them:
//
//   - modules_to_not_convert of most methods, by should_convert_module of transformers (names,
//     suffixes or regular expressions) and is_layer_skipped of vLLM (names);
//   - ignored_layers of FP8, which vLLM takes in its place if it is not empty;
//   - llm_int8_skip_modules of bitsandbytes, where vLLM before 0.33 compared names and their parts;
//   - ignore of compressed-tensors, whole names or "re:" and a regular expression;
//   - ignore of ModelOpt, or exclude_modules in its older layout: names, parts of names, wildcards.
func (t Text) Skip(m Mixed) Text {
	t = t.inTextModel(func(t Text) Text { return t.Skip(m) })
	switch {
	case !t.statesQuantisation():
		return t
	case t.isMLX():
		return t.skipMLX(m.Decoded)
	}
	var method string
	for _, field := range []string{"method", "quant_method"} {
		if value, ok := jsontext.Value(t, quantization, field); ok {
			jsontext.Decode([]byte(value), &method)
		}
	}
	switch method {
	case "gptq":
		return t.skipGPTQ(m, quantization)
	case "auto-round", "intel/auto-round":
		return t.member(m.Decoded, `{"bits": 16, "data_type": "fp"}`, quantization, "extra_config")
	case "hqq":
		return Text(skip(t, TagsHQQ(m.Decoded), []string{"lm_head"}, quantization, "skip_modules"))
	}
	t = dropLayers(t, m.Decoded, quantization, quantizedLayers)
	field, modules := "modules_to_not_convert", m.Decoded
	switch {
	case method == "bitsandbytes":
		field = "llm_int8_skip_modules"
	case method == "compressed-tensors":
		field, modules = "ignore", experts(modules, below)
	case strings.HasPrefix(method, "modelopt"):
		modules = experts(modules, wildcard)
		if _, ok := jsontext.Value(t, quantization, "quantization"); ok {
			return Text(skip(t, modules, m.Plain, quantization, "quantization", "exclude_modules"))
		}
		field = "ignore"
	}
	const overriding = "ignored_layers"
	if len(listOf(t, quantization, overriding)) > 0 {
		t = skip(t, modules, m.Plain, quantization, overriding)
	}
	return Text(skip(t, modules, m.Plain, quantization, field))
}

// SkipGPTQ is Skip for the text of AutoGPTQ's and GPTQModel's quantize_config.json.
func (t Text) SkipGPTQ(m Mixed) Text { return t.skipGPTQ(m) }

// skipGPTQ states what the loaders of GPTQ read: GPTQModel and vLLM exclude modules whose names
// match a pattern in dynamic, and optimum and vLLM take those alone that
// modules_in_block_to_quantize lists, by the ends of their names.
func (t Text) skipGPTQ(m Mixed, at ...string) Text {
	patterns := make([]string, len(m.Decoded))
	for i, module := range m.Decoded {
		end := "$"
		if strings.HasSuffix(module, ".experts") {
			end = `(\.|$)`
		}
		patterns[i] = "-:^" + regexp.QuoteMeta(module) + end
	}
	t = t.member(patterns, "{}", append(slices.Clone(at), "dynamic")...)
	return jsontext.Set(t, jsontext.Indented([][]string{m.Quantised}), append(slices.Clone(at), "modules_in_block_to_quantize")...)
}

// skipMLX says false for modules, in both places.
func (t Text) skipMLX(modules []string) Text {
	t = t.member(modules, "false", quantizationMLX)
	if _, ok := jsontext.Value(t, quantization); ok {
		t = t.member(modules, "false", quantization)
	}
	return t
}

// member sets members of the object at a path to a value. New ones come first.
func (t Text) member(names []string, value string, path ...string) Text {
	if object, ok := jsontext.Value(t, path...); !ok || !strings.HasPrefix(object, "{") {
		t = jsontext.Set(t, "{}", path...)
	}
	for _, name := range slices.Backward(names) {
		t = jsontext.Set(t, value, append(slices.Clone(path), name)...)
	}
	return t
}

// TagsHQQ returns the names by which HQQ's loaders know modules, sorted: they have no numbers of
// layers, so one stands for all layers.
func TagsHQQ(modules []string) (tags []string) {
	for _, module := range modules {
		parts := slices.DeleteFunc(strings.Split(module, "."), func(s string) bool {
			return s == "model" || s == "layers" || strings.Trim(s, "0123456789") == ""
		})
		tags = append(tags, strings.Join(parts, "."))
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// experts replaces the entries of all experts of a layer. Most programs compare the beginnings of
// names; compressed-tensors compares whole names, and ModelOpt has wildcards.
func experts(modules []string, entries func(module string) []string) (all []string) {
	for _, m := range modules {
		if strings.HasSuffix(m, ".experts") {
			all = append(all, entries(m)...)
			continue
		}
		all = append(all, m)
	}
	return all
}

// below returns an entry of compressed-tensors for a module and all modules below it. It holds
// where a program gives the model another name: names count from the last part before the first
// number on.
func below(module string) []string {
	parts := strings.Split(module, ".")
	first := slices.IndexFunc(parts, func(part string) bool { _, err := strconv.Atoi(part); return err == nil })
	return []string{`re:(.*\.)?` + regexp.QuoteMeta(strings.Join(parts[max(0, first-1):], ".")) + `(\..*)?$`}
}

func wildcard(module string) []string { return []string{module + "*"} }

// quantizedLayers is the field in which ModelOpt lists the quantised modules of a model that has
// several schemes.
const quantizedLayers = "quantized_layers"

// dropLayers removes modules from an object with a field for each quantised module.
func dropLayers(text []byte, modules []string, path ...string) []byte {
	var layers map[string]json.RawMessage
	value, ok := jsontext.Value(text, path...)
	if !ok || jsontext.Decode([]byte(value), &layers) != nil {
		return text
	}
	n := len(layers)
	maps.DeleteFunc(layers, func(name string, _ json.RawMessage) bool {
		if i := strings.Index(name, ".experts."); i >= 0 {
			name = name[:i+len(".experts")]
		}
		return slices.Contains(modules, name)
	})
	if len(layers) == n {
		return text
	}
	return jsontext.Set(text, jsontext.Indented(layers), path...)
}

// SkipModelOpt is Skip for the text of ModelOpt's hf_quant_config.json.
func (t Text) SkipModelOpt(modules, plain []string) Text {
	if _, ok := jsontext.Value(t, "quantization"); !ok {
		return t
	}
	t = dropLayers(t, modules, "quantization", quantizedLayers)
	return Text(skip(t, experts(modules, wildcard), plain, "quantization", "exclude_modules"))
}

// skip adds names to a list of strings.
func skip(text []byte, modules, plain []string, path ...string) []byte {
	list := listOf(text, path...)
	if len(list) == 0 {
		list = slices.Clone(plain)
	}
	for _, name := range modules {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return jsontext.Set(text, jsontext.Indented(list), path...)
}

// listOf returns a list of strings, nil if there is none.
func listOf(text []byte, path ...string) (list []string) {
	if value, ok := jsontext.Value(text, path...); ok {
		jsontext.Decode(json.RawMessage(value), &list)
	}
	return list
}

// SetDType sets the dtype of the model where the text states one.
func (t Text) SetDType(name string) Text {
	for _, path := range [][]string{{"torch_dtype"}, {"dtype"}, {"text_config", "torch_dtype"}, {"text_config", "dtype"}} {
		if _, ok := jsontext.Value(t, path...); ok {
			t = jsontext.Set(t, jsontext.Quote(name), path...)
		}
	}
	return t
}
