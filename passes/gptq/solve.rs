//! From weights and second moments to codes.

use rayon::prelude::*;

use super::{
    chunk::{self, Chunk, ROWS},
    factor::Factor,
    local::Blocks,
    loss,
    options::{Linear, Moments, Report, Solution, SolveError, SolveOptions},
    refine::Refinement,
    shared::{self, Shared},
    sweep::Sweep,
    target::{self, Correction},
};
use crate::{
    codec::{CodecError, CodedRows, Granularity, ZeroPoint, range, sparse::Mask},
    passes::{
        Deviations,
        rtn::grid::{Grid, GroupScale},
    },
};

/// Quantizes one layer. Same input, same result, whatever the number of threads.
///
/// # Errors
/// [`SolveError`] when lengths do not fit, a weight is not finite, or the codec keeps outliers.
pub fn solve(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    solve_towards(factor, moments, linear, None, options)
}

/// The same for a layer whose output is added to a stream that has already lost something: `residual` is
/// `Σ (r_dense − r) xᵀ`, `[rows, columns]`, where r is the stream before the layer's output is added.
///
/// # Errors
/// As for [`solve`].
pub fn solve_towards(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    residual: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    solve_masked(factor, moments, linear, residual, None, options)
}

/// The same for a layer of which a mask keeps some weights only: the codes of all others decode to exactly zero, and what
/// that costs is made up for by those that are kept. With no mask it is [`solve_towards`].
///
/// # Errors
/// As for [`solve`]; [`SolveError::MaskedZero`] where zero points are not whole, so that no code decodes to zero;
/// [`SolveError::Length`] for a mask of another shape.
pub fn solve_masked(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    residual: Option<&[f32]>,
    mask: Option<&Mask>,
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    if let Some(mask) = mask {
        check_mask(factor, linear, mask)?;
    }
    let corrects = check(factor, moments, linear, residual, options)?;
    let correction = Correction { drift: moments.drift, residual, share: options.drift_share };
    let target = corrects.then(|| target::corrected(factor, linear.weights, &correction));
    let prepared = Prepared::new(factor, linear, mask, options, target)?;
    Ok(prepared.job(factor, linear, options).run())
}

/// The same towards weights that a mask leaves and that are the best ones under it already: errors of the codes alone are
/// made up for. Losses are still of the difference from the linear's own weights.
///
/// # Errors
/// As for [`solve_masked`].
pub fn solve_kept(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    kept: (&Mask, Vec<f32>),
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    let (mask, target) = kept;
    check_mask(factor, linear, mask)?;
    check(factor, moments, linear, None, options)?;
    SolveError::check("weights", linear.weights.len(), target.len())?;
    let prepared = Prepared::new(factor, linear, Some(mask), options, Some(target))?;
    Ok(prepared.job(factor, linear, options).run())
}

fn check_mask(factor: &Factor, linear: &Linear, mask: &Mask) -> Result<(), SolveError> {
    SolveError::check("rows of the mask", linear.rows, mask.rows())?;
    SolveError::check("columns of the mask", factor.columns, mask.columns())?;
    if linear.codec.zero.is_float() { Err(SolveError::MaskedZero) } else { Ok(()) }
}

/// Whether the lengths fit and all numbers are finite; gives whether the target is corrected.
pub(super) fn check(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    residual: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<bool, SolveError> {
    let (rows, columns) = (linear.rows, factor.columns);
    SolveError::check("second moments' channels", columns, moments.columns)?;
    SolveError::check("weights", rows * columns, linear.weights.len())?;
    linear.codec.validate(rows, columns)?;
    if linear.codec.outliers.is_some() {
        return Err(SolveError::Outliers);
    }
    if let Some(index) = range::first_non_finite(linear.weights) {
        let (row, column) = (index / columns, index % columns);
        return Err(CodecError::NonFinite { row, column, value: linear.weights[index] }.into());
    }
    for (what, expected, list) in [("drift", columns * columns, moments.drift), ("residual", rows * columns, residual)]
    {
        SolveError::check(what, expected, list.map_or(expected, <[f32]>::len))?;
    }
    Ok(options.drift_share != 0.0 && (moments.drift.is_some() || residual.is_some()))
}

/// What all chunks of a layer need.
pub(super) struct Prepared<'a> {
    mask: Option<&'a Mask>,
    target: Option<Vec<f32>>,
    shared: Shared,
    blocks: Option<Blocks>,
}

