//! 2:4 selection: the same bits as the processor's.

use super::{FORMATS, device, next, source, weights};
use crate::{
    checkpoint::Dtype,
    codec::sparse::select::compact_row,
    compute::kernels::{SourceFormat, select_2_4},
};

#[test]
fn selection_is_the_same_bits_as_the_processors() {
    let Some(device) = device() else { return };
    for (rows, columns) in [(1, 4), (1, 32), (7, 36), (31, 260), (3, 1028), (257, 132), (700, 96)] {
        for format in FORMATS {
            let (mut bytes, _) = weights(format, rows * columns, 13);
            let dtype = match format {
                SourceFormat::F32 => Dtype::F32,
                SourceFormat::Bf16 => Dtype::BF16,
                SourceFormat::F16 => Dtype::F16,
            };
            let width = format.bytes() as usize;
            // Many equal magnitudes: a quarter of the weights repeat their left neighbour with the other sign.
            let mut state = 5;
            for index in 1..rows * columns {
                if next(&mut state).is_multiple_of(4) {
                    let (left, right) = bytes.split_at_mut(index * width);
                    right[..width].copy_from_slice(&left[(index - 1) * width..]);
                    right[width - 1] ^= 0x80;
                }
            }
            let (mut values, mut indices) = (Vec::new(), Vec::new());
            for row in bytes.chunks_exact(columns * width) {
                let mut kept = vec![0; columns / 2 * width];
                let mut places = vec![0; columns.div_ceil(32) * 4];
                compact_row(dtype, row, &mut kept, &mut places[..(columns / 4).div_ceil(2)]);
                values.extend(kept);
                indices.extend(places);
            }
            let buffer = device.upload("weights", &bytes).unwrap();
            let found = select_2_4(&device, &source(&buffer, format, rows, columns)).unwrap().unwrap();
            assert!(device.read(&found.values).unwrap() == values, "values, {format:?} {rows} × {columns}");
            assert!(device.read(&found.indices).unwrap() == indices, "indices, {format:?} {rows} × {columns}");
        }
    }
    let buffer = device.upload("weights", &[0; 24]).unwrap();
    assert!(select_2_4(&device, &source(&buffer, SourceFormat::F32, 1, 6)).unwrap().is_none());
}
