package convert

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/jsontext"
)

// mlxConfig is the adapter_config.json of mlx-lm, which holds the arguments of the training, or
// that of mlx-vlm before May 2026, which holds Rank and Alpha alone.
type mlxConfig struct {
	FineTuneType string          `json:"fine_tune_type"` // since 2024-09-30
	UseDoRA      *bool           `json:"use_dora"`       // from 2024-05-16 to 2024-09-30
	NumLayers    json.RawMessage `json:"num_layers"`     // since 2024-09-30; lora_layers before
	Model        string          `json:"model"`
	LoRA         json.RawMessage `json:"lora_parameters"`
	Rank         *int            `json:"rank"`
	Alpha        *float64        `json:"alpha"`

	lora   mlxLoRA
	exists bool
	others []string // parameters in lora_parameters without a known meaning, sorted
	scale  float64
	alpha  float64 // the user's; 0 if the scale counts
	note   string  // about the scale
}

// mlxLoRA is lora_parameters.
type mlxLoRA struct {
	Rank    *int            `json:"rank"`
	Scale   *float64        `json:"scale"`
	Alpha   *float64        `json:"alpha"`
	Dropout json.RawMessage `json:"dropout"`
	Keys    json.RawMessage `json:"keys"`
}

const (
	// fullTuning is the fine_tune_type of whole weights.
	fullTuning = "full"
	// mlxScale is the scale of mlx-lm's layers that are made without one. It is 20 since
	// 2024-01-09.
	mlxScale = 20
)

// mlxConfigBeside reads the configuration beside the weights. It returns one without fields if
// there is none, and nil for another program's.
func mlxConfigBeside(in *Input) (*mlxConfig, error) {
	text, err := in.ReadFile(format.PEFTConfig, maxSideBytes)
	c := new(mlxConfig)
	if err != nil || text == nil {
		return c, err
	}
	if c.exists = true; isPEFTConfig(text) {
		var fields map[string]json.RawMessage
		if err := jsontext.Decode(text, &fields); err != nil {
			return nil, fault.New(fault.Corrupt, "not JSON: %v", err).In(in.sibling(format.PEFTConfig))
		}
		return nil, nil
	}
	if err = c.parse(text); err != nil {
		err = fault.InFile(fault.New(fault.Corrupt, "%v", err), in.sibling(format.PEFTConfig))
	}
	return c, err
}

