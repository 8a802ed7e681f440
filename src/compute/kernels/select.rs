//! 2:4 selection by magnitude, and compaction.

use super::{Source, linear_groups, shader, words};
use crate::compute::{Buffer, ComputeError, Device, Launch, RowBinding};

/// What is kept of a matrix.
#[derive(Debug)]
pub struct Selected {
    /// The kept weights as stored, `[rows, columns / 2]`.
    pub values: Buffer,
    /// Their places in their quads, two bits each, least significant bit first; rows of ⌈columns / 32⌉ words, the rest of
    /// the last one zero.
    pub indices: Buffer,
}

/// Keeps the two larger magnitudes of each four neighbouring columns: the same bits as
/// [`crate::codec::sparse::select::compact_row`]. `None` where the columns are no whole quads.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn select_2_4(device: &Device, source: &Source<'_>) -> Result<Option<Selected>, ComputeError> {
    let (rows, columns) = (source.rows, source.columns);
    if !columns.is_multiple_of(4) {
        return Ok(None);
    }
    let (quads, words_per_row) = (columns / 4, columns.div_ceil(32));
    let value_bytes = columns / 2 * source.format.bytes();
    let values = device.allocate("kept weights", rows * value_bytes)?;
    let indices = device.allocate("places of kept weights", rows * words_per_row * 4)?;
    if rows > 0 && columns > 0 {
        let text = shader!("select_2_4.wgsl", "source.wgsl", "linear.wgsl");
        let kernel = source.kernel("select_2_4", text, "select_2_4");
        let bindings = [
            source.binding(),
            RowBinding::Rows { buffer: &values, row_bytes: value_bytes },
            RowBinding::Rows { buffer: &indices, row_bytes: words_per_row * 4 },
        ];
        device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
            uniform: words(&[window.rows, quads, words_per_row]),
            groups: linear_groups(&device.limits(), window.rows * words_per_row),
        })?;
    }
    Ok(Some(Selected { values, indices }))
}
