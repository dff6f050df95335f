// Package merge adds LoRA adapters to the weights of a base model, removes them again, and swaps
// them.
//
// Open an adapter with package convert, plan with [Open], and run the plan:
//
//	adapter, err := convert.Open(ctx, "adapter", convert.Options{})
//	…
//	plan, err := merge.Open(ctx, "base", []merge.Adapter{{Source: adapter, Weight: 1}}, merge.Options{})
//	…
//	report, err := plan.Run(ctx, "merged")
//
// [OpenUnmerge] and [OpenSwap] take the undo record that Options.UndoFile wrote, and restore the
// earlier checkpoint byte for byte. [New], [NewUnmerge] and [NewSwap] take a checkpoint that
// package checkpoint has opened, also without a file system, and [Plan.RunTo] writes without one.
//
// A plan reads headers only. Planning fails, before anything is written, if a tensor of an adapter
// is left over, does not fit, or needs a feature that this version lacks. [Plan.Run] then copies
// the base in blocks of rows and updates them on the way, so its memory does not grow with the
// model. The output appears complete or not at all. It is the base with some ranges of bytes
// rewritten, and a stamp in the metadata of each changed file that lists the adapters. Heads are
// untied and vocabularies grow only if the options say so.
//
// # The result
//
// Every element of the result is rounded correctly. For an element of a tensor of dtype D (F64,
// F32, F16, BF16), with w its value in the base,
//
//	out = RN_D( w + Σ_i S_i · Σ_k b_ik·a_ik ),    S_i = ω_i·s_i, one float64 product per adapter
//
// over the reals and rounded once, to nearest, ties to even. ω is [Adapter].Weight, s the adapter's
// own scale. Nothing else affects the bytes: not the number of workers, the size of blocks, or the
// processor. If Σ is exactly zero, the element keeps its bits, including −0 and the payload of a
// NaN. A sum that cancels to zero gives +0. NaN and infinities propagate as in IEEE addition of the
// exact parts.
//
// DoRA rescales: out = RN_D( m·V/‖V‖ ) with V = w + S·Σ b·a, also over the reals and rounded once.
// A row or column of zeros has no direction and becomes NaN.
//
// LoHa, LoKr, IA³, convolutions with a core and whole differences (spec/METHODS.md) are further
// parts of the same sum, and of V.
//
// PiSSA and OLoRA subtract a part P from the base before training. This package computes P in
// float64 as Q·(Qᵀ·W), and −P is one more term of the sum above. The bytes of P itself can differ
// between processors.
//
// The file proof.go of this package proves that the kernels meet this promise.
package merge
