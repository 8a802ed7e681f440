//! Signs of a difference with the sums that their scale follows from, and back, one row at a time.
//!
//! Bit b of byte k of a row is column 8 k + b, set where the difference is not negative (zeros of either sign included).
//! Magnitudes are added in F32 over each 32 columns, by halves, and those sums in F64 in their order: the same bits for
//! every instruction set, and those of `shaders/sign_pack.wgsl`.

use multiversion::multiversion;

/// Columns whose magnitudes are added in F32.
pub const WORD: usize = 32;

/// Writes the signs of `weights − base`, ⌈columns / 8⌉ bytes, and returns Σ |weights − base|: not a finite number where a
/// difference is none.
///
/// # Panics
/// Panics when lengths disagree.
pub fn pack_row(weights: &[f32], base: &[f32], signs: &mut [u8]) -> f64 {
    assert_eq!(
        (base.len(), signs.len()),
        (weights.len(), weights.len().div_ceil(8)),
        "a base and a bit for each weight"
    );
    pack(weights, base, signs)
}

/// Writes `base + scale · sign` for each weight of a row.
///
/// # Panics
/// Panics when lengths disagree.
pub fn add_row(base: &[f32], signs: &[u8], scale: f32, out: &mut [f32]) {
    assert_eq!((out.len(), signs.len()), (base.len(), base.len().div_ceil(8)), "a sign and a place for each weight");
    add(base, signs, scale, out);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn pack(weights: &[f32], base: &[f32], signs: &mut [u8]) -> f64 {
    let (weight_words, weight_rest) = weights.as_chunks::<WORD>();
    let (base_words, base_rest) = base.as_chunks::<WORD>();
    let (sign_words, sign_rest) = signs.split_at_mut(weight_words.len() * 4);
    let mut sum = 0.0;
    for ((weights, base), signs) in weight_words.iter().zip(base_words).zip(sign_words.as_chunks_mut::<4>().0) {
        let (bits, magnitudes) = word(weights, base);
        *signs = bits.to_le_bytes();
        sum += f64::from(magnitudes);
    }
    if !weight_rest.is_empty() {
        let (mut weights, mut base) = ([0.0; WORD], [0.0; WORD]);
        weights[..weight_rest.len()].copy_from_slice(weight_rest);
        base[..base_rest.len()].copy_from_slice(base_rest);
        let (bits, magnitudes) = word(&weights, &base);
        let bits = bits & (u32::MAX >> (WORD - weight_rest.len()));
        sign_rest.copy_from_slice(&bits.to_le_bytes()[..sign_rest.len()]);
        sum += f64::from(magnitudes);
    }
    sum
}

/// Signs and sum of magnitudes of 32 differences.
#[inline(always)]
fn word(weights: &[f32; WORD], base: &[f32; WORD]) -> (u32, f32) {
    let (mut bits, mut sums) = ([0; WORD], [0.0; WORD]);
    for i in 0..WORD {
        let difference = weights[i] - base[i];
        // −0 + 0 is +0: the sign bit is set of negative numbers alone.
        bits[i] = ((difference + 0.0).to_bits() >> 31) << i;
        sums[i] = difference.abs();
    }
    let mut width = WORD / 2;
    while width > 0 {
        for i in 0..width {
            bits[i] |= bits[i + width];
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    (!bits[0], sums[0])
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn add(base: &[f32], signs: &[u8], scale: f32, out: &mut [f32]) {
    let scale = scale.to_bits();
    let signed = |word: u32, i: usize| f32::from_bits(scale ^ (!word >> i & 1) << 31);
    let (base_words, base_rest) = base.as_chunks::<WORD>();
    let (out_words, out_rest) = out.as_chunks_mut::<WORD>();
    let (sign_words, sign_rest) = signs.split_at(base_words.len() * 4);
    for ((base, out), signs) in base_words.iter().zip(out_words).zip(sign_words.as_chunks::<4>().0) {
        let word = u32::from_le_bytes(*signs);
        for i in 0..WORD {
            out[i] = base[i] + signed(word, i);
        }
    }
    for (i, (base, out)) in base_rest.iter().zip(out_rest).enumerate() {
        *out = base + signed(u32::from(sign_rest[i / 8]), i % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::{add_row, pack_row};

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 0.1
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn signs_and_sums_are_those_of_the_definition() {
        for columns in [1, 7, 8, 31, 32, 33, 64, 100, 1000] {
            let (mut weights, base) = (values(columns, 3), values(columns, 4));
            // No difference, as zero of either sign: x − x is +0, −0 − 0 is −0.
            weights[0] = base[0];
            let mut signs = vec![0xaa; columns.div_ceil(8)];
            let sum = pack_row(&weights, &base, &mut signs);
            let exact: f64 = weights.iter().zip(&base).map(|(w, b)| f64::from((w - b).abs())).sum();
            assert!((sum - exact).abs() <= exact * 1e-6, "{columns}: {sum}, not {exact}");
            for bit in 0..signs.len() * 8 {
                let set = signs[bit / 8] >> (bit % 8) & 1 == 1;
                assert_eq!(set, bit < columns && weights[bit] >= base[bit], "{columns}: column {bit}");
            }
            let mut out = vec![0.0; columns];
            add_row(&base, &signs, 0.25, &mut out);
            for (column, out) in out.iter().enumerate() {
                let sign = if weights[column] >= base[column] { 0.25 } else { -0.25 };
                assert_eq!(*out, base[column] + sign, "{columns}: column {column}");
            }
        }
        let mut signs = [0];
        assert_eq!(pack_row(&[-0.0, -1.0], &[0.0, 0.0], &mut signs), 1.0);
        assert_eq!(signs, [1]);
    }

    #[test]
    fn what_is_no_number_shows_in_the_sum() {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 31, 40] {
                let mut weights = vec![1.0; 41];
                weights[place] = wrong;
                assert!(!pack_row(&weights, &[0.5; 41], &mut [0; 6]).is_finite());
                assert!(!pack_row(&[0.5; 41], &weights, &mut [0; 6]).is_finite());
            }
        }
    }
}
