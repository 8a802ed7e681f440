//! One-bit differences: signs with the sums that scales follow from, and back.

use super::{Source, linear_groups, shader, words};
use crate::compute::{Buffer, ComputeError, Device, Launch, RowBinding};

/// The signs of a difference.
#[derive(Debug)]
pub struct PackedSigns {
    /// A bit for each weight, set where the difference is not negative; rows of ⌈columns / 32⌉ words, the rest of the last
    /// one zero.
    pub signs: Buffer,
    /// Σ |difference| over the columns of each word, F32 `[rows, ⌈columns / 32⌉]`. The sum of a row's in F64, in their order,
    /// over the columns is its scale.
    pub sums: Buffer,
}

/// Packs the signs of `weights − base`: the same bits as [`crate::codec::signs::pack_row`], and the same sums but where the
/// device takes subnormal differences for zero. `None` where shapes or types differ.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn sign_pack(
    device: &Device,
    weights: &Source<'_>,
    base: &Source<'_>,
) -> Result<Option<PackedSigns>, ComputeError> {
    let (rows, columns) = (weights.rows, weights.columns);
    if (rows, columns, weights.format) != (base.rows, base.columns, base.format) {
        return Ok(None);
    }
    let of_row = columns.div_ceil(32);
    let signs = device.allocate("signs", rows * of_row * 4)?;
    let sums = device.allocate("sums of magnitudes", rows * of_row * 4)?;
    if rows > 0 && columns > 0 {
        let text = shader!("sign_pack.wgsl", "source.wgsl", "linear.wgsl");
        let kernel = weights.kernel("sign_pack", text, "sign_pack");
        let packed = |buffer| RowBinding::Rows { buffer, row_bytes: of_row * 4 };
        let bindings = [weights.binding(), base.binding(), packed(&signs), packed(&sums)];
        device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
            uniform: words(&[window.rows, columns, of_row]),
            groups: linear_groups(&device.limits(), window.rows * of_row),
        })?;
    }
    Ok(Some(PackedSigns { signs, sums }))
}

/// `base + scale · sign` as F32, `[rows, columns]`: as [`crate::codec::signs::add_row`], with signs as [`sign_pack`] leaves
/// them and one F32 scale for each row.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn sign_add(device: &Device, base: &Source<'_>, signs: &Buffer, scales: &Buffer) -> Result<Buffer, ComputeError> {
    let (rows, columns) = (base.rows, base.columns);
    let of_row = columns.div_ceil(32);
    let out = device.allocate("base and difference", rows * columns * 4)?;
    if rows > 0 && columns > 0 {
        let text = shader!("sign_add.wgsl", "source.wgsl", "linear.wgsl");
        let kernel = base.kernel("sign_add", text, "sign_add");
        let bindings = [
            base.binding(),
            RowBinding::Rows { buffer: signs, row_bytes: of_row * 4 },
            RowBinding::Rows { buffer: scales, row_bytes: 4 },
            RowBinding::Rows { buffer: &out, row_bytes: columns * 4 },
        ];
        device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
            uniform: words(&[window.rows, columns, of_row]),
            groups: linear_groups(&device.limits(), window.rows * columns),
        })?;
    }
    Ok(out)
}
