//! One-bit differences: the same bits as the processor's.

use super::{FORMATS, SHAPES, device, floats, source, weights};
use crate::{
    codec::signs::{add_row, pack_row},
    compute::kernels::{SourceFormat, sign_add, sign_pack},
};

/// Sums of up to 4099 magnitudes, beside those that a device takes for zero.
const TOLERANCE: f64 = 1e-6;

#[test]
fn signs_sums_and_what_is_added_are_the_processors() {
    let Some(device) = device() else { return };
    for (rows, columns, _) in SHAPES {
        for format in FORMATS {
            let (bytes, values) = weights(format, rows * columns, 21);
            let (mut base_bytes, mut base) = weights(format, rows * columns, 22);
            // Some weights are as they were.
            let width = format.bytes() as usize;
            for index in (0..rows * columns).step_by(5) {
                base[index] = values[index];
                base_bytes[index * width..][..width].copy_from_slice(&bytes[index * width..][..width]);
            }
            let [after, before] = [&bytes, &base_bytes].map(|bytes| device.upload("weights", bytes).unwrap());
            let [after, before] = [&after, &before].map(|buffer| source(buffer, format, rows, columns));
            let packed = sign_pack(&device, &after, &before).unwrap().unwrap();
            let (signs, sums) = (device.read(&packed.signs).unwrap(), floats(&device.read(&packed.sums).unwrap()));
            let words = columns.div_ceil(32);
            let mut scales = Vec::new();
            for row in 0..rows {
                let here = row * columns..(row + 1) * columns;
                let mut expected = vec![0; columns.div_ceil(8)];
                let sum = pack_row(&values[here.clone()], &base[here.clone()], &mut expected);
                expected.resize(words * 4, 0);
                assert!(signs[row * words * 4..][..words * 4] == expected, "{format:?} {rows} × {columns}: signs");
                let got: f64 = sums[row * words..][..words].iter().map(|sum| f64::from(*sum)).sum();
                let close = (got - sum).abs() <= TOLERANCE * sum || got == sum;
                assert!(close, "{format:?} {rows} × {columns}: {got}, not {sum}");
                // What F32 does not hold is left to the processor.
                scales.push(if sum.is_finite() { (sum / columns as f64) as f32 } else { 0.5 });
            }
            let scale_bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            let on_device = device.upload("scales", &scale_bytes).unwrap();
            let added = sign_add(&device, &before, &packed.signs, &on_device).unwrap();
            let added = floats(&device.read(&added).unwrap());
            let mut expected = vec![0.0; columns];
            for row in 0..rows {
                add_row(
                    &base[row * columns..][..columns],
                    &signs[row * words * 4..][..columns.div_ceil(8)],
                    scales[row],
                    &mut expected,
                );
                for (got, expected) in added[row * columns..][..columns].iter().zip(&expected) {
                    // Subnormals may be zero.
                    let same = got == expected || (got - expected).abs() <= 2.0 * f32::MIN_POSITIVE;
                    assert!(same, "{format:?} {rows} × {columns}, row {row}: {got}, not {expected}");
                }
            }
        }
    }
    let buffer = device.upload("weights", &[0; 24]).unwrap();
    let [wide, narrow] = [6, 5].map(|columns| source(&buffer, SourceFormat::F32, 1, columns));
    assert!(sign_pack(&device, &wide, &narrow).unwrap().is_none());
}
