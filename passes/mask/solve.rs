//! From weights and second moments to a mask and the weights that it keeps.

use rayon::prelude::*;

use super::{
    Criterion, Mask, MaskOptions, Pattern, Report, Solution, magnitude::magnitude, refit::Refit, rows::Rows,
    search::Search, sparse_gpt::Sweep, wanda::wanda,
};
use crate::{
    codec::{CodecError, range},
    passes::{
        Deviations,
        gptq::{
            Factor, Moments, Order, SolveError,
            chunk::ROWS,
            loss,
            target::{self, Correction},
        },
    },
};

/// The factor that [`solve`] needs, shared by all layers of an input.
///
/// # Errors
/// As for [`Factor::new`]; [`SolveError::Codec`] for an impossible pattern.
pub fn factor(moments: &Moments, options: &MaskOptions) -> Result<Factor, SolveError> {
    options.pattern.validate()?;
    Factor::grouped(moments, options.damping, Order::Activation, options.pattern.of)
}

/// Masks one layer. Same input, same result, whatever the number of threads.
///
/// `weights` is `[rows, columns]` row-major. `residual` is `Σ (r_dense − r) xᵀ`, `[rows, columns]`, for a layer whose output
/// is added to a stream r that has already lost something. `given` is the mask for [`Criterion::File`].
///
/// # Errors
/// [`SolveError`] when lengths do not fit, a weight is not finite, or a mask is missing or not one of the pattern.
pub fn solve(
    factor: &Factor,
    moments: &Moments,
    (weights, rows): (&[f32], usize),
    residual: Option<&[f32]>,
    given: Option<&Mask>,
    options: &MaskOptions,
) -> Result<Solution, SolveError> {
    let (columns, pattern) = (factor.columns, options.pattern);
    SolveError::check("second moments' channels", columns, moments.columns)?;
    SolveError::check("weights", rows * columns, weights.len())?;
    for (what, expected, list) in [("drift", columns * columns, moments.drift), ("residual", rows * columns, residual)]
    {
        SolveError::check(what, expected, list.map_or(expected, <[f32]>::len))?;
    }
    let by_magnitude = magnitude(weights, rows, columns, pattern)?;
    let mask = match options.criterion {
        Criterion::Magnitude => Some(by_magnitude.clone()),
        Criterion::Wanda => Some(wanda(weights, rows, moments, pattern)?),
        Criterion::File => {
            let mask = given.ok_or(CodecError::Missing { what: "mask" })?;
            SolveError::check("rows of the mask", rows, mask.rows())?;
            SolveError::check("columns of the mask", columns, mask.columns())?;
            SolveError::check("weights kept of each group", pattern.keep, mask.pattern().keep)?;
            SolveError::check("weights of each group", pattern.of, mask.pattern().of)?;
            Some(mask.clone())
        }
        Criterion::SparseGpt | Criterion::Search => None,
    };
    let changes = options.changes_weights();
    let correction = Correction { drift: moments.drift, residual, share: options.drift_share };
    let corrects = changes && options.drift_share != 0.0 && (moments.drift.is_some() || residual.is_some());
    let target = corrects.then(|| target::corrected(factor, weights, &correction));
    let target = target.as_deref().unwrap_or(weights);
    if let Some(index) = range::first_non_finite(target) {
        return Err(SolveError::Target { row: index / columns, column: index % columns });
    }
    let job = Job {
        factor,
        options,
        weights,
        target,
        by_magnitude: &by_magnitude,
        mask: mask.as_ref(),
        sweep: changes.then(|| Sweep::new(factor, pattern, options.block_size)),
        search: (options.criterion == Criterion::Search).then(|| Search::new(factor, pattern)),
    };
    let chunks = if columns == 0 { 0 } else { rows.div_ceil(ROWS) };
    let done: Vec<Done> = (0..chunks).into_par_iter().map(|index| job.chunk(index * ROWS)).collect();
    job.assemble(rows, done)
}

struct Job<'a> {
    factor: &'a Factor,
    options: &'a MaskOptions,
    weights: &'a [f32],
    target: &'a [f32],
    by_magnitude: &'a Mask,
    mask: Option<&'a Mask>,
    sweep: Option<Sweep>,
    search: Option<Search>,
}

