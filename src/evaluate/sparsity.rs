//! n:m sparsity: how many weights of each group of neighbouring columns are not zero.

use std::ops::Range;

use serde::Serialize;

use super::stripes::map_stripes;
use crate::codec::{CodecError, RowSource, sparse::Pattern};

/// Columns of the smallest and of the largest group that are looked for.
const GROUPS: Range<usize> = 2..9;

/// Rows looked at before all are read.
const SAMPLE_ROWS: usize = 8;

/// The n:m pattern that a matrix keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sparsity {
    /// Most weights of a group that are not zero.
    pub keep: usize,
    /// Weights of a group.
    pub of: usize,
    /// Share of the weights that are zero.
    pub zeros: f64,
}

/// A group that has more weights than it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excess {
    /// Its row.
    pub row: usize,
    /// Its first column.
    pub column: usize,
    /// Its weights that are not zero.
    pub weights: usize,
}

/// Most weights of any group, for each size of groups, and zeros.
#[derive(Clone, Copy, Default)]
struct Counts {
    most: [usize; GROUPS.end],
    zeros: u64,
}

impl Counts {
    fn add_row(&mut self, row: &[f32]) {
        let counted = |group: &[f32]| group.iter().filter(|weight| is_weight(**weight)).count();
        self.zeros += (row.len() - counted(row)) as u64;
        for of in GROUPS {
            let most = row.chunks_exact(of).map(counted).max().unwrap_or(of);
            self.most[of] = self.most[of].max(most);
        }
    }

    fn merge(mut self, other: &Self) -> Self {
        self.most.iter_mut().zip(other.most).for_each(|(most, other)| *most = (*most).max(other));
        self.zeros += other.zeros;
        self
    }

    /// The pattern with the fewest weights; of equal ones that of the smallest groups.
    fn pattern(&self) -> Option<Pattern> {
        let found = GROUPS.map(|of| Pattern { keep: self.most[of], of }).filter(|pattern| pattern.keep < pattern.of);
        found.min_by(|a, b| (a.keep * b.of).cmp(&(b.keep * a.of)))
    }
}

/// Whether a value counts as kept: all but +0, which is what is left of a weight that a mask leaves out.
fn is_weight(value: f32) -> bool {
    value.to_bits() != 0
}

impl Sparsity {
    /// What `pattern` leaves out of rows of so many columns, kept weights taken as not zero.
    #[must_use]
    pub fn of_pattern(pattern: Pattern, columns: usize) -> Self {
        let Pattern { keep, of } = pattern;
        let kept = pattern.kept_per_row(columns) as f64 / columns.max(1) as f64;
        Self { keep, of, zeros: 1.0 - kept }
    }

    /// The pattern of a matrix with exact zeros, of groups of 2 to 8 columns counted from a row's first one; what is no
    /// whole group at a row's end does not count. `None` where there is no such pattern, or nothing but zeros. Reads a
    /// few rows, and the whole matrix only where those have one.
    ///
    /// # Errors
    /// [`CodecError`] when the matrix cannot be read.
    pub fn find(source: &dyn RowSource) -> Result<Option<Self>, CodecError> {
        let (rows, columns) = (source.rows(), source.columns());
        if rows == 0 || columns < GROUPS.start {
            return Ok(None);
        }
        let sample = counts(source, 0..rows.min(SAMPLE_ROWS))?;
        if sample.pattern().is_none() {
            return Ok(None);
        }
        let all = map_stripes(rows, columns, |rows| counts(source, rows))?;
        let all = all.iter().fold(Counts::default(), Counts::merge);
        let zeros = all.zeros as f64 / (rows as f64 * columns as f64);
        let found = all.pattern().filter(|pattern| pattern.keep > 0);
        Ok(found.map(|Pattern { keep, of }| Self { keep, of, zeros }))
    }
}

fn counts(source: &dyn RowSource, rows: Range<usize>) -> Result<Counts, CodecError> {
    let columns = source.columns();
    let mut values = vec![0.0; rows.len() * columns];
    source.read_rows(rows.start, &mut values)?;
    source.release_rows(rows);
    let mut counts = Counts::default();
    values.chunks_exact(columns.max(1)).for_each(|row| counts.add_row(row));
    Ok(counts)
}