impl<'m> Prepared<'m> {
    /// For a target, where that is not the weights themselves.
    pub(super) fn new(
        factor: &Factor,
        linear: &Linear,
        mask: Option<&'m Mask>,
        options: &SolveOptions,
        target: Option<Vec<f32>>,
    ) -> Result<Self, SolveError> {
        let columns = factor.columns;
        let values = target.as_deref().unwrap_or(linear.weights);
        if let Some(index) = range::first_non_finite(values) {
            return Err(SolveError::Target { row: index / columns, column: index % columns });
        }
        let shared = match mask {
            Some(mask) => {
                // Scales are those of what is kept.
                let mut kept = values.to_vec();
                mask.apply(&mut kept)?;
                Shared::new(linear, &kept, columns, options)?
            }
            None => Shared::new(linear, values, columns, options)?,
        };
        let width = linear.codec.group_columns(columns);
        let blocks = if options.refine { Blocks::new(factor, width) } else { None };
        Ok(Self { mask, target, shared, blocks })
    }

    pub(super) fn job<'a>(&'a self, factor: &'a Factor, linear: &'a Linear<'a>, options: &'a SolveOptions) -> Job<'a> {
        let target = self.target.as_deref().unwrap_or(linear.weights);
        Job { factor, linear, options, target, mask: self.mask, shared: &self.shared, blocks: self.blocks.as_ref() }
    }
}

/// A solved chunk.
pub(super) struct Done {
    codes: Vec<u8>,
    values: Vec<f32>,
    groups: Vec<Vec<GroupScale>>,
    report: Report,
}

/// A layer to be solved.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) factor: &'a Factor,
    pub(super) linear: &'a Linear<'a>,
    pub(super) options: &'a SolveOptions,
    pub(super) target: &'a [f32],
    mask: Option<&'a Mask>,
    shared: &'a Shared,
    pub(super) blocks: Option<&'a Blocks>,
}

impl<'a> Job<'a> {
    /// The rows from `first` on of `weights`, the layer's or its target.
    pub(super) fn start(&self, first: usize, weights: &[f32]) -> Chunk<'a> {
        let columns = self.factor.columns;
        let rows = ROWS.min(self.linear.rows - first);
        let target = &weights[first * columns..][..rows * columns];
        let mut chunk = Chunk::new(self.factor, self.linear, &self.shared.grid, first, target);
        if let Some(mask) = self.mask {
            chunk.take_mask(mask);
        }
        self.shared.put(&mut chunk);
        chunk
    }

    fn run(&self) -> Solution {
        let chunks = if self.factor.columns == 0 { 0 } else { self.linear.rows.div_ceil(ROWS) };
        let done: Vec<Done> = (0..chunks).into_par_iter().map(|index| self.chunk(index * ROWS)).collect();
        self.assemble(done)
    }

    fn chunk(&self, first: usize) -> Done {
        let given = self.start(first, self.linear.weights);
        let mut report =
            Report { loss_nearest: self.loss(&shared::nearest(&given), &given.target, &given), ..Report::default() };
        let corrected = self.corrects();
        let mut chunk = self.start(first, self.target);
        let sweep = self.sweep();
        let mut losses = sweep.run(&mut chunk);
        let mut values = chunk.values();
        report.target_loss_sweep = self.undamped(&losses, &values, &chunk);
        report.loss_sweep = (!corrected).then_some(report.target_loss_sweep);
        if self.options.refine {
            (report.rounds, losses) = self.improve(&mut chunk, losses, sweep);
            values = chunk.values();
        }
        report.target_loss_refined = self.undamped(&losses, &values, &chunk);
        report.loss_refined =
            if corrected { self.loss(&values, &given.target, &chunk) } else { report.target_loss_refined };
        Self::done(chunk, &values, report)
    }

    /// Whether the target is not the weights themselves.
    pub(super) fn corrects(&self) -> bool {
        !std::ptr::eq(self.target, self.linear.weights)
    }

    pub(super) fn sweep(&self) -> Sweep {
        Sweep { block: self.options.block_size.max(1), search_steps: self.options.search_steps }
    }

    /// A chunk whose levels are final.
    pub(super) fn done(chunk: Chunk<'a>, values: &[f32], report: Report) -> Done {
        let columns = chunk.factor.columns;
        let mut done = Done {
            codes: vec![0; chunk.rows * columns],
            values: vec![0.0; chunk.rows * columns],
            groups: Vec::new(),
            report,
        };
        chunk.codes(&mut done.codes);
        chunk::transpose_back(values, chunk.lanes, &mut done.values, columns);
        done.groups = chunk.groups;
        done
    }

    /// Refines; then, as often as asked for, sweeps again with the scales found and refines what that gives. Each row
    /// keeps the better.
    fn improve(&self, chunk: &mut Chunk<'a>, mut losses: Vec<f64>, sweep: Sweep) -> (usize, Vec<f64>) {
        let refine = |chunk: &mut Chunk<'a>, losses: &mut [f64]| {
            let (rounds, gains) =
                Refinement::new(chunk, self.blocks, losses.iter().sum()).run(self.options.refine_rounds);
            losses.iter_mut().zip(gains).for_each(|(loss, gain)| *loss -= gain);
            rounds
        };
        let mut rounds = refine(chunk, &mut losses);
        let mut changed = rounds > 0;
        for _ in 1..self.options.sweeps {
            if !changed {
                // The scales are as good as before, so another sweep would find as good as the same.
                break;
            }
            let before = Levels::of(chunk);
            let mut again = sweep.run(chunk);
            rounds += refine(chunk, &mut again);
            changed = before.keep_better(chunk, &mut losses, &again);
        }
        (rounds, losses)
    }

    /// The undamped loss of all rows from the damped one of each.
    pub(super) fn undamped(&self, losses: &[f64], values: &[f32], chunk: &Chunk) -> f64 {
        let mut total: f64 = losses[..chunk.rows].iter().sum();
        let columns = values.chunks_exact(chunk.lanes).zip(chunk.target.chunks_exact(chunk.lanes));
        for ((values, targets), added) in columns.zip(&self.factor.added) {
            for (value, target) in values.iter().zip(targets) {
                let difference = f64::from(*value) - f64::from(*target);
                total -= added * difference * difference;
            }
        }
        total
    }

    fn loss(&self, values: &[f32], target: &[f32], chunk: &Chunk) -> f64 {
        let differences: Vec<f32> = values.iter().zip(target).map(|(value, target)| value - target).collect();
        loss::undamped(self.factor, &differences, chunk.lanes)[..chunk.rows].iter().sum()
    }

    pub(super) fn assemble(&self, done: Vec<Done>) -> Solution {
        let (rows, columns) = (self.linear.rows, self.factor.columns);
        let mut coded = CodedRows { first_row: 0, rows, columns, ..CodedRows::default() };
        let mut solution = Solution {
            coded: CodedRows::default(),
            parameters: self.shared.parameters.clone(),
            dequantized: Vec::with_capacity(rows * columns),
            report: Report { loss_sweep: Some(0.0), ..Report::default() },
        };
        let mut clamped = Clamped::default();
        for (index, done) in done.into_iter().enumerate() {
            coded.codes.extend_from_slice(&done.codes);
            solution.dequantized.extend_from_slice(&done.values);
            if self.shared.height == 0 {
                for row in 0..ROWS.min(rows - index * ROWS) {
                    done.groups.iter().for_each(|group| clamped.push(&mut coded, &group[row], self.linear.grid));
                }
            }
            solution.report.add(&done.report);
        }
        if self.shared.height > 0 {
            let mut scratch = CodedRows::default();
            let tensor = self.linear.codec.granularity == Granularity::Tensor;
            let into = if tensor { &mut scratch } else { &mut coded };
            self.shared.groups.iter().for_each(|group| clamped.push(into, group, self.linear.grid));
        }
        solution.report.deviations = clamped.deviations(self.factor);
        solution.coded = coded;
        solution
    }
}

