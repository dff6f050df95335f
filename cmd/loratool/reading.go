package main

import (
	"slices"
	"strings"

	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// readingOptions are the flags that say what files of adapters do not, for every command that
// applies adapters.
type readingOptions struct {
	withoutOption
	expertInput   int
	linearInput   int
	expertTurns   bool
	expertSlowest bool
	outProjTwice  bool
	recompute     bool
	only          []string
}

func (o *readingOptions) readingFlags() []cli.Flag {
	return append(o.openFlags(), []cli.Flag{
		onlyFlag("change", &o.only),
		dimensionFlag("expert-input", "the dimension `1|2` of square stacked experts that lora_A reads (default: as the adapter says)", &o.expertInput),
		dimensionFlag("linear-input", "the dimension `1|2` of square Conv1D weights that lora_A reads, where the base does not tell", &o.linearInput),
		&cli.BoolFlag{Name: "expert-turns", Usage: "put gate and up of gpt-oss' experts, which the adapter has apart, into turns, as the model stores them", Destination: &o.expertTurns},
		&cli.BoolFlag{Name: "expert-slowest", Usage: "lora_B of stacked experts has one expert after the other, as unsloth wrote it", Destination: &o.expertSlowest},
		&cli.BoolFlag{Name: "out-proj-twice", Usage: "add the update of nn.MultiheadAttention's out_proj twice, as PEFT up to 0.21 does", Destination: &o.outProjTwice},
		&cli.BoolFlag{Name: "recompute-residual", Usage: "take out of the original base what PiSSA or OLoRA has taken out of it, computed again in float64", Destination: &o.recompute},
	}...)
}

// onlyFlag is the flag for the components that a command works on, as the verb says.
func onlyFlag(verb string, dst *[]string) cli.Flag {
	return &cli.StringSliceFlag{
		Name:  "only",
		Usage: verb + " only the components `NAMES` of an image or video model, separated by commas: unet (or transformer), text_encoder, text_encoder_2, …",
		Action: func(_ *cli.Context, values []string) error {
			known := merge.ComponentNames()
			for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
				if !slices.Contains(known, name) {
					hint := "loratool inspect lists the components of an adapter and of a base"
					if near := nearest(name, known); near != "" {
						hint = "did you mean --only " + near + "?"
					}
					return usagef(hint, "there is no component %q; the names are %s", name, strings.Join(known, ", "))
				}
				*dst = append(*dst, name)
			}
			return nil
		},
	}
}

// dimensionFlag is the flag for one of the two dimensions of a matrix.
func dimensionFlag(name, usage string, dst *int) cli.Flag {
	return &cli.IntFlag{Name: name, Usage: usage, Destination: dst, Action: func(_ *cli.Context, n int) error {
		if n != 1 && n != 2 {
			return usagef("--"+name+" 1, or --"+name+" 2", "a matrix has the dimensions 1 and 2, got --%s %d", name, n)
		}
		return nil
	}}
}

// set adds the flags to options.
func (o *readingOptions) set(options *merge.Options) {
	options.RecomputeResidual = o.recompute
	options.LinearInput, options.Only, options.ExpertTurns = o.linearInput, o.only, o.expertTurns
	options.ExpertInput, options.ExpertsSlowest, options.OutProjTwice = o.expertInput, o.expertSlowest, o.outProjTwice
}
