package convert

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/jsontext"
)

// WithConfig returns an adapter that package rank made of others, with a configuration of PEFT: the
// fields of the others' adapter_config.json that still hold, such as task_type and target_modules,
// and the fields that the new layers set, such as r and lora_alpha. Fields in which several
// configurations differ are left out. If none of the others has a configuration, or PEFT's format
// cannot express made, WithConfig returns made. The new source owns made: close it instead of made.
func WithConfig(made format.Source, from ...format.Source) (format.Source, error) {
	m := made.Manifest()
	if len(m.Adapters) != 1 || m.Adapters[0].Dialect != PEFT().Name() || hasAttachment(made, format.PEFTConfig) {
		return made, nil
	}
	var was []map[string]json.RawMessage
	sameTargets, sameRanks := true, true
	for _, src := range from {
		text, err := attachment(src, format.PEFTConfig)
		if err != nil {
			return nil, err
		}
		var fields map[string]json.RawMessage
		if text == nil || jsontext.Decode(text, &fields) != nil {
			continue
		}
		was = append(was, fields)
		is, was := ranksOf(made), ranksOf(src)
		sameTargets = sameTargets && maps.EqualFunc(is, was, func(_, _ rankAndScale) bool { return true })
		sameRanks = sameRanks && maps.Equal(is, was)
	}
	config, names, err := peftFrom(m)
	if was == nil || err != nil || len(names) != len(m.Tensors) {
		return made, nil // the Sink for PEFT says why it cannot be written
	}
	var now map[string]json.RawMessage
	if err := jsontext.Decode(config, &now); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(stillTrue(was, now, sameTargets, sameRanks), "", "  ")
	if err != nil {
		return nil, err
	}
	c := &configured{Source: made, manifest: *m, config: append(text, '\n')}
	c.manifest.Tensors = slices.Clone(m.Tensors)
	for i, name := range names {
		c.manifest.Tensors[i].Name = name
	}
	sum := sha256.Sum256(c.config)
	c.manifest.Attachments = append(slices.Clone(m.Attachments),
		format.Attachment{Name: format.PEFTConfig, SHA256: hex.EncodeToString(sum[:]), NBytes: int64(len(c.config))})
	return c, nil
}

// rankAndScale are the rank and the scale of a layer.
type rankAndScale struct {
	rank  int
	scale float64
}

// ranksOf returns the modules with factors, with their ranks and scales.
func ranksOf(src format.Source) map[string]rankAndScale {
	ranks := make(map[string]rankAndScale)
	for _, a := range src.Manifest().Adapters {
		for i := range a.Layers {
			l := &a.Layers[i]
			ranks[l.Module] = rankAndScale{l.Rank, l.Scale()}
		}
	}
	return ranks
}

// ofLayers are the fields that the layers and the other tensors of an adapter set. A value that
// PEFT has by default need not be there.
var ofLayers = map[string]string{
	"r": "", "lora_alpha": "", "rank_pattern": "{}", "alpha_pattern": "{}", "use_rslora": "false", "use_dora": "false",
	"lora_bias": "false", "bias": `"none"`, "fan_in_fan_out": "false", "modules_to_save": "null", "trainable_token_indices": "null",
	"ensure_weight_tying": "false", "base_model_name_or_path": "null", "revision": "null",
}

