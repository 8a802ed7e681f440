//! Conversion and extremes: the same bits.

use super::{FORMATS, SHAPES, bits, device, floats, source, weights};
use crate::{
    codec::range,
    compute::kernels::{SourceFormat, convert, extents, testing::plain_device},
};

#[test]
fn conversion_is_exact_for_every_value_of_both_short_formats() {
    let Some(device) = device() else { return };
    for format in [SourceFormat::Bf16, SourceFormat::F16] {
        let stored: Vec<u16> = (0..=u16::MAX).collect();
        let buffer = device.upload("weights", bytemuck::cast_slice(&stored)).unwrap();
        let out = convert(&device, &source(&buffer, format, 256, 256)).unwrap();
        for (stored, value) in stored.iter().zip(floats(&device.read(&out).unwrap())) {
            let expected = match format {
                SourceFormat::Bf16 => half::bf16::from_bits(*stored).to_f32(),
                _ => half::f16::from_bits(*stored).to_f32(),
            };
            let equal = if expected.is_nan() { value.is_nan() } else { expected.to_bits() == value.to_bits() };
            assert!(equal, "{format:?} {stored:#06x} became {value:e}, not {expected:e}");
        }
    }
}

#[test]
fn conversion_keeps_all_shapes() {
    let Some(device) = device() else { return };
    for (rows, columns, _) in SHAPES {
        for format in FORMATS {
            let (bytes, values) = weights(format, rows * columns, 7);
            let buffer = device.upload("weights", &bytes).unwrap();
            let out = convert(&device, &source(&buffer, format, rows, columns)).unwrap();
            let out = floats(&device.read(&out).unwrap());
            assert!(bits(&out) == bits(&values), "{format:?} {rows} × {columns}");
        }
    }
}

#[test]
fn extremes_are_the_same_bits_as_the_processors() {
    // With exchange among the threads that run in step, and without.
    for device in device().into_iter().chain(plain_device(Some(64 << 10))) {
        for (rows, columns, width) in SHAPES {
            for format in FORMATS {
                let (mut bytes, mut values) = weights(format, rows * columns, 11);
                if rows * columns > 5000 && format == SourceFormat::F32 {
                    (values[17], values[4000]) = (f32::NAN, f32::NEG_INFINITY);
                    bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                }
                let buffer = device.upload("weights", &bytes).unwrap();
                let source = source(&buffer, format, rows, columns);
                let groups = columns.div_ceil(width);
                let (mut low, mut high) = (vec![0.0; groups], vec![0.0; groups]);
                let (mut magnitudes, mut extremes) = (Vec::new(), Vec::new());
                for row in values.chunks(columns) {
                    range::absmax_per_group(row, width, &mut high);
                    magnitudes.extend(bits(&high));
                    range::minmax_per_group(row, width, &mut low, &mut high);
                    extremes.extend(low.iter().zip(&high).flat_map(|(low, high)| [low.to_bits(), high.to_bits()]));
                }
                let found = |magnitudes: bool| {
                    let out = extents(&device, &source, width as u64, magnitudes).unwrap();
                    bits(&floats(&device.read(&out).unwrap()))
                };
                assert!(found(true) == magnitudes, "absmax, {format:?} {rows} × {columns} by {width}");
                assert!(found(false) == extremes, "minmax, {format:?} {rows} × {columns} by {width}");
            }
        }
    }
}

#[test]
fn more_workgroups_than_one_dimension_holds_are_all_done() {
    let Some(device) = crate::compute::tests::fixtures::device(None) else { return };
    let columns = 65_535 * 256 + 1000;
    let stored: Vec<u16> = (0..columns).map(|index| (index % 32_000) as u16).collect();
    let buffer = device.upload("weights", bytemuck::cast_slice(&stored)).unwrap();
    let out = convert(&device, &source(&buffer, SourceFormat::Bf16, 1, columns)).unwrap();
    let out = floats(&device.read(&out).unwrap());
    assert!(out.iter().zip(&stored).all(|(value, stored)| value.to_bits() >> 16 == u32::from(*stored)));
}
