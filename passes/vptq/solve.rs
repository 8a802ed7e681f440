//! From weights and second moments to codebooks and codes.

use rayon::prelude::*;

use super::{
    book::Book,
    descent,
    kernel::{LANES, Winners, nearest, with_norms},
    kmeans::{self, Points},
    options::{Linear, Solution, SolveOptions},
    problem::{Codes, Problem, round_to, searchers},
    random::Random,
    refit::Refit,
    sweep,
};
use crate::{
    codec::{CodecError, VectorParts, range},
    passes::{
        Deviations,
        gptq::{Correction, Factor, Moments, Report, SolveError, corrected, undamped},
    },
};

/// Share of the loss that a round of refinement must gain for another one to be worth its time.
const WORTH: f64 = 2e-3;

/// Quantizes one layer. Same input, same result, whatever the number of threads.
///
/// # Errors
/// [`SolveError`] when lengths or the format do not fit, or a weight is not finite.
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
    let (rows, columns) = (linear.rows, factor.columns);
    SolveError::check("second moments' channels", columns, moments.columns)?;
    check(linear, columns)?;
    for (what, expected, list) in [("drift", columns * columns, moments.drift), ("residual", rows * columns, residual)]
    {
        SolveError::check(what, expected, list.map_or(expected, <[f32]>::len))?;
    }
    let corrects = options.drift_share != 0.0 && (moments.drift.is_some() || residual.is_some());
    let correction = Correction { drift: moments.drift, residual, share: options.drift_share };
    let target = corrects.then(|| corrected(factor, linear.weights, &correction));
    let target = target.as_deref().unwrap_or(linear.weights);
    if let Some(index) = range::first_non_finite(target) {
        return Err(SolveError::Target { row: index / columns, column: index % columns });
    }
    let diagonal: Vec<f64> = (0..columns).map(|at| f64::from(factor.hessian[at * columns + at])).collect();
    let problem = Problem::new(linear.format, target, rows, columns, &diagonal);
    // The loss of the sweep is the sum of squared errors, each divided by the column's element of U.
    let weights: Vec<f64> =
        (0..columns).map(|column| f64::from(factor.upper[factor.places[column] * (columns + 1)]).powi(-2)).collect();
    let mut job = Job {
        linear,
        options,
        factor,
        problem: &problem,
        books: books(&problem, linear, &weights, options),
        codes: Vec::new(),
    };

    let mut report = Report { loss_nearest: job.nearest_loss(), ..Report::default() };
    job.codes = job.swept();
    report.target_loss_sweep = job.undamped_loss(|chunk| problem.differences(&job.books, &job.codes[chunk], chunk));
    report.loss_sweep = (!corrects).then_some(report.target_loss_sweep);
    report.rounds = job.refine();
    for _ in 1..options.sweeps {
        if !job.sweep_again() {
            break;
        }
        report.rounds += job.refine();
    }
    let solution = job.finish()?;
    let loss_to = |matrix: &[f32]| {
        job.undamped_loss(|chunk| {
            let decoded = problem.lay_out(&solution.decoded, chunk);
            decoded.iter().zip(problem.lay_out(matrix, chunk)).map(|(value, target)| value - target).collect()
        })
    };
    report.loss_refined = loss_to(linear.weights);
    report.target_loss_refined = if corrects { loss_to(target) } else { report.loss_refined };
    let counts = [("dead-columns", factor.dead.len() as u64), ("damping-raised", factor.escalations as u64)];
    report.deviations = counts.into_iter().filter(|(_, count)| *count > 0).collect::<Deviations>();
    Ok(Solution { report, ..solution })
}

/// Quantizes one layer of whose input nothing is known: k-means and nearest codes. The loss is the squared error.
///
/// # Errors
/// As for [`solve`].
pub fn solve_nearest(linear: &Linear, columns: usize, options: &SolveOptions) -> Result<Solution, SolveError> {
    check(linear, columns)?;
    let ones = vec![1.0; columns];
    let problem = Problem::new(linear.format, linear.weights, linear.rows, columns, &ones);
    let books = books(&problem, linear, &ones, options);
    let codes = {
        let searchers = searchers(&books, options.beam);
        let chunk = |chunk: usize| sweep::nearest(&problem, &searchers, chunk, problem.target_of(chunk));
        (0..problem.chunks()).into_par_iter().map(chunk).collect::<Vec<_>>()
    };
    let mut solution = finish(&problem, linear, &books, &codes)?;
    let squares = solution.decoded.iter().zip(linear.weights).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    let loss = squares.sum();
    solution.report = Report {
        loss_nearest: loss,
        loss_sweep: Some(loss),
        loss_refined: loss,
        target_loss_sweep: loss,
        target_loss_refined: loss,
        ..Report::default()
    };
    Ok(solution)
}

