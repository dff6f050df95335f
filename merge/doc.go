// Package merge applies adapters to a base checkpoint: W0 + Σ ω·s·B·A, every element correctly
// rounded, in memory that does not grow with the model.
//
// A merge is planned from headers alone (Open), and the plan fails before a byte is written if a
// tensor of an adapter is left over, does not fit, or needs something that this version does not
// know. Run then writes the output in blocks of rows; it appears whole or not at all. The output is
// the base with some ranges of bytes rewritten, plus one entry in the metadata of each changed file
// that says what was merged; only where the options ask for it is a head untied or a vocabulary
// grown.
//
// # The result
//
// For an element of a tensor of dtype D (F64, F32, F16, BF16), with w its value in the base,
//
//	out = RN_D( w + Σ_i S_i · Σ_k b_ik·a_ik ),    S_i = ω_i·s_i, one float64 product per adapter
//
// over the reals and rounded once, to nearest, ties to even. The bytes depend on nothing else: not
// on the number of workers, the size of blocks, or the processor. An element whose Σ is exactly
// zero keeps its bits, −0 and the payload of a NaN included; a sum that cancels to zero is +0. NaN
// and infinities propagate as in IEEE addition of the exact parts.
//
// DoRA rescales: out = RN_D( m·V/‖V‖ ) with V = w + S·Σ b·a, over the reals and rounded once as
// well. A row or column of zeros has no direction and becomes NaN.
//
// What PiSSA and OLoRA take out of a base, P, is formed in float64 as Q·(Qᵀ·W), and −P is one more
// term of the sum above; of P itself the bytes are those of one processor.
//
// # Why it is correct
//
// The kernels (internal/kernel) follow Ziv: compute t with a bound e ≥ |t − exact|; where RN_D(t −
// e) and RN_D(t + e) have the same bits, these are the result, since RN_D is monotone and exact
// lies between; otherwise compute again, more precisely, and in the end exactly. What has to be
// shown is that e is a bound.
//
// Let u be the unit roundoff of the arithmetic (2⁻²⁴ for float32, 2⁻⁵³ for float64), η its smallest
// positive number, and γ_n = n·u/(1−n·u). The terms stand side by side, S multiplied into their
// left factors when these are loaded, so that there is one sum of r = Σ r_i products l_k·r_k, with
// l_k = fl(S_i·b). It is summed in chunks of 16, and the chunks in order.
//
//  1. On its way into δ, the product of index k passes n_k roundings: one in l_k, one of its own
//     (none with fused multiply-add), 16 − k mod 16 additions in its chunk and ⌈r/16⌉ − max(1,
//     ⌊k/16⌋) of chunks. So δ differs from the exact Σ by at most Σ_k γ_{n_k}·|l_k·r_k|, up to
//     underflow (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1).
//  2. Σ_k n_k·|l_k·r_k| ≤ (Σ n_k·l_k²)^½·(Σ n_k·r_k²)^½ =: ‖l‖_n·‖r‖_n (Cauchy–Schwarz): norms of
//     the rows of L and the columns of R, computed once and rounded up. As n_k is about 10 + r/32
//     in the mean and 17 + r/16 at most, this is several times less than r·‖l‖·‖r‖, what one long
//     sum would have.
//  3. t = fl(w + δ) adds u·|t|, and computing t ± e rounds once more: u·(|t| + e).
//  4. Underflow costs η/2 per product and for each operation that computes the bound. Additions
//     never underflow.
//
// Together e = 1.01·u·‖l‖_n·‖r‖_n + 2.002·u·|t| + (r+4)·η. The 1 % pays for γ against n·u (n is at
// most 4,200 for r = 65,536, where it is 0.03 %), for the roundings in computing e, for the second
// rounding of a product S·b that is formed in float64 before it becomes a float32, and for the u·e
// of step 3; the 1 ‰ pays for the roundings of the part that grows with |t|. Whatever is not finite
// is left to the next pass.
//
// Subnormal numbers would cost some 150 cycles a vector on many processors, so that none enters on
// ordinary data. Constants of the bound are rounded up to the smallest normal number ν, which is
// more than (r+4)·η. The factors are packed in three steps:
//
//   - They are l' = l/2^a and r' = r/2^b, with a = 0 unless the largest element of L is far from 1,
//     and b likewise. With c = 2^(a+b), Σ l·r = c·Σ l'·r', and t = fl(w + c·δ'). Dividing by a
//     power of two changes no digit, and the product c·δ' is exact, or loses η/2. So 1 to 3 hold
//     for l', r' and δ', with e in units of t, and step 4 with max(1, c)·η.
//   - Elements of l' and r' below θ = 2⁻⁶³ (2⁻⁵¹¹ in float64), whose square is normal, are packed
//     as zeros. If a row has p of these and a column q, δ' lacks at most √p·θ·‖r'‖ + ‖l'‖·√q·θ.
//     That is at most λ·ρ for λ = u·‖l'‖_n + √p·θ and ρ = ‖r'‖_n + √q·θ/u, beside the
//     u·‖l'‖_n·‖r'‖_n of 1 and 2, where the norms leave these elements out: they round nothing.
//   - Where c would be below 2⁻¹²⁰ (2⁻¹⁰⁰⁰), the kernel takes 0 for it. Then t = w, and
//     λ = ‖l'‖_n + √p·θ makes e more than the whole |Δ|.
//
// So e = (1.01·c·λ + κ)·ρ + 2.002·u·|t| + max(ν, (r+5)·η·max(1, c)), where κ = ν + 2^b·√r·2⁻¹⁰⁷⁴
// keeps the bound of a row normal and pays for S·l where that underflows in float64. A row of zeros
// has the bound 0, and so has a column. The passes that follow use L and R as they were given.
//
// A kernel for BF16 need not round twice. Its values are the float32 numbers whose low 16 bits are
// zero, so that the numbers with the same high 16 bits as t have one midpoint m of two neighbours
// among them, namely with low bits 0x8000, and t − m is exact. If e < |t − m|, the exact value lies
// on the same side of m as t. The next midpoint on that side is at least 2¹⁴ ulps of t away, and
// these are more than 2⁻¹⁰·|t|. So e < min(|t − m|, 2⁻¹⁰·|t|) decides: the result is t, rounded. A
// float64 is rounded to BF16, F16 and F32 in the same way, within the range where the results are
// normal; the last bound is 2^−(p+3)·|t| for results with p bits of a fraction.
//
// The bound is never below ν, so that 16-bit results below 2⁻¹¹⁸ stay open in float32. Where an
// update is that small and many weights are as well, a block is merged in float64 as if its dtype
// were F32. That result is within its unit of the exact one, so that where both of its neighbours
// round to the same 16-bit value, this is the result; the rest goes to the second pass.
//
// The second pass forms one sum per term in float64 and multiplies it by S, which is at most
// r + K + 3 roundings for K terms. Its bound is (r + K + 3)·2⁻⁵³·‖l‖·‖r‖, in which ‖l‖·‖r‖ ≤
// ‖l‖_n·‖r‖_n/3 since every n_k is at least 3, and step 4 as above. For an F64 base it uses
// double-double arithmetic, whose bound is stated with it. The last pass is exact: sums of products
// of float64 numbers in integer arithmetic of unlimited length.
//
// # DoRA
//
// V is computed in float64, for an F64 base in double-double. Let R be the sum of the ranks, K the
// number of terms, and g = ‖S·l_i‖·‖r_j‖, the norms rounded up.
//
//  1. In float64 a product passes at most R/4 + 3K + 5 roundings: S·l, the product, two additions
//     within four products, and the additions of these sums; w + δ is one more, of at most u·(|w| +
//     g). So |v − V| ≤ e with e = ν·(g + |w|) + φ and ν = 1.01·(R/4 + 3K + 6)·u.
//  2. In double-double an addition is off by at most 6u²·(|a| + |b|) and a product by 3u² of
//     itself, which makes at most (16R + 32K + 64)·u²·(g + |w|); 1.01 times that is ν there.
//  3. φ is what underflow costs: η for S·l, times ‖r‖, and η per product and per error of a
//     product, times S. Where g = 0 no term changes the element, and e = 0.
//  4. By the triangle inequality the norm of a row is off by at most the norm of its e. That is at
//     most ν·(G + ‖w‖) + φ·√n, with G = ‖S·l_i‖·‖R‖_F, and ‖w‖ ≤ ‖V‖ + G. The sum of n squares and
//     its root, in double-double, add less than (n + 16)·2⁻¹⁰³ of the norm. Columns likewise.
//  5. With ρ the share of the norm that it may be off by, m·v/‖v‖ is off by at most (1 +
//     ρ)·|m/‖v‖|·e + (ρ + 8u)·|m·v/‖v‖|; in double-double 64u² stands for 8u.
//
// Where the numbers within that error round differently, where e is large against the norm, and
// where squares may have overflowed or vanished (a norm outside 2^±400), the element is decided
// exactly. The quotient to 256 bits decides, or it is as near as 2⁻²⁴⁰ to a number at which the
// rounding changes. That number, c, has at most 54 bits, so that it is the quotient rounded to 64
// bits, and the comparison of c²·ΣV² with (m·V)², in integers, decides.
package merge
