//! A point of a pyramid as a number, and back: enumeration in Fischer's order.
//!
//! Points are ordered by their first coordinate, 0, +1, −1, +2, −2, …, then by the second, and so on (scheme F of
//! Fischer, "A pyramid vector quantizer", 1986). With r coordinates to come after it and k pulses left, a coordinate of
//! magnitude a > 0 leaves k − a pulses, and its points begin at V(r + 1, k) − 2 P(r, k − a), where P(r, k) = Σ V(r, j)
//! for j ≤ k; the negative ones V(r, k − a) later. So a coordinate costs three looks into tables, whatever its size.

use super::counts::Counts;

/// A type that holds indices.
pub trait Word: Copy + Ord + Default + TryFrom<u128> + std::fmt::Debug {
    /// The sum; it fits wherever it is asked for.
    #[must_use]
    fn plus(self, other: Self) -> Self;
    /// The difference; none is ever negative.
    #[must_use]
    fn minus(self, other: Self) -> Self;
}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl Word for $word {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}

words!(u64 u128);

/// The tables of one pyramid.
#[derive(Debug, Clone)]
pub struct Order<W> {
    dimension: usize,
    pulses: usize,
    /// V(r, k), `[dimension + 1, pulses + 1]`.
    counts: Vec<W>,
    /// 2 P(r, k), `[dimension, pulses + 1]`; zero for all pulses, which no magnitude leaves.
    below: Vec<W>,
}

impl<W: Word> Order<W> {
    /// The tables; none where the number of points does not fit the word.
    #[must_use]
    pub fn new(dimension: usize, pulses: u32) -> Option<Self> {
        let table = Counts::new(dimension, pulses);
        let all = W::try_from(table.of(dimension, pulses)?).ok()?;
        let width = pulses as usize + 1;
        let mut order = Self {
            dimension,
            pulses: pulses as usize,
            counts: Vec::with_capacity((dimension + 1) * width),
            below: vec![W::default(); dimension * width],
        };
        for row in 0..=dimension {
            for k in 0..=pulses {
                // V grows with both, so every entry is at most the last.
                let count = W::try_from(table.of(row, k)?).ok()?;
                debug_assert!(count <= all);
                order.counts.push(count);
            }
        }
        for row in 0..dimension {
            let mut sum = W::default();
            for k in 0..pulses as usize {
                // 2 P(r, k) ≤ V(r + 1, k + 1).
                let count = order.counts[row * width + k];
                sum = sum.plus(count).plus(count);
                order.below[row * width + k] = sum;
            }
        }
        Some(order)
    }

    /// The number of points.
    #[must_use]
    pub fn points(&self) -> W {
        self.counts[self.dimension * (self.pulses + 1) + self.pulses]
    }

    /// The index of a point: its coordinates' magnitudes must add up to the pulses.
    ///
    /// # Panics
    /// May panic where they do not.
    #[inline]
    #[must_use]
    pub fn index(&self, point: &[i16]) -> W {
        let width = self.pulses + 1;
        let mut left = self.pulses;
        let mut index = W::default();
        for (place, y) in point.iter().enumerate() {
            if *y == 0 {
                continue;
            }
            let after = self.dimension - 1 - place;
            let rest = left - usize::from(y.unsigned_abs());
            let start = self.counts[(after + 1) * width + left].minus(self.below[after * width + rest]);
            let negative = if *y < 0 { self.counts[after * width + rest] } else { W::default() };
            index = index.plus(start).plus(negative);
            left = rest;
            if left == 0 {
                break;
            }
        }
        index
    }

    /// The point of an index; false, and no point, where there is none.
    #[inline]
    #[must_use]
    pub fn point(&self, mut index: W, point: &mut [i16]) -> bool {
        if index >= self.points() {
            return false;
        }
        let width = self.pulses + 1;
        let mut left = self.pulses;
        for (place, y) in point.iter_mut().enumerate() {
            let after = self.dimension - 1 - place;
            let counts = &self.counts[after * width..][..width];
            if index < counts[left] {
                *y = 0;
                continue;
            }
            let from_end = self.counts[(after + 1) * width + left].minus(index);
            let below = &self.below[after * width..][..left];
            let rest = last_run(below, from_end);
            let within = below[rest].minus(from_end);
            let magnitude = (left - rest) as i16;
            if within < counts[rest] {
                *y = magnitude;
                index = within;
            } else {
                *y = -magnitude;
                index = within.minus(counts[rest]);
            }
            left = rest;
        }
        true
    }
}