/// Quantizes several layers that have the same input with the same codebooks, norm and permutation: each gets its own
/// indices. The report is that of all together; all but the last need whole vectors.
///
/// # Errors
/// As for [`solve`]; [`CodecError::Vector`] for layers of partial vectors, or of different formats.
pub fn solve_stacked(
    factor: &Factor,
    moments: &Moments,
    linears: &[Linear],
    options: &SolveOptions,
) -> Result<(Vec<Solution>, Report), SolveError> {
    let Some(first) = linears.first() else { return Ok((Vec::new(), Report::default())) };
    let wrong = |problem: String| SolveError::from(CodecError::Vector { problem });
    let lengths = [first.format.vector_length, first.format.outliers.map_or(1, |outliers| outliers.vector_length)];
    for linear in linears {
        if linear.format != first.format {
            return Err(wrong(format!("`{}` has another format than `{}`", linear.name, first.name)));
        }
        if let Some(length) = lengths.iter().find(|length| !linear.rows.is_multiple_of(**length)) {
            return Err(wrong(format!("`{}` has {} rows, not whole vectors of {length}", linear.name, linear.rows)));
        }
    }
    let weights: Vec<f32> = linears.iter().flat_map(|linear| linear.weights).copied().collect();
    let rows = linears.iter().map(|linear| linear.rows).sum();
    let stacked = Linear { weights: &weights, rows, ..*first };
    let all = solve(factor, moments, &stacked, options)?;
    let columns = factor.columns;
    let format = first.format;
    let mut solutions = Vec::with_capacity(linears.len());
    let mut row = 0;
    for linear in linears {
        // One list of vectors after the other, of which each layer has a run.
        let run = |indices: &[u16], length: usize, width: usize| -> Vec<u16> {
            let stride = rows / length * width;
            let range = row / length * width..(row + linear.rows) / length * width;
            indices.chunks_exact(stride.max(1)).flat_map(|group| &group[range.clone()]).copied().collect()
        };
        let width = format.group_columns(columns);
        let parts = VectorParts {
            indices: run(&all.parts.indices, lengths[0], width),
            residual_indices: run(&all.parts.residual_indices, lengths[0], width),
            outlier_indices: run(&all.parts.outlier_indices, lengths[1], format.outlier_columns()),
            ..all.parts.clone()
        };
        solutions.push(Solution {
            tensors: format.pack(linear.rows, columns, &parts)?,
            decoded: all.decoded[row * columns..(row + linear.rows) * columns].to_vec(),
            parts,
            report: Report::default(),
        });
        row += linear.rows;
    }
    Ok((solutions, all.report))
}

fn check(linear: &Linear, columns: usize) -> Result<(), SolveError> {
    linear.format.validate(linear.rows, columns)?;
    SolveError::check("weights", linear.rows * columns, linear.weights.len())?;
    match range::first_non_finite(linear.weights) {
        Some(index) => {
            let (row, column) = (index / columns, index % columns);
            Err(CodecError::NonFinite { row, column, value: linear.weights[index] }.into())
        }
        None => Ok(()),
    }
}

/// The vectors of the columns with one codebook, normalized.
struct Vectors<'a> {
    problem: &'a Problem<'a>,
    columns: Vec<usize>,
    length: usize,
    /// The weight of each column of the matrix.
    weights: &'a [f64],
}

impl Vectors<'_> {
    fn blocks_of(&self, chunk: usize) -> usize {
        (self.problem.lanes_of(chunk) / self.length).div_ceil(LANES)
    }
}

impl Points for Vectors<'_> {
    fn length(&self) -> usize {
        self.length
    }

    fn blocks(&self) -> usize {
        (0..self.problem.chunks()).map(|chunk| self.blocks_of(chunk) * self.columns.len()).sum()
    }

    fn load(&self, block: usize, x: &mut [f32], weights: &mut [f32; LANES]) {
        // All chunks but the last are alike.
        let of_chunk = self.blocks_of(0) * self.columns.len();
        let (chunk, rest) = (block / of_chunk, block % of_chunk);
        let blocks = self.blocks_of(chunk);
        let (column, block) = (self.columns[rest / blocks], rest % blocks);
        let lanes = self.problem.lanes_of(chunk);
        let values = &self.problem.target_of(chunk)[column * lanes..][..lanes];
        let count = self.problem.load(column, values, block, x);
        let scale = f64::from(self.problem.column[column].scale);
        let weight = (self.weights[column] * scale * scale) as f32;
        for (lane, to) in weights.iter_mut().enumerate() {
            *to = if lane < count { weight } else { 0.0 };
        }
    }
}

