package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
	"github.com/loratool/loratool/internal/safetensors"
)

// peftConfigFile is adapter_config.json, as far as it changes the effect of an adapter.
type peftConfigFile struct {
	PEFTType    string          `json:"peft_type"`
	PEFTVersion string          `json:"peft_version"`
	BaseModel   string          `json:"base_model_name_or_path"`
	Revision    string          `json:"revision"`
	R           *int            `json:"r"`
	Alpha       *float64        `json:"lora_alpha"`
	RSLoRA      bool            `json:"use_rslora"`
	FanInFanOut *bool           `json:"fan_in_fan_out"`
	Bias        string          `json:"bias"`
	LoRABias    bool            `json:"lora_bias"`
	RankPattern pattern         `json:"rank_pattern"`
	AlphaPatt   pattern         `json:"alpha_pattern"`
	Tokens      json.RawMessage `json:"trainable_token_indices"`
	Parameters  []string        `json:"target_parameters"`

	notes      []string
	requires   []format.Requirement
	names      []string // of the fields, sorted
	hasExperts bool
	patterns   patterns
}

// Defaults of LoraConfig, for fields that a file leaves out.
const (
	defaultRank  = 8
	defaultAlpha = 8
)

// errNotPEFT is a configuration of another tool: MLX, for one, writes its own under PEFT's name.
var errNotPEFT = errors.New("no peft_type")

// parsePEFTConfig reads a configuration. A field without a known meaning becomes a requirement, so
// that the adapter can still be inspected and converted; only a text that is no configuration of
// PEFT is an error.
func parsePEFTConfig(text []byte) (*peftConfigFile, error) {
	c := new(peftConfigFile)
	near, err := jsontext.DecodeNear(text, c)
	var fields map[string]json.RawMessage
	if jsontext.Decode(text, &fields) != nil {
		if other := safetensors.Recognise(text[:min(len(text), 512)]); other != nil {
			return nil, other
		}
		if word := pythonNumber.Find(text); word != nil {
			return nil, fault.New(fault.Corrupt, "not JSON: it has the value %s, which Python writes and no adapter can use", bytes.TrimLeft(word, ": \t\r\n")).
				WithHint("the adapter's training went wrong, or the file was edited; set the field to a number")
		}
		return nil, fault.New(fault.Corrupt, "not JSON: %v", err)
	}
	if err != nil {
		return nil, fault.New(fault.Corrupt, "not a configuration of PEFT: %v", err).WithHint("PEFT writes this file with the weights; save the adapter again, or correct the value")
	}
	if c.PEFTType == "" {
		return nil, errNotPEFT
	}
	c.PEFTType = strings.ToUpper(c.PEFTType)
	if !isWord(c.PEFTType) {
		return nil, fault.New(fault.Corrupt, "peft_type is %q, which is the name of no method", c.PEFTType)
	}
	if c.PEFTType != "LORA" {
		c.require(format.FeaturePEFTType, c.PEFTType)
		return c, nil
	}
	c.hasExperts = len(c.Parameters) > 0
	for _, name := range near {
		c.note("PEFT ignores %q: it knows the field %s", name, strings.ToLower(strings.ReplaceAll(name, "ſ", "s")))
		delete(fields, name)
	}
	if err := c.checkScale(fields); err != nil {
		return nil, err
	}
	for name := range fields {
		c.names = append(c.names, name)
	}
	slices.Sort(c.names)
	for _, name := range c.names {
		c.checkField(name, fields[name])
	}
	for _, p := range c.Parameters {
		c.require(format.FeatureExperts, p)
	}
	switch r := c.rankDefault(); {
	case r < 1:
		return nil, fault.New(fault.Corrupt, "r is %d, and a rank is at least 1", r)
	case r > maxRank:
		return nil, fault.New(fault.Limit, "r is %d, and ranks to %d are read", r, maxRank)
	}
	c.patterns.rank, c.patterns.alpha = c.RankPattern, c.AlphaPatt
	return c, c.patterns.check()
}

