//! Codes chosen anew, one column after the other while all others stay, under the whole damped H.
//!
//! With g the column's gradient (v − t) H, a change δ of a vector changes the loss by 2 g·δ + `H_jj` |δ|²: best is the code
//! nearest to v − g / `H_jj`.

use std::ops::Range;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    book::{Book, Searcher},
    problem::{Codes, Desk, Problem},
};
use crate::passes::gptq::{Factor, add_outer};

/// Columns whose gradient is computed by one product.
const PANEL: usize = 128;
/// A change must lower the loss by this share of its own curvature, or rounding could make it cycle.
const WORTH: f32 = 1e-3;

/// Goes over all columns of a chunk once. Returns by how much its loss falls.
pub fn descend(
    problem: &Problem,
    factor: &Factor,
    books: &[Book],
    searchers: &[Searcher],
    chunk: usize,
    codes: &mut Codes,
) -> f64 {
    let (columns, lanes) = (problem.columns, problem.lanes_of(chunk));
    let mut differences = problem.differences(books, codes, chunk);
    let target = problem.target_of(chunk);
    let mut desk = Desk::default();
    let (mut wanted, mut change) = (vec![0.0; lanes], vec![0.0; lanes]);
    let mut gained = 0.0;
    for start in (0..columns).step_by(PANEL) {
        let panel = start..columns.min(start + PANEL);
        let mut gradient = gradient(&differences, lanes, factor, panel.clone());
        for column in panel.clone() {
            let row = &factor.hessian[column * columns..][..columns];
            let (curvature, inverse) = (row[column], 1.0 / row[column]);
            let slope = &gradient[(column - start) * lanes..][..lanes];
            let difference = &mut differences[column * lanes..][..lanes];
            let target = &target[column * lanes..][..lanes];
            for lane in 0..lanes {
                wanted[lane] = target[lane] + difference[lane] - slope[lane] * inverse;
            }
            change.fill(0.0);
            let (place, book) = (problem.column[column], &books[problem.column[column].book]);
            let mut moved = false;
            desk.search(problem, searchers, column, &wanted, |vector, found, lane| {
                let at = vector * book.length..(vector + 1) * book.length;
                let (main, residual) = book.pair(found.first[lane] as u16, found.second[lane] as u16);
                let (mut linear, mut square) = (0.0_f32, 0.0_f32);
                for (component, at) in at.clone().enumerate() {
                    let stored = main[component] + residual.get(component).copied().unwrap_or(0.0);
                    let by = stored * place.scale + place.bias - target[at] - difference[at];
                    change[at] = by;
                    linear += slope[at] * by;
                    square += by * by;
                }
                let gain = -(2.0 * linear + curvature * square);
                if gain > WORTH * curvature * square {
                    codes.set(column, vector, found, lane);
                    gained += f64::from(gain);
                    moved = true;
                } else {
                    change[at].fill(0.0);
                }
            });
            if moved {
                difference.iter_mut().zip(&change).for_each(|(difference, change)| *difference += change);
                add_outer(&mut gradient, &row[panel.clone()], 1.0, &change);
            }
        }
    }
    gained
}

/// (v − t) H for some columns.
pub fn gradient(differences: &[f32], lanes: usize, factor: &Factor, range: Range<usize>) -> Vec<f32> {
    let columns = factor.columns;
    let mut gradient = vec![0.0; range.len() * lanes];
    let hessian = MatRef::from_row_major_slice(&factor.hessian, columns, columns);
    let differences = MatRef::from_column_major_slice(differences, lanes, columns);
    let to = MatMut::from_column_major_slice_mut(&mut gradient, lanes, range.len());
    // H is symmetric, and its rows lie in one piece.
    let hessian = hessian.subrows(range.start, range.len()).transpose();
    matmul(to, Accum::Replace, differences, hessian, 1.0, Par::Seq);
    gradient
}
