//! The same solver with a graphics processor for the products of large matrices: the correction of the target, the errors of
//! a block of columns reaching all those after it, the gradients of refinement, the losses. What looks at single columns
//! stays on the processor: the search for scales, the sweep within a block, and the descent over codes; so scales and codes
//! follow the same rules, and only roundings of sums differ.
//!
//! Matrices on the device have a row for each column of the layer and, side by side, the rows of all chunks of a band, as
//! chunks have them: so blocks and panels of columns are contiguous there.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    chunk::{Chunk, ROWS},
    factor::Factor,
    options::{Linear, Moments, Report, Solution, SolveError, SolveOptions},
    refine::Refinement,
    shared,
    solve::{Done, Job, Levels, Prepared, check},
    sweep::{Running, Sweep},
};
use crate::compute::{
    ComputeError, Device,
    kernels::{DeviceMatrix, Product, View},
};

/// Weights of the rows that are worked on together: what bounds the memory of both sides.
const BAND: usize = 1 << 24;
/// Matrices of a band's size that are on the device at a time, at most.
const COPIES: usize = 4;
const PLAIN: Product = Product { left_transposed: false, right_transposed: false, alpha: 1.0, beta: 0.0 };

/// Rows of a band.
fn band_rows(columns: usize) -> usize {
    (BAND / columns.max(1) / ROWS * ROWS).max(ROWS)
}

/// As [`super::solve_towards`], with a device. `None` where its memory does not hold the factor beside H and a band of rows.
///
/// # Errors
/// [`ComputeError`] when the device fails; inside of it what [`super::solve_towards`] fails with.
pub fn solve_on(
    device: &Device,
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    residual: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Option<Result<Solution, SolveError>>, ComputeError> {
    let (rows, columns) = (linear.rows, factor.columns);
    let squares = 2 + u64::from(moments.drift.is_some());
    let square = 4 * (columns as u64).pow(2);
    let band = 4 * (band_rows(columns).min(rows.next_multiple_of(ROWS)) * columns) as u64;
    let (used, budget) = device.memory_bytes();
    let needed = squares * square + COPIES as u64 * band;
    if columns == 0 || rows == 0 || needed > budget.saturating_sub(used) || square > device.limits().buffer_bytes {
        return Ok(None);
    }
    let corrects = match check(factor, moments, linear, residual, options) {
        Ok(corrects) => corrects,
        Err(error) => return Ok(Some(Err(error))),
    };
    let upper = DeviceMatrix::upload(device, "factor", columns, &factor.upper)?;
    let target = if corrects {
        Some(corrected(device, factor, &upper, linear, moments.drift, residual, options.drift_share)?)
    } else {
        None
    };
    let prepared = match Prepared::new(factor, linear, options, target) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(Some(Err(error))),
    };
    let job = prepared.job(factor, linear, options);
    let hessian = DeviceMatrix::upload(device, "second moments", columns, &factor.hessian)?;
    let tools = Tools { device, job, upper, hessian };
    let mut done = Vec::new();
    for first in (0..rows).step_by(band_rows(columns)) {
        done.extend(tools.band(first..rows.min(first + band_rows(columns)))?);
    }
    Ok(Some(Ok(job.assemble(done))))
}

/// The target of [`super::target::corrected`]: W + share · (W D + R) H⁻¹, band by band.
fn corrected(
    device: &Device,
    factor: &Factor,
    upper: &DeviceMatrix,
    linear: &Linear,
    drift: Option<&[f32]>,
    residual: Option<&[f32]>,
    share: f64,
) -> Result<Vec<f32>, ComputeError> {
    let (columns, permutation) = (factor.columns, &factor.permutation);
    // Columns in the order of the sweep.
    let ordered = |rows: &[f32]| -> Vec<f32> {
        let rows = rows.par_chunks_exact(columns);
        rows.flat_map_iter(|row| permutation.iter().map(|column| row[*column])).collect()
    };
    let drift = drift.map(|drift| DeviceMatrix::upload(device, "drift", columns, &ordered(drift))).transpose()?;
    let mut target = linear.weights.to_vec();
    let height = band_rows(columns);
    let mut is_dead = vec![false; columns];
    factor.dead.iter().for_each(|column| is_dead[*column] = true);
    for (index, rows) in target.chunks_mut(height * columns).enumerate() {
        let count = rows.len() / columns;
        let missed = match residual {
            Some(residual) => {
                let residual = &residual[index * height * columns..][..rows.len()];
                DeviceMatrix::upload(device, "missed", columns, &ordered(residual))?
            }
            None => DeviceMatrix::zeros(device, "missed", count, columns)?,
        };
        let mut batch = device.batch();
        let weights = DeviceMatrix::upload(device, "weights", columns, rows)?;
        if let Some(drift) = &drift {
            let product = Product { beta: 1.0, ..PLAIN };
            product.add(device, &mut batch, &weights.view(), &drift.view(), &missed.view())?;
        }
        // By H⁻¹ = Uᵀ U; the weights are not needed any more.
        let half = DeviceMatrix::zeros(device, "half solved", count, columns)?;
        Product::TRANSPOSED.add(device, &mut batch, &missed.view(), &upper.view(), &half.view())?;
        let product = Product { alpha: share as f32, ..PLAIN };
        product.add(device, &mut batch, &half.view(), &upper.view(), &missed.view())?;
        batch.submit()?;
        let solved = missed.download(device)?;
        rows.par_chunks_exact_mut(columns).zip(solved.par_chunks_exact(columns)).for_each(|(row, solved)| {
            // Nothing is known of dead channels.
            for (column, value) in row.iter_mut().enumerate().filter(|(column, _)| !is_dead[*column]) {
                *value += solved[factor.places[column]];
            }
        });
    }
    Ok(target)
}

