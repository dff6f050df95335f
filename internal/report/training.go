package report

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/jsontext"
)

// Training is what the metadata of an adapter say of it and of its training, under the names that
// sd-scripts (ss_*) and ModelSpec (modelspec.*) give to the entries, or else under those of
// ai-toolkit (name, software, training_info). Texts are as in the file, but
// not longer than 300 characters; an entry that is not there is "".
type Training struct {
	Title         string     `json:"title"`          // modelspec.title, ss_output_name or name
	Architecture  string     `json:"architecture"`   // modelspec.architecture
	Author        string     `json:"author"`         // modelspec.author
	Date          string     `json:"date"`           // modelspec.date
	License       string     `json:"license"`        // modelspec.license
	Trigger       string     `json:"trigger_phrase"` // modelspec.trigger_phrase
	UsageHint     string     `json:"usage_hint"`     // modelspec.usage_hint
	Program       string     `json:"program"`        // that trained it, with its version
	Network       string     `json:"network_module"`
	Dim           string     `json:"network_dim"`
	Alpha         string     `json:"network_alpha"`
	Args          string     `json:"network_args"`
	Base          string     `json:"base_model_version"`
	BaseFile      string     `json:"sd_model_name"`
	BaseHash      string     `json:"new_sd_model_hash"`
	LearningRate  string     `json:"learning_rate"`
	UNetRate      string     `json:"unet_lr"`
	EncoderRate   string     `json:"text_encoder_lr"`
	Optimizer     string     `json:"optimizer"`
	Steps         string     `json:"steps"`
	MaxSteps      string     `json:"max_train_steps"`
	Epoch         string     `json:"epoch"`
	Epochs        string     `json:"num_epochs"`
	Tags          []TagCount `json:"tags"`          // the 20 most frequent ones
	NTags         int        `json:"n_tags"`        // all different ones
	Configuration []string   `json:"configuration"` // of lora_adapter_metadata, by component
	Unreadable    []string   `json:"unreadable"`    // entries in no known form
}

// TagCount is a tag of the captions and the number of images that have it.
type TagCount struct {
	Tag   string `json:"tag"`
	Count int64  `json:"count"`
}

const (
	maxValueRunes = 300     // of a text in Training
	maxTags       = 20      // in Training
	maxJSONBytes  = 8 << 20 // of an entry that is read as JSON; real ones have less than 1 MiB
	maxConfigs    = 8       // components in Training
)

// addMetadata adds the metadata of the file that a single adapter was read from. PEFT writes none
// that say more than its configuration, so a header of PEFT is read only if it is asked for.
func (r *Adapter) addMetadata(ctx context.Context, src format.Source, isAsked bool) (err error) {
	m := src.Manifest()
	if len(m.Adapters) != 1 || m.Adapters[0].Dialect == convert.PEFT().Name() && !isAsked {
		return nil
	}
	if r.Metadata, err = convert.SourceMetadata(ctx, src); err != nil || len(r.Metadata) == 0 {
		return err
	}
	r.Training = trainingOf(r.Metadata)
	r.License = cmp.Or(r.License, r.Training.License)
	return nil
}

