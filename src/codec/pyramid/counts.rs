//! How many points a pyramid has.

/// V(n, k), the number of points of `Zⁿ` whose magnitudes add up to k, for all n and k up to those given.
///
/// Fischer, "A pyramid vector quantizer" (1986), equation 5: V(n, k) = V(n − 1, k) + V(n, k − 1) + V(n − 1, k − 1). An
/// entry beyond 128 bits is none, so nothing overflows.
#[derive(Debug, Clone)]
pub struct Counts {
    pulses: u32,
    /// `[dimension + 1, pulses + 1]`.
    table: Vec<Option<u128>>,
}

impl Counts {
    /// Counts up to `dimension` and `pulses`.
    #[must_use]
    pub fn new(dimension: usize, pulses: u32) -> Self {
        let width = pulses as usize + 1;
        let mut table = vec![Some(0); (dimension + 1) * width];
        table[0] = Some(1);
        for row in 1..=dimension {
            let (above, own) = table[(row - 1) * width..].split_at_mut(width);
            own[0] = Some(1);
            for k in 1..width {
                let sum = |a: Option<u128>, b: Option<u128>| a?.checked_add(b?);
                own[k] = sum(sum(above[k], own[k - 1]), above[k - 1]);
            }
        }
        Self { pulses, table }
    }

    /// V(dimension, pulses); none where it takes more than 128 bits.
    ///
    /// # Panics
    /// When either is larger than was counted.
    #[must_use]
    pub fn of(&self, dimension: usize, pulses: u32) -> Option<u128> {
        assert!(pulses <= self.pulses, "counted up to {} pulses", self.pulses);
        self.table[dimension * (self.pulses as usize + 1) + pulses as usize]
    }

    /// The bits that tell the points of a pyramid apart; none where more than 128.
    #[must_use]
    pub fn bits(&self, dimension: usize, pulses: u32) -> Option<u32> {
        self.of(dimension, pulses).map(|count| 128 - count.saturating_sub(1).leading_zeros())
    }

    /// The most pulses whose points take no more than these bits.
    #[must_use]
    pub fn most_pulses(&self, dimension: usize, bits: u32) -> u32 {
        let row = &self.table[dimension * (self.pulses as usize + 1)..][..=self.pulses as usize];
        let fits =
            |count: &Option<u128>| count.is_some_and(|count| 128 - count.saturating_sub(1).leading_zeros() <= bits);
        // V(n, 0) = 1 always fits; V grows with k for n of at least 2.
        row.partition_point(fits).saturating_sub(1) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_known_ones() {
        let counts = Counts::new(32, 105);
        for (dimension, pulses, count) in [
            (2, 1, 4),
            (3, 2, 18),
            (4, 3, 88),
            (8, 6, 27008),
            (8, 36, 4_066_763_520),
            (16, 12, 3_575_055_360),
            (16, 58, 15_384_177_590_565_313_024),
            (32, 22, 9_689_853_217_125_292_032),
            (32, 105, 295_624_007_817_093_437_331_060_191_394_019_669_568),
        ] {
            assert_eq!(counts.of(dimension, pulses), Some(count), "V({dimension}, {pulses})");
        }
        assert_eq!(counts.bits(32, 105), Some(128));
        assert_eq!(counts.bits(16, 12), Some(32));
        assert_eq!(counts.bits(2, 1), Some(2));
        assert_eq!(counts.bits(2, 0), Some(0));
    }

    #[test]
    fn what_takes_more_than_128_bits_is_none() {
        let counts = Counts::new(32, 107);
        assert!(counts.of(32, 105).is_some());
        assert_eq!(counts.of(32, 107), None);
    }

    #[test]
    fn the_most_pulses_of_a_word_are_the_known_ones() {
        let counts = Counts::new(32, 900);
        for (dimension, bits, pulses) in [
            (8, 16, 6),
            (8, 32, 36),
            (12, 32, 16),
            (16, 32, 12),
            (16, 64, 58),
            (24, 64, 30),
            (8, 64, 865),
            (32, 128, 105),
        ] {
            assert_eq!(counts.most_pulses(dimension, bits), pulses, "{dimension} in {bits} bits");
        }
    }
}
