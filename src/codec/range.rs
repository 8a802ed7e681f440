//! The extent of the weights that share a scale, one row at a time.

use multiversion::multiversion;

/// Writes the largest magnitude of each group of `group` columns to `out`, and says whether all weights are finite: a
/// group with one that is not gets an infinity or not-a-number.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn absmax_per_group(row: &[f32], group: usize, out: &mut [f32]) -> bool {
    let mut largest_of_all = 0;
    for (weights, out) in row.chunks(group).zip(out) {
        // Magnitudes order like their bits, and what is not finite above all others.
        let largest = weights.iter().fold(0, |largest, weight| largest.max(weight.to_bits() & 0x7fff_ffff));
        *out = f32::from_bits(largest);
        largest_of_all = largest_of_all.max(largest);
    }
    largest_of_all < 0x7f80_0000
}

/// Writes the smallest and largest weight of each group of `group` columns (−0 is smaller than 0), and says whether all
/// weights are finite.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn minmax_per_group(row: &[f32], group: usize, smallest: &mut [f32], largest: &mut [f32]) -> bool {
    let mut finite = true;
    for ((weights, smallest), largest) in row.chunks(group).zip(smallest).zip(largest) {
        let keys = weights.iter().map(|weight| sort_key(weight.to_bits() as i32));
        // Two loops, because one with both does not become vector instructions.
        let low = keys.clone().fold(i32::MAX, i32::min);
        let high = keys.fold(i32::MIN, i32::max);
        *smallest = f32::from_bits(sort_key(low) as u32);
        *largest = f32::from_bits(sort_key(high) as u32);
        finite &= smallest.is_finite() && largest.is_finite();
    }
    finite
}

/// Turns the bits of a float into an integer that orders like it, and back: negative ones have their magnitude flipped.
/// Unlike floats, integers have a minimum that does not depend on the order of comparison, so the loop vectorises.
#[inline(always)]
fn sort_key(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

/// Index of the first weight that is not finite.
#[must_use]
pub fn first_non_finite(row: &[f32]) -> Option<usize> {
    row.iter().position(|weight| !weight.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_are_those_of_each_group(
            row in prop::collection::vec(any::<f32>(), 0..200),
            group in 1usize..70,
        ) {
            let groups = row.len().div_ceil(group);
            let mut absmax = vec![-1.0; groups];
            let (mut low, mut high) = (vec![0.0; groups], vec![0.0; groups]);
            let finite = absmax_per_group(&row, group, &mut absmax);
            prop_assert_eq!(finite, first_non_finite(&row).is_none());
            prop_assert_eq!(finite, minmax_per_group(&row, group, &mut low, &mut high));
            for (index, weights) in row.chunks(group).enumerate() {
                if first_non_finite(weights).is_some() {
                    prop_assert!(!absmax[index].is_finite());
                    continue;
                }
                let sorted = { let mut sorted = weights.to_vec(); sorted.sort_by(f32::total_cmp); sorted };
                let (first, last) = (sorted[0], sorted[sorted.len() - 1]);
                prop_assert_eq!(absmax[index], first.abs().max(last.abs()));
                prop_assert_eq!((low[index].to_bits(), high[index].to_bits()), (first.to_bits(), last.to_bits()));
            }
        }
    }
}
