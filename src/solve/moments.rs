//! Second moments and channel figures of one input, gathered batch by batch.
//!
//! Products of a batch are F32; batches are added up in F64. Work is cut by the number of channels alone, so the sums do
//! not depend on the number of threads.

use faer::{Accum, MatMut, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use crate::{codec::Rotations, forward::Matrix, passes::gptq};

pub mod on_device;

/// Most channels of the band that one task adds up.
const BAND: usize = 128;
/// Rows that are kept as examples of the input.
pub const SAMPLE_ROWS: usize = 512;

/// What has been seen of one input.
#[derive(Debug, Clone, Default)]
pub struct Moments {
    /// Channels.
    pub columns: usize,
    /// Σ x xᵀ, `[columns, columns]`; the lower triangle until [`Moments::finish`]. Empty where not asked for.
    pub hessian: Vec<f64>,
    /// `Σ (x_dense − x) xᵀ`, `[columns, columns]`. Empty where not asked for.
    pub drift: Vec<f32>,
    /// `Σ (r_dense − r) xᵀ`, `[outputs, columns]`: r is the stream that the outputs are added to. Empty where not asked for.
    pub residual: Vec<f32>,
    /// Largest magnitude of each channel.
    pub absmax: Vec<f32>,
    /// Σ x of each channel.
    pub sum: Vec<f64>,
    /// Σ |x| of each channel.
    pub sum_abs: Vec<f64>,
    /// Σ x² of each channel.
    pub sum_squares: Vec<f64>,
    /// Tokens.
    pub count: u64,
    /// Some token rows, evenly spaced over all.
    pub sample: Matrix,
    every: usize,
}

/// What to gather.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Second moments.
    pub hessian: bool,
    /// The difference from the dense input.
    pub drift: bool,
    /// Example rows.
    pub sample: bool,
    /// Outputs whose stream's difference from the original one is gathered; 0 for none.
    pub residual: usize,
}

impl Wanted {
    /// Bytes of the moments of so many channels.
    #[must_use]
    pub fn bytes(self, columns: usize) -> u64 {
        let square = (columns * columns) as u64;
        let sample = if self.sample { 4 * (SAMPLE_ROWS * columns) as u64 } else { 0 };
        u64::from(self.hessian) * 8 * square
            + u64::from(self.drift) * 4 * square
            + (28 + 4 * self.residual as u64) * columns as u64
            + sample
    }
}

impl Moments {
    /// Nothing seen yet of an input of so many channels, of which about `tokens` rows will come.
    #[must_use]
    pub fn new(columns: usize, tokens: usize, wanted: Wanted) -> Self {
        let square = columns * columns;
        Self {
            columns,
            hessian: if wanted.hessian { vec![0.0; square] } else { Vec::new() },
            drift: if wanted.drift { vec![0.0; square] } else { Vec::new() },
            residual: vec![0.0; wanted.residual * columns],
            absmax: vec![0.0; columns],
            sum: vec![0.0; columns],
            sum_abs: vec![0.0; columns],
            sum_squares: vec![0.0; columns],
            count: 0,
            sample: Matrix { rows: 0, columns, values: Vec::new() },
            every: if wanted.sample { tokens.div_ceil(SAMPLE_ROWS).max(1) } else { 0 },
        }
    }