// isPEFTConfig reports whether a text is a configuration of PEFT, or no JSON at all: other tools
// write theirs under the same name.
func isPEFTConfig(text []byte) bool {
	var fields map[string]json.RawMessage
	if jsontext.Decode(text, &fields) != nil {
		return true
	}
	word, ok := fields["peft_type"]
	return ok && string(word) != "null" && string(word) != `""`
}

// isWord reports whether a text is letters, digits and their joints (- and _), and not long.
func isWord(text string) bool {
	return len(text) <= maxNameBytes && !strings.ContainsFunc(text, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z')
	})
}

// checkScale refuses null where PEFT wants a number, as it raises an error itself, and notes a
// scale of 0, which some trainers write as a placeholder.
func (c *peftConfigFile) checkScale(fields map[string]json.RawMessage) error {
	for _, name := range []string{"r", "lora_alpha"} {
		if value, ok := fields[name]; ok && string(value) == "null" {
			return fault.New(fault.Corrupt, "%s is null, and PEFT loads no such adapter", name).WithHint("set it to the number with which the adapter was trained")
		}
	}
	if c.Alpha != nil && *c.Alpha == 0 && len(c.AlphaPatt) == 0 {
		c.note("lora_alpha is 0, so that every layer has the scale 0, and merging changes nothing; set it to the number with which the adapter was trained")
	}
	return nil
}

func (c *peftConfigFile) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// pythonNumber finds the numbers that Python's json writes and JSON does not have.
var pythonNumber = regexp.MustCompile(`[:\[,]\s*(NaN|-?Infinity)\b`)

func (c *peftConfigFile) require(feature format.Feature, where string) {
	c.requires = append(c.requires, requirement(feature, where))
}

// requirement makes a record whose place is a name as spec/FORMAT.md, R31 and R32, wants it:
// without control characters, and not too long.
func requirement(feature format.Feature, where string) format.Requirement {
	where = strings.Map(func(r rune) rune {
		if isControl(r) {
			return utf8.RuneError
		}
		return r
	}, where)
	for len(where) > maxNameBytes {
		_, n := utf8.DecodeLastRuneInString(where)
		where = where[:len(where)-n]
	}
	return format.Requirement{Feature: feature, Where: where}
}

// peftFields are the fields that PEFT writes for LoRA, up to 0.21. An empty feature means that the
// field is read here, or that it cannot change what the saved tensors do to a base: how they were
// initialised or trained, to which modules (the keys say that), on which hardware. Any other
// feature is required where the field is set.
var peftFields = map[string]format.Feature{
	"peft_type": "", "peft_version": "", "base_model_name_or_path": "", "revision": "", "task_type": "", "inference_mode": "", "auto_mapping": "",
	"r": "", "lora_alpha": "", "use_rslora": "", "rank_pattern": "", "alpha_pattern": "", "fan_in_fan_out": "",
	"bias": "", "lora_bias": "", "modules_to_save": "", "trainable_token_indices": "",
	"target_modules": "", "exclude_modules": "", "layers_to_transform": "", "layers_pattern": "",
	"lora_dropout": "", "init_lora_weights": "", "eva_config": "", "corda_config": "", "loftq_config": "", "lora_ga_config": "",
	"lora_plus_lr_ratio": "", "target_parameters": "", "megatron_config": "", "megatron_core": "", "qalora_group_size": "", "runtime_config": "", "merge_weights": "",
	"use_dora":                format.FeatureDoRA,
	"use_bdlora":              format.FeatureBDLoRA,
	"use_qalora":              format.FeatureQALoRA,
	"kasa_config":             format.FeatureKaSA,
	"velora_config":           format.FeatureVeLoRA,
	"monteclora_config":       format.FeatureMonteCLoRA,
	"alora_invocation_tokens": format.FeatureALoRA,
	"arrow_config":            format.FeatureArrow,
	"layer_replication":       format.FeatureLayerReplication,
	"enable_lora":             format.FeatureMergedLinear,
	"ensure_weight_tying":     format.FeatureWeightTying,
}

