//! ggml's blocks: a row's consecutive weights with their scale.

use half::f16;

use super::super::streams::{decode_scales, encode_scales};
use crate::{
    checkpoint::{Dtype, GgmlType},
    codec::{Codec, CodedRows, Coding, Element, Granularity, ScaleFormat, ZeroPoint},
};

/// Weights of a block of all types here that have a code for each weight.
const GROUP: usize = 32;

/// What can be asked for, for messages.
pub(super) const EXPECTED: &str = "it writes 8-bit and 4-bit integers in groups of 32 (Q8_0 symmetric, Q4_0 symmetric), \
                                   mxfp4, q4_k and q6_k";

/// The type whose blocks hold this number format, where there is one.
pub(in crate::layout) fn kind_of(codec: &Coding) -> Option<GgmlType> {
    let codec = match codec {
        Coding::Scalar(codec) => codec,
        Coding::Whole(whole) => {
            return [GgmlType::Q4K, GgmlType::Q6K].into_iter().find(|&kind| whole.name() == name_of(kind));
        }
    };
    if codec.granularity != Granularity::Group(GROUP) || codec.outliers.is_some() {
        return None;
    }
    match (codec.element, codec.scale, codec.zero) {
        (Element::Integer { bits: 8 }, ScaleFormat::F16, ZeroPoint::None) => Some(GgmlType::Q8_0),
        (Element::Integer { bits: 4 }, ScaleFormat::F16, ZeroPoint::None) => Some(GgmlType::Q4_0),
        (Element::Fp4E2M1, ScaleFormat::E8M0, ZeroPoint::None) => Some(GgmlType::Mxfp4),
        _ => None,
    }
}

/// What codecs of whole matrices are called.
fn name_of(kind: GgmlType) -> String {
    kind.name().to_lowercase()
}

/// The number format of a type's blocks; `None` for plain elements.
pub(in crate::layout) fn codec_of(kind: GgmlType) -> Option<Coding> {
    let (element, scale) = match kind {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => return None,
        GgmlType::Q8_0 => (Element::Integer { bits: 8 }, ScaleFormat::F16),
        GgmlType::Q4_0 => (Element::Integer { bits: 4 }, ScaleFormat::F16),
        GgmlType::Mxfp4 => (Element::Fp4E2M1, ScaleFormat::E8M0),
        GgmlType::Q4_1 | GgmlType::Q4K | GgmlType::Q6K => {
            return Coding::parse_name(&name_of(kind), ScaleFormat::F16);
        }
    };
    let granularity = Granularity::Group(GROUP);
    Some(Codec { element, granularity, scale, zero: ZeroPoint::None, outliers: None }.into())
}

/// Bytes of a row.
pub(in crate::layout) fn row_bytes(kind: GgmlType, columns: usize) -> usize {
    columns / kind.block_weights() * kind.block_bytes()
}

/// Packs rows of one code per weight.
pub(super) fn pack(kind: GgmlType, rows: &CodedRows) -> Vec<u8> {
    let blocks = rows.codes.chunks_exact(GROUP);
    let mut bytes = Vec::with_capacity(blocks.len() * kind.block_bytes());
    let scale_format = if kind == GgmlType::Mxfp4 { ScaleFormat::E8M0 } else { ScaleFormat::F16 };
    for (index, codes) in blocks.enumerate() {
        bytes.extend(encode_scales(scale_format, &rows.scales[index..=index]));
        if kind == GgmlType::Q4_1 {
            bytes.extend(f16::from_f32(rows.zeros[index]).to_le_bytes());
        }
        if kind == GgmlType::Q8_0 {
            bytes.extend(codes.iter().map(|code| code ^ 0x80));
            continue;
        }
        let (low, high) = codes.split_at(GROUP / 2);
        let (low, high) = (low.iter().map(|&code| one_zero(kind, code)), high.iter().map(|&code| one_zero(kind, code)));
        bytes.extend(low.zip(high).map(|(low, high)| low | high << 4));
    }
    bytes
}

/// FP4 has a negative zero, ggml's table of it has not: one form of zero makes all decoders give the same bits.
fn one_zero(kind: GgmlType, code: u8) -> u8 {
    if kind == GgmlType::Mxfp4 && code == 8 { 0 } else { code }
}

/// Codes of rows, a byte for each weight.
pub(in crate::layout) fn codes(kind: GgmlType, bytes: &[u8]) -> Vec<u8> {
    let blocks = bytes.chunks_exact(kind.block_bytes());
    let mut codes = Vec::with_capacity(blocks.len() * GROUP);
    for block in blocks {
        if kind == GgmlType::Q8_0 {
            codes.extend(block[2..].iter().map(|byte| byte ^ 0x80));
            continue;
        }
        let nibbles = &block[kind.block_bytes() - GROUP / 2..];
        codes.extend(nibbles.iter().map(|byte| one_zero(kind, byte & 15)));
        codes.extend(nibbles.iter().map(|byte| one_zero(kind, byte >> 4)));
    }
    codes
}

/// Scales of rows, one for each block.
pub(in crate::layout) fn scales(kind: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let (dtype, width) = if kind == GgmlType::Mxfp4 { (Dtype::U8, 1) } else { (Dtype::F16, 2) };
    let stored: Vec<u8> =
        bytes.chunks_exact(kind.block_bytes()).flat_map(|block| block[..width].iter().copied()).collect();
    decode_scales(dtype, &stored)
}

/// Minima of rows, one for each block.
pub(in crate::layout) fn minima(bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks_exact(GgmlType::Q4_1.block_bytes());
    let stored: Vec<u8> = blocks.flat_map(|block| block[2..4].iter().copied()).collect();
    decode_scales(Dtype::F16, &stored)
}
