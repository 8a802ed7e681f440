//! Scales as their storage type holds them.

use half::{bf16, f16};

use super::{ScaleFormat, float8, mx};

/// A scale rounded to its storage type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundedScale {
    /// The stored value.
    pub value: f32,
    /// Whether the scale was beyond the type's range, or too small for it, and the nearest positive finite value stands in.
    pub clamped: bool,
}

impl ScaleFormat {
    /// Rounds a scale to the nearest value that the format holds (E8M0: the nearest power of two). A positive scale stays
    /// positive and finite: beyond the range the largest, below it the smallest value stands in. Zero stays zero, except
    /// in E8M0, which has none.
    ///
    /// Scales are not negative and not not-a-number; what comes of such values is unspecified but does not panic.
    #[must_use]
    #[inline]
    pub fn round(self, scale: f32) -> RoundedScale {
        if self == Self::F32 {
            return RoundedScale { value: scale.min(f32::MAX), clamped: scale > f32::MAX };
        }
        // The usual case, without a call: a BF16 well inside its range.
        let rounded = scale.to_bits().wrapping_add(0x7fff + ((scale.to_bits() >> 16) & 1)) & 0xffff_0000;
        if self == Self::BF16 && rounded.wrapping_sub(1) < f32::MAX.to_bits() & 0xffff_0000 {
            return RoundedScale { value: f32::from_bits(rounded), clamped: false };
        }
        self.round_with_limits(scale)
    }

    fn round_with_limits(self, scale: f32) -> RoundedScale {
        let (smallest, largest) = self.range();
        let value = match self {
            Self::F32 => scale,
            Self::F16 => f16::from_f32(scale).to_f32(),
            Self::BF16 => bf16::from_f32(scale).to_f32(),
            Self::E4M3OverGlobal => float8::e4m3_to_f32(float8::f32_to_e4m3(scale)),
            Self::E8M0 => {
                // Half of the mantissa's range carries 1.5 and more into the exponent; 2⁻¹²⁷ itself is a subnormal.
                let carried = scale.to_bits().wrapping_add(1 << 22) >> 23;
                let byte = if scale.to_bits() < 0x0060_0000 { 0 } else { carried };
                mx::e8m0_to_f32(byte.min(254) as u8)
            }
        };
        // Half a step beyond the largest E4M3 value still rounds to it.
        let too_large = value > largest || (self == Self::E4M3OverGlobal && scale > 464.0) || scale == f32::INFINITY;
        if scale == 0.0 && self != Self::E8M0 {
            RoundedScale { value: 0.0, clamped: false }
        } else if value < smallest || scale <= smallest / 2.0 {
            RoundedScale { value: smallest, clamped: scale != smallest }
        } else if too_large {
            RoundedScale { value: largest, clamped: true }
        } else {
            RoundedScale { value, clamped: false }
        }
    }

    /// The smallest positive and the largest value that the format holds.
    #[must_use]
    pub fn range(self) -> (f32, f32) {
        match self {
            Self::F32 => (f32::from_bits(1), f32::MAX),
            Self::F16 => (f16::MIN_POSITIVE_SUBNORMAL.to_f32(), f16::MAX.to_f32()),
            Self::BF16 => (bf16::MIN_POSITIVE_SUBNORMAL.to_f32(), bf16::MAX.to_f32()),
            Self::E8M0 => (mx::e8m0_to_f32(0), mx::e8m0_to_f32(254)),
            Self::E4M3OverGlobal => (1.0 / 512.0, float8::E4M3_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [ScaleFormat; 5] =
        [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::BF16, ScaleFormat::E8M0, ScaleFormat::E4M3OverGlobal];

    /// Every positive value of a format with up to 16 bits.
    fn values(format: ScaleFormat) -> Vec<f64> {
        let all: Vec<f32> = match format {
            ScaleFormat::F32 => unreachable!("too many"),
            ScaleFormat::F16 => (1..0x7c00).map(|bits| f16::from_bits(bits).to_f32()).collect(),
            ScaleFormat::BF16 => (1..0x7f80).map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            ScaleFormat::E8M0 => (0..=254).map(mx::e8m0_to_f32).collect(),
            ScaleFormat::E4M3OverGlobal => (1..0x7f).map(float8::e4m3_to_f32).collect(),
        };
        all.into_iter().map(f64::from).collect()
    }

    proptest! {
        #[test]
        fn a_positive_scale_becomes_the_nearest_positive_finite_value(bits in 1u32..=0x7f7f_ffff, index in 1usize..5) {
            let (scale, format) = (f32::from_bits(bits), FORMATS[index]);
            let rounded = format.round(scale);
            let values = values(format);
            let distance = |value: f64| (value - f64::from(scale)).abs();
            let nearest = values.iter().copied().map(distance).fold(f64::INFINITY, f64::min);
            prop_assert_eq!(distance(f64::from(rounded.value)), nearest, "{:?} {:e}: {:?}", format, scale, rounded);
            prop_assert!(values.contains(&f64::from(rounded.value)));
            if rounded.clamped {
                let (smallest, largest) = format.range();
                prop_assert!(scale < smallest && rounded.value == smallest || scale > largest && rounded.value == largest);
            }
        }

        #[test]
        fn f32_scales_stay(bits in 0u32..=0x7f7f_ffff) {
            let scale = f32::from_bits(bits);
            prop_assert_eq!(ScaleFormat::F32.round(scale), RoundedScale { value: scale, clamped: false });
        }
    }

    #[test]
    fn clamping_is_flagged() {
        for format in FORMATS {
            let (smallest, largest) = format.range();
            assert_eq!(format.round(smallest), RoundedScale { value: smallest, clamped: false }, "{format:?}");
            assert_eq!(format.round(largest), RoundedScale { value: largest, clamped: false }, "{format:?}");
            assert_eq!(format.round(f32::INFINITY), RoundedScale { value: largest, clamped: true }, "{format:?}");
        }
        assert_eq!(ScaleFormat::F16.round(1e-9), RoundedScale { value: 2f32.powi(-24), clamped: true });
        assert_eq!(ScaleFormat::F16.round(70000.0), RoundedScale { value: 65504.0, clamped: true });
        assert_eq!(ScaleFormat::E4M3OverGlobal.round(460.0), RoundedScale { value: 448.0, clamped: false });
        assert_eq!(ScaleFormat::F16.round(0.0), RoundedScale { value: 0.0, clamped: false });
        assert!(ScaleFormat::E8M0.round(0.0).clamped);
    }
}
