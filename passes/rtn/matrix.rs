//! A whole matrix whose weights share one scale, and weights without the outliers among them.

use std::{borrow::Cow, ops::Range as Columns};

use super::{
    grid::{Grid, GroupScale},
    kernels::{self, Extent, Sums},
    search::Weights,
    stripes::{fold, not_finite},
};
use crate::codec::{CodecError, Outliers, RowSource};

/// The outliers of a row within these columns.
pub fn outlier_columns<'a>(outliers: Option<&'a Outliers>, row: usize, range: &Columns<usize>) -> &'a [u32] {
    let Some(outliers) = outliers else { return &[] };
    let columns = &outliers.columns[outliers.row_starts[row] as usize..outliers.row_starts[row + 1] as usize];
    let place = |column: usize| columns.partition_point(|outlier| (*outlier as usize) < column);
    &columns[place(range.start)..place(range.end)]
}

/// The weights of a row in these columns but its outliers.
pub fn normal<'a>(row: &'a [f32], range: &Columns<usize>, outliers: &[u32]) -> Cow<'a, [f32]> {
    if outliers.is_empty() {
        return row[range.clone()].into();
    }
    let mut outliers = outliers.iter().map(|column| *column as usize).peekable();
    range.clone().filter(|column| outliers.next_if_eq(column).is_none()).map(|column| row[column]).collect()
}

/// All weights of a matrix but its outliers.
pub struct WholeMatrix<'a> {
    /// The weights.
    pub source: &'a dyn RowSource,
    /// What does not count.
    pub outliers: Option<&'a Outliers>,
}

impl WholeMatrix<'_> {
    fn normal<'a>(&self, row: usize, weights: &'a [f32]) -> Cow<'a, [f32]> {
        let range = 0..weights.len();
        normal(weights, &range, outlier_columns(self.outliers, row, &range))
    }

    /// The extremes.
    ///
    /// # Errors
    /// When a weight is not finite or cannot be read.
    pub fn extent(&self) -> Result<Extent, CodecError> {
        let stripes = fold(
            self.source,
            || None::<Extent>,
            |extent, row, weights| {
                let normal = self.normal(row, weights);
                let found = kernels::extent(&normal).ok_or_else(|| not_finite(row, weights))?;
                if !normal.is_empty() {
                    *extent = Some(extent.map_or(found, |extent| extent.union(found)));
                }
                Ok(())
            },
        )?;
        Ok(stripes.into_iter().flatten().reduce(Extent::union).unwrap_or_default())
    }

    fn total<T: Copy + Default + std::ops::AddAssign + Send>(
        &self,
        candidates: &[GroupScale],
        of: impl Fn(&[f32], &GroupScale) -> T + Sync,
    ) -> Result<Vec<T>, CodecError> {
        let add = |totals: &mut Vec<T>, row: usize, weights: &[f32]| {
            let normal = self.normal(row, weights);
            for (total, candidate) in totals.iter_mut().zip(candidates) {
                *total += of(&normal, candidate);
            }
            Ok(())
        };
        let start = || vec![T::default(); candidates.len()];
        Ok(fold(self.source, start, add)?.into_iter().fold(start(), |mut totals, stripe| {
            totals.iter_mut().zip(stripe).for_each(|(total, stripe)| *total += stripe);
            totals
        }))
    }
}

impl Weights for WholeMatrix<'_> {
    fn sums(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<Sums>, CodecError> {
        self.total(candidates, |weights, candidate| grid.sums(weights, candidate))
    }

    fn squared_errors(&self, grid: &Grid, candidates: &[GroupScale]) -> Result<Vec<f64>, CodecError> {
        self.total(candidates, |weights, candidate| grid.squared_error(weights, candidate))
    }
}
