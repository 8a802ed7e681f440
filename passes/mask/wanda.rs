//! Wanda: magnitude times the norm of the input (Sun et al., 2306.11695, equation 1), compared within each group.

use super::{Mask, Pattern, magnitude::by_scores};
use crate::passes::gptq::{Moments, SolveError};

/// The mask that keeps the largest |w| · ‖x‖ of each group; of equal ones those of the lower columns go. Weights are
/// `[rows, columns]` row-major.
///
/// # Errors
/// [`SolveError::Length`], [`SolveError::NotFinite`]; [`SolveError::Codec`] as for [`super::magnitude`].
pub fn wanda(weights: &[f32], rows: usize, moments: &Moments, pattern: Pattern) -> Result<Mask, SolveError> {
    let columns = moments.columns;
    SolveError::check("second moments", columns * columns, moments.hessian.len())?;
    let moment = |column: usize| moments.hessian[column * columns + column].max(0.0);
    if let Some(column) = (0..columns).find(|column| !moment(*column).is_finite()) {
        return Err(SolveError::NotFinite { row: column, column });
    }
    // Any common factor will do; this one keeps the products within F32.
    let largest = (0..columns).map(moment).fold(0.0, f64::max);
    let scale = if largest > 0.0 { 1.0 / largest } else { 0.0 };
    let norms: Vec<f32> = (0..columns).map(|column| (moment(column) * scale).sqrt() as f32).collect();
    Ok(by_scores(weights, rows, columns, pattern, |column, weight| weight.abs() * norms[column])?)
}
