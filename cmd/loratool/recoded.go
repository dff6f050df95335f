package main

import (
	"github.com/loratool/loratool/merge"
	"github.com/urfave/cli/v2"
)

// codeOptions are the flags that give quantised weights new codes, for merge and swap.
type codeOptions struct {
	requantise, acceptLoss, stochastic bool
	seed                               int64
}

func (o *codeOptions) codeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "requantise", Usage: "give quantised weights of BASE new codes in place of decoding them: with the scales as they are, the code nearest to W + ΔW (FP8, INT8, INT4, MXFP4, NVFP4), or blocks as llama-quantize makes them (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, MXFP4); refused if the share of ΔW that is kept is not 90 to 110 %", Destination: &o.requantise},
		&cli.BoolFlag{Name: "accept-loss", Usage: "with --requantise: merge however little of ΔW is kept", Destination: &o.acceptLoss},
		&cli.BoolFlag{Name: "stochastic", Usage: "with --requantise: choose at random between the two codes next to a weight of FP8 or Q8_0, so that ΔW is kept on average", Destination: &o.stochastic},
		&cli.Int64Flag{Name: "seed", Usage: "of the random choice of --stochastic", Destination: &o.seed},
	}
}

// checkSeed refuses a seed that nothing takes. The library knows the other flags that do not fit
// together.
func (o *codeOptions) checkSeed(c *cli.Context) error {
	if c.IsSet("seed") && !o.stochastic {
		return usagef("loratool merge BASE ADAPTER -o OUT --requantise --stochastic --seed 1", "--seed is for --stochastic, which is not given")
	}
	return nil
}

func (o *codeOptions) set(options *merge.Options) {
	options.Requantise, options.AcceptLoss, options.Stochastic, options.Seed = o.requantise, o.acceptLoss, o.stochastic, o.seed
}
