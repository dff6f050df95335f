package merge

import "github.com/loratool/loratool/internal/resolve"

// Tied says what becomes of an output head that the base has tied to its input embedding, when an
// adapter changes one of the two.
type Tied string

// What can become of it; the zero value refuses.
const (
	Untie Tied = "untie" // the head becomes a tensor of its own, and config.json says so
	Fold  Tied = "fold"  // the change is made to the one tensor, and so to both
)

// Reading says how adapters are applied where their files do not. The zero value lets the files
// decide, and refuses what they leave open. An undo record remembers it, so that what was put in is
// taken out as it was put in.
type Reading struct {
	ExpertInput       int  // the dimension of square experts that lora_A reads, 1 or 2; 0 lets the adapter's release of PEFT decide
	ExpertsSlowest    bool // lora_B of stacked experts has one expert after the other, which PEFT does not write
	OutProjTwice      bool // add the update of out_proj of nn.MultiheadAttention twice, as PEFT up to 0.21 does
	RecomputeResidual bool // take out of the original base what PiSSA and OLoRA have taken out, computed again
	Tied              Tied // what to do with tied ends of which one changes; "" refuses
}

func (r Reading) resolved() resolve.Reading {
	return resolve.Reading{
		ExpertInput: r.ExpertInput, ExpertsSlowest: r.ExpertsSlowest, OutProjTwice: r.OutProjTwice,
		RecomputeResidual: r.RecomputeResidual, Tied: resolve.Tied(r.Tied),
	}
}