/// The first group of a matrix that has more weights than `pattern` keeps: what a mask leaves out is +0, of which −0 and
/// what is no number are different. Columns that are no whole group may all be weights.
///
/// # Errors
/// [`CodecError`] when the matrix cannot be read.
pub fn excess(source: &dyn RowSource, pattern: Pattern) -> Result<Option<Excess>, CodecError> {
    let Pattern { keep, of } = pattern;
    let columns = source.columns();
    let found = map_stripes(source.rows(), columns, |rows| {
        let mut values = vec![0.0; rows.len() * columns];
        source.read_rows(rows.start, &mut values)?;
        source.release_rows(rows.clone());
        let of_rows = rows.zip(values.chunks_exact(columns.max(1)));
        let mut groups = of_rows.flat_map(|(row, values)| {
            values.chunks_exact(of.max(1)).enumerate().map(move |(group, weights)| (row, group, weights))
        });
        Ok(groups.find_map(|(row, group, weights)| {
            let weights = weights.iter().filter(|weight| is_weight(**weight)).count();
            (weights > keep).then_some(Excess { row, column: group * of, weights })
        }))
    })?;
    Ok(found.into_iter().flatten().next())
}

#[cfg(test)]
mod tests {
    use super::{Excess, Sparsity, excess};
    use crate::{codec::sparse::Pattern, evaluate::test_matrix::Matrix};

    /// A matrix that keeps the weights at the places given of each group.
    fn kept(rows: usize, columns: usize, of: usize, places: &'static [usize]) -> Matrix {
        Matrix::new(rows, columns, move |index| {
            let column = index % columns;
            if places.contains(&(column % of)) || column >= columns / of * of { -1.5 } else { 0.0 }
        })
    }

    fn pattern(matrix: &Matrix) -> Option<(usize, usize)> {
        Sparsity::find(matrix).unwrap().map(|found| (found.keep, found.of))
    }

    #[test]
    fn the_narrowest_pattern_is_found() {
        // 0 and 1 of four make no pattern in groups of two.
        assert_eq!(pattern(&kept(20, 64, 4, &[0, 1])), Some((2, 4)));
        // 0 and 2 do.
        assert_eq!(pattern(&kept(20, 64, 4, &[0, 2])), Some((1, 2)));
        assert_eq!(pattern(&kept(20, 64, 8, &[0, 1, 2, 3])), Some((4, 8)));
        assert_eq!(pattern(&kept(20, 64, 8, &[0, 1, 3])), Some((3, 8)));
        let found = Sparsity::find(&kept(2000, 66, 4, &[1, 2])).unwrap().unwrap();
        assert_eq!((found.keep, found.of, found.zeros), (2, 4, 32.0 / 66.0));
        assert_eq!(Sparsity::of_pattern(Pattern::TWO_OF_FOUR, 66).zeros, 1.0 - 34.0 / 66.0);
    }

    #[test]
    fn what_has_no_pattern_has_none() {
        assert_eq!(pattern(&Matrix::new(20, 64, |_| 1.0)), None);
        assert_eq!(pattern(&Matrix::new(20, 64, |_| 0.0)), None);
        // The first rows are zero and nothing else.
        assert_eq!(pattern(&Matrix::new(20, 64, |index| if index < 64 * 19 { 0.0 } else { 1.0 })), None);
        // One weight too many in the last row.
        let mut matrix = kept(3000, 64, 4, &[0, 1]);
        matrix.values[2999 * 64 + 63] = 1.0;
        assert_eq!(pattern(&matrix), pattern_by_hand(&matrix));
    }

    /// As the definition has it, for every pattern.
    fn pattern_by_hand(matrix: &Matrix) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize)> = None;
        for of in 2..=8 {
            let groups = matrix.values.chunks(64).flat_map(|row| row.chunks_exact(of));
            let keep = groups.map(|group| group.iter().filter(|weight| **weight != 0.0).count()).max().unwrap();
            if keep < of && best.is_none_or(|(k, o)| (keep as f64 / of as f64) < k as f64 / o as f64) {
                best = Some((keep, of));
            }
        }
        best
    }

    #[test]
    fn the_first_group_with_too_many_weights_is_named() {
        let mut matrix = kept(3000, 66, 4, &[0, 1]);
        assert_eq!(excess(&matrix, Pattern::TWO_OF_FOUR), Ok(None));
        matrix.values[2500 * 66 + 41] = f32::NAN;
        matrix.values[2500 * 66 + 42] = -0.0;
        matrix.values[2800 * 66 + 2] = 1.0;
        let first = Excess { row: 2500, column: 40, weights: 3 };
        assert_eq!(excess(&matrix, Pattern::TWO_OF_FOUR), Ok(Some(first)));
    }
}
