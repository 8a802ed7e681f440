//! PVQ: points of pyramids whose errors compensate each other under the second moments of the layer's input.
//!
//! Pyramid vector quantization of rotated weights (van der Ouderaa et al., 2410.16926). Vectors run along the output
//! dimension, D rows of one column, so that GPTQ's sweep over columns (2210.17323) applies as it stands: within a column
//! all errors count alike, and the nearest point is the nearest in the plain sense. Beyond the paper: scales of columns
//! are foreseen from what the sweep will have moved into them; afterwards scales and gain levels are fitted under the
//! whole H, and vectors are found anew one column after the other, with all others fixed.
//!
//! This module is the mathematics alone: it sees matrices, which are rotated already, not models.

mod chunk;
mod gains;
mod metric;
mod options;
mod refine;
mod refit;
mod scales;
mod settings;
mod solve;
mod sweep;
#[cfg(test)]
mod tests;

pub use options::{Linear, Solution, SolveOptions};
pub use settings::{INFO, KEYS, Settings};
pub use solve::{encode, solve};
