// Package rank turns a fine-tuned checkpoint into a LoRA adapter, and computes with adapters:
// spectra, sums, lower ranks and comparisons.
//
// Extraction takes a base, the fine-tune, and a [Rule] that chooses the rank of each layer:
//
//	e, err := rank.OpenExtraction(ctx, "base", "tuned", rank.ExtractOptions{
//		Rule: rank.MaxError(0.1, 64), // an error of at most 10 % of ‖Δ‖, and a rank of at most 64
//	})
//	…
//	adapter, report, err := e.Run(ctx)
//
// [Extraction.Run] decomposes Δ = tuned − base, tensor by tensor, and returns a source of factors
// to store with package convert. The report gives the error of the stored factors. [Spectra]
// computes the exact singular values of an adapter's updates, [Resize] lowers its ranks, [Combine]
// adds several adapters, and [Compare] compares two. None of them forms a ΔW. [TruncatedSVD]
// decomposes any [Operator].
//
// # Definitions
//
// An update Δ (m×n) has the singular values σ₁ ≥ σ₂ ≥ …
//
//	energy of rank k    Σ_{i≤k} σᵢ² / Σ σᵢ²                     the share of ‖Δ‖_F² in the best rank-k matrix
//	error of rank k     √(Σ_{i>k} σᵢ²) / ‖Δ‖_F                  its relative distance from Δ (Eckart and Young, 1936)
//	stable rank         ‖Δ‖_F² / σ₁²                            (Rudelson and Vershynin, 2007)
//	entropy rank        exp(−Σ p log p), p = σᵢ²/Σσ²            the effective rank of Roy and Vetterli (2007), of the energies
//	similarity φ(i, j)  ‖U_iᵀV_j‖_F² / min(i, j)                of the first i and j singular vectors of two updates
//	numerical rank      the number of σᵢ > max(m,n)·ε·σ₁        with ε the unit roundoff of the factors' dtype
//
// # Truncated decomposition
//
// [TruncatedSVD] is a block Krylov method: block Golub–Kahan–Lanczos with full reorthogonalisation
// (Golub, Luk and Overton, 1981), which converges on any spectrum (Musco and Musco,
// arXiv:1504.05477). From a random block V₁ (n×b) it builds an orthonormal basis V of the space of
// V₁, ΔᵀΔ·V₁, (ΔᵀΔ)²·V₁ … and takes the best approximation within it. With Y = Δ·V and the
// eigenvectors W of YᵀY = W·Λ·Wᵀ, the singular values are √Λ, the right vectors V·W and the left
// ones Y·W·Λ^(−½).
//
// Products in float32 resolve an error down to some 1e-4·‖Δ‖. If a rule wants a smaller error, the
// method restarts in float64 from the singular vectors found so far. For any error above 1e-6·‖Δ‖
// the unrounded factors are within 0.1 % of the best ones. Rounding to the stored dtype adds about
// 5e-8·‖Δ‖ for F32, 5e-4 for F16 and 3e-3 for BF16, as the root of the sum of squares. So even in
// F32 an error below about 1e-6·‖Δ‖ is mostly rounding.
//
// Projection gives the error without the rest of the spectrum: ‖Δ − Δ·v·vᵀ‖² = ‖Δ‖² − Σσ² for the k
// kept vectors v. Rounded factors are compared with Δ once more, so the report's error is the error
// of the stored factors. [MaxError] limits this error too: if rounding uses up part of it, the
// extraction keeps more singular values, and if rounding alone exceeds it, the extraction fails.
//
// # The change of a checkpoint
//
// [CompareCheckpoints] gives the singular values of the change of a matrix that hold 90 % of its
// energy, or the first 64, from the same method with a coarser tolerance: 1 % of the energy that
// they leave. The entropy rank needs all singular values. The first ones and ‖Δ‖ bound it, since
// the entropy of the rest is least if they are all as large as the last known one, and most if they
// are equal. Between the bounds it is estimated by stochastic Lanczos quadrature (Ubaru, Chen and
// Saad, 2017), for which the method already has the nodes and the weights: its first block is
// random, and energy-weighted means over it are nearly those over all of Δ. On power laws, noise,
// and low rank with noise the estimate is within 2 %, and usually within 0.5 %.
//
// # Noise
//
// A fine-tuned checkpoint contains the rounding of the trained weights to its dtype: nearly white
// noise of variance ulp²/12 per element. The largest singular value of this noise lies near
// s·(√m + √n), with s² the mean variance (Marchenko and Pastur, 1967). Singular values below that
// edge are noise, and keeping them only copies it. The base's rounding does not count, even in 16
// bits: training started from the stored values, and Δ is taken from them. If training started from
// more precise values, the edge is too low by a factor of up to √2, and some noise is kept.
package rank
