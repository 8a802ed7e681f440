//! Randomized Hadamard rotations: orthogonal, fast, and told by a size and a seed.
//!
//! `Q = (1/√o) · (I_b ⊗ A ⊗ H) · diag(s)`, where size = b · h · 2^k, A is a Hadamard matrix of order h by Paley, H that of
//! order 2^k by Sylvester, o = h · 2^k, and s are random signs. So a matrix's rows lose what makes some of their elements
//! much larger than others ("incoherence processing": Chee et al., 2307.13304; Tseng et al., 2402.04396).

use multiversion::multiversion;
use rayon::prelude::*;

use super::hadamard::{Dense, Real, sylvester};

/// Vectors that are transformed at once.
const WIDTH: usize = 16;
/// Panels of columns that are held beside the matrix at a time.
const PANELS: usize = 64;

/// A rotation of vectors of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    size: usize,
    /// Order of each block on the diagonal.
    order: usize,
    /// A, and its transposed; none for blocks of a power of two.
    dense: Option<(Dense, Dense)>,
    /// Whether each sign is −1.
    negative: Vec<bool>,
}

impl Rotation {
    /// The rotation of vectors of `size` elements.
    ///
    /// Sizes that are a power of two are transformed whole. Of others, with size = odd · 2^a, the smallest h = odd · 2^j
    /// that has a matrix A is taken; where there is none, blocks of 2^a are transformed each by itself. Signs are those of
    /// [`signs`].
    #[must_use]
    pub fn new(size: usize, seed: u64) -> Self {
        let power = if size == 0 { 1 } else { 1 << size.trailing_zeros() };
        let odd = size / power;
        let orders = (0..=power.trailing_zeros()).map(|j| odd << j);
        let dense = if odd > 1 { orders.into_iter().find_map(Dense::paley) } else { None };
        let order = if dense.is_some() { size } else { power };
        let dense = dense.map(|dense| (dense.transposed(), dense)).map(|(transposed, dense)| (dense, transposed));
        Self { size, order, dense, negative: signs(size, seed) }
    }

    /// Elements of the vectors.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Elements that are mixed with each other: the size, or a divisor of it where no matrix of the size is known.
    #[must_use]
    pub fn order(&self) -> usize {
        self.order
    }

    /// Q x for each row x of a matrix `[rows, size]`: M Qᵀ.
    ///
    /// # Panics
    /// When the matrix has no whole number of rows.
    pub fn rows_forward<T: Transformed>(&self, matrix: &mut [T]) {
        self.rows(matrix, true);
    }

    /// Qᵀ x for each row x of a matrix `[rows, size]`: M Q.
    ///
    /// # Panics
    /// As for [`Rotation::rows_forward`].
    pub fn rows_inverse<T: Transformed>(&self, matrix: &mut [T]) {
        self.rows(matrix, false);
    }

    /// Q M for a matrix `[size, columns]`.
    ///
    /// # Panics
    /// When the matrix does not have `size` rows.
    pub fn columns_forward<T: Transformed>(&self, matrix: &mut [T], columns: usize) {
        self.columns(matrix, columns, true);
    }

    /// Qᵀ M for a matrix `[size, columns]`.
    ///
    /// # Panics
    /// As for [`Rotation::columns_forward`].
    pub fn columns_inverse<T: Transformed>(&self, matrix: &mut [T], columns: usize) {
        self.columns(matrix, columns, false);
    }

    /// Q H Qᵀ for a symmetric matrix `[size, size]`; the result is symmetric to the last bit.
    ///
    /// # Panics
    /// When the matrix is not of this size.
    pub fn symmetric(&self, matrix: &mut [f64]) {
        assert_eq!(matrix.len(), self.size * self.size, "a matrix of the rotation's size");
        self.rows_forward(matrix);
        self.columns_forward(matrix, self.size);
        for row in 0..self.size {
            for column in 0..row {
                let (a, b) = (row * self.size + column, column * self.size + row);
                let mean = f64::midpoint(matrix[a], matrix[b]);
                (matrix[a], matrix[b]) = (mean, mean);
            }
        }
    }

    fn rows<T: Transformed>(&self, matrix: &mut [T], forward: bool) {
        if self.size == 0 {
            return;
        }
        assert!(matrix.len().is_multiple_of(self.size), "whole rows of {} elements", self.size);
        matrix.par_chunks_mut(WIDTH * self.size).for_each(|rows| {
            let mut panel = vec![T::default(); self.size * WIDTH];
            for (lane, row) in rows.chunks_exact(self.size).enumerate() {
                panel.chunks_exact_mut(WIDTH).zip(row).for_each(|(to, from)| to[lane] = *from);
            }
            self.panel(&mut panel, forward);
            for (lane, row) in rows.chunks_exact_mut(self.size).enumerate() {
                panel.chunks_exact(WIDTH).zip(row).for_each(|(from, to)| *to = from[lane]);
            }
        });
    }

