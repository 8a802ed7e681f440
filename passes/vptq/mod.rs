//! VPTQ: vectors of consecutive rows stored as indices of centroids, errors compensated under the second moments of the
//! layer's input.
//!
//! Liu et al., "VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models" (2409.17066): weighted
//! k-means for the codebooks, a sweep over the columns as in GPTQ, a residual codebook, columns apart. Beyond the paper:
//! norm goes with H (the public code compensates in normalized space with the H of the other); both stages are searched
//! together; afterwards centroids, by conjugate gradients, and codes, by coordinate descent, are improved in turn under
//! the whole H; and the target may be corrected for what the blocks before have lost, as in `gptq`.
//!
//! This module is the mathematics alone: it sees matrices, not models.

mod book;
mod choose;
mod descent;
mod kernel;
mod kmeans;
mod options;
mod problem;
mod random;
mod refit;
mod settings;
mod solve;
mod sweep;
#[cfg(test)]
mod tests;

pub use choose::{KERNEL_INDEX_BITS, choose};
pub use options::{Linear, Solution, SolveOptions};
pub use settings::{INFO, KEYS, Settings};
pub use solve::{solve, solve_nearest, solve_stacked, solve_towards};

/// What the benchmark of the search measures.
#[doc(hidden)]
pub mod bench {
    pub use super::kernel::{LANES, Winners, nearest, nearest_several, with_norms};
}
