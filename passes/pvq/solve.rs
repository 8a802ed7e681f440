//! From weights and second moments to stored tensors.

use rayon::prelude::*;

use super::{
    chunk::{Chunk, Found},
    gains::Levels,
    metric::Metric,
    options::{Linear, Solution, SolveOptions},
    refine::Refinement,
    refit::Refit,
    scales::{Scales, foreseen},
    sweep::Sweep,
};
use crate::{
    codec::{
        CodecError,
        pyramid::{self, Counts, Points, lanes::LANES, law},
        range,
    },
    passes::{
        Deviations,
        gptq::{
            Factor, Moments, Report, SolveError,
            target::{self, Correction},
        },
    },
};

/// Columns of a chunk from which the levels are fitted before the sweep.
const SAMPLE: usize = 64;
/// Rows of a task that sums energies.
const ROWS: usize = 256;

/// Quantizes one layer under its input's second moments. All are rotated already: for rotations P of the rows and Q of
/// the columns weights are P W Qᵀ, moments Q H Qᵀ, drift Q D Qᵀ, and `residual` P R Qᵀ, as [`crate::passes::gptq`] has
/// them. Same input, same result, whatever the number of threads.
///
/// # Errors
/// [`SolveError`] when lengths do not fit, a weight is not finite, or the format cannot hold the matrix.
pub fn solve(
    factor: &Factor,
    moments: &Moments,
    linear: &Linear,
    residual: Option<&[f32]>,
    options: &SolveOptions,
) -> Result<Solution, SolveError> {
    let (rows, columns) = (linear.rows, linear.columns);
    SolveError::check("second moments' channels", columns, moments.columns)?;
    SolveError::check("factor's channels", columns, factor.columns)?;
    check(linear)?;
    for (what, expected, list) in [("drift", columns * columns, moments.drift), ("residual", rows * columns, residual)]
    {
        SolveError::check(what, expected, list.map_or(expected, <[f32]>::len))?;
    }
    let correction = Correction { drift: moments.drift, residual, share: options.drift_share };
    let corrects = options.drift_share != 0.0 && (moments.drift.is_some() || residual.is_some());
    let target = corrects.then(|| target::corrected(factor, linear.weights, &correction));
    let target = target.as_deref().unwrap_or(linear.weights);
    if let Some(index) = range::first_non_finite(target) {
        return Err(SolveError::Target { row: index / columns, column: index % columns });
    }
    Job { metric: Metric { columns, factor: Some(factor) }, linear, options, target }.solve()
}

/// Quantizes one layer of whose input nothing is known: every vector counts alike.
///
/// # Errors
/// As for [`solve`].
pub fn encode(linear: &Linear, options: &SolveOptions) -> Result<Solution, SolveError> {
    check(linear)?;
    let metric = Metric { columns: linear.columns, factor: None };
    Job { metric, linear, options, target: linear.weights }.solve()
}

fn check(linear: &Linear) -> Result<(), SolveError> {
    let (rows, columns) = (linear.rows, linear.columns);
    linear.pyramid.validate(rows, columns)?;
    SolveError::check("weights", rows * columns, linear.weights.len())?;
    if let Some(index) = range::first_non_finite(linear.weights) {
        let (row, column) = (index / columns, index % columns);
        return Err(CodecError::NonFinite { row, column, value: linear.weights[index] }.into());
    }
    Ok(())
}

struct Job<'a> {
    metric: Metric<'a>,
    linear: &'a Linear<'a>,
    options: &'a SolveOptions,
    target: &'a [f32],
}

/// What a sweep or a round of refinement leaves.
struct State {
    chunks: Vec<Chunk>,
    scales: Scales,
    levels: Levels,
}