/// What a sweep found of a chunk.
pub(super) struct Levels {
    levels: Vec<f32>,
    groups: Vec<Vec<GroupScale>>,
}

impl Levels {
    pub(super) fn of(chunk: &Chunk) -> Self {
        Self { levels: chunk.levels.clone(), groups: chunk.groups.clone() }
    }

    /// Puts these back in the rows in which what the chunk has now is no better. Gives whether any row is.
    pub(super) fn keep_better(&self, chunk: &mut Chunk, losses: &mut [f64], again: &[f64]) -> bool {
        let changed = again.iter().zip(&*losses).any(|(again, loss)| again < loss);
        let lanes = chunk.lanes;
        for lane in (0..lanes).filter(|lane| again[*lane] >= losses[*lane]) {
            for place in (lane..self.levels.len()).step_by(lanes) {
                chunk.levels[place] = self.levels[place];
            }
            for (new, old) in chunk.groups.iter_mut().zip(&self.groups) {
                new[lane] = old[lane];
            }
        }
        losses.iter_mut().zip(again).for_each(|(loss, again)| *loss = loss.min(*again));
        changed
    }
}

#[derive(Default)]
struct Clamped {
    scales: u64,
    zeros: u64,
}

impl Clamped {
    fn push(&mut self, coded: &mut CodedRows, group: &GroupScale, grid: &Grid) {
        coded.scales.push(group.scale);
        if grid.zero_point() != ZeroPoint::None {
            coded.zeros.push(grid.stored_zero(group));
        }
        self.scales += u64::from(group.scale_clamped);
        self.zeros += u64::from(group.zero_clamped);
    }

    fn deviations(&self, factor: &Factor) -> Deviations {
        let counts = [
            ("scale-clamped", self.scales),
            ("zero-point-clamped", self.zeros),
            ("dead-columns", factor.dead.len() as u64),
            ("damping-raised", factor.escalations as u64),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.loss_nearest += other.loss_nearest;
        self.loss_sweep = self.loss_sweep.zip(other.loss_sweep).map(|(sum, more)| sum + more);
        self.loss_refined += other.loss_refined;
        self.target_loss_sweep += other.target_loss_sweep;
        self.target_loss_refined += other.target_loss_refined;
        self.rounds = self.rounds.max(other.rounds);
    }
}
