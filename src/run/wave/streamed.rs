//! Whole matrices whose rows have nothing to do with each other: masks of the largest magnitudes and single planes of
//! signs, straight from the stored bytes, each row read once.
//!
//! What cannot be done so (weights that are no numbers, other types, turned matrices) is left to what encodes matrices.

use rayon::prelude::*;

use super::{Context, Stripe, whole::base_rows};
use crate::{
    Result,
    checkpoint::{Dtype, bits_of, decode_to_f32},
    codec::{
        CodecError, Coding, RowSource, Share, Whole, signs,
        sparse::{Mask, Pattern, Sparse, bitmask, select},
    },
    evaluate::ErrorSums,
    layout::{MaskedForm, Piece},
    passes::{Settings, mask::Criterion},
    plan::{Encode, Unit},
    run::RunError,
};

/// Rows of a task.
const BAND: usize = 32;

/// Encodes the expert whose rows start at `first_row`; `None` where that has to be done otherwise.
pub(super) fn encode(
    context: &Context<'_>,
    unit: &Unit,
    encode: &Encode,
    source: &dyn RowSource,
    first_row: usize,
) -> Result<Option<Stripe>> {
    let (rows, columns) = (encode.matrix.expert_rows(), encode.matrix.columns);
    if encode.matrix.rotations.is_some() || rows == 0 || columns == 0 {
        return Ok(None);
    }
    let expert = first_row / rows;
    match (&encode.settings, &encode.matrix.codec) {
        // Where nothing is known of the input, every criterion but a file's takes the largest magnitudes.
        (Settings::Mask(mask), Coding::Whole(Whole::Sparse(sparse))) if mask.solve.criterion != Criterion::File => {
            let Some((dtype, bytes)) = source.stored_rows(first_row..first_row + rows) else { return Ok(None) };
            let selectable = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) && dtype == sparse.dtype;
            if !selectable || sparse.pattern() != Pattern::TWO_OF_FOUR || dtype != encode.matrix.dense_dtype {
                return Ok(None);
            }
            let stored = Plain { dtype, bytes: &bytes, rows, columns };
            Ok(masked(&stored, *sparse, expert, context.layout.masked_form()))
        }
        (Settings::BitDelta(_), Coding::Whole(Whole::Delta(delta)))
            if (delta.planes, delta.share) == (1, Share::Row) =>
        {
            let Some(base) = base_rows(context, unit, encode)? else { return Ok(None) };
            let done = difference(source, base.as_ref(), first_row, rows, expert);
            base.release_rows(first_row..first_row + rows);
            done.map_err(|source| RunError::Codec { tensor: unit.name.clone(), source }.into())
        }
        _ => Ok(None),
    }
}

/// Rows as they are stored.
struct Plain<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    rows: usize,
    columns: usize,
}

/// What a task works in.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    decoded: Vec<f32>,
    values: Vec<u8>,
    indices: Vec<u8>,
    pruned: Vec<u8>,
    bits: Vec<u8>,
}

impl Scratch {
    fn new(columns: usize, element: usize) -> Self {
        let kept = Pattern::TWO_OF_FOUR.kept_per_row(columns);
        Self {
            weights: vec![0.0; columns],
            decoded: vec![0.0; columns],
            values: vec![0; kept * element],
            indices: vec![0; (columns / 4).div_ceil(2)],
            pruned: vec![0; columns * element],
            bits: vec![0; Mask::row_bytes(columns)],
        }
    }
}

