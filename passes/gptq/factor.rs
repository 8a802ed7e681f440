//! The triangular factor of H⁻¹ that the sweep compensates errors with.

use rayon::prelude::*;

use super::{
    options::{Moments, Order, SolveError, SolveOptions},
    triangular,
};
use crate::linalg::DecompositionError;

/// Second moments below this share of their mean are those of a dead channel.
const DEAD: f64 = 1e-10;
/// Damping to escalate from where none was asked for.
const LEAST_DAMPING: f64 = 1e-6;
/// Times that damping is multiplied by ten; H is finite, so that far fewer suffice.
const ESCALATIONS: usize = 24;

/// What all linear layers of one input share: H⁻¹ = Uᵀ U, permuted and damped.
#[derive(Debug, Clone)]
pub struct Factor {
    /// Channels.
    pub(in crate::passes) columns: usize,
    /// The original column at each place of the sweep.
    pub(in crate::passes) permutation: Vec<usize>,
    /// The place of each column in the sweep.
    pub(in crate::passes) places: Vec<usize>,
    /// U, upper triangular, `[columns, columns]` row-major, in the order of the sweep.
    pub(in crate::passes) upper: Vec<f32>,
    /// H damped, `[columns, columns]`, in the original order; dead channels have no moments but their diagonal.
    pub(in crate::passes) hessian: Vec<f32>,
    /// What was added to each diagonal element, in the original order; for dead channels the whole element.
    pub(in crate::passes) added: Vec<f64>,
    /// Dead channels, ascending.
    pub(in crate::passes) dead: Vec<usize>,
    /// The damping used, as a share of the mean diagonal.
    pub(in crate::passes) damping: f64,
    /// How often damping had to be multiplied by ten.
    pub(in crate::passes) escalations: usize,
}

impl Factor {
    /// Factors the second moments. Memory beside them: 12 bytes per element of H, 8 of them only while it runs.
    ///
    /// # Errors
    /// [`SolveError::Length`]; [`SolveError::NotFinite`]. A singular H is no error: it is damped more.
    pub fn new(moments: &Moments, options: &SolveOptions) -> Result<Self, SolveError> {
        let columns = moments.columns;
        let hessian = moments.hessian;
        SolveError::check("second moments", columns * columns, hessian.len())?;
        if let Some(drift) = moments.drift {
            SolveError::check("drift", columns * columns, drift.len())?;
            refuse_non_finite(drift, columns, f32::is_finite)?;
        }
        refuse_non_finite(hessian, columns, f64::is_finite)?;

        let diagonal: Vec<f64> = (0..columns).map(|column| hessian[column * columns + column]).collect();
        let mean = diagonal.iter().sum::<f64>() / columns.max(1) as f64;
        let is_dead: Vec<bool> = diagonal.iter().map(|moment| *moment <= DEAD * mean).collect();
        let scale = if mean > 0.0 { mean } else { 1.0 };
        let permutation = permutation(&diagonal, options.order);

        let mut factor = Self {
            columns,
            permutation: Vec::new(),
            places: vec![0; columns],
            upper: Vec::new(),
            hessian: Vec::new(),
            added: Vec::new(),
            dead: (0..columns).filter(|column| is_dead[*column]).collect(),
            damping: options.damping.max(0.0),
            escalations: 0,
        };
        loop {
            let damping = factor.damping * scale;
            factor.added = is_dead.iter().map(|dead| if *dead { scale + damping } else { damping }).collect();
            let element = |row: usize, column: usize| {
                let moment = hessian[row * columns + column];
                match (row == column, is_dead[row] || is_dead[column]) {
                    (true, true) => factor.added[row],
                    (true, false) => moment + factor.added[row],
                    (false, true) => 0.0,
                    (false, false) => moment,
                }
            };
            match upper_of(element, &permutation, options.order) {
                Ok((upper, permutation)) => {
                    factor.upper = upper;
                    factor.permutation = permutation;
                    for (place, column) in factor.permutation.iter().enumerate() {
                        factor.places[*column] = place;
                    }
                    factor.hessian = vec![0.0; columns * columns];
                    factor.hessian.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, out)| {
                        out.iter_mut().enumerate().for_each(|(column, out)| *out = element(row, column) as f32);
                    });
                    return Ok(factor);
                }
                Err(error) if factor.escalations == ESCALATIONS => return Err(error.into()),
                Err(_) => {
                    factor.damping = (factor.damping * 10.0).max(LEAST_DAMPING);
                    factor.escalations += 1;
                }
            }
        }
    }

    /// Channels whose second moment is as good as zero; their weights are rounded to nearest.
    #[must_use]
    pub fn dead_columns(&self) -> &[usize] {
        &self.dead
    }

    /// The damping used, as a share of H's mean diagonal.
    #[must_use]
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// How often damping had to be multiplied by ten before H was positive definite.
    #[must_use]
    pub fn escalations(&self) -> usize {
        self.escalations
    }
}

/// U by way of the reversed matrix: with the rows and columns of H reversed, its lower factor's inverse, reversed
/// again, is U. So H⁻¹ is never formed. Returns the permutation used, too.
pub(in crate::passes) fn upper_of(
    element: impl Fn(usize, usize) -> f64 + Sync,
    permutation: &[usize],
    choice: Order,
) -> Result<(Vec<f32>, Vec<usize>), DecompositionError> {
    let order = permutation.len();
    let mut reversed: Vec<usize> = permutation.iter().rev().copied().collect();
    let mut lower = vec![0.0; order * order];
    lower.par_chunks_mut(order.max(1)).enumerate().for_each(|(column, out)| {
        for (row, out) in out.iter_mut().enumerate().skip(column) {
            *out = element(reversed[column], reversed[row]);
        }
    });
    if choice == Order::Conditional {
        triangular::cholesky_smallest_first(&mut lower, order, &mut reversed)?;
    } else {
        triangular::cholesky(&mut lower, order)?;
    }
    triangular::invert_lower(&mut lower, order);
    let mut upper = vec![0.0; order * order];
    let finite = upper.par_chunks_mut(order.max(1)).enumerate().all(|(row, out)| {
        for (column, out) in out.iter_mut().enumerate().skip(row) {
            *out = lower[(order - 1 - column) * order + order - 1 - row] as f32;
        }
        out.iter().all(|value| value.is_finite()) && out[row] > 0.0
    });
    reversed.reverse();
    if finite { Ok((upper, reversed)) } else { Err(DecompositionError::NotPositiveDefinite { pivot: 0 }) }
}

/// The order of the sweep, as far as it is known before.
fn permutation(diagonal: &[f64], order: Order) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..diagonal.len()).collect();
    if order != Order::None {
        // Stable: equal moments keep their order.
        columns.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    }
    columns
}

fn refuse_non_finite<T: Copy + Sync>(
    matrix: &[T],
    columns: usize,
    is_finite: impl Fn(T) -> bool + Sync,
) -> Result<(), SolveError> {
    match matrix.par_iter().position_first(|value| !is_finite(*value)) {
        Some(index) => Err(SolveError::NotFinite { row: index / columns, column: index % columns }),
        None => Ok(()),
    }
}
