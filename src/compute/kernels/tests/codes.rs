//! Codes equal the processor's, packed streams too; decoded weights are the same floats.

use super::{FORMATS, SHAPES, device, floats, next, source, weights};
use crate::{
    codec::{Element, ZeroPoint, bits, float4, float8, integer},
    compute::{
        Device,
        kernels::{
            Coding, Scales, SourceFormat, dequantize, pack, quantize,
            quantize::{TEXT, quantize_by},
        },
    },
};

/// Codes with float zero points that may be one step off: the sum of two rounded terms lies next to a middle.
const FLOAT_ZERO_STEP_RATE: f64 = 1e-4;
/// Products that F32 holds as subnormals may be flushed to zero.
const SMALLEST_NORMAL: f32 = f32::MIN_POSITIVE;

struct Case {
    values: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    rows: usize,
    columns: usize,
    width: usize,
    rows_per_scale: usize,
}

impl Case {
    fn groups(&self) -> usize {
        self.columns.div_ceil(self.width)
    }

    fn of_row<'a>(&self, values: &'a [f32], row: usize) -> &'a [f32] {
        &values[row / self.rows_per_scale * self.groups()..][..self.groups()]
    }

    fn coding(&self, element: Element, zero: ZeroPoint) -> Coding {
        Coding { element, zero, width: self.width as u64, rows_per_scale: self.rows_per_scale as u64 }
    }

    fn processor_codes(&self, element: Element, zero: ZeroPoint) -> Vec<u8> {
        let mut codes = vec![0; self.values.len()];
        for (row, (values, codes)) in self.values.chunks(self.columns).zip(codes.chunks_mut(self.columns)).enumerate() {
            let (scales, zeros) = (self.of_row(&self.scales, row), self.of_row(&self.zeros, row));
            let width = self.width;
            match (element, zero) {
                (Element::Integer { bits }, ZeroPoint::None) => {
                    integer::quantize_symmetric_row(values, scales, width, bits, codes);
                }
                (Element::Integer { bits }, ZeroPoint::Integer) => {
                    integer::quantize_asymmetric_row(values, scales, zeros, width, bits, codes);
                }
                (Element::Integer { bits }, ZeroPoint::Float | ZeroPoint::Minimum) => {
                    integer::quantize_float_zero_row(values, scales, zeros, width, bits, codes);
                }
                (Element::Fp8E4M3, _) => float8::quantize_fp8_row(values, scales, width, codes),
                (Element::Fp4E2M1, _) => float4::quantize_fp4_row(values, scales, width, codes),
            }
        }
        codes
    }
}

/// Scales of all sizes; every third one is a power of two or an eighth of three, for which ties are common.
fn case(format: SourceFormat, shape: (usize, usize, usize), rows_per_scale: usize, levels: u64) -> (Vec<u8>, Case) {
    let (rows, columns, width) = shape;
    let (bytes, values) = weights(format, rows * columns, 23 + levels);
    let count = rows.div_ceil(rows_per_scale) * columns.div_ceil(width);
    let mut state = 5;
    let mut scales = Vec::with_capacity(count);
    let mut zeros = Vec::with_capacity(count);
    for _ in 0..count {
        let random = next(&mut state);
        scales.push(match random % 6 {
            0 => 0.25,
            1 => 0.375,
            2 => f32::from_bits((random as u32 % 0x7e00_0000).max(0x0080_0000)),
            _ => ((random >> 8) % 1000 + 1) as f32 / 3000.0,
        });
        zeros.push((random >> 20 & (levels - 1)) as f32);
    }
    (bytes, Case { values, scales, zeros, rows, columns, width, rows_per_scale })
}

fn upload(device: &Device, values: &[f32]) -> crate::compute::Buffer {
    device.upload("scales", bytemuck::cast_slice(values)).unwrap()
}

#[test]
fn integer_codes_are_the_processors_and_so_is_what_they_decode_to() {
    let Some(device) = device() else { return };
    for (place, shape) in SHAPES.into_iter().enumerate() {
        for width in 2..=8_u8 {
            let format = FORMATS[(place + usize::from(width)) % 3];
            for zero in [ZeroPoint::None, ZeroPoint::Integer] {
                let (bytes, case) = case(format, shape, 1, 1 << width);
                check(&device, &bytes, format, &case, Element::Integer { bits: width }, zero);
            }
        }
    }
}

