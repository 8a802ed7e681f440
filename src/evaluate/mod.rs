//! Figures of merit.

mod compare;
mod error_figures;
mod figure;
mod model;
mod sparsity;
mod statistics;
mod stripes;
#[cfg(test)]
mod test_matrix;

pub use compare::compare;
pub use error_figures::{ErrorFigures, ErrorSums, measure};
pub use figure::Figure;
pub use model::{Comparison, Evaluated, ModelFigures, Windows, evaluate_model};
pub use sparsity::{Excess, Sparsity, excess};
pub use statistics::{HISTOGRAM_BINS, Histogram, OUTLIER_SIGMAS, Statistics};
pub use stripes::map_stripes;