// ofRanks are the fields that say ranks and scales.
var ofRanks = []string{"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}

// ofTargets are the fields that choose the modules with factors.
var ofTargets = []string{"target_modules", "target_parameters", "layers_to_transform", "layers_pattern", "exclude_modules"}

// stillTrue returns the fields of a new configuration: those of the old ones in which all agree,
// and those of now that say something else than they do. sameTargets says that the new adapter has
// factors for the same modules as the old ones, and sameRanks that these have the same ranks and
// scales.
func stillTrue(was []map[string]json.RawMessage, now map[string]json.RawMessage, sameTargets, sameRanks bool) map[string]json.RawMessage {
	fields := make(map[string]json.RawMessage)
	agree := func(name string) bool {
		return !slices.ContainsFunc(was, func(other map[string]json.RawMessage) bool { return !areEqual(was[0][name], other[name]) })
	}
	for name, value := range was[0] {
		if agree(name) {
			fields[name] = value
		}
	}
	sameRanks = sameRanks && !slices.ContainsFunc(ofRanks, func(name string) bool { return !agree(name) })
	for name, standard := range ofLayers {
		value, old := orElse(now[name], standard), orElse(fields[name], standard)
		if sameRanks && slices.Contains(ofRanks, name) {
			continue
		}
		if !areEqual(value, old) && !saysTheSame(name, value, old) {
			fields[name] = value
		}
	}
	if _, says := fields["target_modules"]; !sameTargets || !says {
		for _, name := range ofTargets {
			delete(fields, name)
			if value, ok := now[name]; ok {
				fields[name] = value
			}
		}
	}
	// The patterns, and the layout of experts, are those of the newest releases.
	if version, ok := now["peft_version"]; ok {
		fields["peft_version"] = version
	} else if !sameRanks && (!areEqual(now["rank_pattern"], json.RawMessage("{}")) || !areEqual(now["alpha_pattern"], json.RawMessage("{}"))) {
		delete(fields, "peft_version")
	}
	return fields
}

// saysTheSame reports whether two different values of a field are of one effect on the tensors of
// an adapter.
func saysTheSame(name string, value, old json.RawMessage) bool {
	none := json.RawMessage(`"none"`)
	switch name {
	case "bias":
		return !areEqual(value, none) && !areEqual(old, none)
	case "modules_to_save":
		var full, short []string
		if jsontext.Decode(value, &full) != nil || jsontext.Decode(old, &short) != nil || len(short) == 0 {
			return false
		}
		s := peftSaved{modules: short}
		return !slices.ContainsFunc(full, func(module string) bool { return !s.saves(module) })
	case "rank_pattern", "alpha_pattern":
		return string(old) == "null" && areEqual(value, json.RawMessage("{}"))
	}
	return false
}

// orElse returns a value, or the standard one if there is none.
func orElse(value json.RawMessage, standard string) json.RawMessage {
	if value == nil {
		return json.RawMessage(standard)
	}
	return value
}

// areEqual reports whether two texts are one value of JSON. The order of texts in a list does not
// count: PEFT takes them for sets.
func areEqual(a, b json.RawMessage) bool {
	a, b = bytes.TrimSpace(a), bytes.TrimSpace(b)
	if bytes.Equal(a, b) || len(a) == 0 || len(b) == 0 {
		return bytes.Equal(a, b)
	}
	switch {
	case a[0] == '{' && b[0] == '{':
		x, y, ok := bothAs[map[string]json.RawMessage](a, b)
		return ok && maps.EqualFunc(x, y, areEqual)
	case a[0] == '[' && b[0] == '[':
		if x, y, ok := bothAs[[]string](a, b); ok {
			slices.Sort(x)
			slices.Sort(y)
			return slices.Equal(x, y)
		}
		x, y, ok := bothAs[[]json.RawMessage](a, b)
		return ok && slices.EqualFunc(x, y, areEqual)
	case a[0] == '"' && b[0] == '"':
		x, y, ok := bothAs[string](a, b)
		return ok && x == y
	case strings.IndexByte("-0123456789", a[0]) >= 0 && strings.IndexByte("-0123456789", b[0]) >= 0:
		x, y, ok := bothAs[float64](a, b)
		return ok && x == y
	}
	return false
}

// bothAs decodes two texts.
func bothAs[T any](a, b json.RawMessage) (x, y T, ok bool) {
	ok = jsontext.Decode(a, &x) == nil && jsontext.Decode(b, &y) == nil
	return x, y, ok
}

// configured is a source with a configuration of PEFT as its last attachment.
type configured struct {
	format.Source
	manifest format.Manifest
	config   []byte
}

func (c *configured) Manifest() *format.Manifest { return &c.manifest }

func (c *configured) Unchanged() error { return fileio.Unchanged(c.Source) }

func (c *configured) ReadBlobAt(p []byte, i int, off int64) error {
	if i == len(c.manifest.Tensors)+len(c.manifest.Attachments)-1 {
		copy(p, c.config[off:])
		return nil
	}
	return c.Source.ReadBlobAt(p, i, off)
}
