package convert

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
)

// kohyaMetadata returns __metadata__ for a new file in kohya's grammar, made from a source with the
// given metadata: its ss_*, modelspec.* and other entries, and the hashes of the new tensors. It
// leaves out the entries in which other dialects state the scale, because a file of kohya states it
// in its tensors alpha. Rank and alpha in ss_network_* become those of the new layers. tensors and
// read are those for package format/safetensors, whose Write makes the file.
//
// Without any entry ss_*, the result has no hashes that the source lacks, and may be nil: A1111
// takes a file with any metadata but ss_base_model_version for one of Stable Diffusion 1, and hides
// it where another model is loaded (extensions-builtin/Lora/network.py, detect_version). It
// computes the hash of a file without one.
func kohyaMetadata(
	ctx context.Context, source map[string]string, tensors []format.Tensor,
	read func(p []byte, i int, off int64) error,
) (map[string]string, error) {
	all := maps.Clone(source)
	delete(all, diffusersMetadata)
	delete(all, headerAlpha)
	isTraining := func(key string) bool { return strings.HasPrefix(key, trainingPrefix) }
	if slices.ContainsFunc(slices.Collect(maps.Keys(all)), isTraining) {
		for _, key := range []string{modelHashKey, legacyHashKey} { // sd-scripts always writes both
			all[key] = ""
		}
	} else if delete(all, "format"); len(all) == 0 {
		return nil, nil
	}
	if err := renewNetwork(all, tensors, read); err != nil {
		return nil, err
	}
	return renewHashes(ctx, all, tensors, read)
}

// renewNetwork changes rank and alpha in ss_network_*, if they are there, to those of the new
// layers, or to Dynamic if the layers differ, as the merges of sd-scripts do
// (networks/merge_lora.py). Convolutions with a window do not count: theirs may differ (conv_dim).
func renewNetwork(
	all map[string]string, tensors []format.Tensor, read func(p []byte, i int, off int64) error,
) error {
	var rank, alpha agreed
	isLayer := make(map[string]bool)
	for i := range tensors {
		module, isDown := strings.CutSuffix(tensors[i].Name, ".lora_down.weight")
		shape := tensors[i].Shape
		hasWindow := func(n uint64) bool { return n != 1 }
		if isDown && len(shape) >= 2 && !slices.ContainsFunc(shape[2:], hasWindow) {
			rank.add(float64(shape[0]), fmt.Sprint(shape[0]))
			isLayer[module] = true
		}
	}
	for i := range tensors {
		t := &tensors[i]
		module, isAlpha := strings.CutSuffix(t.Name, ".alpha")
		if !isAlpha || !isLayer[module] || !t.DType.IsFloat() || t.Elements() != 1 {
			continue
		}
		p := make([]byte, t.NBytes())
		if err := read(p, i, 0); err != nil {
			return err
		}
		x := dtype.Load(t.DType, p, 0)
		alpha.add(x, pythonFloat(x))
	}
	rank.renew(all, "ss_network_dim")
	alpha.renew(all, "ss_network_alpha")
	return nil
}

// agreed is the number that all layers have in common.
type agreed struct {
	number float64
	text   string // "" before the first layer, Dynamic if the layers differ
}

func (c *agreed) add(number float64, text string) {
	switch {
	case c.text == "":
		c.number, c.text = number, text
	case c.number != number:
		c.text = "Dynamic"
	}
}

// renew changes an entry that says another number.
func (c *agreed) renew(all map[string]string, key string) {
	old, ok := all[key]
	x, err := strconv.ParseFloat(old, 64)
	isRight := err == nil && x == c.number && c.text != "Dynamic"
	if ok && c.text != "" && !isRight {
		all[key] = c.text
	}
}

// pythonFloat writes a number as Python does: 8.0.
func pythonFloat(x float64) string {
	text := strconv.FormatFloat(x, 'g', -1, 64)
	if strings.Trim(text, "-0123456789") == "" {
		text += ".0"
	}
	return text
}
