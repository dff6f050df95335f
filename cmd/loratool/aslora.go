package main

import (
	"fmt"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

// asLoRA holds the flags of convert that make LoRA of other methods.
type asLoRA struct {
	wanted   bool
	rank     int
	maxError float64
	dtype    string
}

func (a *asLoRA) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "as-lora", Usage: "make LoRA of LoHa, LoKr, convolutions with a core and differences of whole weights: the same update where an identity gives it, or as --rank or --max-error say", Destination: &a.wanted},
		&cli.IntFlag{Name: "rank", Usage: "with --as-lora: keep `R` singular values of each such layer", Destination: &a.rank},
		&cli.Float64Flag{Name: "max-error", Usage: "with --as-lora: keep so many that the error of each layer, relative to its ΔW, is at most `E`", Destination: &a.maxError},
		&cli.StringFlag{Name: "dtype", Usage: "store the factors as `DTYPE`, f64, f32, f16 or bf16, and print the error of rounding them; a GGUF file has no f64, and --as-lora only without a rank or an error", Value: "f32", Destination: &a.dtype},
	}
}

// options returns the options of the library; nil if no LoRA is to be made.
func (a *asLoRA) options(c *cli.Context) (*rank.LoRAOptions, error) {
	const hint = "loratool convert ADAPTER --as-lora --rank 16 -o OUT"
	for _, name := range []string{"rank", "max-error"} {
		if c.IsSet(name) && !a.wanted {
			return nil, usagef(hint, "--%s is for --as-lora", name)
		}
	}
	if !a.wanted {
		return nil, nil
	}
	o := &rank.LoRAOptions{}
	switch {
	case c.IsSet("rank") && c.IsSet("max-error"):
		return nil, usagef(hint, "--rank and --max-error are two rules, want one")
	case c.IsSet("rank") && a.rank < 1:
		return nil, usagef(hint, "a rank is at least 1, got %d", a.rank)
	case c.IsSet("rank"):
		o.Rule = rank.FixedRank{K: a.rank}
	case c.IsSet("max-error") && !(a.maxError > 0 && a.maxError < 1):
		return nil, usagef(hint, "a relative error lies between 0 and 1, got %v", a.maxError)
	case c.IsSet("max-error"):
		o.Rule = rank.MaxError(a.maxError, 0)
	}
	allowed := []dtype.Type{dtype.F32, dtype.BF16, dtype.F16}
	if o.Rule == nil {
		allowed = append(allowed, dtype.F64)
	}
	var err error
	if o.DType, err = factorDType(a.dtype, allowed...); err != nil {
		return nil, err
	}
	return o, nil
}

// apply returns the source with LoRA in place of other methods.
func (a *asLoRA) apply(
	c *cli.Context, src format.Source, o *rank.LoRAOptions, base, out string, workers int,
) (format.Source, *rank.LoRAReport, error) {
	if base != "" {
		tensors, err := tensorsOf(c, base)
		if err != nil {
			return nil, nil, err
		}
		o.Base = tensors
	}
	o.Path, o.Workers = out, workers
	made, r, err := rank.ToLoRA(c.Context, src, *o)
	if err != nil {
		return nil, nil, err
	}
	thin, err := configured(made, src)
	return thin, r, err
}

// loraText says what the conversion to LoRA has made.
func loraText(r *rank.LoRAReport) string {
	if len(r.Layers) == 0 {
		return "every layer is a LoRA already"
	}
	exact, ranks, worst := 0, [2]int{r.Layers[0].Rank, r.Layers[0].Rank}, r.Layers[0]
	for _, l := range r.Layers {
		if l.IsExact {
			exact++
		}
		if l.Error > worst.Error {
			worst = l
		}
		ranks = [2]int{min(ranks[0], l.Rank), max(ranks[1], l.Rank)}
	}
	text := fmt.Sprintf("%s made LoRA of rank %d", fault.Count(len(r.Layers), "layer"), ranks[0])
	if ranks[1] > ranks[0] {
		text += fmt.Sprintf(" to %d", ranks[1])
	}
	text += fmt.Sprintf(", %d of them exactly", exact)
	if exact < len(r.Layers) {
		text += fmt.Sprintf("; the largest error is %.3g of ‖ΔW‖, in %s", worst.Error, worst.Module)
	}
	return text
}