/// What points lack after the nearest centroid was taken away.
struct Rests<'a> {
    points: &'a dyn Points,
    centroids: &'a [f32],
    rows: Vec<f32>,
}

impl Points for Rests<'_> {
    fn length(&self) -> usize {
        self.points.length()
    }

    fn blocks(&self) -> usize {
        self.points.blocks()
    }

    fn load(&self, block: usize, x: &mut [f32], weights: &mut [f32; LANES]) {
        self.points.load(block, x, weights);
        let length = self.length();
        let mut winners = Winners::NONE;
        nearest(length, x, &self.rows, &mut winners);
        for (lane, index) in winners.index.iter().enumerate() {
            for (component, value) in self.centroids[*index as usize * length..][..length].iter().enumerate() {
                x[component * LANES + lane] -= value;
            }
        }
    }
}

/// The codebooks that k-means finds, as their storage type holds them. The loss of a column's vectors counts with its weight.
fn books(problem: &Problem, linear: &Linear, weights: &[f64], options: &SolveOptions) -> Vec<Book> {
    let format = linear.format;
    // Only their proportions matter, and F32 holds those of sane ones.
    let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
    let weights: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
    let book = |index: usize| {
        let length = problem.length(index);
        let columns = (0..problem.columns).filter(|column| problem.column[*column].book == index).collect();
        let points = Vectors { problem, columns, length, weights: &weights };
        let (count, residuals) = match format.outliers {
            Some(outliers) if index == format.groups => (outliers.centroids, 0),
            _ => (format.centroids, format.residual_centroids),
        };
        let mut random = Random::new(linear.name, &format!("codebook {index}"));
        let mut main = kmeans::centroids(&points, count, options.effort(), &mut random).0;
        round_to(format.storage, &mut main);
        let mut residual = Vec::new();
        if residuals > 0 {
            let rests = Rests { points: &points, centroids: &main, rows: with_norms(&main, length) };
            residual = kmeans::centroids(&rests, residuals, options.effort(), &mut random).0;
            round_to(format.storage, &mut residual);
        }
        Book { length, main, residual }
    };
    (0..problem.books()).map(book).collect()
}

struct Job<'a> {
    linear: &'a Linear<'a>,
    options: &'a SolveOptions,
    factor: &'a Factor,
    problem: &'a Problem<'a>,
    books: Vec<Book>,
    codes: Vec<Codes>,
}