/// 2:4 by magnitude in the form that a layout stores; `None` where a weight is not finite.
fn masked(source: &Plain<'_>, sparse: Sparse, expert: usize, form: MaskedForm) -> Option<Stripe> {
    let Plain { dtype, bytes, rows, columns } = *source;
    let element = bits_of(dtype) / 8;
    let scratch = Scratch::new(columns, element);
    let (first_bytes, second_bytes) = match form {
        MaskedForm::Places => (scratch.values.len(), scratch.indices.len()),
        MaskedForm::Bits => (scratch.values.len(), scratch.bits.len()),
        MaskedForm::Dense => (scratch.pruned.len(), 0),
    };
    let (mut first, mut second) = (vec![0; rows * first_bytes], vec![0; rows * second_bytes]);
    let bands = bytes.par_chunks(BAND * columns * element).zip(first.par_chunks_mut(BAND * first_bytes));
    let seconds = second.par_chunks_mut((BAND * second_bytes).max(1));
    let work = |scratch: &mut Scratch, band: &[u8], first: &mut [u8], second: &mut [u8]| {
        let mut sums = ErrorSums::default();
        for (index, row) in band.chunks_exact(columns * element).enumerate() {
            let Scratch { weights, decoded, values, indices, pruned, bits } = scratch;
            if !select::prune_row(dtype, row, pruned, bits) {
                return None;
            }
            if form != MaskedForm::Dense {
                select::compact_row(dtype, row, values, indices);
            }
            let (of_first, of_second): (&[u8], &[u8]) = match form {
                MaskedForm::Places => (values, indices),
                MaskedForm::Bits => (values, bits),
                MaskedForm::Dense => (pruned, &[]),
            };
            first[index * first_bytes..][..first_bytes].copy_from_slice(of_first);
            second[index * second_bytes..][..second_bytes].copy_from_slice(of_second);
            decode_to_f32(dtype, row, weights);
            decode_to_f32(dtype, pruned, decoded);
            sums.accumulate_row(weights, decoded);
        }
        Some(sums)
    };
    let fresh = || Scratch::new(columns, element);
    let sums: Vec<Option<ErrorSums>> = if second_bytes == 0 {
        bands.map_init(fresh, |scratch, (band, first)| work(scratch, band, first, &mut [])).collect()
    } else {
        let bands = bands.zip(seconds);
        bands.map_init(fresh, |scratch, ((band, first), second)| work(scratch, band, first, second)).collect()
    };
    let sums = total(sums)?;
    let mut tensors = vec![first];
    match form {
        MaskedForm::Places => tensors.push(second),
        MaskedForm::Bits => tensors.extend([second, bitmask::shape(rows, columns)]),
        MaskedForm::Dense => {}
    }
    debug_assert!(form != MaskedForm::Places || tensors.len() == sparse.tensors(rows, columns).len());
    Some(Stripe { pieces: pieces(tensors, expert), sums, ..Stripe::default() })
}