    fn columns<T: Transformed>(&self, matrix: &mut [T], columns: usize, forward: bool) {
        assert_eq!(matrix.len(), self.size * columns, "{} rows of {columns} elements", self.size);
        for start in (0..columns).step_by(WIDTH * PANELS) {
            let end = columns.min(start + WIDTH * PANELS);
            let firsts: Vec<usize> = (start..end).step_by(WIDTH).collect();
            let given: &[T] = matrix;
            let panels: Vec<Vec<T>> = firsts
                .par_iter()
                .map(|first| {
                    let count = WIDTH.min(end - first);
                    let mut panel = vec![T::default(); self.size * WIDTH];
                    for (to, row) in panel.chunks_exact_mut(WIDTH).zip(given.chunks_exact(columns)) {
                        to[..count].copy_from_slice(&row[*first..first + count]);
                    }
                    self.panel(&mut panel, forward);
                    panel
                })
                .collect();
            matrix.par_chunks_exact_mut(columns).enumerate().for_each(|(row, values)| {
                for (to, panel) in values[start..end].chunks_mut(WIDTH).zip(&panels) {
                    let count = to.len();
                    to.copy_from_slice(&panel[row * WIDTH..][..count]);
                }
            });
        }
    }

    /// A panel is `[size, WIDTH]`; each of its columns is a vector.
    fn panel<T: Transformed>(&self, panel: &mut [T], forward: bool) {
        let flip = |panel: &mut [T]| {
            for (row, _) in panel.chunks_exact_mut(WIDTH).zip(&self.negative).filter(|(_, negative)| **negative) {
                for value in row.iter_mut() {
                    *value = -*value;
                }
            }
        };
        if forward {
            flip(panel);
        }
        let scale = T::of(1.0 / (self.order as f64).sqrt());
        match &self.dense {
            None => panel.chunks_exact_mut(self.order * WIDTH).for_each(|block| T::fast(block, WIDTH, scale)),
            Some((dense, transposed)) => {
                let part = self.size / dense.order * WIDTH;
                panel.chunks_exact_mut(part).for_each(|part| T::fast(part, WIDTH, scale));
                let given = panel.to_vec();
                T::mix(panel, &given, if forward { dense } else { transposed });
            }
        }
        if !forward {
            flip(panel);
        }
    }
}

/// Numbers whose transforms are compiled for several instruction sets.
pub trait Transformed: Real {
    /// Sylvester's transform of `[size, width]` along the first axis, times `scale`.
    fn fast(values: &mut [Self], width: usize, scale: Self);
    /// A ⊗ I: parts of `to` become sums of parts of `from` with A's signs, in order.
    fn mix(to: &mut [Self], from: &[Self], matrix: &Dense);
}

