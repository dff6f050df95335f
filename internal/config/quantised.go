package config

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/jsontext"
)

// quantization is the field of config.json that says how the weights are quantised.
const quantization = "quantization_config"

// HasQuantisation reports whether the text says how weights are quantised.
func (t Text) HasQuantisation() bool {
	_, ok := jsontext.Value(t, quantization)
	return ok
}

// Dequantise removes the statements about quantised weights, for a model whose weights are all
// plain.
func (t Text) Dequantise() Text {
	for _, field := range []string{quantization, "quantization"} {
		t = jsontext.Delete(t, field)
	}
	return t
}

// skipLists names the field that lists the modules with plain weights, by the method of
// quantisation. All others call it modules_to_not_convert.
var skipLists = map[string]string{
	"bitsandbytes": "llm_int8_skip_modules", "compressed-tensors": "ignore", "modelopt": "ignore",
}

// Skip adds modules to the list of those with plain weights. Without a list, programs assume that
// the head and a few others have plain weights; a new list gets all, which plain lists.
func (t Text) Skip(modules, plain []string) Text {
	var method string
	if value, ok := jsontext.Value(t, quantization, "quant_method"); ok {
		jsontext.Decode([]byte(value), &method)
	}
	field, ok := skipLists[method]
	if !ok {
		field = "modules_to_not_convert"
	}
	t = dropLayers(t, modules, quantization, quantizedLayers)
	switch method {
	case "compressed-tensors":
		modules = experts(modules, func(m string) []string { return []string{m, "re:" + regexp.QuoteMeta(m) + `\..*`} })
	case "modelopt":
		modules = experts(modules, wildcard)
	}
	return Text(skip(t, modules, plain, quantization, field))
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
	var list []string
	value, ok := jsontext.Value(text, path...)
	if ok {
		jsontext.Decode(json.RawMessage(value), &list)
	}
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

// SetDType sets the dtype of the model where the text states one.
func (t Text) SetDType(name string) Text {
	for _, path := range [][]string{{"torch_dtype"}, {"dtype"}, {"text_config", "torch_dtype"}, {"text_config", "dtype"}} {
		if _, ok := jsontext.Value(t, path...); ok {
			t = jsontext.Set(t, jsontext.Quote(name), path...)
		}
	}
	return t
}