func (c *mlxConfig) parse(text []byte) error {
	if err := jsontext.Decode(text, c); err != nil || c.LoRA == nil {
		return err
	}
	if err := jsontext.Decode(c.LoRA, &c.lora); err != nil {
		return fmt.Errorf("lora_parameters: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := jsontext.Decode(c.LoRA, &fields); err != nil {
		return err
	}
	for _, known := range []string{"rank", "scale", "alpha", "dropout", "keys"} {
		delete(fields, known)
	}
	c.others = slices.Sorted(maps.Keys(fields))
	return nil
}

// isOfVLM reports whether mlx-vlm wrote the configuration before May 2026.
func (c *mlxConfig) isOfVLM() bool { return c.LoRA == nil && c.Rank != nil && c.Alpha != nil }

// setScale finds the scale of all layers, or refuses a configuration that leaves it open.
//
// lora_parameters.scale is the scale since mlx-lm 0.14.2 (commit c457a3f8 of
// ml-explore/mlx-examples, 2024-06-02). From 2024-01-25 (b1dec281) to that day it was
// scale·alpha/rank. Its default had an alpha of 16 until April 2025 (#65 of mlx-lm), which nothing
// used any more. So an alpha counts in a configuration without use_dora, which mlx-lm wrote before
// 2024-05-16 (42458914), and does not in one with fine_tune_type or num_layers, which it writes
// since 2024-09-30 (50e5ca81). In those from between nothing tells.
//
// mlx-vlm multiplied by alpha until 2026-04-18 (6b0ad8f0), and by alpha/rank until May 2026, when
// it took mlx-lm's configuration.
func (c *mlxConfig) setScale(o *Options) error {
	const hint = "set Options.Scale, or Options.Alpha, which is divided by the rank"
	if c == nil {
		return fault.New(fault.Unsupported, "the keys are those of MLX, and the %s beside them is PEFT's", format.PEFTConfig).
			WithHint("put the %s of the same run beside it", format.PEFTConfig)
	}
	p := &c.lora
	isGiven := o.Scale != 0 || o.Alpha != 0
	switch {
	case c.FineTuneType == fullTuning:
		return fault.New(fault.Unsupported, "fine_tune_type is full: the file holds whole weights of the model, and no factors").
			WithHint("the weights replace those of the base; mlx_lm.fuse writes the whole model")
	case p.Scale != nil && (p.Alpha == nil || c.isNew() || p.Rank != nil && *p.Alpha == float64(*p.Rank)):
		c.scale = *p.Scale
		return o.refuseScale("lora_parameters.scale")
	case p.Scale != nil && c.UseDoRA == nil && p.Rank != nil && *p.Rank > 0:
		c.scale = *p.Scale * *p.Alpha / float64(*p.Rank)
		if math.IsNaN(c.scale) || math.IsInf(c.scale, 0) {
			return fault.New(fault.Corrupt, "the scale %v·%v/%d is no finite number", *p.Scale, *p.Alpha, *p.Rank)
		}
		c.note = "the configuration is mlx-lm's of before May 2024, whose scale was scale·alpha/rank"
		return o.refuseScale("lora_parameters.scale and alpha")
	case isGiven:
		c.scale, c.alpha = o.Scale, o.Alpha
		return nil
	case p.Scale != nil && p.Rank != nil && *p.Rank > 0:
		return fault.New(fault.Unsupported, "nothing says whether the scale is %v (mlx-lm since 2 June 2024) or %v "+
			"(scale·alpha/rank, as before)", *p.Scale, *p.Scale**p.Alpha/float64(*p.Rank)).
			WithHint("choose one of them with Options.Scale")
	case c.isOfVLM() && *c.Rank > 0:
		return fault.New(fault.Unsupported, "nothing says whether the scale is %v (alpha, as mlx-vlm had it until "+
			"18 April 2026) or %v (alpha/rank, as since)", *c.Alpha, *c.Alpha/float64(*c.Rank)).
			WithHint("choose one of them with Options.Scale")
	case !c.exists:
		return fault.New(fault.Unsupported, "there is no %s beside the weights, which says the scale; their keys are those of MLX",
			format.PEFTConfig).WithHint(hint + "; without one, the scale in mlx-examples was 20, and 2 before 9 January 2024")
	case p.Alpha != nil || c.Alpha != nil:
		return fault.New(fault.Unsupported, "the configuration has an alpha and no scale, which mlx-lm never read").WithHint(hint)
	}
	c.scale = mlxScale
	c.note = "the configuration does not say its scale; in mlx-lm it is then 20 (Options.Alpha or Options.Scale gives another)"
	return nil
}

// isNew reports whether mlx-lm wrote the configuration in October 2024 or later.
func (c *mlxConfig) isNew() bool { return c.FineTuneType != "" || c.NumLayers != nil }

// isDoRA reports whether the layers are those of DoRA.
func (c *mlxConfig) isDoRA() bool {
	return c.FineTuneType == "dora" || c.UseDoRA != nil && *c.UseDoRA
}

// rank returns the rank that the configuration says, 0 if it does not.
func (c *mlxConfig) rank() int {
	switch {
	case c.lora.Rank != nil:
		return *c.lora.Rank
	case c.Rank != nil:
		return *c.Rank
	}
	return 0
}

// sign says how the dialect was recognised.
func (c *mlxConfig) sign(t *table) string {
	sign := "Options.From"
	for i := range t.tensors {
		if _, role := mlxKey(t.tensors[i].Name); role != "" {
			sign = "keys such as " + t.tensors[i].Name
			break
		}
	}
	if c.LoRA != nil {
		sign += ", and lora_parameters in " + format.PEFTConfig
	}
	return sign
}