// peftInits are the values of init_lora_weights after which the base is no longer the one that the
// adapter was started on; the others leave it alone.
var peftInits = map[string]format.Feature{
	"pissa": format.FeaturePiSSA, "olora": format.FeatureOLoRA, "corda": format.FeatureCorDA, "lora_ga": format.FeatureLoRAGA, "loftq": format.FeatureLoftQ,
	"gaussian": "", "eva": "", "orthogonal": "", "mica": "", "true": "", "false": "",
}

// checkField turns a field that changes the meaning of the tensors into a requirement. An unknown
// field is harmless where it is off.
func (c *peftConfigFile) checkField(name string, value json.RawMessage) {
	feature, known := peftFields[name]
	switch {
	case name == "init_lora_weights":
		var init string
		if jsontext.Decode(value, &init) != nil {
			return // true or false
		}
		feature, known := peftInits[strings.ToLower(init)]
		switch {
		case strings.HasPrefix(init, "pissa_niter"):
			c.require(format.FeaturePiSSANiter, name+" = "+init)
		case !known:
			c.require(format.FeatureConfigField, name+" = "+init)
		case feature != "":
			c.require(feature, name+" = "+init)
		}
	case isOff(value):
	case !known:
		c.require(format.FeatureConfigField, name)
	case feature == format.FeatureMergedLinear:
		q := format.MergedLinear(value)
		c.require(q.Feature, q.Where)
	case feature != "":
		c.require(feature, name)
	}
}

// isOff reports whether a value is null, false, zero or empty.
func isOff(value json.RawMessage) bool {
	return slices.Contains([]string{"null", "false", "0", "0.0", `""`, "[]", "{}"}, string(value))
}

// method is the word for the adapter's method.
func (c *peftConfigFile) method() format.Method {
	if c.PEFTType != "LORA" {
		return format.OtherMethod(strings.ToLower(c.PEFTType))
	}
	return format.MethodLoRA // the reader of the keys makes it MethodDoRA where it is
}

func (c *peftConfigFile) scaling() format.Scaling {
	if c.RSLoRA {
		return format.AlphaOverSqrtR
	}
	return format.AlphaOverR
}

func (c *peftConfigFile) rankDefault() int {
	if c.R == nil {
		return defaultRank
	}
	return *c.R
}

// rank is r of a module, and the key of rank_pattern that gave it, if any.
func (c *peftConfigFile) rank(module string) (int, *patternMatch) {
	if m := c.patterns.match("rank_pattern", module); m != nil {
		return int(m.value), m
	}
	return c.rankDefault(), nil
}

// alpha is lora_alpha of a module.
func (c *peftConfigFile) alpha(module string) (float64, *patternMatch) {
	if m := c.patterns.match("alpha_pattern", module); m != nil {
		return m.value, m
	}
	if c.Alpha == nil {
		return defaultAlpha, nil
	}
	return *c.Alpha, nil
}

// tokenRows returns the rows that the tokens of a module's token adapter are, or why they cannot be
// known.
func (c *peftConfigFile) tokenRows(module string) (rows []int64, why string) {
	if len(c.Tokens) == 0 || string(c.Tokens) == "null" {
		return nil, "the file has rows for " + module + ", and trainable_token_indices is not set"
	}
	if jsontext.Decode(c.Tokens, &rows) == nil {
		return rows, notEmpty(rows)
	}
	var byModule map[string][]int64
	if err := jsontext.Decode(c.Tokens, &byModule); err != nil {
		return nil, "trainable_token_indices is neither a list nor lists by module"
	}
	for name, rows := range byModule {
		if module == name || strings.HasSuffix(module, "."+name) {
			return rows, notEmpty(rows)
		}
	}
	return nil, "trainable_token_indices has no entry for " + module
}

func notEmpty(rows []int64) string {
	if len(rows) == 0 {
		return "trainable_token_indices is empty"
	}
	return ""
}

func siblingOf(path, name string) string { return filepath.Join(filepath.Dir(path), name) }