macro_rules! transformed {
    ($($number:ty, $fast:ident, $mix:ident;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
        fn $fast(values: &mut [$number], width: usize, scale: $number) {
            sylvester(values, width);
            for value in values.iter_mut() {
                *value *= scale;
            }
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
        fn $mix(to: &mut [$number], from: &[$number], matrix: &Dense) {
            let part = from.len() / matrix.order;
            for (to, signs) in to.chunks_exact_mut(part).zip(matrix.negative.chunks_exact(matrix.order)) {
                to.fill(0.0);
                for (from, negative) in from.chunks_exact(part).zip(signs) {
                    let sign = if *negative { -1.0 } else { 1.0 };
                    for (to, from) in to.iter_mut().zip(from) {
                        *to += sign * from;
                    }
                }
            }
        }

        impl Transformed for $number {
            fn fast(values: &mut [Self], width: usize, scale: Self) {
                $fast(values, width, scale);
            }

            fn mix(to: &mut [Self], from: &[Self], matrix: &Dense) {
                $mix(to, from, matrix);
            }
        }
    )*};
}

transformed! {
    f32, fast_f32, mix_f32;
    f64, fast_f64, mix_f64;
}

/// Whether each of `count` signs is −1: the highest bit of the outputs of splitmix64 (Steele, Lea and Flood, 2014).
///
/// Output i, from 0, with all arithmetic modulo 2⁶⁴: z = seed + (i + 1) · 0x9E3779B97F4A7C15;
/// z = (z ^ z >> 30) · 0xBF58476D1CE4E5B9; z = (z ^ z >> 27) · 0x94D049BB133111EB; z ^ z >> 31.
#[must_use]
pub fn signs(count: usize, seed: u64) -> Vec<bool> {
    (0..count as u64).map(|index| splitmix64(seed, index) >> 63 == 1).collect()
}

fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 12] = [1, 2, 3, 16, 40, 43, 48, 96, 128, 176, 344, 416];

    fn numbers(count: usize) -> Vec<f64> {
        (0..count as u64).map(|index| splitmix64(5, index) as f64 / 2f64.powi(63) - 1.0).collect()
    }

    /// Q, column after column from the unit vectors' images.
    fn matrix(rotation: &Rotation) -> Vec<f64> {
        let size = rotation.size();
        let mut q: Vec<f64> = (0..size * size).map(|index| f64::from(u8::from(index % (size + 1) == 0))).collect();
        rotation.columns_forward(&mut q, size);
        q
    }

    #[test]
    fn outputs_of_the_generator_are_the_published_ones() {
        // The first outputs for seed 1234567, as Vigna's implementation gives them.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|index| splitmix64(1_234_567, index)), expected);
    }

    #[test]
    fn rotations_are_orthogonal_and_mix_what_can_be_mixed() {
        for size in SIZES {
            let rotation = Rotation::new(size, 7);
            let q = matrix(&rotation);
            for a in 0..size {
                for b in 0..=a {
                    let product: f64 = (0..size).map(|k| q[a * size + k] * q[b * size + k]).sum();
                    assert!((product - f64::from(u8::from(a == b))).abs() < 1e-12, "{size}: {a} {b} {product}");
                }
            }
            let expected = 1.0 / (rotation.order() as f64).sqrt();
            let filled = q.iter().filter(|element| **element != 0.0).count();
            assert_eq!(filled, size * rotation.order());
            assert!(q.iter().all(|element| *element == 0.0 || (element.abs() - expected).abs() < 1e-12));
        }
        let orders = [(4096, 4096), (14336, 14336), (11008, 256), (5120, 5120), (13824, 13824), (5632, 5632), (40, 40)];
        for (size, order) in orders {
            assert_eq!(Rotation::new(size, 1).order(), order, "{size}");
        }
        assert_ne!(Rotation::new(256, 1), Rotation::new(256, 2));
    }

    #[test]
    fn rows_and_columns_agree_and_come_back() {
        for size in SIZES {
            let rotation = Rotation::new(size, 11);
            let q = matrix(&rotation);
            let rows = 21;
            let given = numbers(rows * size);
            let mut rotated = given.clone();
            rotation.rows_forward(&mut rotated);
            for (row, rotated) in given.chunks(size).zip(rotated.chunks(size)) {
                for (i, value) in rotated.iter().enumerate() {
                    let expected: f64 = row.iter().zip(&q[i * size..]).map(|(x, q)| x * q).sum();
                    assert!((value - expected).abs() < 1e-12 * size as f64);
                }
            }
            rotation.rows_inverse(&mut rotated);
            assert!(rotated.iter().zip(&given).all(|(a, b)| (a - b).abs() < 1e-12), "{size}");
            let mut columns = given.clone();
            rotation.columns_forward(&mut columns, rows);
            for i in 0..size {
                for j in 0..rows {
                    let expected: f64 = (0..size).map(|k| q[i * size + k] * given[k * rows + j]).sum();
                    assert!((columns[i * rows + j] - expected).abs() < 1e-12 * size as f64);
                }
            }
            rotation.columns_inverse(&mut columns, rows);
            assert!(columns.iter().zip(&given).all(|(a, b)| (a - b).abs() < 1e-12), "{size}");
        }
    }

    #[test]
    fn norms_and_losses_stay() {
        let (rows, columns) = (96, 160);
        let (out, input) = (Rotation::new(rows, 3), Rotation::new(columns, 4));
        let weights: Vec<f32> = numbers(rows * columns).iter().map(|x| *x as f32).collect();
        let change: Vec<f32> = numbers(rows * columns + 9)[9..].iter().map(|x| *x as f32).collect();
        let factor = numbers(columns * columns + 1)[1..].to_vec();
        let mut hessian: Vec<f64> = (0..columns * columns)
            .map(|index| {
                let (i, j) = (index / columns, index % columns);
                (0..columns).map(|k| factor[i * columns + k] * factor[j * columns + k]).sum()
            })
            .collect();
        let loss = |change: &[f32], hessian: &[f64]| -> f64 {
            let of_row = |row: &[f32]| -> f64 {
                let product =
                    |i: usize| -> f64 { row.iter().zip(&hessian[i * columns..]).map(|(x, h)| f64::from(*x) * h).sum() };
                row.iter().enumerate().map(|(i, x)| f64::from(*x) * product(i)).sum()
            };
            change.chunks(columns).map(of_row).sum()
        };
        let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let before = (norm(&weights), loss(&change, &hessian));
        let rotate = |values: &[f32]| {
            let mut values = values.to_vec();
            input.rows_forward(&mut values);
            out.columns_forward(&mut values, columns);
            values
        };
        input.symmetric(&mut hessian);
        let after = (norm(&rotate(&weights)), loss(&rotate(&change), &hessian));
        assert!((after.0 / before.0 - 1.0).abs() < 1e-6 && (after.1 / before.1 - 1.0).abs() < 1e-6);
        assert!((0..columns).all(|i| (0..i).all(|j| hessian[i * columns + j] == hessian[j * columns + i])));
    }

    #[test]
    fn threads_do_not_matter() {
        let rotation = Rotation::new(96, 1);
        let given: Vec<f32> = numbers(96 * 2100).iter().map(|x| *x as f32).collect();
        let results: Vec<Vec<u32>> = [1, 3]
            .map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut values = given.clone();
                pool.install(|| {
                    rotation.columns_forward(&mut values, 2100);
                    rotation.rows_forward(&mut values);
                });
                values.iter().map(|x| x.to_bits()).collect()
            })
            .into();
        assert_eq!(results[0], results[1]);
    }
}
