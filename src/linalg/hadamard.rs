//! Hadamard matrices and the fast transform.
//!
//! Orders of powers of two by Sylvester's doubling. Others by Paley ("On orthogonal matrices", 1933): from the quadratic
//! character χ of a finite field of q elements, of order q + 1 where q ≡ 3 mod 4, and of order 2 (q + 1) where
//! q ≡ 1 mod 4. Matrices are computed, not listed.

/// Numbers that are transformed.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::AddAssign
    + std::ops::Neg<Output = Self>
{
    /// From an F64, rounded.
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
}

/// The largest order of a matrix that is applied in full; its work grows with its order.
const LARGEST: usize = 1024;

/// A dense Hadamard matrix: elements are 1 and −1 and rows are orthogonal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dense {
    /// Its order.
    pub order: usize,
    /// Whether each element is −1, row-major.
    pub negative: Vec<bool>,
}

impl Dense {
    /// The matrix of an order by one of Paley's constructions over a field of a prime, or of a prime's square; none where
    /// neither gives one.
    #[must_use]
    pub fn paley(order: usize) -> Option<Self> {
        if order < 4 || !order.is_multiple_of(4) || order > LARGEST {
            return None;
        }
        let q = order - 1;
        if q % 4 == 3
            && let Some(field) = Field::new(q)
        {
            // I + S with S = [0, 1; −1, Q], where Q_ij = χ(i − j): 1 in the first row, −1 below, and Q + I.
            let negative = |row: usize, column: usize| match (row, column) {
                (0, _) => false,
                (_, 0) => true,
                _ => row != column && field.character(row - 1, column - 1) < 0,
            };
            return Some(Self::from_fn(order, negative));
        }
        let q = order / 2 - 1;
        if q % 4 == 1
            && let Some(field) = Field::new(q)
        {
            // S = [0, 1; 1, Q], each element widened to 2 × 2: 0 to [1, −1; −1, −1], ±1 to ±[1, 1; 1, −1].
            let negative = |row: usize, column: usize| {
                let (i, j) = (row / 2, column / 2);
                let (lower, right) = (row % 2 == 1, column % 2 == 1);
                if i == j {
                    return lower || right;
                }
                let minus = i > 0 && j > 0 && field.character(i - 1, j - 1) < 0;
                minus != (lower && right)
            };
            return Some(Self::from_fn(order, negative));
        }
        None
    }

    fn from_fn(order: usize, negative: impl Fn(usize, usize) -> bool) -> Self {
        let elements = (0..order * order).map(|index| negative(index / order, index % order));
        Self { order, negative: elements.collect() }
    }

    /// The transposed matrix.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self::from_fn(self.order, |row, column| self.negative[column * self.order + row])
    }
}

/// A finite field of p or p² elements, as far as its quadratic character goes. Element a + b √r of p² is number
/// a + b p, where r is no square modulo p.
struct Field {
    prime: usize,
    squares: Vec<bool>,
}

impl Field {
    fn new(q: usize) -> Option<Self> {
        let is_prime = |n: usize| n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d));
        if q < 3 || q.is_multiple_of(2) {
            return None;
        }
        if is_prime(q) {
            let mut squares = vec![false; q];
            (1..q).for_each(|a| squares[a * a % q] = true);
            return Some(Self { prime: q, squares });
        }
        let prime = q.isqrt();
        if prime * prime != q || !is_prime(prime) {
            return None;
        }
        let root = (2..prime).find(|r| (1..prime).all(|a| a * a % prime != *r))?;
        let mut squares = vec![false; q];
        for element in 1..q {
            let (a, b) = (element % prime, element / prime);
            squares[(a * a + b * b * root) % prime + 2 * a * b % prime * prime] = true;
        }
        Some(Self { prime, squares })
    }

    /// χ(a − b): 0 for 0, 1 for squares, −1 for the others.
    fn character(&self, a: usize, b: usize) -> i8 {
        let p = self.prime;
        let digit = |a: usize, b: usize| (a % p + p - b % p) % p;
        let difference = digit(a, b) + digit(a / p, b / p) * p;
        // For a field of p elements the second digit is 0.
        match (difference, self.squares[difference]) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => -1,
        }
    }
}

/// Sylvester's transform of `values`, `[size, width]` row-major, along its first axis, without a scale: y = H x where
/// `H_ij` is −1 to the number of ones that i and j share in binary.
///
/// # Panics
/// When the size is no power of two.
#[inline(always)]
pub fn sylvester<T: Real>(values: &mut [T], width: usize) {
    let size = values.len() / width.max(1);
    assert!(size.is_power_of_two(), "a power of two is transformed, not {size}");
    // Halves first, each then by itself, so that small ones stay in the caches.
    let mut distance = size / 2;
    while distance > 0 {
        for pair in values.chunks_exact_mut(2 * distance * width) {
            let (a, b) = pair.split_at_mut(distance * width);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_order_are_orthogonal() {
        // 12, 20, 44, 60, 108, 140 by the first construction, 28 by a cube's neighbour only by the second, 52 by 25.
        for order in [4, 12, 20, 28, 36, 44, 52, 60, 76, 108, 140, 148] {
            let matrix = Dense::paley(order).unwrap_or_else(|| panic!("{order}"));
            let sign = |row: usize, column: usize| if matrix.negative[row * order + column] { -1 } else { 1 };
            for a in 0..order {
                for b in 0..order {
                    let product: i32 = (0..order).map(|k| sign(a, k) * sign(b, k)).sum();
                    assert_eq!(product, if a == b { order as i32 } else { 0 }, "{order}: rows {a} and {b}");
                }
            }
            assert_eq!(matrix.transposed().transposed(), matrix);
        }
        for order in [0, 1, 2, 3, 6, 40, 92, 172] {
            assert_eq!(Dense::paley(order), None, "{order}");
        }
    }

    #[test]
    fn the_fast_transform_is_the_matrix() {
        let (size, width) = (64, 3);
        let given: Vec<f64> = (0..size * width).map(|i| ((i * i + 7 * i) % 31) as f64 - 15.0).collect();
        let mut found = given.clone();
        sylvester(&mut found, width);
        for i in 0..size {
            for column in 0..width {
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let expected: f64 = (0..size).map(|j| sign(j) * given[j * width + column]).sum();
                assert_eq!(found[i * width + column], expected);
            }
        }
    }
}
