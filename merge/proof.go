package merge

// This file proves that a merge rounds every element correctly, as the package's documentation
// promises. It has no code; the kernels are in internal/kernel.
//
// # Method
//
// The kernels follow Ziv. They compute t and a bound e ≥ |t − exact|. If RN_D(t − e) and RN_D(t +
// e) have the same bits, these bits are the result, since RN_D is monotone and the exact value lies
// between. Otherwise a slower pass computes the element more precisely, and the last pass exactly.
// It remains to show that e is a bound.
//
// # Sums
//
// Let u be the unit roundoff of the arithmetic (2⁻²⁴ for float32, 2⁻⁵³ for float64), η its smallest
// positive number, and γ_n = n·u/(1−n·u). The terms of all adapters stand side by side, and loading
// multiplies S into their left factors. So there is one sum of r = Σ r_i products l_k·r_k, with
// l_k = fl(S_i·b). The kernel adds the products in chunks of 16, and then the chunks in order.
//
//  1. On its way into δ, the product of index k passes n_k roundings: one in l_k, unless every S_i
//     is a power of two; one of its own, unless multiply-add is fused; one addition each for
//     itself and the later products in its chunk; and ⌈r/16⌉ − max(1, ⌊k/16⌋) additions of chunks.
//     So δ differs from the exact Σ by at most Σ_k γ_{n_k}·|l_k·r_k|, up to underflow (Higham,
//     Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1).
//  2. Σ_k n_k·|l_k·r_k| ≤ (Σ n_k·l_k²)^½·(Σ n_k·r_k²)^½ =: ‖l‖_n·‖r‖_n (Cauchy–Schwarz): norms of
//     the rows of L and the columns of R, computed once and rounded up. n_k is at least 1, about
//     9 + r/32 in the mean, and at most 18 + r/16. One long sum would have r·‖l‖·‖r‖, several times
//     more.
//  3. t = fl(w + δ) adds u·|t|, and computing t ± e rounds once more: u·(|t| + e).
//  4. Underflow costs η/2 per product and per operation that computes the bound. Additions never
//     underflow.
//
// Together e = 1.01·u·‖l‖_n·‖r‖_n + 2.002·u·|t| + (r+4)·η. The 1 % pays for γ against n·u (n is at
// most 4,200 for r = 65,536, where it is 0.03 %), for the roundings in computing e, for the second
// rounding of a product S·b that is formed in float64 before it becomes a float32, and for the u·e
// of step 3; the 1 ‰ pays for the roundings of the part that grows with |t|. Values that are not
// finite go to the next pass.
//
// # Subnormal numbers
//
// Many processors take some 150 cycles for a vector with a subnormal number, so the kernels keep
// subnormal numbers out on ordinary data. Constants of the bound are rounded up to the smallest
// normal number ν, which is more than (r+4)·η. The factors are packed in three steps:
//
//   - They are l' = l/2^a and r' = r/2^b, with a = 0 unless the largest element of L is far from 1,
//     and b likewise. With c = 2^(a+b), Σ l·r = c·Σ l'·r', and t = fl(w + c·δ'). Dividing by a
//     power of two changes no digit, and the product c·δ' is exact, or loses η/2. So 1 to 3 hold
//     for l', r' and δ', with e in units of t, and step 4 with max(1, c)·η.
//   - Elements of l' and r' below θ = 2⁻⁶³ (2⁻⁵¹¹ in float64), whose square is normal, are packed
//     as zeros. If a row has p of them and a column q, δ' lacks at most √p·θ·‖r'‖ + ‖l'‖·√q·θ.
//     That is at most λ·ρ for λ = u·‖l'‖_n + √p·θ and ρ = ‖r'‖_n + √q·θ/u, beside the
//     u·‖l'‖_n·‖r'‖_n of 1 and 2, where the norms leave these elements out: they round nothing.
//   - Where c would be below 2⁻¹²⁰ (2⁻¹⁰⁰⁰), the kernel takes 0 for it. Then t = w, and
//     λ = ‖l'‖_n + √p·θ makes e more than the whole |Δ|.
//
// So e = (1.01·c·λ + κ)·ρ + 2.002·u·|t| + max(ν, (r+6)·η·max(1, c)), where κ = ν + 2^b·√r·2⁻¹⁰⁷⁴
// keeps the bound of a row normal and pays for S·l where that underflows in float64. A row of zeros
// has the bound 0, and so has a column. The later passes use L and R as given.
//
// # Narrow results
//
// A kernel for BF16 need not round twice. BF16 values are the float32 numbers whose low 16 bits are
// zero. Among the numbers with the same high 16 bits as t there is one midpoint m of two
// neighbours, with low bits 0x8000, and t − m is exact. If e < |t − m|, the exact value lies on the
// same side of m as t. The next midpoint on that side is at least 2¹⁴ ulps of t away, which is more
// than 2⁻¹⁰·|t|. So e < min(|t − m|, 2⁻¹⁰·|t|) decides: the result is t, rounded. A float64 is
// rounded to BF16, F16 and F32 in the same way, within the range where the results are normal; the
// last bound is 2^−(p+3)·|t| for results with p bits of a fraction.
//
// The bound is never below ν, so 16-bit results below 2⁻¹¹⁸ stay undecided in float32. Where both
// an update and many weights are that small, a block is merged in float64 as if its dtype were F32.
// That result is within its unit of the exact one. If both of its neighbours round to the same
// 16-bit value, this is the result; otherwise the second pass decides.
//
// # Decoded bases
//
// The weights of a quantised base are float64 numbers w, and the kernels for them begin with
// numbers of their arithmetic. In float64 that is w itself, and everything above holds. In float32
// it is fl(w), which differs from w by at most u·|fl(w)|, or by η/2 where it is subnormal, which
// the sixth η pays for. |fl(w)| ≤ (1 + u)·|t| + c·|δ'|, and c·|δ'| ≤ (1 + γ)·c·Σ|l'_k·r'_k|. So
// 3.003·u·|t| in place of 2.002·u·|t|, and an n_k that is larger by one, pay for the rounding of w.
// Where the kernel takes 0 for c, t is fl(w). Results are numbers of D within the arithmetic, so
// storing them rounds nothing. The later passes begin with w.
//
// # Later passes
//
// The second pass forms one sum per term in float64 and multiplies it by S, which is at most r + K
// + 3 roundings for K terms. Its bound is (r + K + 3)·2⁻⁵³·‖l‖·‖r‖, in which ‖l‖·‖r‖ ≤ ‖l‖_n·‖r‖_n
// since every n_k is at least 1, and step 4 as above. If every S_i is a power of two and no element
// was packed as zero, c·Σ l'·r' is the same sum without any rounding. This pass then takes l' and
// r', which the kernel has just used, and the bound holds as well.
//
// For an F64 base the second pass uses double-double arithmetic, whose bound is stated with it. The
// last pass is exact: it adds products of float64 numbers in integer arithmetic of unlimited
// length.
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
//     itself. Together that is at most (16R + 32K + 64)·u²·(g + |w|); 1.01 times that is ν there.
//  3. φ is the cost of underflow: η for S·l, times ‖r‖, and η per product and per error of a
//     product, times S. Where g = 0 no term changes the element, and e = 0.
//  4. By the triangle inequality the norm of a row is off by at most the norm of its e. That is at
//     most ν·(G + ‖w‖) + φ·√n, with G = ‖S·l_i‖·‖R‖_F, and ‖w‖ ≤ ‖V‖ + G. The sum of n squares and
//     its root, in double-double, add less than (n + 16)·2⁻¹⁰³ of the norm. Columns likewise.
//  5. With ρ the share of the norm that it may be off by, m·v/‖v‖ is off by at most (1 +
//     ρ)·|m/‖v‖|·e + (ρ + 8u)·|m·v/‖v‖|; in double-double 64u² stands for 8u.
//
// # Updates that are no thin products
//
// The kernel of DoRA also takes rows of such a ΔW, with a bound M on their elements and a bound D
// on the errors that package delta made in them, which it states with each form. They are added to
// the same sum: M joins g in step 1, and D the e. In a norm they add at most (2ν·M + D)·√n. For an
// F64 base D is that of float64 arithmetic, so that most elements are decided exactly. Without
// magnitudes m/‖V‖ is 1.
//
// # Undecided elements of DoRA
//
// An element is decided exactly if the numbers within that error round differently, if e is large
// against the norm, or if squares may have overflowed or vanished (a norm outside 2^±400). The
// quotient to 256 bits decides, unless it is within 2⁻²⁴⁰ of a number c at which the rounding
// changes. c has at most 54 bits, so it is the quotient rounded to 64 bits. The comparison of
// c²·ΣV² with (m·V)², in integers, then decides.
