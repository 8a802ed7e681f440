//! Low-rank keys and values: each projection becomes two thin factors, so that a runtime caches the small latent between
//! them.
//!
//! `W ≈ B·A`, by groups of heads. The factors are found by the principal subspace of the outputs: P holds the leading
//! eigenvectors of `W M Wᵀ`, and `Ŵ = P Pᵀ W`, which is the best matrix of its rank under `tr((W − Ŵ) M (W − Ŵ)ᵀ)`; the
//! error is the sum of the eigenvalues that are dropped. M says what is known of the input:
//!
//! - nothing, M = I: the truncated singular value decomposition;
//! - the size of its channels, M = diag(mean |x| + ε): ASVD with α = ½ (Yuan et al., arXiv 2312.05821), as CSKV starts
//!   (Wang et al., arXiv 2409.10593, §2.2);
//! - its second moments, M = Σ x xᵀ: the least squared error of the outputs, the optimum that CSKV trains towards and that
//!   whitening (SVD-LLM, arXiv 2403.07378, §3.1; Palu, arXiv 2407.21118, §3.1) finds with an inverse. No inverse is taken
//!   here, so that singular moments do no harm.

mod allocate;
mod principal;
mod settings;
mod solve;
#[cfg(test)]
mod tests;

pub use allocate::{Share, allocate};
pub use principal::{Metric, energies};
pub use settings::{INFO, KEYS, Method, Ranks, Settings};
pub use solve::{Linear, Solution, channels, encode, solve};
