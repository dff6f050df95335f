// Package merge applies adapters to a base checkpoint: W0 + Σ ω·s·B·A, every element correctly rounded, in memory that does
// not grow with the model.
//
// A merge is planned from headers alone (Open), and the plan fails before a byte is written if a tensor of an adapter is left
// over, does not fit, or needs something that this version does not know. Run then writes the output in blocks of rows; it
// appears whole or not at all. Merging changes bytes, never sizes: the output is the base with some ranges of bytes
// rewritten, plus one entry in the metadata of each changed file that says what was merged.
//
// # The result
//
// For an element of a tensor of dtype D (F64, F32, F16, BF16), with w its value in the base,
//
//	out = RN_D( w + Σ_i S_i · Σ_k b_ik·a_ik ),    S_i = ω_i·s_i, one float64 product per adapter
//
// over the reals and rounded once, to nearest, ties to even. The bytes depend on nothing else: not on the number of workers,
// the size of blocks, or the processor. An element whose Σ is exactly zero keeps its bits, −0 and the payload of a NaN
// included; a sum that cancels to zero is +0. NaN and infinities propagate as in IEEE addition of the exact parts.
//
// # Why it is correct
//
// The kernels (internal/kernel) follow Ziv: compute t with a bound e ≥ |t − exact|; where RN_D(t − e) and RN_D(t + e) have
// the same bits, these are the result, since RN_D is monotone and exact lies between; otherwise compute again, more
// precisely, and in the end exactly. What has to be shown is that e is a bound.
//
// Let u be the unit roundoff of the arithmetic (2⁻²⁴ for float32, 2⁻⁵³ for float64), K the number of terms and γ_n = n·u/(1−n·u).
//
//  1. A sum of r products, in any order and with or without fused multiply-add, passes every product through at most r
//     roundings: one of its own and at most r−1 additions. So fl(Σ b·a) differs from Σ b·a by at most γ_r·Σ|b·a|
//     (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1).
//  2. Rounding S, multiplying by it and adding up K terms are at most K+1 more roundings:
//     |δ − exact δ| ≤ Σ_i γ_{r+K+1}·|S_i|·Σ|b·a|, up to underflow.
//  3. Σ_k|b·a| ≤ ‖b‖₂·‖a‖₂ (Cauchy–Schwarz), with norms that are computed once and rounded up.
//  4. t = fl(w + δ) adds u·|t|, and computing t ± e rounds once more: u·(|t| + e).
//  5. Underflow costs at most half of the smallest number per product, r·|S| of these per term, and two more for S·acc and the
//     bound itself.
//
// Together e = Σ_i c_i·u·|S_i|·‖b_i‖·‖a_i‖ + 2u·|t| + Σ_i (r_i·|S_i| + 4)·η with η the smallest positive number and
// c_i = 1.01·(r_i + K + 3): the 1 % pays for γ against n·u (r is at most 65,536, where it is 0.4 %), for the roundings in
// computing e, and for the u·e of step 4. Additions never underflow. A coefficient that falls below the normal range is
// raised to its edge, and S outside the range of float32 uses float64 throughout. Whatever is not finite is left to the
// next pass.
//
// The second pass uses the same bound in float64 with Σ|b·a| in place of the norms. For an F64 base it uses double-double
// arithmetic, whose bound is stated with it. The last pass is exact: sums of products of float64 numbers in integer
// arithmetic of unlimited length.
package merge