/// tr(Δ H Δᵀ) with the undamped H, where Δ is the difference of two matrices, `[rows, columns]` row-major.
///
/// # Errors
/// [`SolveError::Length`].
pub fn loss(factor: &Factor, weights: &[f32], others: &[f32], rows: usize) -> Result<f64, SolveError> {
    let columns = factor.columns;
    SolveError::check("weights", rows * columns, weights.len())?;
    SolveError::check("weights", rows * columns, others.len())?;
    if columns == 0 {
        return Ok(0.0);
    }
    let chunks = weights.par_chunks(ROWS * columns).zip(others.par_chunks(ROWS * columns));
    let losses: Vec<f64> = chunks
        .map(|(weights, others)| {
            let differences: Vec<f32> = others.iter().zip(weights).map(|(other, weight)| other - weight).collect();
            let rows = Rows::new(factor, Pattern::TWO_OF_FOUR, &differences);
            loss::undamped(factor, &rows.target, rows.lanes)[..rows.count].iter().sum()
        })
        .collect();
    Ok(losses.iter().sum())
}

/// A solved chunk.
struct Done {
    weights: Vec<f32>,
    bits: Vec<u8>,
    report: Report,
}

impl Job<'_> {
    fn chunk(&self, first: usize) -> Done {
        let columns = self.factor.columns;
        let range = first * columns..self.weights.len().min((first + ROWS) * columns);
        let mut plain = Rows::new(self.factor, self.options.pattern, &self.weights[range.clone()]);
        let given = plain.target.clone();
        plain.take_mask(self.by_magnitude, first);
        let mut report = Report { loss_magnitude: self.loss(&masked(&plain), &given, &plain), ..Report::default() };

        let mut rows = Rows::new(self.factor, self.options.pattern, &self.target[range]);
        if let Some(mask) = self.mask {
            rows.take_mask(mask, first);
            rows.values = masked(&rows);
        }
        match (&self.sweep, self.mask) {
            (Some(sweep), None) => sweep.run(&mut rows, false),
            // With the mask fixed, the sweep gives the refit a start.
            (Some(sweep), Some(_)) => sweep.run(&mut rows, true),
            (None, _) => {}
        }
        report.target_loss_selected = self.loss(&rows.values, &rows.target, &rows);
        let refit = Refit { tolerance: self.options.tolerance, steps: self.options.refit_steps };
        if self.options.refit {
            report.steps += refit.run(&mut rows);
        }
        if let Some(search) = &self.search {
            for _ in 0..self.options.search_rounds {
                let changed = search.round(&mut rows);
                report.changed += changed;
                if self.options.refit {
                    report.steps += refit.run(&mut rows);
                }
                // A last mask in a hundred is not worth the time of another round.
                if changed * 200 < rows.kept.len() as u64 {
                    break;
                }
            }
        }
        report.target_loss = self.loss(&rows.values, &rows.target, &rows);
        report.loss = self.loss(&rows.values, &given, &rows);
        Done { weights: rows.weights(), bits: rows.mask_bits(), report }
    }

    /// The undamped loss of all rows.
    fn loss(&self, values: &[f32], target: &[f32], rows: &Rows) -> f64 {
        let differences: Vec<f32> = values.iter().zip(target).map(|(value, target)| value - target).collect();
        loss::undamped(self.factor, &differences, rows.lanes)[..rows.count].iter().sum()
    }

    fn assemble(&self, rows: usize, done: Vec<Done>) -> Result<Solution, SolveError> {
        let (columns, pattern) = (self.factor.columns, self.options.pattern);
        let mut weights = Vec::with_capacity(rows * columns);
        let mut bits = Vec::with_capacity(rows * Mask::row_bytes(columns));
        let mut report = Report { dense_columns: columns - pattern.whole_columns(columns), ..Report::default() };
        for done in done {
            weights.extend_from_slice(&done.weights);
            bits.extend_from_slice(&done.bits);
            report.add(&done.report);
        }
        let counts =
            [("dead-columns", self.factor.dead.len() as u64), ("damping-raised", self.factor.escalations as u64)];
        report.deviations = counts.into_iter().filter(|(_, count)| *count > 0).collect::<Deviations>();
        Ok(Solution { weights, mask: Mask::new(pattern, rows, columns, bits)?, report })
    }
}

/// The target with what is not kept made zero.
fn masked(rows: &Rows) -> Vec<f32> {
    let mut values = rows.target.clone();
    rows.clear(&mut values);
    values
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.loss_magnitude += other.loss_magnitude;
        self.loss += other.loss;
        self.target_loss_selected += other.target_loss_selected;
        self.target_loss += other.target_loss;
        self.steps = self.steps.max(other.steps);
        self.changed += other.changed;
    }
}
