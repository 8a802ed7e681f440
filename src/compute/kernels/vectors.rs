//! What kernels over vectors share: a vector is some consecutive rows of one column of a matrix.

use std::ops::Range;

use super::{View, matrix};
use crate::compute::{Binding, Buffer, Device};

/// Invocations of a workgroup of these kernels.
pub(super) const SIZE: usize = 64;

/// The text of a shader for vectors of so many rows: registers cannot be counted at run time.
pub(super) fn of_length(text: &str, length: usize) -> String {
    text.replacen("const LENGTH: u32 = 8u;", &format!("const LENGTH: u32 = {length}u;"), 1)
}

/// Vectors of a column, the last of which may reach beyond the matrix.
pub(super) fn blocks(x: &View<'_>, length: usize) -> usize {
    x.rows.len().div_ceil(length)
}

/// Runs of blocks of rows that can be bound, and their rows of `x`: all of some blocks, at least one.
pub(super) fn windows(
    device: &Device,
    x: &View<'_>,
    length: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
    // Of the rows that fit, whole blocks; what does not fit even so is refused when it is bound.
    let fits = matrix::windows(device, &[x]).next().map_or(1, |rows| rows.len());
    let (rows, blocks) = (x.rows.len(), blocks(x, length));
    let most = if fits == rows { blocks } else { fits / length }.max(1);
    (0..blocks).step_by(most).map(move |first| {
        let last = blocks.min(first + most);
        (first..last, first * length..rows.min(last * length))
    })
}

/// The part of a buffer that holds these elements of one or two words, and the element of it with which they begin.
pub(super) fn elements<'a>(
    device: &Device,
    buffer: &'a Buffer,
    range: Range<usize>,
    words: usize,
) -> (Binding<'a>, u32) {
    let (bytes, step) = (words as u64 * 4, device.limits().alignment_bytes);
    let start = range.start as u64 * bytes;
    let offset = start / step * step;
    let binding = Binding::Part { buffer, offset, bytes: range.end as u64 * bytes - offset };
    (binding, ((start - offset) / bytes) as u32)
}
