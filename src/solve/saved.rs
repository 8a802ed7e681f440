//! [`Transforms`] as named lists of numbers, for a file.

use super::{tensor_change::Clip, transforms::Transforms};
use crate::forward::ForwardError;

/// Values of [`Transforms::to_tensors`].
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Multipliers.
    F64(Vec<f64>),
    /// New values or limits.
    F32(Vec<f32>),
}

impl Transforms {
    /// Everything as named lists, which [`Transforms::from_tensors`] reads. A name is
    /// `what|rows|columns|transposed|expert|group|tensor`.
    #[must_use]
    pub fn to_tensors(&self) -> Vec<(String, Values)> {
        let mut saved = Vec::new();
        for (tensor, change) in &self.tensors {
            let name = |what: &str, expert: usize, group: usize| {
                let (rows, columns, transposed) = (change.rows, change.columns, u8::from(change.transposed));
                format!("{what}|{rows}|{columns}|{transposed}|{expert}|{group}|{tensor}")
            };
            if let Some(values) = &change.replaced {
                saved.push((name("values", 0, 0), Values::F32(values.clone())));
            }
            for (expert, matrix) in &change.matrices {
                if !matrix.rows.is_empty() {
                    saved.push((name("rows", *expert, 0), Values::F64(matrix.rows.clone())));
                }
                if !matrix.columns.is_empty() {
                    saved.push((name("columns", *expert, 0), Values::F64(matrix.columns.clone())));
                }
                if let Some(clip) = &matrix.clip {
                    saved.push((name("clip", *expert, clip.group), Values::F32(clip.limits.clone())));
                }
            }
        }
        saved
    }

    /// Back from [`Transforms::to_tensors`].
    ///
    /// # Errors
    /// [`ForwardError::Tensor`] for a name or a length that it does not write.
    pub fn from_tensors(saved: impl IntoIterator<Item = (String, Values)>) -> Result<Self, ForwardError> {
        let mut transforms = Self::default();
        for (name, values) in saved {
            if transforms.restore(&name, values).is_none() {
                let problem = "is not a list of scales, limits or norm weights of this version".to_owned();
                return Err(ForwardError::Tensor { tensor: name, problem });
            }
        }
        Ok(transforms)
    }

    fn restore(&mut self, name: &str, values: Values) -> Option<()> {
        let mut parts = name.splitn(7, '|');
        let what = parts.next()?;
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (rows, columns, transposed, expert, group) = (number()?, number()?, number()?, number()?, number()?);
        let transposed = transposed == 1;
        let tensor = self.tensor(parts.next()?, rows, columns, transposed);
        if (tensor.rows, tensor.columns, tensor.transposed) != (rows, columns, transposed) {
            return None;
        }
        let good = |length: usize, expected: usize| (length == expected).then_some(());
        match (what, values) {
            ("values", Values::F32(values)) => {
                good(values.len(), rows.checked_mul(columns)?)?;
                tensor.replaced = Some(values);
            }
            ("rows", Values::F64(values)) => {
                good(values.len(), rows)?;
                tensor.matrices.entry(expert).or_default().rows = values;
            }
            ("columns", Values::F64(values)) => {
                good(values.len(), columns)?;
                tensor.matrices.entry(expert).or_default().columns = values;
            }
            ("clip", Values::F32(limits)) if group > 0 => {
                good(limits.len(), rows.checked_mul(columns.div_ceil(group))?)?;
                tensor.matrices.entry(expert).or_default().clip = Some(Clip { group, limits });
            }
            _ => return None,
        }
        Some(())
    }
}
