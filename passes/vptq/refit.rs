//! Centroids fitted to fixed codes. Decoded weights are linear in the centroids, so that tr(Δ H Δᵀ) is a quadratic form of
//! them: conjugate gradients (Hestenes and Stiefel, 1952) with the diagonal as preconditioner, both codebooks together.

use rayon::prelude::*;

use super::{
    book::Book,
    descent::gradient,
    problem::{Codes, Column, Problem},
};
use crate::passes::gptq::Factor;

/// Runs of chunks whose sums are made one after the other; more threads than that are of no use.
const BANDS: usize = 16;
/// Columns whose gradient is computed by one product.
const PANEL: usize = 512;
/// Steps end when the residual has fallen to this share, squared.
const ENOUGH: f64 = 1e-8;

/// Codes of a matrix whose centroids are sought.
pub struct Refit<'a> {
    pub problem: &'a Problem<'a>,
    pub factor: &'a Factor,
    /// Of each chunk.
    pub codes: &'a [Codes],
}

/// What codebooks are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Point,
    Direction,
}

/// Numbers of all codebooks, one after the other: main centroids, then residuals.
fn flatten(books: &[Book]) -> Vec<f64> {
    books.iter().flat_map(|book| book.main.iter().chain(&book.residual)).map(|value| f64::from(*value)).collect()
}

fn unflatten(numbers: &[f64], books: &mut [Book]) {
    let mut numbers = numbers.iter();
    for book in books {
        for (value, number) in book.main.iter_mut().chain(&mut book.residual).zip(numbers.by_ref()) {
            *value = *number as f32;
        }
    }
}

impl Refit<'_> {
    /// The centroids after so many steps from the given ones, and the loss of the given ones.
    pub fn run(&self, books: &[Book], steps: usize) -> (Vec<Book>, f64) {
        let mut direction = books.to_vec();
        let mut solution = flatten(books);
        let (mut residual, diagonal, loss) = self.product(books, Of::Point);
        for value in &mut residual {
            *value = -*value;
        }
        // What no vector is stored as has no say, and stays.
        let precondition = |residual: &[f64]| -> Vec<f64> {
            residual.iter().zip(&diagonal).map(|(r, d)| if *d > 0.0 { r / d } else { 0.0 }).collect()
        };
        let mut search = precondition(&residual);
        let mut power = dot(&residual, &search);
        let enough = power * ENOUGH;
        for _ in 0..steps {
            if power <= enough || !power.is_finite() {
                break;
            }
            unflatten(&search, &mut direction);
            let (product, ..) = self.product(&direction, Of::Direction);
            let curvature = dot(&search, &product);
            if curvature <= 0.0 || !curvature.is_finite() {
                break;
            }
            let step = power / curvature;
            solution.iter_mut().zip(&search).for_each(|(value, search)| *value += step * search);
            residual.iter_mut().zip(&product).for_each(|(value, product)| *value -= step * product);
            let preconditioned = precondition(&residual);
            let next = dot(&residual, &preconditioned);
            for (search, new) in search.iter_mut().zip(preconditioned) {
                *search = new + next / power * *search;
            }
            power = next;
        }
        unflatten(&solution, &mut direction);
        (direction, loss)
    }

    /// The damped loss of all rows, padding included.
    pub fn loss(&self, books: &[Book]) -> f64 {
        self.product(books, Of::Point).2
    }

    /// At a point: half the loss's gradient by the centroids, the diagonal of half its second derivative, and the loss.
    /// Along a direction: half the second derivative times it, nothing else.
    fn product(&self, books: &[Book], of: Of) -> (Vec<f64>, Vec<f64>, f64) {
        let size: usize = books.iter().map(|book| book.main.len() + book.residual.len()).sum();
        let chunks = self.problem.chunks();
        let count = BANDS.min(chunks);
        let bands: Vec<_> = (0..count)
            .into_par_iter()
            .map(|band| {
                let mut sums = vec![0.0; size];
                let mut diagonal = vec![0.0; if of == Of::Point { size } else { 0 }];
                let mut loss = 0.0;
                for chunk in band * chunks / count..(band + 1) * chunks / count {
                    loss += self.add(books, of, chunk, &mut sums, &mut diagonal);
                }
                (sums, diagonal, loss)
            })
            .collect();
        let mut total = (vec![0.0; size], vec![0.0; if of == Of::Point { size } else { 0 }], 0.0);
        for (sums, diagonal, loss) in bands {
            total.0.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
            total.1.iter_mut().zip(diagonal).for_each(|(sum, more)| *sum += more);
            total.2 += loss;
        }
        total
    }

    fn add(&self, books: &[Book], of: Of, chunk: usize, sums: &mut [f64], diagonal: &mut [f64]) -> f64 {
        let Self { problem, factor, codes } = *self;
        let (columns, lanes, codes) = (problem.columns, problem.lanes_of(chunk), &codes[chunk]);
        let starts: Vec<usize> = books
            .iter()
            .scan(0, |next, book| Some(std::mem::replace(next, *next + book.main.len() + book.residual.len())))
            .collect();
        let values = if of == Of::Point {
            problem.differences(books, codes, chunk)
        } else {
            let mut values = vec![0.0; columns * lanes];
            for (column, values) in values.chunks_exact_mut(lanes).enumerate() {
                problem.decode_with(books, codes, column, 0.0, values);
            }
            values
        };
        let mut loss = 0.0;
        for start in (0..columns).step_by(PANEL) {
            let panel = start..columns.min(start + PANEL);
            let product = gradient(&values, lanes, factor, panel.clone());
            for (column, product) in panel.zip(product.chunks_exact(lanes)) {
                let Column { book: index, scale, .. } = problem.column[column];
                let (book, scale) = (&books[index], f64::from(scale));
                let curvature = f64::from(factor.hessian[column * columns + column]) * scale * scale;
                if of == Of::Point {
                    let values = &values[column * lanes..][..lanes];
                    loss += values.iter().zip(product).map(|(v, p)| f64::from(*v) * f64::from(*p)).sum::<f64>();
                }
                for (vector, product) in product.chunks_exact(book.length).enumerate() {
                    let place = column * codes.slots + vector;
                    let first = starts[index] + usize::from(codes.first[place]) * book.length;
                    let second = codes.second.get(place).filter(|_| !book.residual.is_empty());
                    let second =
                        second.map(|second| starts[index] + book.main.len() + usize::from(*second) * book.length);
                    for at in [Some(first), second].into_iter().flatten() {
                        for (sum, product) in sums[at..].iter_mut().zip(product) {
                            *sum += scale * f64::from(*product);
                        }
                        if of == Of::Point {
                            diagonal[at..at + book.length].iter_mut().for_each(|sum| *sum += curvature);
                        }
                    }
                }
            }
        }
        loss
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
