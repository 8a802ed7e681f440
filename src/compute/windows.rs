//! Matrices larger than a binding, window by window.

use super::{Binding, Buffer, ComputeError, Limits};

/// A buffer as rows of equal length, or one that every window sees whole.
#[derive(Debug, Clone, Copy)]
pub enum RowBinding<'a> {
    /// Rows of `row_bytes` bytes, one after the other. A row need not be a whole number of words, but the kernel sees
    /// whole words: the last one may hold bytes of the next row, which it must not change.
    Rows {
        /// The buffer.
        buffer: &'a Buffer,
        /// Bytes from one row to the next.
        row_bytes: u64,
    },
    /// The same for all rows.
    Whole(&'a Buffer),
}

/// Some consecutive rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Index of the first row.
    pub first_row: u64,
    /// Number of rows.
    pub rows: u64,
}

/// What a kernel needs for one window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The uniform block.
    pub uniform: Vec<u8>,
    /// Workgroups along each dimension.
    pub groups: [u32; 3],
}

impl<'a> RowBinding<'a> {
    pub(super) fn part(&self, window: Window) -> Binding<'a> {
        match *self {
            Self::Whole(buffer) => Binding::Whole(buffer),
            Self::Rows { buffer, row_bytes } => {
                Binding::Part { buffer, offset: window.first_row * row_bytes, bytes: window.rows * row_bytes }
            }
        }
    }
}

/// The windows that cover `rows` rows, the largest that all bindings allow.
pub(super) fn windows(limits: &Limits, rows: u64, bindings: &[RowBinding<'_>]) -> Result<Vec<Window>, ComputeError> {
    let mut lists = Vec::new();
    for binding in bindings {
        if let RowBinding::Rows { buffer, row_bytes } = *binding {
            if row_bytes.checked_mul(rows).is_none_or(|bytes| bytes > buffer.bytes()) {
                let (label, end) = (buffer.label().to_owned(), row_bytes.saturating_mul(rows));
                return Err(ComputeError::Range { label, bytes: buffer.bytes(), start: 0, end });
            }
            lists.push((buffer.label(), row_bytes));
        }
    }
    cut(limits, rows, &lists)
}

/// Windows over lists of rows, each with its name and the bytes of its rows.
fn cut(limits: &Limits, rows: u64, lists: &[(&str, u64)]) -> Result<Vec<Window>, ComputeError> {
    let alignment = limits.alignment_bytes;
    // Alignments are powers of two, so the largest of the steps is a multiple of all others.
    let step = |row_bytes: u64| alignment / (1 << row_bytes.trailing_zeros().min(alignment.trailing_zeros()));
    let together = lists.iter().map(|(_, row_bytes)| step(*row_bytes)).max().unwrap_or(1);
    let mut most = rows.max(1);
    for (label, row_bytes) in lists {
        // A binding is whole words, which may take up to three bytes more than its rows.
        let fits = (limits.binding_bytes / 4 * 4) / (*row_bytes).max(1);
        if fits >= rows {
            continue;
        }
        if fits < together {
            let (label, bytes) = ((*label).to_owned(), together.min(rows) * row_bytes);
            let what = "in the fewest rows that can be bound";
            return Err(ComputeError::TooLarge { label, what, bytes, limit: limits.binding_bytes });
        }
        most = most.min(fits / together * together);
    }
    let starts = (0..rows).step_by(most as usize);
    Ok(starts.map(|first_row| Window { first_row, rows: most.min(rows - first_row) }).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(binding_bytes: u64, alignment_bytes: u64) -> Limits {
        Limits {
            buffer_bytes: u64::MAX,
            binding_bytes,
            alignment_bytes,
            workgroup_memory_bytes: 16384,
            workgroup_invocations: 256,
            groups_per_dimension: 65535,
            uniform_bytes: 65536,
        }
    }

    proptest! {
        #[test]
        fn windows_cover_all_rows_and_keep_to_the_limits(
            rows in 0u64..3000,
            row_bytes in prop::collection::vec(1u64..200, 0..4),
            binding_words in 1u64..4000,
            alignment in 2u32..9,
        ) {
            let limits = limits(binding_words * 4, 1 << alignment);
            let lists: Vec<(&str, u64)> = row_bytes.iter().map(|bytes| ("list", *bytes)).collect();
            let Ok(windows) = cut(&limits, rows, &lists) else {
                let fewest = row_bytes.iter().map(|bytes| bytes * (1 << alignment).min(rows)).max().unwrap_or(0);
                prop_assert!(fewest > limits.binding_bytes, "refused although {fewest} bytes fit");
                return Ok(());
            };
            let mut next = 0;
            for window in &windows {
                prop_assert_eq!(window.first_row, next);
                prop_assert!(window.rows > 0);
                next += window.rows;
                for bytes in &row_bytes {
                    prop_assert!((window.first_row * bytes).is_multiple_of(limits.alignment_bytes));
                    prop_assert!((window.rows * bytes).next_multiple_of(4) <= limits.binding_bytes);
                }
            }
            prop_assert_eq!(next, rows);
        }
    }

    #[test]
    fn a_row_that_no_binding_holds_is_named() {
        let error = cut(&limits(1024, 32), 100, &[("weights", 48), ("wide", 3000)]).unwrap_err();
        let ComputeError::TooLarge { label, bytes, limit, .. } = error else { panic!("{error}") };
        assert_eq!((label.as_str(), bytes, limit), ("wide", 12000, 1024));
    }
}