struct Tools<'a> {
    device: &'a Device,
    job: Job<'a>,
    upper: DeviceMatrix,
    hessian: DeviceMatrix,
}

/// Lists of chunks side by side: `[count, Σ lanes]`.
fn join<'l>(lists: impl Iterator<Item = (&'l [f32], usize)>, count: usize) -> (Vec<f32>, usize) {
    let lists: Vec<(&[f32], usize)> = lists.collect();
    let width: usize = lists.iter().map(|(_, lanes)| lanes).sum();
    let mut all = vec![0.0; count * width];
    all.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(place, row)| {
        let mut first = 0;
        for (list, lanes) in &lists {
            row[first..first + lanes].copy_from_slice(&list[place * lanes..][..*lanes]);
            first += lanes;
        }
    });
    (all, width)
}

/// The part of one chunk, whose first lane is `first`.
fn part(all: &[f32], width: usize, first: usize, lanes: usize, out: &mut [f32]) {
    for (out, row) in out.chunks_exact_mut(lanes).zip(all.chunks_exact(width)) {
        out.copy_from_slice(&row[first..first + lanes]);
    }
}

/// The first lane of each chunk.
fn firsts(lanes: impl Iterator<Item = usize>) -> Vec<usize> {
    lanes.scan(0, |next, lanes| Some(std::mem::replace(next, *next + lanes))).collect()
}

impl<'a> Tools<'a> {
    /// Solves some rows.
    fn band(&self, rows: Range<usize>) -> Result<Vec<Done>, ComputeError> {
        let job = &self.job;
        let starts: Vec<usize> = rows.step_by(ROWS).collect();
        let given: Vec<Chunk<'a>> = starts.par_iter().map(|first| job.start(*first, job.linear.weights)).collect();
        let nearest: Vec<Vec<f32>> = given.par_iter().map(shared::nearest).collect();
        let mut reports: Vec<Report> = self
            .losses(&nearest, &given)?
            .into_iter()
            .map(|loss_nearest| Report { loss_nearest, ..Report::default() })
            .collect();
        drop(nearest);
        let given = if job.corrects() { given } else { Vec::new() };
        let mut chunks: Vec<Chunk<'a>> = starts.par_iter().map(|first| job.start(*first, job.target)).collect();
        let mut all: Vec<&mut Chunk<'a>> = chunks.iter_mut().collect();
        let mut losses = self.sweep(&mut all)?;
        for ((report, chunk), losses) in reports.iter_mut().zip(&chunks).zip(&losses) {
            report.target_loss_sweep = job.undamped(losses, &chunk.values(), chunk);
            report.loss_sweep = (!job.corrects()).then_some(report.target_loss_sweep);
        }
        if job.options.refine {
            for (report, rounds) in reports.iter_mut().zip(self.improve(&mut chunks, &mut losses)?) {
                report.rounds = rounds;
            }
        }
        let values: Vec<Vec<f32>> = chunks.par_iter().map(Chunk::values).collect();
        let against_given = if job.corrects() { Some(self.losses(&values, &given)?) } else { None };
        let mut done = Vec::with_capacity(chunks.len());
        for (index, (chunk, mut report)) in chunks.into_iter().zip(reports).enumerate() {
            report.target_loss_refined = job.undamped(&losses[index], &values[index], &chunk);
            report.loss_refined = against_given.as_ref().map_or(report.target_loss_refined, |losses| losses[index]);
            done.push(Job::done(chunk, &values[index], report));
        }
        Ok(done)
    }