// trainingOf condenses metadata.
func trainingOf(metadata map[string]string) *Training {
	get := func(keys ...string) string {
		for _, key := range keys {
			if value := metadata[key]; value != "" && value != "None" { // Python's None
				return cut(value)
			}
		}
		return ""
	}
	t := &Training{
		Title:        get("modelspec.title", "ss_output_name", "name"),
		Architecture: get("modelspec.architecture"), Author: get("modelspec.author"),
		Date: get("modelspec.date"), License: get("modelspec.license"),
		Trigger: get("modelspec.trigger_phrase"), UsageHint: get("modelspec.usage_hint"),
		Network: get("ss_network_module"), Dim: get("ss_network_dim"),
		Alpha: get("ss_network_alpha"), Args: get("ss_network_args"),
		Base:     get("ss_base_model_version"),
		BaseFile: get("ss_sd_model_name"), BaseHash: get("ss_new_sd_model_hash"),
		LearningRate: get("ss_learning_rate"), UNetRate: get("ss_unet_lr"),
		EncoderRate: get("ss_text_encoder_lr"), Optimizer: get("ss_optimizer"),
		Steps: get("ss_steps"), MaxSteps: get("ss_max_train_steps"), Epoch: get("ss_epoch"),
		Epochs: get("ss_num_epochs"),
		Tags:   []TagCount{}, Configuration: []string{}, Unreadable: []string{},
	}
	t.readAIToolkit(metadata)
	t.read(metadata, "ss_tag_frequency", t.readTags)
	t.read(metadata, "lora_adapter_metadata", t.readConfiguration)
	return t
}

// readAIToolkit reads the entries of ai-toolkit. Others may use their names for something else, so
// another form is no fault.
func (t *Training) readAIToolkit(metadata map[string]string) {
	var software struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	var progress struct {
		Step  int64 `json:"step"`
		Epoch int64 `json:"epoch"`
	}
	text := func(key string) []byte {
		value := metadata[key]
		return []byte(value[:min(len(value), maxJSONBytes)])
	}
	if jsontext.Decode(text("software"), &software) == nil {
		t.Program = cut(strings.TrimSpace(software.Name + " " + software.Version))
	}
	if jsontext.Decode(text("training_info"), &progress) == nil && t.Steps == "" {
		t.Steps = fmt.Sprint(progress.Step)
		t.Epoch = cmp.Or(t.Epoch, fmt.Sprint(progress.Epoch))
	}
}

// cut shortens a text.
func cut(value string) string {
	n := 0
	for at := range value {
		if n == maxValueRunes {
			return value[:at] + "…"
		}
		n++
	}
	return value
}

// read reads an entry that is JSON.
func (t *Training) read(metadata map[string]string, key string, into func([]byte) error) {
	text, ok := metadata[key]
	if !ok || text == "None" {
		return
	}
	err := fmt.Errorf("%d bytes are too long", len(text))
	if len(text) <= maxJSONBytes {
		err = into([]byte(text))
	}
	if err != nil {
		t.Unreadable = append(t.Unreadable, cut(fmt.Sprintf("%s: %v", key, err)))
	}
}

// readTags adds up the counts of each tag over all data sets.
func (t *Training) readTags(text []byte) error {
	var sets map[string]map[string]int64
	if err := jsontext.Decode(text, &sets); err != nil {
		return err
	}
	counts := make(map[string]int64)
	for _, tags := range sets {
		for tag, n := range tags {
			tag, n = strings.TrimSpace(tag), max(n, 0)
			counts[tag] += min(n, math.MaxInt64-counts[tag])
		}
	}
	t.NTags = len(counts)
	all := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for _, tag := range all[:min(len(all), maxTags)] {
		t.Tags = append(t.Tags, TagCount{cut(tag), counts[tag]})
	}
	return nil
}

// readConfiguration names rank and alpha of each component in the configuration of diffusers.
func (t *Training) readConfiguration(text []byte) error {
	var fields map[string]json.RawMessage
	if err := jsontext.Decode(text, &fields); err != nil {
		return err
	}
	byPart := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		at := strings.LastIndex(key, ".") + 1
		part, name := key[:at], key[at:]
		if name == "r" || name == "lora_alpha" {
			byPart[part] += fmt.Sprintf(", %s %s", name, fields[key])
		}
	}
	parts := slices.Sorted(maps.Keys(byPart))
	for _, part := range parts[:min(len(parts), maxConfigs)] {
		name := cmp.Or(strings.TrimSuffix(part, "."), "adapter")
		t.Configuration = append(t.Configuration, cut(name+byPart[part]))
	}
	return nil
}