impl Job<'_> {
    fn solve(&self) -> Result<Solution, SolveError> {
        let corrected = !std::ptr::eq(self.target, self.linear.weights);
        let mut report = Report::default();
        if self.metric.factor.is_some() {
            let plain = Job { metric: Metric { factor: None, ..self.metric }, target: self.linear.weights, ..*self };
            report.loss_nearest = self.loss(&plain.start().chunks, self.linear.weights);
        }
        let mut state = self.start();
        report.target_loss_sweep = self.loss(&state.chunks, self.target);
        if self.metric.factor.is_none() {
            report.loss_nearest = report.target_loss_sweep;
        }
        report.loss_sweep = (!corrected).then_some(report.target_loss_sweep);
        self.rounds(&mut state, &mut report);
        for _ in 1..self.options.sweeps {
            if self.options.rounds > 0 && self.metric.factor.is_some() {
                self.sweep_again(&mut state);
                self.rounds(&mut state, &mut report);
            }
        }
        report.target_loss_refined =
            if self.options.rounds > 0 { self.loss(&state.chunks, self.target) } else { report.target_loss_sweep };
        report.loss_refined =
            if corrected { self.loss(&state.chunks, self.linear.weights) } else { report.target_loss_refined };
        report.deviations = self.deviations(&state.scales);
        let (coded, decoded) = self.assemble(&state);
        let tensors = self.linear.pyramid.encode(&coded)?;
        Ok(Solution { coded, tensors, decoded, report })
    }

    /// Finds scales and levels, and sweeps.
    fn start(&self) -> State {
        let pyramid = &self.linear.pyramid;
        let blocks = self.linear.rows.div_ceil(pyramid.dimension);
        let starts: Vec<usize> = (0..blocks).step_by(LANES).collect();
        let mut chunks: Vec<Chunk> = if self.linear.columns == 0 {
            Vec::new()
        } else {
            let chunk = |first: &usize| Chunk::new(pyramid.dimension, *first, self.target, self.linear.columns);
            starts.par_iter().map(chunk).collect()
        };
        let energies = self.energies();
        let counts = Counts::new(pyramid.dimension, pyramid.pulses);
        let lost = pyramid::expected_distortion(pyramid, &counts);
        let root_mean = |energy: &f64| (energy / blocks.max(1) as f64).sqrt();
        let foreseen: Vec<f64> = foreseen(&self.metric, &energies, lost).iter().map(root_mean).collect();
        let scales = Scales::new(&foreseen);
        let of_law = law::levels(pyramid.dimension, blocks * pyramid.dimension, 1 << pyramid.gain_bits);
        // Of a vector's length the part along its point is stored.
        let cosine = (1.0 - lost).max(0.0).sqrt();
        let of_law = Levels::new(of_law.iter().map(|level| (level * cosine) as f32).collect());
        let fitted = of_law.fitted(&self.sample(&chunks, &energies, &of_law));
        let levels = scales.levels(fitted.all().iter().map(|level| f64::from(*level)));
        self.sweep(&mut chunks, &scales, &levels);
        State { chunks, scales, levels }
    }

    /// Gains of some vectors in units of their column's root mean square, and how much each counts.
    fn sample(&self, chunks: &[Chunk], energies: &[f64], levels: &Levels) -> Vec<(f32, f64)> {
        let pyramid = &self.linear.pyramid;
        let (columns, blocks) = (self.linear.columns, self.linear.rows.div_ceil(pyramid.dimension));
        let picks: Vec<usize> = (0..SAMPLE.min(columns)).map(|index| index * columns / SAMPLE.min(columns)).collect();
        let of_pick = |(index, column): (usize, &usize)| -> Vec<(f32, f64)> {
            let chunk = &chunks[index % chunks.len()];
            let scale = (energies[*column] / blocks as f64).sqrt();
            if scale == 0.0 {
                return Vec::new();
            }
            let weights: Vec<f32> = chunk.target[column * chunk.rows()..][..chunk.rows()]
                .iter()
                .map(|weight| (f64::from(*weight) / scale) as f32)
                .collect();
            let mut found = Found::new(chunk.dimension);
            found.search(pyramid, &weights, 1.0, levels);
            let ratio = |lane: usize| {
                let (mut product, mut square) = (0.0, 0.0);
                for (weights, points) in weights.chunks_exact(LANES).zip(&found.points) {
                    product += weights[lane] * points[lane];
                    square += points[lane] * points[lane];
                }
                product / square.sqrt()
            };
            // Columns count by their energy, as they do in what is lost.
            (0..chunk.vectors(blocks)).map(|lane| (ratio(lane), energies[*column])).collect()
        };
        if chunks.is_empty() { Vec::new() } else { picks.par_iter().enumerate().flat_map_iter(of_pick).collect() }
    }

    fn energies(&self) -> Vec<f64> {
        let columns = self.linear.columns;
        let of_rows = |rows: &[f32]| {
            let mut energies = vec![0.0; columns];
            for row in rows.chunks_exact(columns) {
                energies.iter_mut().zip(row).for_each(|(energy, w)| *energy += f64::from(*w) * f64::from(*w));
            }
            energies
        };
        let parts: Vec<Vec<f64>> = self.target.par_chunks(ROWS * columns.max(1)).map(of_rows).collect();
        parts.into_iter().fold(vec![0.0; columns], |mut sums, part| {
            sums.iter_mut().zip(part).for_each(|(sum, more)| *sum += more);
            sums
        })
    }

    fn sweep(&self, chunks: &mut [Chunk], scales: &Scales, levels: &Levels) {
        let Self { metric, linear, options, .. } = *self;
        let sweep = Sweep { metric, pyramid: linear.pyramid, scales, levels, block: options.block_size };
        chunks.par_iter_mut().for_each(|chunk| sweep.run(chunk));
    }

    /// Fits scales and levels and finds vectors anew, in turn.
    fn rounds(&self, state: &mut State, report: &mut Report) {
        for round in 0..self.options.rounds {
            let refit = Refit { metric: self.metric, rows: self.linear.rows };
            refit.run(&mut state.chunks, &mut state.scales, &mut state.levels);
            let refinement = Refinement {
                metric: self.metric,
                pyramid: self.linear.pyramid,
                scales: &state.scales,
                levels: &state.levels,
            };
            let moved: u64 = state.chunks.par_iter_mut().map(|chunk| refinement.run(chunk)).sum();
            if moved == 0 {
                break;
            }
            report.rounds = report.rounds.max(round + 1);
        }
    }

    /// Sweeps with the scales and levels found; of each vector's rows the better result stays.
    fn sweep_again(&self, state: &mut State) {
        let mut chunks = state.chunks.clone();
        self.sweep(&mut chunks, &state.scales, &state.levels);
        state.chunks.par_iter_mut().zip(&chunks).for_each(|(chunk, again)| {
            let (before, after) = (self.lane_losses(chunk), self.lane_losses(again));
            let columns = self.linear.columns;
            for lane in (0..LANES).filter(|lane| after[*lane] < before[*lane]) {
                for place in (lane..chunk.points.len()).step_by(LANES) {
                    chunk.points[place] = again.points[place];
                    chunk.values[place] = again.values[place];
                }
                (0..columns).for_each(|column| {
                    chunk.gains[column * LANES + lane] = again.gains[column * LANES + lane];
                });
            }
        });
    }

    /// The damped loss of each lane's rows.
    fn lane_losses(&self, chunk: &Chunk) -> [f64; LANES] {
        let mut lanes = [0.0; LANES];
        for losses in self.metric.losses(&chunk.differences(), chunk.rows()).chunks_exact(LANES) {
            lanes.iter_mut().zip(losses).for_each(|(lane, loss)| *lane += loss);
        }
        lanes
    }

    /// The undamped loss of the matrix's rows against weights `[rows, columns]`.
    fn loss(&self, chunks: &[Chunk], weights: &[f32]) -> f64 {
        let of_chunk = |chunk: &Chunk| -> f64 {
            let rows = chunk.rows();
            let mut differences = chunk.differences();
            if !std::ptr::eq(weights, self.target) {
                let given = Chunk::new(chunk.dimension, chunk.first, weights, self.linear.columns);
                differences = chunk.values.iter().zip(&given.target).map(|(value, weight)| value - weight).collect();
            }
            let (losses, added) = (self.metric.losses(&differences, rows), self.metric.added(&differences, rows));
            let is_row =
                |place: &usize| (chunk.first + place % LANES) * chunk.dimension + place / LANES < self.linear.rows;
            (0..rows).filter(is_row).map(|place| losses[place] - added[place]).sum()
        };
        let losses: Vec<f64> = chunks.par_iter().map(of_chunk).collect();
        losses.iter().sum()
    }

    fn deviations(&self, scales: &Scales) -> Deviations {
        let (dead, raised) =
            self.metric.factor.map_or((0, 0), |factor| (factor.dead.len() as u64, factor.escalations as u64));
        let counts = [("scale-clamped", scales.clamped()), ("dead-columns", dead), ("damping-raised", raised)];
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Points and gains in the order in which they are stored, and the weights.
    fn assemble(&self, state: &State) -> (Points, Vec<f32>) {
        let (rows, columns, dimension) = (self.linear.rows, self.linear.columns, self.linear.pyramid.dimension);
        let blocks = rows.div_ceil(dimension);
        let mut points = vec![0; blocks * columns * dimension];
        let mut gains = vec![0; blocks * columns];
        let mut decoded = vec![0.0; rows * columns];
        if columns > 0 {
            let parts = points
                .par_chunks_mut(columns * dimension)
                .zip(gains.par_chunks_mut(columns))
                .zip(decoded.par_chunks_mut(columns * dimension));
            parts.enumerate().for_each(|(block, ((points, gains), decoded))| {
                let (chunk, lane) = (&state.chunks[block / LANES], block % LANES);
                for column in 0..columns {
                    gains[column] = chunk.gains[column * LANES + lane];
                    for place in 0..dimension {
                        let from = column * chunk.rows() + place * LANES + lane;
                        points[column * dimension + place] = chunk.points[from];
                        if let Some(value) = decoded.get_mut(place * columns + column) {
                            *value = chunk.values[from];
                        }
                    }
                }
            });
        }
        let (column_scales, gain_codebook) = (state.scales.stored.clone(), state.levels.all().to_vec());
        (Points { rows, columns, points, gains, column_scales, gain_codebook }, decoded)
    }
}