#[test]
fn small_floats_are_the_processors() {
    let Some(device) = device() else { return };
    for shape in SHAPES {
        for format in FORMATS {
            for element in [Element::Fp8E4M3, Element::Fp4E2M1] {
                let (bytes, case) = case(format, shape, 1, 2);
                check(&device, &bytes, format, &case, element, ZeroPoint::None);
            }
        }
    }
}

#[test]
fn rows_may_share_scales() {
    let Some(device) = device() else { return };
    for rows_per_scale in [2, 7, 128, 100_000] {
        for shape in SHAPES {
            let (bytes, case) = case(SourceFormat::Bf16, shape, rows_per_scale, 16);
            check(&device, &bytes, SourceFormat::Bf16, &case, Element::Integer { bits: 4 }, ZeroPoint::Integer);
        }
    }
}

/// Every tie and its neighbours: weights that are whole and half multiples of scales with full mantissas, and the floats
/// next to them.
fn ties() -> Case {
    let mut state = 99;
    let (columns, rows) = (3 * 1024, 97);
    let mut values = Vec::new();
    let mut scales = Vec::new();
    for _ in 0..rows {
        let exponent = next(&mut state) % 200 + 20;
        let scale = f32::from_bits((exponent as u32) << 23 | next(&mut state) as u32 & 0x7f_ffff);
        scales.push(scale);
        for step in 0..columns / 3 {
            let middle = ((step as f64 - 512.0) / 4.0 * f64::from(scale)) as f32;
            values.extend([middle, f32::from_bits(middle.to_bits() + 1), f32::from_bits(middle.to_bits().max(1) - 1)]);
        }
    }
    Case { values, scales, zeros: vec![3.0; rows], rows, columns, width: columns, rows_per_scale: 1 }
}

const TIED: [(Element, ZeroPoint); 5] = [
    (Element::Integer { bits: 8 }, ZeroPoint::None),
    (Element::Integer { bits: 8 }, ZeroPoint::Integer),
    (Element::Integer { bits: 2 }, ZeroPoint::Integer),
    (Element::Fp8E4M3, ZeroPoint::None),
    (Element::Fp4E2M1, ZeroPoint::None),
];

#[test]
fn ties_and_their_neighbours_go_where_the_processor_has_them() {
    let Some(device) = device() else { return };
    let case = ties();
    let bytes: Vec<u8> = case.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (element, zero) in TIED {
        check(&device, &bytes, SourceFormat::F32, &case, element, zero);
    }
}

#[test]
fn a_division_as_bad_as_wgsl_allows_changes_no_code() {
    let Some(device) = device() else { return };
    let case = ties();
    let weights = device.upload("weights", bytemuck::cast_slice(&case.values)).unwrap();
    let source = source(&weights, SourceFormat::F32, case.rows, case.columns);
    let (scales, zeros) = (upload(&device, &case.scales), upload(&device, &case.zeros));
    // 2.5 units in the last place of the smallest mantissa, 2⁻²³, either way.
    for worse in ["((a / b) * 1.0000003f)", "((a / b) * 0.9999997f)"] {
        let text = TEXT.replace("(a / b)", worse);
        assert_ne!(text, TEXT, "the division is not where this test looks for it");
        for (element, zero) in TIED {
            let zeros = (zero != ZeroPoint::None).then_some(&zeros);
            let (coding, scales) = (case.coding(element, zero), Scales { scales: &scales, zeros });
            let out = quantize_by(text.clone().into(), &device, &source, &coding, &scales).unwrap();
            let found = device.read(&out).unwrap();
            assert!(found == case.processor_codes(element, zero), "{element:?} {zero:?} with {worse}");
        }
    }
}