    /// d H dᵀ of the rows of each chunk with the undamped H, where d is values less the chunk's target.
    fn losses(&self, values: &[Vec<f32>], chunks: &[Chunk<'a>]) -> Result<Vec<f64>, ComputeError> {
        let factor = self.job.factor;
        let columns = factor.columns;
        let differences: Vec<Vec<f32>> = values
            .par_iter()
            .zip(chunks)
            .map(|(values, chunk)| values.iter().zip(&chunk.target).map(|(value, target)| value - target).collect())
            .collect();
        let lanes = || chunks.iter().map(|chunk| chunk.lanes);
        let (all, width) = join(differences.iter().map(Vec::as_slice).zip(lanes()), columns);
        let there = DeviceMatrix::upload(self.device, "differences", width, &all)?;
        drop(all);
        let product = self.gradient(&there, 0..columns)?;
        let firsts = firsts(lanes());
        let losses = differences.par_iter().zip(chunks).zip(firsts).map(|((differences, chunk), first)| {
            let mut total = 0.0;
            for (column, differences) in differences.chunks_exact(chunk.lanes).enumerate() {
                let products = &product[column * width + first..][..chunk.rows];
                for (difference, product) in differences.iter().zip(products) {
                    let difference = f64::from(*difference);
                    total += difference * f64::from(*product) - factor.added[column] * difference * difference;
                }
            }
            total
        });
        Ok(losses.collect())
    }

    /// H times the differences, for some columns, `[columns, Σ lanes]`.
    fn gradient(&self, differences: &DeviceMatrix, range: Range<usize>) -> Result<Vec<f32>, ComputeError> {
        let out = DeviceMatrix::zeros(self.device, "gradient", range.len(), differences.columns)?;
        let mut batch = self.device.batch();
        let rows = self.hessian.part(range, 0..self.hessian.columns);
        PLAIN.add(self.device, &mut batch, &rows, &differences.view(), &out.view())?;
        batch.submit()?;
        out.download(self.device)
    }

    /// [`Sweep::run`] for all chunks: each row's loss.
    fn sweep(&self, chunks: &mut [&mut Chunk<'a>]) -> Result<Vec<Vec<f64>>, ComputeError> {
        let (device, columns, sweep) = (self.device, self.job.factor.columns, self.job.sweep());
        let mut running: Vec<Running> = chunks.par_iter().map(|chunk| sweep.start(chunk)).collect();
        let lanes: Vec<usize> = chunks.iter().map(|chunk| chunk.lanes).collect();
        let firsts = firsts(lanes.iter().copied());
        let (all, width) = join(running.iter().map(|running| &running.work[..]).zip(lanes.iter().copied()), columns);
        let work = DeviceMatrix::upload(device, "work", width, &all)?;
        drop(all);
        let row_bytes = 4 * width as u64;
        for block in sweep.blocks(columns) {
            if block.start > 0 {
                let mut pairs = chunks.iter().zip(&running);
                let begins = pairs.any(|(chunk, running)| Sweep::begins_group(chunk, running, block.clone()));
                let end = if begins { columns } else { block.end };
                let bytes = (end - block.start) as u64 * row_bytes;
                let now = device.read_later(&work.buffer, block.start as u64 * row_bytes, bytes)?.wait()?;
                let now: Vec<f32> = bytemuck::pod_collect_to_vec(&now);
                running.par_iter_mut().zip(&lanes).zip(&firsts).for_each(|((running, lanes), first)| {
                    let out = &mut running.work[block.start * lanes..end * lanes];
                    part(&now, width, *first, *lanes, out);
                });
            }
            chunks.par_iter_mut().zip(&mut running).for_each(|(chunk, running)| {
                sweep.block(chunk, running, block.clone());
            });
            if block.end < columns {
                let errors = running.iter().map(|running| &running.errors[..]).zip(lanes.iter().copied());
                let (errors, _) = join(errors, block.len());
                let errors = DeviceMatrix::upload(device, "errors", width, &errors)?;
                let rest = block.end..columns;
                let take_away = Product { left_transposed: true, alpha: -1.0, beta: 1.0, ..PLAIN };
                let upper: View<'_> = self.upper.part(block.clone(), rest.clone());
                let mut batch = device.batch();
                take_away.add(device, &mut batch, &upper, &errors.view(), &work.part(rest, 0..width))?;
                batch.submit()?;
            }
        }
        Ok(running.into_iter().map(|running| running.losses).collect())
    }

    /// Refines all chunks; then sweeps and refines again those that gained by it, as often as asked for. Gives the rounds of
    /// each.
    fn improve(&self, chunks: &mut [Chunk<'a>], losses: &mut [Vec<f64>]) -> Result<Vec<usize>, ComputeError> {
        let mut all: Vec<&mut Chunk<'a>> = chunks.iter_mut().collect();
        let mut rounds = self.refine(&mut all, losses)?;
        drop(all);
        let mut changed: Vec<bool> = rounds.iter().map(|rounds| *rounds > 0).collect();
        for _ in 1..self.job.options.sweeps {
            let places: Vec<usize> = (0..chunks.len()).filter(|place| changed[*place]).collect();
            if places.is_empty() {
                break;
            }
            let mut some: Vec<&mut Chunk<'a>> =
                chunks.iter_mut().zip(&changed).filter_map(|(chunk, changed)| changed.then_some(chunk)).collect();
            let before: Vec<Levels> = some.iter().map(|chunk| Levels::of(chunk)).collect();
            let mut again = self.sweep(&mut some)?;
            let more = self.refine(&mut some, &mut again)?;
            for (index, place) in places.into_iter().enumerate() {
                rounds[place] += more[index];
                changed[place] = before[index].keep_better(some[index], &mut losses[place], &again[index]);
            }
        }
        Ok(rounds)
    }

    /// Rounds of refinement of all chunks at the same time; each stops when it gains no more. Takes the gains off the losses
    /// and gives the rounds of each.
    fn refine(&self, chunks: &mut [&mut Chunk<'a>], losses: &mut [Vec<f64>]) -> Result<Vec<usize>, ComputeError> {
        let columns = self.job.factor.columns;
        let lanes: Vec<usize> = chunks.iter().map(|chunk| chunk.lanes).collect();
        let firsts = firsts(lanes.iter().copied());
        let blocks = self.job.blocks;
        let mut works: Vec<Refinement<'_, 'a>> = chunks
            .iter_mut()
            .zip(&*losses)
            .map(|(chunk, losses)| Refinement::new(chunk, blocks, losses.iter().sum()))
            .collect();
        let (all, width) = join(works.iter().map(Refinement::differences).zip(lanes.iter().copied()), columns);
        let there = DeviceMatrix::upload(self.device, "differences", width, &all)?;
        drop(all);
        // Brings what has changed in some columns up again.
        let update = |works: &[Refinement<'_, 'a>], range: Range<usize>| -> Result<(), ComputeError> {
            let lists = works
                .iter()
                .zip(&lanes)
                .map(|(work, lanes)| (&work.differences()[range.start * lanes..range.end * lanes], *lanes));
            let (changed, _) = join(lists, range.len());
            self.device.write(&there.buffer, (4 * range.start * width) as u64, bytemuck::cast_slice(&changed))
        };
        let own = |gradient: &[f32], index: usize, from: usize, count: usize| {
            let mut own = vec![0.0; count * lanes[index]];
            part(&gradient[from * width..], width, firsts[index], lanes[index], &mut own);
            own
        };
        let mut rounds = vec![0; works.len()];
        let mut going = vec![true; works.len()];
        for round in 0..self.job.options.refine_rounds {
            let before: Vec<f64> = works.iter().map(Refinement::gained).collect();
            let (groups, panels) = match works.first() {
                Some(first) if going.contains(&true) => (first.rescaled_groups(), first.panels()),
                _ => break,
            };
            for group in groups {
                let range = works[0].columns_of(group);
                let gradient = self.gradient(&there, range.clone())?;
                works.par_iter_mut().enumerate().filter(|(index, _)| going[*index]).for_each(|(index, work)| {
                    work.rescale(group, |_, some| own(&gradient, index, some.start - range.start, some.len()));
                });
                update(&works, range)?;
            }
            for panel in panels {
                let gradient = self.gradient(&there, panel.clone())?;
                works.par_iter_mut().enumerate().filter(|(index, _)| going[*index]).for_each(|(index, work)| {
                    work.panel(round, panel.clone(), &mut own(&gradient, index, 0, panel.len()));
                });
                update(&works, panel)?;
            }
            for (index, work) in works.iter().enumerate() {
                going[index] = going[index] && work.is_worth_another(before[index]);
                rounds[index] += usize::from(going[index]);
            }
        }
        for (losses, work) in losses.iter_mut().zip(works) {
            losses.iter_mut().zip(work.gains()).for_each(|(loss, gain)| *loss -= gain);
        }
        Ok(rounds)
    }
}