/// The first place whose entry is no less; entries ascend, and small magnitudes are most frequent.
#[inline(always)]
fn last_run<W: Word>(below: &[W], from_end: W) -> usize {
    let mut rest = below.len() - 1;
    while rest > 0 && below[rest - 1] >= from_end {
        rest -= 1;
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indices_are_the_known_ones() {
        let order = Order::<u64>::new(3, 2).unwrap();
        for (point, index) in [
            ([2, 0, 0], 16),
            ([1, 1, 0], 10),
            ([1, 0, 1], 8),
            ([1, 0, -1], 9),
            ([1, -1, 0], 11),
            ([0, 2, 0], 6),
            ([0, 1, 1], 2),
            ([0, 1, -1], 3),
            ([0, 0, 2], 0),
            ([0, 0, -2], 1),
            ([0, -2, 0], 7),
            ([0, -1, 1], 4),
            ([0, -1, -1], 5),
            ([-2, 0, 0], 17),
            ([-1, 1, 0], 14),
            ([-1, 0, 1], 12),
            ([-1, 0, -1], 13),
            ([-1, -1, 0], 15),
        ] {
            assert_eq!(order.index(&point), index, "{point:?}");
        }
        let order = Order::<u128>::new(4, 3).unwrap();
        for (point, index) in [([1, 0, -2, 0], 45), ([0, 0, 0, 3], 0), ([-3, 0, 0, 0], 87), ([1, -1, 1, 0], 52)] {
            assert_eq!(order.index(&point), index, "{point:?}");
        }
    }

    /// Scheme F as it is written down: sums, no tables.
    fn index_by_sums(point: &[i16], counts: &Counts) -> u128 {
        let mut left: u32 = point.iter().map(|y| u32::from(y.unsigned_abs())).sum();
        let mut index = 0;
        for (place, y) in point.iter().enumerate() {
            let after = point.len() - 1 - place;
            let a = u32::from(y.unsigned_abs());
            if a > 0 {
                index += counts.of(after, left).unwrap();
                index += (1..a).map(|t| 2 * counts.of(after, left - t).unwrap()).sum::<u128>();
                if *y < 0 {
                    index += counts.of(after, left - a).unwrap();
                }
                left -= a;
            }
        }
        index
    }

    #[test]
    fn small_pyramids_are_numbered_one_to_one() {
        for dimension in 1..=6 {
            for pulses in 1..=6 {
                let narrow = Order::<u64>::new(dimension, pulses).unwrap();
                let wide = Order::<u128>::new(dimension, pulses).unwrap();
                let mut seen = std::collections::BTreeSet::new();
                for index in 0..narrow.points() {
                    let (mut point, mut again) = (vec![0; dimension], vec![0; dimension]);
                    assert!(narrow.point(index, &mut point));
                    assert!(wide.point(index.into(), &mut again));
                    assert_eq!(point, again);
                    assert_eq!(point.iter().map(|y: &i16| u32::from(y.unsigned_abs())).sum::<u32>(), pulses);
                    assert_eq!((narrow.index(&point), wide.index(&point)), (index, index.into()));
                    assert!(seen.insert(point));
                }
                assert!(!narrow.point(narrow.points(), &mut vec![0; dimension]));
            }
        }
    }

    fn points(dimension: usize, pulses: u32) -> impl Strategy<Value = Vec<i16>> {
        prop::collection::vec((0..dimension, any::<bool>()), pulses as usize).prop_map(move |pulses| {
            let mut point = vec![0_i16; dimension];
            for (place, negative) in pulses {
                // A later pulse goes the way of the first at its place.
                point[place] += if point[place] < 0 || (point[place] == 0 && negative) { -1 } else { 1 };
            }
            point
        })
    }

    proptest! {
        #[test]
        fn words_of_64_bits_come_back(point in points(16, 58)) {
            let order = Order::<u64>::new(16, 58).unwrap();
            let index = order.index(&point);
            prop_assert_eq!(u128::from(index), index_by_sums(&point, &Counts::new(16, 58)));
            let mut back = vec![0; 16];
            prop_assert!(order.point(index, &mut back));
            prop_assert_eq!(back, point);
        }

        #[test]
        fn words_of_128_bits_come_back(point in points(32, 105)) {
            let order = Order::<u128>::new(32, 105).unwrap();
            let index = order.index(&point);
            prop_assert_eq!(index, index_by_sums(&point, &Counts::new(32, 105)));
            let mut back = vec![0; 32];
            prop_assert!(order.point(index, &mut back));
            prop_assert_eq!(back, point);
        }

        #[test]
        fn every_index_is_a_point(index in 0..15_384_177_590_565_313_024_u64) {
            let order = Order::<u64>::new(16, 58).unwrap();
            let mut point = vec![0; 16];
            prop_assert!(order.point(index, &mut point));
            prop_assert_eq!(order.index(&point), index);
        }
    }

    #[test]
    fn what_does_not_fit_the_word_is_refused() {
        assert!(Order::<u64>::new(16, 59).is_none());
        assert!(Order::<u128>::new(16, 59).is_some());
        assert!(Order::<u128>::new(32, 107).is_none());
    }
}