#[test]
fn codes_with_float_zero_points_are_within_a_step() {
    let Some(device) = device() else { return };
    let (mut off, mut all) = (0, 0);
    for shape in SHAPES {
        for width in 2..=8_u8 {
            let (bytes, mut case) = case(SourceFormat::Bf16, shape, 1, 1 << width);
            case.zeros.iter_mut().for_each(|zero| *zero += 0.375);
            let element = Element::Integer { bits: width };
            let found = codes(&device, &bytes, SourceFormat::Bf16, &case, element, ZeroPoint::Float);
            for (found, expected) in found.iter().zip(case.processor_codes(element, ZeroPoint::Float)) {
                assert!(found.abs_diff(expected) <= 1, "{width} bits: {found} and {expected}");
                off += usize::from(*found != expected);
                all += 1;
            }
        }
    }
    assert!(f64::from(off as u32) <= FLOAT_ZERO_STEP_RATE * f64::from(all), "{off} of {all} codes are a step off");
}

fn codes(
    device: &Device,
    bytes: &[u8],
    format: SourceFormat,
    case: &Case,
    element: Element,
    zero: ZeroPoint,
) -> Vec<u8> {
    let buffer = device.upload("weights", bytes).unwrap();
    let source = source(&buffer, format, case.rows, case.columns);
    let (scales, zeros) = (upload(device, &case.scales), upload(device, &case.zeros));
    let zeros = (zero != ZeroPoint::None).then_some(&zeros);
    let out = quantize(device, &source, &case.coding(element, zero), &Scales { scales: &scales, zeros }).unwrap();
    device.read(&out).unwrap()
}

fn check(device: &Device, bytes: &[u8], format: SourceFormat, case: &Case, element: Element, zero: ZeroPoint) {
    let found = codes(device, bytes, format, case, element, zero);
    let expected = case.processor_codes(element, zero);
    let what = format!("{element:?} {zero:?} {format:?} {} × {} by {}", case.rows, case.columns, case.width);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let (row, group) = (index / case.columns, index % case.columns / case.width);
        let scale = case.of_row(&case.scales, row)[group];
        assert_eq!(found, expected, "{what}, element {index}: {:e} / {scale:e}", case.values[index]);
    }
    assert_eq!(found.len(), expected.len());

    let (scales, zeros) = (upload(device, &case.scales), upload(device, &case.zeros));
    let scales = Scales { scales: &scales, zeros: (zero != ZeroPoint::None).then_some(&zeros) };
    let buffer = device.upload("codes", &expected).unwrap();
    let shape = (case.rows as u64, case.columns as u64);
    let decoded = dequantize(device, &buffer, shape, &case.coding(element, zero), &scales).unwrap();
    for (index, decoded) in floats(&device.read(&decoded).unwrap()).into_iter().enumerate() {
        let (row, group) = (index / case.columns, index % case.columns / case.width);
        let level = match element {
            Element::Fp8E4M3 => float8::e4m3_to_f32(expected[index]),
            Element::Fp4E2M1 => float4::e2m1_to_f32(expected[index]),
            Element::Integer { bits } if zero == ZeroPoint::None => {
                f32::from(expected[index]) - f32::from(1_u16 << (bits - 1))
            }
            Element::Integer { .. } => f32::from(expected[index]) - case.of_row(&case.zeros, row)[group],
        };
        let wanted = level * case.of_row(&case.scales, row)[group];
        let equal = decoded == wanted || wanted.abs() < SMALLEST_NORMAL && decoded == 0.0;
        assert!(equal, "{what}, decoded element {index}: {decoded:e}, not {wanted:e}");
    }
}

#[test]
fn packed_streams_are_the_processors() {
    let Some(device) = device() else { return };
    for (streams, codes, _) in SHAPES {
        for width in 1..=8_u8 {
            let mut state = u64::from(width);
            let values: Vec<u8> = (0..streams * codes).map(|_| next(&mut state) as u8).collect();
            let buffer = device.upload("codes", &values).unwrap();
            let out = pack(&device, &buffer, streams as u64, codes as u64, width).unwrap();
            let mut expected = Vec::new();
            for stream in values.chunks(codes) {
                let mut packed = vec![0; (codes * usize::from(width)).div_ceil(32) * 4];
                bits::pack(stream, width, &mut packed);
                expected.extend(packed);
            }
            assert!(device.read(&out).unwrap() == expected, "{width} bits, {streams} × {codes}");
        }
    }
    let short = device.upload("codes", &[0; 10]).unwrap();
    assert!(pack(&device, &short, 2, 6, 4).is_err());
}
