//! Random numbers that can be asked for in any order: each is a function of a key and a counter.

/// A stream of random numbers that belongs to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream of a seed, a name (of a tensor, of a purpose) and a step.
    pub(super) fn new(seed: u64, name: &str, step: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&step.to_le_bytes()).update(name.as_bytes());
        let hash = hasher.finalize();
        Self(hash.as_bytes()[..8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
    }

    /// 64 random bits: those of `SplitMix64` (Steele, Lea, Flood 2014).
    pub(super) fn bits(self, counter: u64) -> u64 {
        let mut z = self.0.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform between 0 and 1, neither of them.
    pub(super) fn uniform(self, counter: u64) -> f64 {
        ((self.bits(counter) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Standard Gumbel: −ln(−ln u).
    pub(super) fn gumbel(self, counter: u64) -> f64 {
        -libm::log(-libm::log(self.uniform(counter)))
    }

    /// Standard normal, by Box and Muller.
    pub(super) fn normal(self, counter: u64) -> f64 {
        let (radius, angle) = (self.uniform(2 * counter), self.uniform(2 * counter + 1));
        (-2.0 * libm::log(radius)).sqrt() * libm::cos(2.0 * std::f64::consts::PI * angle)
    }

    /// 0 to `count` − 1 in random order, by Fisher and Yates.
    pub(super) fn order(self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            // The bias of this choice is below count / 2^64.
            let other = (u128::from(self.bits(last as u64)) * (last as u128 + 1)) >> 64;
            order.swap(last, other as usize);
        }
        order
    }
}
