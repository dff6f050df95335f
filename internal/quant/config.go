package quant

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/jsontext"
)

// Config holds the statements of config.json about the quantisation. The tensors themselves tell
// how they are stored; the configuration decides where they leave a choice.
type Config struct {
	Method  string      // quant_method, "" if it does not say
	Blocks  [][2]uint64 // sizes of blocks of FP8, rows first
	Bits    []uint64    // widths of integers in groups of compressed-tensors
	Groups  []uint64    // numbers of columns with a scale
	Needs   []string    // endings of tensors that every weight of compressed-tensors or GPTQ has, such as weight_zero_point
	DType   dtype.Type  // of the model before it was quantised, Invalid if it does not say
	Format  string      // checkpoint_format of GPTQ, version of AWQ, packing_format of AutoRound
	Group   Group       // of modules that Modules does not have
	Modules map[string]Group
	HQQ     Group
	Shape   []uint64 // of a layer of HQQ that is stored alone; the caller sets it

	isByGPTQModel bool
	isInOrder     bool // desc_act is false: the groups of GPTQ are those of consecutive inputs
	hasExceptions bool // Group does not bind the modules that patterns name (GPTQModel, AutoRound)
}

// Group says how many bits a code has, and how many elements share a scale; 0 if the configuration
// does not say.
type Group struct {
	Bits, Size int64
	Mode       string // of MLX
	Axis       *int64 // of HQQ
}

// groupOfModule returns the group of a module.
func (c *Config) groupOfModule(module string) Group {
	if g, ok := c.Modules[module]; ok {
		return g
	}
	return c.Group
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
		Canon  json.RawMessage `json:"method"` // of GPTQModel
		Block  json.RawMessage `json:"weight_block_size"`
		Groups json.RawMessage `json:"config_groups"`
		Order  json.RawMessage `json:"desc_act"`
	}
	jsontext.Decode(text, &q)
	jsontext.Decode(q.Canon, &c.Method)
	jsontext.Decode(q.Method, &c.Method)
	if c.Method == "gptq" && string(q.Order) == "true" {
		c.Needs = append(c.Needs, "g_idx")
	}
	c.isInOrder = string(q.Order) == "false"
	c.readGroups(text)
	c.addBlock(q.Block)
	var groups map[string]json.RawMessage
	jsontext.Decode(q.Groups, &groups)
	zeros, orders := 0, 0
	for _, group := range groups {
		var g struct {
			Weights json.RawMessage `json:"weights"`
		}
		var w struct {
			Block json.RawMessage `json:"block_structure"`
			Type  json.RawMessage `json:"type"`
			Bits  json.RawMessage `json:"num_bits"`
			Group json.RawMessage `json:"group_size"`
			Even  json.RawMessage `json:"symmetric"`
			Order json.RawMessage `json:"actorder"`
		}
		jsontext.Decode(group, &g)
		jsontext.Decode(g.Weights, &w)
		c.addBlock(w.Block)
		var kind string
		if jsontext.Decode(w.Type, &kind); kind != "float" {
			c.Bits = addNumber(c.Bits, w.Bits, 8)
		}
		c.Groups = addNumber(c.Groups, w.Group, 1<<40)
		if string(w.Even) == "false" {
			zeros++
		}
		if string(w.Order) == `"group"` {
			orders++
		}
	}
	if n := len(groups); n > 0 && zeros == n {
		c.Needs = append(c.Needs, "weight_zero_point")
	}
	if n := len(groups); n > 0 && orders == n {
		c.Needs = append(c.Needs, "weight_g_idx")
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

// readGroups reads the fields of GPTQ, AWQ, MLX and HQQ. MLX has an object for each module whose
// group differs from the others.
func (c *Config) readGroups(text []byte) {
	var q struct {
		CheckpointFormat json.RawMessage `json:"checkpoint_format"`
		Format           json.RawMessage `json:"format"`
		Version          json.RawMessage `json:"version"`
		Packing          json.RawMessage `json:"packing_format"`
		Meta             json.RawMessage `json:"meta"`
		Dynamic          json.RawMessage `json:"dynamic"`      // of GPTQModel
		Extra            json.RawMessage `json:"extra_config"` // of AutoRound
		HQQ              json.RawMessage `json:"quant_config"`
	}
	jsontext.Decode(text, &q)
	for _, field := range []json.RawMessage{q.CheckpointFormat, q.Packing, q.Version, q.Format} {
		if c.Format == "" {
			jsontext.Decode(field, &c.Format)
		}
	}
	for _, field := range []json.RawMessage{q.Dynamic, q.Extra} {
		var patterns map[string]json.RawMessage
		jsontext.Decode(field, &patterns)
		for pattern := range patterns { // GPTQModel leaves the modules of "-:…" plain
			c.hasExceptions = c.hasExceptions || !strings.HasPrefix(pattern, "-:")
		}
	}
	var meta struct {
		Quantizer json.RawMessage `json:"quantizer"`
	}
	jsontext.Decode(q.Meta, &meta)
	c.isByGPTQModel = strings.Contains(strings.ToLower(string(meta.Quantizer)), "gptqmodel")
	var params struct {
		Weight json.RawMessage `json:"weight_quant_params"`
	}
	jsontext.Decode(q.HQQ, &params)
	c.Group, _ = readGroup(text)
	c.HQQ, _ = readGroup(params.Weight)
	var modules map[string]json.RawMessage
	jsontext.Decode(text, &modules)
	for name, field := range modules {
		if g, ok := readGroup(field); ok {
			if c.Modules == nil {
				c.Modules = make(map[string]Group)
			}
			g.Mode = cmp.Or(g.Mode, c.Group.Mode)
			c.Modules[name] = g
		}
	}
}

// readGroup reads an object that says bits or the size of a group.
func readGroup(text []byte) (g Group, ok bool) {
	var fields struct {
		Bits  json.RawMessage `json:"bits"`
		NBits json.RawMessage `json:"nbits"`
		Size  json.RawMessage `json:"group_size"`
		Mode  json.RawMessage `json:"mode"`
		Axis  json.RawMessage `json:"axis"`
	}
	if jsontext.Decode(text, &fields) != nil {
		return g, false
	}
	jsontext.Decode(fields.NBits, &g.Bits)
	jsontext.Decode(fields.Bits, &g.Bits)
	jsontext.Decode(fields.Size, &g.Size)
	jsontext.Decode(fields.Mode, &g.Mode)
	jsontext.Decode(fields.Axis, &g.Axis)
	return g, g.Bits != 0 || g.Size != 0
}

// addBlock adds the size of a block, a list of two numbers.
func (c *Config) addBlock(text []byte) {
	var size []uint64
	if jsontext.Decode(text, &size) == nil && len(size) == 2 && size[0] > 0 && size[1] > 0 {
		c.Blocks = append(c.Blocks, [2]uint64(size))
	}
}
