//! Signs of a matrix, one bit each.

/// Signs of a matrix, row after row, each row padded to whole words: bit b of word k is column 32 k + b, set where the
/// sign is +1. Padding is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    rows: usize,
    columns: usize,
    words: Vec<u32>,
}

impl Signs {
    /// The signs of `[rows, columns]` values: +1 where not negative, zeros of either sign included.
    ///
    /// # Panics
    /// When there are not as many values.
    #[must_use]
    pub fn of(rows: usize, columns: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * columns, "values of a {rows} x {columns} matrix");
        let mut words = Vec::with_capacity(rows * columns.div_ceil(32));
        for row in values.chunks_exact(columns.max(1)) {
            words.extend(row.chunks(32).map(|part| {
                part.iter().enumerate().fold(0, |word, (bit, value)| word | u32::from(*value >= 0.0) << bit)
            }));
        }
        Self { rows, columns, words }
    }

    /// Signs from their words; none when there are not `rows · ⌈columns / 32⌉` of them or padding is not zero.
    #[must_use]
    pub fn from_words(rows: usize, columns: usize, words: Vec<u32>) -> Option<Self> {
        let per_row = columns.div_ceil(32);
        let padding = if columns.is_multiple_of(32) { 0 } else { u32::MAX << (columns % 32) };
        let whole = rows.checked_mul(per_row) == Some(words.len());
        let clean = per_row == 0 || words.chunks_exact(per_row).all(|row| row[per_row - 1] & padding == 0);
        (whole && clean).then_some(Self { rows, columns, words })
    }

    /// Rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The words, `[rows, ⌈columns / 32⌉]`.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The words with the dimensions changed, `[⌈columns / 32⌉, rows]`: how BitDelta's files hold them
    /// (FasterDecoding/BitDelta, `binary_gemm_kernel.py`).
    #[must_use]
    pub fn transposed_words(&self) -> Vec<u32> {
        let per_row = self.columns.div_ceil(32);
        (0..per_row).flat_map(|word| (0..self.rows).map(move |row| self.words[row * per_row + word])).collect()
    }

    /// Whether the sign at a place is +1.
    #[must_use]
    pub fn is_positive(&self, row: usize, column: usize) -> bool {
        self.words[row * self.columns.div_ceil(32) + column / 32] >> (column % 32) & 1 == 1
    }

    /// Writes `plus` or `minus` for each sign of a row.
    pub fn fill<T: Copy>(&self, row: usize, plus: T, minus: T, out: &mut [T]) {
        let per_row = self.columns.div_ceil(32);
        for (part, word) in out.chunks_mut(32).zip(&self.words[row * per_row..][..per_row]) {
            for (bit, out) in part.iter_mut().enumerate() {
                *out = if word >> bit & 1 == 1 { plus } else { minus };
            }
        }
    }
}
