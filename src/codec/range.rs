//! The extent of the weights that share a scale, one row at a time.

use multiversion::multiversion;

const LANES: usize = 16;

/// Writes the largest magnitude of each group of `group` columns to `out`, and says whether all weights are finite: a
/// group with one that is not gets an infinity or not-a-number.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn absmax_per_group(row: &[f32], group: usize, out: &mut [f32]) -> bool {
    let mut largest_of_all = 0;
    for (weights, out) in row.chunks(group).zip(out) {
        let mut lanes = [0u32; LANES];
        let (runs, rest) = weights.as_chunks::<LANES>();
        for run in runs {
            for lane in 0..LANES {
                // Magnitudes order like their bits, and what is not finite above all others.
                lanes[lane] = lanes[lane].max(run[lane].to_bits() & 0x7fff_ffff);
            }
        }
        for (lane, weight) in rest.iter().enumerate() {
            lanes[lane] = lanes[lane].max(weight.to_bits() & 0x7fff_ffff);
        }
        let largest = lanes.into_iter().fold(0, u32::max);
        *out = f32::from_bits(largest);
        largest_of_all = largest_of_all.max(largest);
    }
    largest_of_all < 0x7f80_0000
}

/// Writes the smallest and largest weight of each group of `group` columns, and says whether all weights are finite;
/// where they are not, the extents are unspecified.
///
/// # Panics
/// Panics when `group` is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn minmax_per_group(row: &[f32], group: usize, smallest: &mut [f32], largest: &mut [f32]) -> bool {
    let mut magnitude_of_all = 0;
    for ((weights, smallest), largest) in row.chunks(group).zip(smallest).zip(largest) {
        let mut low = [f32::INFINITY; LANES];
        let mut high = [f32::NEG_INFINITY; LANES];
        let mut magnitude = [0u32; LANES];
        let mut add = |lane: usize, weight: f32| {
            low[lane] = if weight < low[lane] { weight } else { low[lane] };
            high[lane] = if weight > high[lane] { weight } else { high[lane] };
            magnitude[lane] = magnitude[lane].max(weight.to_bits() & 0x7fff_ffff);
        };
        let (runs, rest) = weights.as_chunks::<LANES>();
        for run in runs {
            for lane in 0..LANES {
                add(lane, run[lane]);
            }
        }
        for (lane, weight) in rest.iter().enumerate() {
            add(lane, *weight);
        }
        *smallest = low.into_iter().fold(f32::INFINITY, f32::min);
        *largest = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
        magnitude_of_all = magnitude.into_iter().fold(magnitude_of_all, u32::max);
    }
    magnitude_of_all < 0x7f80_0000
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
                prop_assert_eq!((low[index] <= first, high[index] >= last), (true, true));
                prop_assert!(!finite || low[index] == first && high[index] == last);
            }
        }
    }
}
