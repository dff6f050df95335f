// Package rank looks at updates as matrices of low rank: it extracts an adapter from a fine-tuned
// checkpoint by truncated singular value decomposition, chooses ranks, and computes the spectra of
// adapters. It knows nothing of merging.
//
// # Definitions
//
// Of an update Δ (m×n) with singular values σ₁ ≥ σ₂ ≥ …:
//
//	energy of rank k    Σ_{i≤k} σᵢ² / Σ σᵢ²                     the share of ‖Δ‖_F² that the best rank-k matrix has
//	error of rank k     √(Σ_{i>k} σᵢ²) / ‖Δ‖_F                  its distance from Δ, relative (Eckart and Young, 1936)
//	stable rank         ‖Δ‖_F² / σ₁²                            (Rudelson and Vershynin, 2007)
//	entropy rank        exp(−Σ p log p), p = σᵢ²/Σσ²            the effective rank of Roy and Vetterli (2007), of the energies
//	numerical rank      the number of σᵢ > max(m,n)·ε·σ₁        with ε the unit roundoff of the factors' dtype
//
// # Truncated decomposition
//
// [TruncatedSVD] is a block Krylov method (block Golub–Kahan–Lanczos with full reorthogonalisation:
// Golub, Luk and Overton, 1981; its convergence on any spectrum: Musco and Musco,
// arXiv:1504.05477). From a random block V₁ (n×b) it builds an orthonormal basis V of the space of
// V₁, ΔᵀΔ·V₁, (ΔᵀΔ)²·V₁ … and then takes the best approximation within it: with Y = Δ·V and the
// eigenvectors W of YᵀY = W·Λ·Wᵀ, the singular values are √Λ, the right vectors V·W and the left
// ones Y·W·Λ^(−½).
//
// Products in float32 resolve an error down to some 1e-4·‖Δ‖. Where a rule leaves less than that,
// the method starts again in float64, from the singular vectors that it has by then. The factors
// are within 0.1 % of the best ones for any error above 1e-6·‖Δ‖, before they are rounded to the
// dtype they are stored in. Rounding adds about 5e-8·‖Δ‖ for F32, 5e-4 for F16 and 3e-3 for BF16,
// as the root of the sum of squares: an error below about 1e-6·‖Δ‖ is mostly that of rounding even
// in F32.
//
// Projection makes the error known without seeing the rest of the spectrum: ‖Δ − Δ·v·vᵀ‖² = ‖Δ‖² −
// Σσ² for the k vectors v that are kept. The factors are compared with Δ once more after they have
// been rounded to the dtype they are stored in, so the error that is reported is that of what is
// written. A largest error ([MaxError]) is compared with this one as well: where rounding has used
// up a part of it, more singular values are kept, and where rounding alone costs more, the
// extraction fails.
//
// # Noise
//
// A fine-tuned checkpoint carries the rounding of what training left to the dtype that it is stored
// in: nearly white noise of variance ulp²/12 per element. Its largest singular value lies near
// s·(√m + √n), with s² the mean variance (Marchenko and Pastur, 1967); singular values below that
// edge are noise, and keeping them only copies it. The rounding of the base does not count, even
// where the base is stored in 16 bits too: training started from the values that the base holds,
// and Δ is taken from these. Where it started from others, in more bits, the edge is low, by a
// factor of up to √2, and some noise is kept.
package rank
