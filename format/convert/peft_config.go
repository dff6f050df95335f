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

// peftConfigFile holds the fields of adapter_config.json that change the effect of an adapter.
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

// LoraConfig's defaults for fields that a file leaves out.
const (
	defaultRank  = 8
	defaultAlpha = 8
)

// errNotPEFT reports another program's configuration under PEFT's name. MLX writes one.
var errNotPEFT = errors.New("no peft_type")

// parsePEFTConfig reads a configuration. A field without a known meaning becomes a requirement, so
// that the adapter can still be inspected and converted. Only a text that is not a PEFT
// configuration at all is an error.
func parsePEFTConfig(text []byte) (*peftConfigFile, error) {
	c := new(peftConfigFile)
	near, err := jsontext.DecodeNear(text, c)
	var fields map[string]json.RawMessage
	if jsontext.Decode(text, &fields) != nil {
		if other := safetensors.Recognise(text[:min(len(text), 512)]); other != nil {
			return nil, other
		}
		if word := pythonNumber.Find(text); word != nil {
			return nil, fault.New(fault.Corrupt, "not JSON: it contains %s, which Python writes for a number that is not finite", bytes.TrimLeft(word, ": \t\r\n")).
				WithHint("the training diverged, or the file was edited; set the field to a finite number")
		}
		return nil, fault.New(fault.Corrupt, "not JSON: %v", err)
	}
	if err != nil {
		return nil, fault.New(fault.Corrupt, "not a PEFT configuration: %v", err).WithHint("PEFT writes this file with the weights; save the adapter again or correct the value")
	}
	if c.PEFTType == "" {
		return nil, errNotPEFT
	}
	c.PEFTType = strings.ToUpper(c.PEFTType)
	if !isWord(c.PEFTType) {
		return nil, fault.New(fault.Corrupt, "peft_type is %q, which is not the name of a method", c.PEFTType)
	}
	if c.PEFTType != "LORA" {
		c.require(format.FeaturePEFTType, c.PEFTType)
		return c, nil
	}
	c.hasExperts = len(c.Parameters) > 0
	for _, name := range near {
		c.note("PEFT ignores %q; the field that it reads is %s", name, strings.ToLower(strings.ReplaceAll(name, "ſ", "s")))
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
	if c.hasExperts {
		c.noteOrder(fields)
	}
	switch r := c.rankDefault(); {
	case r < 1:
		return nil, fault.New(fault.Corrupt, "r is %d, want at least 1", r)
	case r > maxRank:
		return nil, fault.New(fault.Limit, "r is %d, the limit is %d", r, maxRank)
	}
	c.patterns.rank, c.patterns.alpha = c.RankPattern, c.AlphaPatt
	return c, c.patterns.check()
}

// isPEFTConfig reports whether text is a PEFT configuration, or not JSON at all. Other programs
// write their configurations under the same name.
func isPEFTConfig(text []byte) bool {
	var fields map[string]json.RawMessage
	if jsontext.Decode(text, &fields) != nil {
		return true
	}
	word, ok := fields["peft_type"]
	return ok && string(word) != "null" && string(word) != `""`
}

// isWord reports whether text is short and consists of capital letters, digits, - and _.
func isWord(text string) bool {
	return len(text) <= maxNameBytes && !strings.ContainsFunc(text, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z')
	})
}

// checkScale refuses null where PEFT needs a number; PEFT itself raises a TypeError. It notes an
// alpha of 0, which verl writes where it knows none.
func (c *peftConfigFile) checkScale(fields map[string]json.RawMessage) error {
	for _, name := range []string{"r", "lora_alpha"} {
		if value, ok := fields[name]; ok && string(value) == "null" {
			return fault.New(fault.Corrupt, "%s is null; PEFT cannot load such an adapter", name).WithHint("set it to the value that the adapter was trained with")
		}
	}
	if c.Alpha != nil && *c.Alpha == 0 && len(c.AlphaPatt) == 0 {
		c.note("lora_alpha is 0, so every layer has scale 0 and merging changes nothing; set it to the value that the adapter was trained with")
	}
	return nil
}

func (c *peftConfigFile) note(format string, args ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, args...))
}

// pythonNumber finds numbers that Python's json module writes and JSON does not allow.
var pythonNumber = regexp.MustCompile(`[:\[,]\s*(NaN|-?Infinity)\b`)

func (c *peftConfigFile) require(feature format.Feature, where string) {
	c.requires = append(c.requires, requirement(feature, where))
}

// requirement makes a requirement whose Where is a valid name (spec/FORMAT.md, R31 and R32):
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

// peftFields lists the fields that PEFT writes for LoRA, up to 0.21. Fields with an empty feature
// are either read here, or cannot change what the saved tensors do to a base: they say how the
// tensors were initialised and trained, on which hardware, or which modules were targeted, which
// the keys say as well. A field with a feature requires it when set.
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

// peftInits lists the values of init_lora_weights. A value with a feature changes the base at the
// start of the training; the others leave the base alone.
var peftInits = map[string]format.Feature{
	"pissa": format.FeaturePiSSA, "olora": format.FeatureOLoRA, "corda": format.FeatureCorDA, "lora_ga": format.FeatureLoRAGA, "loftq": format.FeatureLoftQ,
	"gaussian": "", "eva": "", "orthogonal": "", "mica": "", "true": "", "false": "",
}

// checkField makes a requirement of a field that changes the meaning of the tensors. An unknown
// field is harmless if it is off.
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

// method returns the adapter's method.
func (c *peftConfigFile) method() format.Method {
	if c.PEFTType != "LORA" {
		return format.OtherMethod(strings.ToLower(c.PEFTType))
	}
	return format.MethodLoRA // the reader of the keys changes it to MethodDoRA if needed
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

// rank returns r of a module, and the entry of rank_pattern that gave it, if any.
func (c *peftConfigFile) rank(module string) (int, *patternMatch) {
	if m := c.patterns.match("rank_pattern", module); m != nil {
		return int(m.value), m
	}
	return c.rankDefault(), nil
}

// alpha returns lora_alpha of a module, and the entry of alpha_pattern that gave it, if any.
func (c *peftConfigFile) alpha(module string) (float64, *patternMatch) {
	if m := c.patterns.match("alpha_pattern", module); m != nil {
		return m.value, m
	}
	if c.Alpha == nil {
		return defaultAlpha, nil
	}
	return *c.Alpha, nil
}

// tokenRows returns the row indices for a module's token adapter, or the reason why they are
// unknown.
func (c *peftConfigFile) tokenRows(module string) (rows []int64, why string) {
	if len(c.Tokens) == 0 || string(c.Tokens) == "null" {
		return nil, "the file has token rows for " + module + ", but trainable_token_indices is not set"
	}
	if jsontext.Decode(c.Tokens, &rows) == nil {
		return rows, notEmpty(rows)
	}
	var byModule map[string][]int64
	if err := jsontext.Decode(c.Tokens, &byModule); err != nil {
		return nil, "trainable_token_indices is neither a list nor an object of lists"
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
