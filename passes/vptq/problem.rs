//! A matrix laid out for the solver: chunks of rows in which each column is one contiguous run, and what is known of each
//! column. Everything is in the space of the given weights: a stored value is (centroid + residual) · scale + bias of its
//! column. So H serves as it is, whatever norm and permutation; with S the diagonal of the scales, the loss
//! tr(Δ H Δᵀ) is that of the normalized weights under S H S.

use super::{
    book::{Book, Found, Scratch, Searcher},
    kernel::LANES,
};
use crate::codec::{ScaleFormat, VectorFormat};

/// Blocks of vectors that a column of a chunk has at least: enough for products of matrices.
const BLOCKS: usize = 2;

/// What is known of a column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// Its codebook.
    pub book: usize,
    /// What stored vectors are multiplied by.
    pub scale: f32,
    /// What is added to them.
    pub bias: f32,
}

/// The matrix and its format.
pub struct Problem<'a> {
    /// The format.
    pub format: &'a VectorFormat,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Rows of a chunk; the last has fewer.
    pub chunk_rows: usize,
    /// Rows that whole vectors of every kind make up.
    unit: usize,
    /// The columns, in the matrix's order.
    pub column: Vec<Column>,
    /// The column at each place of the format.
    pub permutation: Vec<usize>,
    /// All chunks, each `[columns, rows of the chunk]`. Rows beyond the matrix are what a vector of zeros decodes to.
    pub target: Vec<f32>,
}

/// Codes of a chunk, `[columns, slots]`; a column uses as many slots as it has vectors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Codes {
    /// Centroids.
    pub first: Vec<u16>,
    /// Residuals.
    pub second: Vec<u16>,
    /// Slots of a column.
    pub slots: usize,
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl<'a> Problem<'a> {
    /// Lays out a matrix. `importance` of each column puts them in order where the format permutes.
    pub fn new(format: &'a VectorFormat, target: &[f32], rows: usize, columns: usize, importance: &[f64]) -> Self {
        let other = format.outliers.map_or(1, |outliers| outliers.vector_length);
        let unit = format.vector_length / greatest_common_divisor(format.vector_length, other) * other;
        let mut problem = Self {
            format,
            rows,
            columns,
            chunk_rows: (BLOCKS * LANES * format.vector_length).next_multiple_of(unit),
            unit,
            column: vec![Column { book: 0, scale: 1.0, bias: 0.0 }; columns],
            permutation: (0..columns).collect(),
            target: Vec::new(),
        };
        if format.norm {
            problem.normalize(target);
        }
        if format.permuted {
            let column = &problem.column;
            let weight = |index: usize| importance[index] * f64::from(column[index].scale).powi(2);
            problem.permutation.sort_by(|a, b| weight(*b).total_cmp(&weight(*a)));
        }
        let (apart, width) = (format.outlier_columns(), format.group_columns(columns).max(1));
        for (place, column) in problem.permutation.iter().enumerate() {
            problem.column[*column].book = place.checked_sub(apart).map_or(format.groups, |place| place / width);
        }
        problem.target = (0..problem.chunks()).flat_map(|chunk| problem.lay_out(target, chunk)).collect();
        problem
    }

    /// Mean and standard deviation of each column, as their storage type holds them.
    fn normalize(&mut self, target: &[f32]) {
        let mut sums = vec![(0.0_f64, 0.0_f64); self.columns];
        for row in target.chunks_exact(self.columns.max(1)) {
            for ((sum, square), value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value);
                *square += f64::from(*value) * f64::from(*value);
            }
        }
        let count = self.rows.max(1) as f64;
        for (column, (sum, square)) in self.column.iter_mut().zip(sums) {
            let mean = sum / count;
            let deviation = (square / count - mean * mean).max(0.0).sqrt() as f32;
            let mut rounded = [mean as f32];
            round_to(self.format.storage, &mut rounded);
            column.bias = rounded[0];
            // What rounding the bias leaves must be in reach of the codes of a column that is all but constant.
            let spread = deviation.max((mean as f32 - column.bias).abs());
            column.scale = if spread > 0.0 { self.format.storage.round(spread).value } else { 1.0 };
        }
    }

    /// Chunks.
    pub fn chunks(&self) -> usize {
        self.rows.div_ceil(self.chunk_rows)
    }

    /// Rows of a chunk that belong to the matrix.
    pub fn rows_of(&self, chunk: usize) -> usize {
        self.chunk_rows.min(self.rows - chunk * self.chunk_rows)
    }

    /// Rows of a chunk, padding included.
    pub fn lanes_of(&self, chunk: usize) -> usize {
        self.rows_of(chunk).next_multiple_of(self.unit)
    }

    /// A chunk of a matrix of this shape, `[columns, lanes]`.
    pub fn lay_out(&self, matrix: &[f32], chunk: usize) -> Vec<f32> {
        let (rows, lanes) = (self.rows_of(chunk), self.lanes_of(chunk));
        let mut out = vec![0.0; self.columns * lanes];
        for (to, column) in out.chunks_exact_mut(lanes).zip(&self.column) {
            to[rows..].fill(column.bias);
        }
        let first = chunk * self.chunk_rows * self.columns;
        for (lane, row) in matrix[first..][..rows * self.columns].chunks_exact(self.columns.max(1)).enumerate() {
            for (column, value) in row.iter().enumerate() {
                out[column * lanes + lane] = *value;
            }
        }
        out
    }

    /// The target of a chunk.
    pub fn target_of(&self, chunk: usize) -> &[f32] {
        &self.target[chunk * self.chunk_rows * self.columns..][..self.lanes_of(chunk) * self.columns]
    }

    /// Rows of a vector of a column with this codebook.
    pub fn length(&self, book: usize) -> usize {
        match self.format.outliers {
            Some(outliers) if book == self.format.groups => outliers.vector_length,
            _ => self.format.vector_length,
        }
    }

    /// Codebooks.
    pub fn books(&self) -> usize {
        self.format.groups + usize::from(self.format.outliers.is_some())
    }

    /// Codes of a chunk, all zero.
    pub fn no_codes(&self, chunk: usize) -> Codes {
        let shortest = (0..self.books()).map(|book| self.length(book)).min().unwrap_or(1);
        let slots = self.lanes_of(chunk) / shortest;
        let second = if self.format.residual_centroids > 0 { self.columns * slots } else { 0 };
        Codes { first: vec![0; self.columns * slots], second: vec![0; second], slots }
    }

    /// Writes what the codes of a column decode to.
    pub fn decode(&self, books: &[Book], codes: &Codes, column: usize, values: &mut [f32]) {
        self.decode_with(books, codes, column, self.column[column].bias, values);
    }

    /// The same with another bias.
    pub fn decode_with(&self, books: &[Book], codes: &Codes, column: usize, bias: f32, values: &mut [f32]) {
        let Column { book, scale, .. } = self.column[column];
        let book = &books[book];
        for (vector, values) in values.chunks_exact_mut(book.length).enumerate() {
            let (main, residual) = codes.pair(book, column, vector);
            if residual.is_empty() {
                values.iter_mut().zip(main).for_each(|(value, main)| *value = main * scale + bias);
            } else {
                for ((value, main), residual) in values.iter_mut().zip(main).zip(residual) {
                    *value = (main + residual) * scale + bias;
                }
            }
        }
    }

    /// Decoded codes minus the target, `[columns, lanes]`.
    pub fn differences(&self, books: &[Book], codes: &Codes, chunk: usize) -> Vec<f32> {
        let lanes = self.lanes_of(chunk);
        let mut values = vec![0.0; self.columns * lanes];
        for (column, values) in values.chunks_exact_mut(lanes).enumerate() {
            self.decode(books, codes, column, values);
        }
        values.iter_mut().zip(self.target_of(chunk)).for_each(|(value, target)| *value -= target);
        values
    }

    /// Writes a block of a column's vectors, normalized, as `[length, LANES]`; zeros where the column has no more. Returns
    /// how many there are.
    pub fn load(&self, column: usize, values: &[f32], block: usize, x: &mut [f32]) -> usize {
        let Column { book, scale, bias } = self.column[column];
        let (length, inverse) = (self.length(book), 1.0 / scale);
        let count = (values.len() / length).saturating_sub(block * LANES).min(LANES);
        let values = &values[block * LANES * length..][..count * length];
        if count < LANES {
            x.fill(0.0);
        }
        for (lane, vector) in values.chunks_exact(length).enumerate() {
            for (component, value) in vector.iter().enumerate() {
                x[component * LANES + lane] = (value - bias) * inverse;
            }
        }
        count
    }

    /// Blocks of a column's vectors.
    pub fn blocks(&self, column: usize, lanes: usize) -> usize {
        (lanes / self.length(self.column[column].book)).div_ceil(LANES)
    }
}

