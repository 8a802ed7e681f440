//! Codes to dense streams of bits.

use super::{linear_groups, shader, words};
use crate::compute::{Buffer, ComputeError, Device, Kernel, Launch, RowBinding};

/// Packs `streams` streams of `codes_per_stream` codes, one a byte, to `bits` (1 to 8) bits a code, as
/// [`crate::codec::bits::pack`] does; every stream of the result begins at a word and is padded with zero bits to
/// ⌈`codes_per_stream` · `bits` / 32⌉ words.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device; [`ComputeError::Range`] when there are fewer codes.
pub fn pack(
    device: &Device,
    codes: &Buffer,
    streams: u64,
    codes_per_stream: u64,
    bits: u8,
) -> Result<Buffer, ComputeError> {
    let bits = u64::from(bits.clamp(1, 8));
    let words_per_stream = (codes_per_stream * bits).div_ceil(32);
    let out = device.allocate("packed codes", streams * words_per_stream * 4)?;
    if streams == 0 || codes_per_stream == 0 {
        return Ok(out);
    }
    let kernel = Kernel::new("pack", shader!("pack.wgsl", "linear.wgsl"), "pack");
    let bindings = [
        RowBinding::Rows { buffer: codes, row_bytes: codes_per_stream },
        RowBinding::Rows { buffer: &out, row_bytes: words_per_stream * 4 },
    ];
    device.dispatch_rows(&kernel, streams, &bindings, |window| Launch {
        uniform: words(&[window.rows, codes_per_stream, words_per_stream, bits]),
        groups: linear_groups(&device.limits(), window.rows * words_per_stream),
    })?;
    Ok(out)
}
