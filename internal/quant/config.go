package quant

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/jsontext"
)

// Config holds the statements of config.json about the quantisation. The tensors themselves tell
// how they are stored; the configuration decides where they leave a choice.
type Config struct {
	Method string      // quant_method, "" if it does not say
	Blocks [][2]uint64 // sizes of blocks of FP8, rows first
	Bits   []uint64    // widths of integers in groups of compressed-tensors
	Groups []uint64    // numbers of columns with a scale
	DType  dtype.Type  // of the model before it was quantised, Invalid if it does not say
}

// ReadConfig reads the text of a quantization_config, or of none, and the name of the model's
// dtype. It ignores everything else.
func ReadConfig(text []byte, model string) (c Config) {
	switch strings.TrimPrefix(model, "torch.") {
	case "float16", "half":
		c.DType = dtype.F16
	case "bfloat16":
		c.DType = dtype.BF16
	case "float32", "float":
		c.DType = dtype.F32
	}
	if len(text) == 0 {
		return c
	}
	var q struct {
		Method json.RawMessage `json:"quant_method"`
		Block  json.RawMessage `json:"weight_block_size"`
		Groups json.RawMessage `json:"config_groups"`
	}
	jsontext.Decode(text, &q)
	jsontext.Decode(q.Method, &c.Method)
	c.addBlock(q.Block)
	var groups map[string]json.RawMessage
	jsontext.Decode(q.Groups, &groups)
	for _, group := range groups {
		var g struct {
			Weights json.RawMessage `json:"weights"`
		}
		var w struct {
			Block json.RawMessage `json:"block_structure"`
			Type  json.RawMessage `json:"type"`
			Bits  json.RawMessage `json:"num_bits"`
			Group json.RawMessage `json:"group_size"`
		}
		jsontext.Decode(group, &g)
		jsontext.Decode(g.Weights, &w)
		c.addBlock(w.Block)
		var kind string
		if jsontext.Decode(w.Type, &kind); kind != "float" {
			c.Bits = addNumber(c.Bits, w.Bits, 8)
		}
		c.Groups = addNumber(c.Groups, w.Group, 1<<40)
	}
	slices.SortFunc(c.Blocks, func(a, b [2]uint64) int { return slices.Compare(a[:], b[:]) })
	c.Blocks = slices.Compact(c.Blocks)
	slices.Sort(c.Bits)
	slices.Sort(c.Groups)
	c.Bits, c.Groups = slices.Compact(c.Bits), slices.Compact(c.Groups)
	return c
}

// addNumber adds a number from 1 to most.
func addNumber(to []uint64, text []byte, most uint64) []uint64 {
	var n uint64
	if jsontext.Decode(text, &n) == nil && n > 0 && n <= most {
		to = append(to, n)
	}
	return to
}

// addBlock adds the size of a block, a list of two numbers.
func (c *Config) addBlock(text []byte) {
	var size []uint64
	if jsontext.Decode(text, &size) == nil && len(size) == 2 && size[0] > 0 && size[1] > 0 {
		c.Blocks = append(c.Blocks, [2]uint64(size))
	}
}