impl Codes {
    /// What a vector is stored as.
    #[inline]
    pub fn pair<'b>(&self, book: &'b Book, column: usize, vector: usize) -> (&'b [f32], &'b [f32]) {
        let place = column * self.slots + vector;
        book.pair(self.first[place], self.second.get(place).copied().unwrap_or(0))
    }

    /// Takes over one lane of what was found.
    #[inline]
    pub fn set(&mut self, column: usize, vector: usize, found: &Found, lane: usize) {
        let place = column * self.slots + vector;
        self.first[place] = found.first[lane] as u16;
        if let Some(second) = self.second.get_mut(place) {
            *second = found.second[lane] as u16;
        }
    }
}

/// What the search of a column needs at hand.
#[derive(Default)]
pub struct Desk {
    x: Vec<f32>,
    scratch: Scratch,
    found: Found,
}

impl Desk {
    /// Searches the nearest code of each vector of a column and hands it over, with the vector's index and the lane.
    pub fn search(
        &mut self,
        problem: &Problem,
        searchers: &[Searcher],
        column: usize,
        values: &[f32],
        mut take: impl FnMut(usize, &Found, usize),
    ) {
        let book = problem.column[column].book;
        self.x.resize(problem.length(book) * LANES, 0.0);
        for block in 0..problem.blocks(column, values.len()) {
            let count = problem.load(column, values, block, &mut self.x);
            searchers[book].search(&self.x, &mut self.scratch, &mut self.found);
            (0..count).for_each(|lane| take(block * LANES + lane, &self.found, lane));
        }
    }
}

/// Searchers of all codebooks.
pub fn searchers(books: &[Book], beam: usize) -> Vec<Searcher<'_>> {
    books.iter().map(|book| Searcher::new(book, beam)).collect()
}

/// Rounds numbers to what their storage type holds, the largest finite value at most.
pub fn round_to(storage: ScaleFormat, values: &mut [f32]) {
    let (_, largest) = storage.range();
    for value in values {
        let clamped = value.clamp(-largest, largest);
        *value = match storage {
            ScaleFormat::F16 => half::f16::from_f32(clamped).to_f32(),
            ScaleFormat::BF16 => half::bf16::from_f32(clamped).to_f32(),
            _ => clamped,
        };
    }
}