impl Job<'_> {
    /// The undamped loss of all rows, from decoded minus wanted of each chunk.
    fn undamped_loss(&self, differences: impl Fn(usize) -> Vec<f32> + Sync) -> f64 {
        let of_chunk = |chunk: usize| -> f64 {
            let (lanes, rows) = (self.problem.lanes_of(chunk), self.problem.rows_of(chunk));
            undamped(self.factor, &differences(chunk), lanes)[..rows].iter().sum()
        };
        (0..self.problem.chunks()).into_par_iter().map(of_chunk).collect::<Vec<f64>>().iter().sum()
    }

    /// The loss of the nearest codes to the given weights.
    fn nearest_loss(&self) -> f64 {
        let (problem, searchers) = (self.problem, searchers(&self.books, 1));
        self.undamped_loss(|chunk| {
            let given = problem.lay_out(self.linear.weights, chunk);
            let codes = sweep::nearest(problem, &searchers, chunk, &given);
            let mut values = vec![0.0; given.len()];
            for (column, values) in values.chunks_exact_mut(problem.lanes_of(chunk)).enumerate() {
                problem.decode(&self.books, &codes, column, values);
            }
            values.iter_mut().zip(&given).for_each(|(value, given)| *value -= given);
            values
        })
    }

    fn swept(&self) -> Vec<Codes> {
        let searchers = searchers(&self.books, self.options.beam);
        let block = self.options.block_size;
        let sweep = |chunk| sweep::sweep(self.problem, self.factor, &self.books, &searchers, chunk, block);
        (0..self.problem.chunks()).into_par_iter().map(sweep).collect()
    }

    /// Refits centroids and chooses codes anew, in turn, until little changes. Returns how many rounds there were.
    fn refine(&mut self) -> usize {
        for round in 0..self.options.refine_rounds {
            let (before, refitted) = self.refit();
            let loss = refitted - self.descend();
            if before - loss <= WORTH * before {
                return round + 1;
            }
        }
        self.options.refine_rounds
    }

    /// Refits the centroids, unless rounding them to their storage type would take away more than is won. Returns the loss
    /// before and after.
    fn refit(&mut self) -> (f64, f64) {
        let refit = Refit { problem: self.problem, factor: self.factor, codes: &self.codes };
        let (mut books, before) = refit.run(&self.books, self.options.refit_steps);
        for book in &mut books {
            round_to(self.linear.format.storage, &mut book.main);
            round_to(self.linear.format.storage, &mut book.residual);
        }
        let after = refit.loss(&books);
        if after >= before {
            return (before, before);
        }
        self.books = books;
        (before, after)
    }

    /// Chooses codes anew; returns by how much the loss falls.
    fn descend(&mut self) -> f64 {
        let searchers = searchers(&self.books, self.options.beam);
        let (problem, factor, books) = (self.problem, self.factor, &self.books);
        let chunks = self.codes.par_iter_mut().enumerate();
        let gains = chunks.map(|(chunk, codes)| descent::descend(problem, factor, books, &searchers, chunk, codes));
        gains.collect::<Vec<f64>>().iter().sum()
    }

    /// Sweeps with the centroids as they are; each chunk keeps the better codes. Returns whether any changed.
    fn sweep_again(&mut self) -> bool {
        let new = self.swept();
        let (problem, factor, books) = (self.problem, self.factor, &self.books);
        let loss = |chunk: usize, codes: &Codes| {
            let differences = problem.differences(books, codes, chunk);
            let product = descent::gradient(&differences, problem.lanes_of(chunk), factor, 0..problem.columns);
            differences.iter().zip(&product).map(|(d, p)| f64::from(*d) * f64::from(*p)).sum::<f64>()
        };
        let better = self.codes.par_iter_mut().zip(new).enumerate().map(|(chunk, (codes, new))| {
            let better = loss(chunk, &new) < loss(chunk, codes);
            if better {
                *codes = new;
            }
            better
        });
        better.collect::<Vec<bool>>().contains(&true)
    }

    fn finish(&self) -> Result<Solution, SolveError> {
        finish(self.problem, self.linear, &self.books, &self.codes)
    }
}

/// What is stored, and what it decodes to.
fn finish(problem: &Problem, linear: &Linear, books: &[Book], codes: &[Codes]) -> Result<Solution, SolveError> {
    let (format, rows, columns) = (linear.format, problem.rows, problem.columns);
    let (main, apart) = books.split_at(format.groups);
    let join =
        |books: &[Book], part: fn(&Book) -> &Vec<f32>| books.iter().flat_map(part).copied().collect::<Vec<f32>>();
    let norm = |part: fn(&super::problem::Column) -> f32| {
        if format.norm { problem.column.iter().map(part).collect() } else { Vec::new() }
    };
    // The codes of some columns, one vector of all of them after the other.
    let gather = |places: std::ops::Range<usize>, length: usize, part: fn(&Codes) -> &Vec<u16>| {
        let of_chunk = problem.chunk_rows / length;
        let columns = &problem.permutation[places];
        let vectors = 0..rows.div_ceil(length);
        vectors
            .flat_map(|vector| {
                let codes = &codes[vector / of_chunk];
                columns.iter().map(move |column| part(codes)[column * codes.slots + vector % of_chunk])
            })
            .collect::<Vec<u16>>()
    };
    let (first, width) = (format.outlier_columns(), format.group_columns(columns));
    let groups = |part: fn(&Codes) -> &Vec<u16>| -> Vec<u16> {
        let place = |group: usize| first + group * width..first + (group + 1) * width;
        (0..format.groups).flat_map(|group| gather(place(group), format.vector_length, part)).collect()
    };
    let parts = VectorParts {
        centroids: join(main, |book| &book.main),
        residual_centroids: join(main, |book| &book.residual),
        outlier_centroids: join(apart, |book| &book.main),
        indices: groups(|codes| &codes.first),
        residual_indices: if format.residual_centroids > 0 { groups(|codes| &codes.second) } else { Vec::new() },
        outlier_indices: format
            .outliers
            .map_or_else(Vec::new, |outliers| gather(0..first, outliers.vector_length, |codes| &codes.first)),
        permutation: if format.permuted {
            problem.permutation.iter().map(|column| *column as u16).collect()
        } else {
            Vec::new()
        },
        scales: norm(|column| column.scale),
        biases: norm(|column| column.bias),
    };
    let tensors = format.pack(rows, columns, &parts)?;
    let decoded = format.reconstruct(rows, columns, &parts, linear.arithmetic)?;
    Ok(Solution { parts, tensors, decoded, report: Report::default() })
}
