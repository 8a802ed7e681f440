//! The inner loops of the searches, compiled for several instruction sets. They use single roundings only (no fused multiply-add), and
//! sums have a fixed number of lanes, so every processor gives the same bits.

use multiversion::multiversion;

use crate::codec::{float4::E2M1_MAX, float8::E4M3_MAX, range};

/// Adding and subtracting it rounds a small float to the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;
/// The same to multiples of 2⁻⁹, the spacing of E4M3's subnormals.
const MAGIC_E4M3: f32 = MAGIC / 512.0;
/// The same to multiples of ½, the spacing of E2M1's subnormals.
const MAGIC_E2M1: f32 = MAGIC / 2.0;
/// Smallest normal E4M3.
const E4M3_NORMAL: f32 = 0.015_625;
/// Lanes of a sum.
const LANES: usize = 16;
/// Weights summed in F32 before the lanes go into an F64.
const BLOCK: usize = 256;

/// How a weight in units of its scale becomes a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rounding {
    /// To the nearest integer after adding `offset`, then limited to `low..=high`.
    Integer {
        /// A zero point that is not whole, or 0.
        offset: f32,
        /// Smallest level.
        low: f32,
        /// Largest level.
        high: f32,
    },
    /// To the nearest E4M3, saturating.
    E4M3,
    /// To the nearest E2M1, saturating.
    E2M1,
}

/// `f32::clamp` without its NaN and panic paths, which keep it from being vectorized.
#[inline(always)]
fn limit(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

#[inline(always)]
pub fn to_integer(x: f32, low: f32, high: f32) -> f32 {
    (limit(x, low, high) + MAGIC) - MAGIC
}

/// Rounds the magnitude to `kept` bits of mantissa by integer arithmetic: exact where the result is normal.
#[inline(always)]
pub fn to_mantissa(x: f32, kept: u32) -> f32 {
    let dropped = 23 - kept;
    let bits = x.to_bits();
    let half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1);
    f32::from_bits((bits + half) & !((1 << dropped) - 1))
}

#[inline(always)]
pub fn to_e4m3(x: f32) -> f32 {
    let x = limit(x, -E4M3_MAX, E4M3_MAX);
    let small = ((x + MAGIC_E4M3) - MAGIC_E4M3).copysign(x);
    if x.abs() < E4M3_NORMAL { small } else { to_mantissa(x, 3) }
}

#[inline(always)]
pub fn to_e2m1(x: f32) -> f32 {
    let x = limit(x, -E2M1_MAX, E2M1_MAX);
    let small = ((x + MAGIC_E2M1) - MAGIC_E2M1).copysign(x);
    if x.abs() < 1.0 { small } else { to_mantissa(x, 1) }
}

/// Extremes of some finite weights; of none, zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Extent {
    /// Smallest weight.
    pub min: f32,
    /// Largest weight.
    pub max: f32,
}

impl Extent {
    /// Largest magnitude.
    pub fn absmax(self) -> f32 {
        self.max.abs().max(self.min.abs())
    }

    /// The extremes of both.
    pub fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Both extremes times `factor`.
    pub fn scaled(self, factor: f32) -> Self {
        Self { min: self.min * factor, max: self.max * factor }
    }
}

/// The extremes, or `None` when a weight is not finite.
pub fn extent(weights: &[f32]) -> Option<Extent> {
    let mut extent = Extent::default();
    let (min, max) = (std::slice::from_mut(&mut extent.min), std::slice::from_mut(&mut extent.max));
    range::minmax_per_group(weights, weights.len().max(1), min, max).then_some(extent)
}

/// Sums over some weights x (in units of the scale) and their levels q.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ (q − x)².
    pub error_squares: f64,
    /// Σ x·q.
    pub products: f64,
    /// Σ q².
    pub level_squares: f64,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.error_squares += other.error_squares;
        self.products += other.products;
        self.level_squares += other.level_squares;
    }
}

#[inline(always)]
fn sum_levels(weights: &[f32], inverse: f32, level: impl Fn(f32) -> f32) -> Sums {
    let mut sums = Sums::default();
    for block in weights.chunks(BLOCK) {
        let mut lanes = [[0.0_f32; LANES]; 3];
        let mut add = |chunk: &[f32; LANES]| {
            for lane in 0..LANES {
                let x = chunk[lane] * inverse;
                let q = level(x);
                lanes[0][lane] += (q - x) * (q - x);
                lanes[1][lane] += x * q;
                lanes[2][lane] += q * q;
            }
        };
        let (chunks, rest) = block.as_chunks::<LANES>();
        chunks.iter().for_each(&mut add);
        if !rest.is_empty() {
            // Zeros have level zero and add nothing.
            let mut padded = [0.0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            add(&padded);
        }
        let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum::<f64>();
        sums += Sums { error_squares: total(lanes[0]), products: total(lanes[1]), level_squares: total(lanes[2]) };
    }
    sums
}

/// The sums for weights that share a scale, by multiplication with `inverse`, its reciprocal: for searches, where the
/// last bit does not matter. Levels of integers are relative to the zero point: `rounding.offset` must be 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn sums(weights: &[f32], inverse: f32, rounding: Rounding) -> Sums {
    match rounding {
        Rounding::Integer { low, high, .. } => sum_levels(weights, inverse, |x| to_integer(x, low, high)),
        Rounding::E4M3 => sum_levels(weights, inverse, to_e4m3),
        Rounding::E2M1 => sum_levels(weights, inverse, to_e2m1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{
        float4::{e2m1_to_f32, f32_to_e2m1},
        float8::{e4m3_to_f32, f32_to_e4m3},
    };

    #[test]
    fn levels_of_small_floats_are_the_values_of_their_codes() {
        let mut probes = vec![0.0, -0.0, 1e30, -1e30, f32::from_bits(1), 447.9, 464.0, 500.0];
        probes.extend((0..0x7F80).flat_map(|high| [f32::from_bits(high << 16), -f32::from_bits(high << 16 | 0x8001)]));
        for probe in probes {
            assert_eq!(to_e4m3(probe), e4m3_to_f32(f32_to_e4m3(probe)), "E4M3 of {probe}");
            assert_eq!(to_e2m1(probe), e2m1_to_f32(f32_to_e2m1(probe)), "E2M1 of {probe}");
        }
    }
}