/// One plane of signs with a scale for each row, the mean magnitude; `None` where a difference is not finite.
fn difference(
    source: &dyn RowSource,
    base: &dyn RowSource,
    first_row: usize,
    rows: usize,
    expert: usize,
) -> std::result::Result<Option<Stripe>, CodecError> {
    let columns = source.columns();
    let sign_bytes = columns.div_ceil(8);
    let (mut all_signs, mut scales) = (vec![0; rows * sign_bytes], vec![0; rows * 4]);
    // Where rows interleave, more of them are read at once than are needed for one.
    let at_once = source.rows_at_once().max(base.rows_at_once()).clamp(1, BAND);
    let bands = all_signs.par_chunks_mut(BAND * sign_bytes).zip(scales.par_chunks_mut(BAND * 4)).enumerate();
    let fresh = || (vec![0.0; at_once * columns], vec![0.0; at_once * columns], vec![0.0; columns]);
    let sums = bands.map_init(fresh, |(weights, before, decoded), (band, (all_signs, scales))| {
        let (first, count) = (first_row + band * BAND, scales.len() / 4);
        let mut sums = ErrorSums::default();
        for at in (0..count).step_by(at_once) {
            let some = at_once.min(count - at);
            let (weights, before) = (&mut weights[..some * columns], &mut before[..some * columns]);
            source.read_rows(first + at, weights)?;
            base.read_rows(first + at, before)?;
            for (index, (weights, before)) in
                weights.chunks_exact(columns).zip(before.chunks_exact(columns)).enumerate()
            {
                let row = at + index;
                let packed = &mut all_signs[row * sign_bytes..][..sign_bytes];
                let sum = signs::pack_row(weights, before, packed);
                if !sum.is_finite() {
                    return Ok(None);
                }
                let scale = (sum / columns as f64) as f32;
                scales[row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                // As a reader adds them.
                signs::add_row(before, packed, scale, decoded);
                sums.accumulate_row(weights, decoded);
            }
        }
        Ok(Some(sums))
    });
    let sums: std::result::Result<Vec<Option<ErrorSums>>, CodecError> = sums.collect();
    let Some(sums) = total(sums?) else { return Ok(None) };
    Ok(Some(Stripe { pieces: pieces(vec![all_signs, scales], expert), sums, ..Stripe::default() }))
}

/// In the order of rows.
fn total(bands: Vec<Option<ErrorSums>>) -> Option<ErrorSums> {
    bands.into_iter().try_fold(ErrorSums::default(), |mut total, band| {
        total.merge(&band?);
        Some(total)
    })
}

fn pieces(tensors: Vec<Vec<u8>>, expert: usize) -> Vec<Piece> {
    let tensors = tensors.into_iter().enumerate();
    tensors.map(|(index, bytes)| Piece::contiguous(index, expert * bytes.len(), bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::encode_from_f32,
        codec::{Delta, DenseRows},
        forward::Matrix,
        passes::mask,
    };

    fn stored(rows: usize, columns: usize, seed: usize, dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
        let weights: Vec<f32> =
            (0..rows * columns).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 - 1000.0) / 512.0).collect();
        let (mut bytes, mut rounded) = (Vec::new(), vec![0.0; weights.len()]);
        encode_from_f32(dtype, &weights, &mut bytes);
        decode_to_f32(dtype, &bytes, &mut rounded);
        (bytes, rounded)
    }

    #[test]
    fn masks_are_those_of_whole_matrices() {
        for (rows, columns, dtype) in
            [(1, 4, Dtype::BF16), (70, 36, Dtype::F16), (33, 260, Dtype::F32), (5, 7, Dtype::BF16)]
        {
            let (bytes, weights) = stored(rows, columns, 1, dtype);
            let source = Plain { dtype, bytes: &bytes, rows, columns };
            let sparse = Sparse { keep: 2, of: 4, dtype };
            let found = mask::magnitude(&weights, rows, columns, Pattern::TWO_OF_FOUR).unwrap();
            let expected = sparse.encode(&weights, &found).unwrap();
            let places = masked(&source, sparse, 0, MaskedForm::Places).unwrap();
            assert_eq!([&places.pieces[0].bytes, &places.pieces[1].bytes], [&expected[0], &expected[1]]);
            let bits = masked(&source, sparse, 0, MaskedForm::Bits).unwrap();
            assert_eq!([&bits.pieces[0].bytes[..], &bits.pieces[1].bytes], [&expected[0], found.bits()]);
            let dense = masked(&source, sparse, 0, MaskedForm::Dense).unwrap();
            let mut kept = weights.clone();
            found.apply(&mut kept).unwrap();
            let mut kept_bytes = Vec::new();
            encode_from_f32(dtype, &kept, &mut kept_bytes);
            assert!(dense.pieces[0].bytes == kept_bytes, "{rows} × {columns}");
            assert_eq!(dense.sums, places.sums);
            let lost: f64 = weights.iter().zip(&kept).map(|(w, k)| f64::from(w - k).powi(2)).sum();
            assert!((dense.sums.error_squares - lost).abs() <= 1e-6 * lost);
        }
    }

    #[test]
    fn differences_are_those_of_the_closed_form() {
        for (rows, columns) in [(1, 1), (40, 33), (97, 128), (3, 1000)] {
            let (bytes, weights) = stored(rows, columns, 1, Dtype::BF16);
            let (base_bytes, before) = stored(rows, columns, 5, Dtype::F32);
            let source = DenseRows::new(Dtype::BF16, &bytes, rows, columns).unwrap();
            let base = DenseRows::new(Dtype::F32, &base_bytes, rows, columns).unwrap();
            let stripe = difference(&source, &base, 0, rows, 0).unwrap().unwrap();
            let values: Vec<f32> = weights.iter().zip(&before).map(|(w, b)| w - b).collect();
            let planes = crate::passes::bitdelta::decompose(Matrix { rows, columns, values }, 1, Share::Row, None);
            let tensors: Vec<&[u8]> = stripe.pieces.iter().map(|piece| &piece.bytes[..]).collect();
            let decoded = Delta { planes: 1, share: Share::Row }.decode(rows, columns, &tensors).unwrap();
            let mut error = 0.0;
            for (index, (decoded, weight)) in decoded.iter().zip(&weights).enumerate() {
                let (row, column) = (index / columns, index % columns);
                let sign = if planes[0].signs.is_positive(row, column) { 1.0 } else { -1.0 };
                let expected = sign * planes[0].scale(row);
                assert!((decoded - expected).abs() <= 1e-6 * expected.abs(), "{row}, {column}: {decoded}, {expected}");
                error += f64::from(before[index] + decoded - weight).powi(2);
            }
            assert!((stripe.sums.error_squares - error).abs() <= 1e-5 * error);
        }
    }

    #[test]
    fn what_is_no_number_is_left_to_others() {
        let (mut bytes, _) = stored(40, 8, 1, Dtype::F32);
        bytes[35 * 32..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let source = Plain { dtype: Dtype::F32, bytes: &bytes, rows: 40, columns: 8 };
        let sparse = Sparse { keep: 2, of: 4, dtype: Dtype::F32 };
        assert!(masked(&source, sparse, 0, MaskedForm::Bits).is_none());
        let source = DenseRows::new(Dtype::F32, &bytes, 40, 8).unwrap();
        let (base_bytes, _) = stored(40, 8, 5, Dtype::F32);
        let base = DenseRows::new(Dtype::F32, &base_bytes, 40, 8).unwrap();
        assert!(difference(&source, &base, 0, 40, 0).unwrap().is_none());
    }
}