    /// Adds a batch. `dense` is what the original model has in the place of `x`.
    pub fn add(&mut self, x: &Matrix, dense: Option<&Matrix>) {
        if x.rows == 0 || self.columns == 0 {
            return;
        }
        self.add_channels(x);
        for row in self.sampled(x.rows) {
            self.sample.values.extend_from_slice(x.row(row));
            self.sample.rows += 1;
        }
        self.count += x.rows as u64;
        let columns = self.columns;
        let band = BAND.min(columns.div_ceil(8)).max(1);
        if !self.hessian.is_empty() {
            let view = x.view();
            self.hessian.par_chunks_mut(band * columns).enumerate().for_each(|(index, rows)| {
                let (first, height) = (index * band, rows.len() / columns);
                let width = first + height;
                let mut product = vec![0.0_f32; height * width];
                let target = MatMut::from_row_major_slice_mut(&mut product, height, width);
                let left = view.subcols(first, height).transpose();
                matmul(target, Accum::Replace, left, view.subcols(0, width), 1.0, Par::Seq);
                for (row, product) in rows.chunks_exact_mut(columns).zip(product.chunks_exact(width)) {
                    for (sum, value) in row.iter_mut().zip(product) {
                        *sum += f64::from(*value);
                    }
                }
            });
        }
        if let (false, Some(dense)) = (self.drift.is_empty(), dense) {
            let mut difference = dense.clone();
            difference.values.par_chunks_mut(1 << 14).zip(x.values.par_chunks(1 << 14)).for_each(|(d, x)| {
                for (d, x) in d.iter_mut().zip(x) {
                    *d -= x;
                }
            });
            let (left, right) = (difference.view(), x.view());
            self.drift.par_chunks_mut(band * columns).enumerate().for_each(|(index, rows)| {
                let height = rows.len() / columns;
                let target = MatMut::from_row_major_slice_mut(rows, height, columns);
                matmul(target, Accum::Add, left.subcols(index * band, height).transpose(), right, 1.0, Par::Seq);
            });
        }
    }

    /// Which of the next `rows` rows are kept as examples.
    fn sampled(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let every = self.every.max(1);
        let first = (every as u64 - self.count % every as u64) % every as u64;
        (first as usize..if self.every > 0 { rows } else { 0 }).step_by(every)
    }

    /// Adds a batch's difference of the streams that the outputs are added to, `[tokens, outputs]` each.
    pub fn add_residual(&mut self, x: &Matrix, dense: &Matrix, stream: &Matrix) {
        if self.residual.is_empty() || x.rows == 0 {
            return;
        }
        let mut difference = dense.clone();
        for (difference, value) in difference.values.iter_mut().zip(&stream.values) {
            *difference -= value;
        }
        let (left, right, columns) = (difference.view(), x.view(), self.columns);
        self.residual.par_chunks_mut(BAND * columns).enumerate().for_each(|(index, rows)| {
            let height = rows.len() / columns;
            let target = MatMut::from_row_major_slice_mut(rows, height, columns);
            matmul(target, Accum::Add, left.subcols(index * BAND, height).transpose(), right, 1.0, Par::Seq);
        });
    }

    fn add_channels(&mut self, x: &Matrix) {
        // Channels in pieces, so that the sums of a piece stay in the nearest cache.
        const PIECE: usize = 256;
        let figures = self
            .absmax
            .par_chunks_mut(PIECE)
            .zip(self.sum.par_chunks_mut(PIECE))
            .zip(self.sum_abs.par_chunks_mut(PIECE).zip(self.sum_squares.par_chunks_mut(PIECE)));
        figures.enumerate().for_each(|(piece, ((absmax, sum), (sum_abs, squares)))| {
            let (first, width) = (piece * PIECE, absmax.len());
            let mut parts = [[0.0_f32; PIECE]; 3];
            for row in 0..x.rows {
                let values = &x.row(row)[first..first + width];
                let [plain, absolute, square] = &mut parts;
                for (index, value) in values.iter().enumerate() {
                    let magnitude = value.abs();
                    plain[index] += value;
                    absolute[index] += magnitude;
                    square[index] += value * value;
                    absmax[index] = if magnitude > absmax[index] { magnitude } else { absmax[index] };
                }
                if row % 64 == 63 || row + 1 == x.rows {
                    for index in 0..width {
                        sum[index] += f64::from(plain[index]);
                        sum_abs[index] += f64::from(absolute[index]);
                        squares[index] += f64::from(square[index]);
                    }
                    parts = [[0.0; PIECE]; 3];
                }
            }
        });
    }

    /// Divides the channels as if the input was divided: H' = S⁻¹ H S⁻¹, exact, and the figures of channels.
    pub fn divide(&mut self, scales: &[f64]) {
        for (largest, scale) in self.absmax.iter_mut().zip(scales) {
            *largest = (f64::from(*largest) / scale) as f32;
        }
        for ((sum, sum_abs), (squares, scale)) in
            self.sum.iter_mut().zip(&mut self.sum_abs).zip(self.sum_squares.iter_mut().zip(scales))
        {
            *sum /= scale;
            *sum_abs /= scale;
            *squares /= scale * scale;
        }
        for (index, row) in self.hessian.chunks_exact_mut(self.columns.max(1)).enumerate() {
            for (value, scale) in row.iter_mut().zip(scales) {
                *value /= scales[index] * scale;
            }
        }
    }

