//! The sweep over the columns: store one, let those still to come take its error (algorithm 1 of VPTQ: every vector lies
//! in one column, and inside a column the loss is a multiple of the plain squared distance).

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

use super::{
    book::{Book, Searcher},
    problem::{Codes, Desk, Problem},
};
use crate::passes::gptq::{Factor, add_outer};

/// Finds the codes of a chunk.
pub fn sweep(
    problem: &Problem,
    factor: &Factor,
    books: &[Book],
    searchers: &[Searcher],
    chunk: usize,
    block_size: usize,
) -> Codes {
    let (columns, lanes) = (problem.columns, problem.lanes_of(chunk));
    let mut codes = problem.no_codes(chunk);
    let mut work = vec![0.0; columns * lanes];
    let target = problem.target_of(chunk);
    for (to, column) in work.chunks_exact_mut(lanes).zip(&factor.permutation) {
        to.copy_from_slice(&target[column * lanes..][..lanes]);
    }
    let mut desk = Desk::default();
    let mut errors = vec![0.0; block_size.max(1).min(columns) * lanes];
    let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
    for start in (0..columns).step_by(block_size.max(1)) {
        let end = columns.min(start + block_size.max(1));
        for place in start..end {
            let column = factor.permutation[place];
            let (done, rest) = work[..end * lanes].split_at_mut((place + 1) * lanes);
            let values = &done[place * lanes..];
            desk.search(problem, searchers, column, values, |vector, found, lane| {
                codes.set(column, vector, found, lane);
            });
            let row = &factor.upper[place * columns..][..end];
            let error = &mut errors[(place - start) * lanes..][..lanes];
            problem.decode(books, &codes, column, error);
            let inverse = 1.0 / row[place];
            error.iter_mut().zip(values).for_each(|(error, value)| *error = (value - *error) * inverse);
            add_outer(rest, &row[place + 1..], -1.0, error);
        }
        let rest = columns - end;
        if rest > 0 {
            let errors = MatRef::from_column_major_slice(&errors[..(end - start) * lanes], lanes, end - start);
            let to = MatMut::from_column_major_slice_mut(&mut work[end * lanes..], lanes, rest);
            matmul(to, Accum::Add, errors, upper.submatrix(start, end, end - start, rest), -1.0, Par::Seq);
        }
    }
    codes
}

/// The nearest codes of a chunk, no column knowing of another.
pub fn nearest(problem: &Problem, searchers: &[Searcher], chunk: usize, values: &[f32]) -> Codes {
    let mut codes = problem.no_codes(chunk);
    let mut desk = Desk::default();
    for (column, values) in values.chunks_exact(problem.lanes_of(chunk)).enumerate() {
        desk.search(problem, searchers, column, values, |vector, found, lane| codes.set(column, vector, found, lane));
    }
    codes
}
