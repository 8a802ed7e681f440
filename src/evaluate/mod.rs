//! Figures of merit.

mod error_figures;

pub use error_figures::{ErrorFigures, ErrorSums, measure};