    /// Of an input whose channels all count alike.
    #[must_use]
    pub fn alike(columns: usize) -> Self {
        let hessian = (0..columns * columns).map(|index| f64::from(u8::from(index % (columns + 1) == 0)));
        Self { columns, hessian: hessian.collect(), ..Self::default() }
    }

    /// What solvers see of it.
    #[must_use]
    pub fn view(&self) -> gptq::Moments<'_> {
        let drift = (!self.drift.is_empty()).then_some(&self.drift[..]);
        gptq::Moments { columns: self.columns, hessian: &self.hessian, drift }
    }

    /// What would have been gathered of the rotated input. Of channel figures only the count is kept.
    #[must_use]
    pub fn rotated(&self, rotations: &Rotations) -> Self {
        let mut rotated = Self {
            columns: self.columns,
            hessian: self.hessian.clone(),
            drift: self.drift.clone(),
            residual: self.residual.clone(),
            count: self.count,
            ..Self::default()
        };
        if let Some(rotation) = rotations.of_inputs(self.columns) {
            if !rotated.hessian.is_empty() {
                rotation.symmetric(&mut rotated.hessian);
            }
            rotation.rows_forward(&mut rotated.drift);
            if !rotated.drift.is_empty() {
                rotation.columns_forward(&mut rotated.drift, self.columns);
            }
            rotation.rows_forward(&mut rotated.residual);
        }
        rotated
    }

    /// Fills the upper triangle.
    pub fn finish(&mut self) {
        let n = self.columns;
        if self.hessian.is_empty() {
            return;
        }
        for row in 0..n {
            let (above, below) = self.hessian.split_at_mut((row + 1) * n);
            for (column, values) in (row + 1..n).zip(below.chunks_exact(n)) {
                above[row * n + column] = values[row];
            }
        }
    }

    /// Mean |x| of each channel.
    #[must_use]
    pub fn mean_abs(&self) -> Vec<f32> {
        self.sum_abs.iter().map(|sum| (sum / self.count.max(1) as f64) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: usize, columns: usize, seed: u32) -> Matrix {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        Matrix { rows, columns, values: (0..rows * columns).map(|_| next()).collect() }
    }

    #[test]
    fn sums_are_those_of_the_definition_in_f64() {
        let (columns, wanted) = (37, Wanted { hessian: true, drift: true, sample: true, residual: 0 });
        let batches =
            [(batch(100, columns, 1), batch(100, columns, 2)), (batch(61, columns, 3), batch(61, columns, 4))];
        let mut moments = Moments::new(columns, 161, wanted);
        for (x, dense) in &batches {
            moments.add(x, Some(dense));
        }
        moments.finish();
        let rows: Vec<(&[f32], &[f32])> =
            batches.iter().flat_map(|(x, d)| (0..x.rows).map(move |row| (x.row(row), d.row(row)))).collect();
        assert_eq!(moments.count, 161);
        for i in 0..columns {
            let sum: f64 = rows.iter().map(|(x, _)| f64::from(x[i].abs())).sum();
            assert!((moments.sum_abs[i] - sum).abs() < 1e-4);
            assert_eq!(moments.absmax[i], rows.iter().map(|(x, _)| x[i].abs()).fold(0.0, f32::max));
            for j in 0..columns {
                let exact: f64 = rows.iter().map(|(x, _)| f64::from(x[i]) * f64::from(x[j])).sum();
                assert!((moments.hessian[i * columns + j] - exact).abs() < 1e-4);
                let drift: f64 = rows.iter().map(|(x, d)| (f64::from(d[i]) - f64::from(x[i])) * f64::from(x[j])).sum();
                assert!((f64::from(moments.drift[i * columns + j]) - drift).abs() < 1e-3);
            }
        }
        assert_eq!(moments.sample.rows, 161);
        assert_eq!(moments.sample.row(130), batches[1].0.row(30));
    }
}
