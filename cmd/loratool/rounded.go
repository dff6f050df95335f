package main

import (
	"fmt"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

// setRounding takes --dtype for the factors of an adapter that stays what it is. GGUF files and
// --as-lora have their own use of the flag.
func (j *conversion) setRounding(c *cli.Context, o *convertOptions) (err error) {
	if c.IsSet("dtype") && !o.lora.wanted && !o.opaque && j.dialect != convert.GGUF() {
		j.rounding, err = factorDType(o.lora.dtype, dtype.F64, dtype.F32, dtype.BF16, dtype.F16)
	}
	return err
}

// round returns the source with factors of the dtype that the user chose.
func (j *conversion) round(c *cli.Context, o *convertOptions, src format.Source) (format.Source, error) {
	options := rank.CombineOptions{DType: j.rounding, Path: o.out, Workers: o.workers}
	need, module := rank.CombineBytes([]format.Source{src}, options)
	if err := o.checkMemory(need, fmt.Sprintf("rounding layers such as %q", module)); err != nil {
		return nil, err
	}
	made, r, err := rank.Combine(c.Context, []format.Source{src}, options)
	if err != nil {
		return nil, fault.InFile(err, j.in)
	}
	j.rounded = r
	return configured(made, src)
}

// roundedText says what rounding the factors has cost.
func roundedText(r *rank.CombineReport, d dtype.Type) string {
	exact, worst := 0, 0.0
	name := ""
	for i := range r.Layers {
		l := &r.Layers[i]
		if l.Exact {
			exact++
		}
		if l.Rounded > worst {
			worst, name = l.Rounded, l.Module
		}
	}
	if exact == len(r.Layers) {
		return fmt.Sprintf("%v holds all factors exactly", d)
	}
	return fmt.Sprintf("rounding the factors to %v changes ΔW by %s of ‖ΔW‖, at most by %s, in %s", d, errorText(r.Rounded), errorText(worst), name)
}
