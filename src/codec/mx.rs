//! Exponent bytes (E8M0) and the rule by which MX formats share one among a block.
//!
//! Source: OCP Microscaling Formats (MX) v1.0, sections 5.4.1 and 6.3; the rounding of the exponent is that of
//! compressed-tensors, which differs from the specification's truncation.

use super::Element;

/// Decodes an exponent byte: 2^(byte − 127); 255 is not a number.
#[must_use]
#[inline]
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        // 2⁻¹²⁷ is a subnormal of F32.
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// Encodes a power of two; `None` for anything else.
#[must_use]
pub fn f32_to_e8m0(value: f32) -> Option<u8> {
    let byte = if value == e8m0_to_f32(0) { 0 } else { (value.to_bits() >> 23) as u8 };
    (e8m0_to_f32(byte) == value).then_some(byte)
}

/// The exponent byte that a block with this largest magnitude shares: its binary exponent, rounded up from 1.75·2^k on,
/// less that of the element's largest value (2 for E2M1, 8 for E4M3), within 0 to 254.
#[must_use]
pub fn shared_exponent(absmax: f32, element: Element) -> u8 {
    let largest = if element == Element::Fp8E4M3 { 8 } else { 2 };
    // A quarter of the mantissa's range carries mantissas from .75 on into the exponent.
    let exponent = (absmax.to_bits() & 0x7fff_ffff).wrapping_add(1 << 21) >> 23;
    exponent.saturating_sub(largest).min(254) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exponent_byte_is_its_power_of_two_and_comes_back() {
        for byte in 0..=254u8 {
            let value = e8m0_to_f32(byte);
            assert_eq!(f64::from(value), 2f64.powi(i32::from(byte) - 127));
            assert_eq!(f32_to_e8m0(value), Some(byte));
        }
        assert!(e8m0_to_f32(255).is_nan());
        for value in [0.0, -1.0, 3.0, f32::INFINITY, f32::NAN, f32::MIN_POSITIVE / 4.0, 0.75] {
            assert_eq!(f32_to_e8m0(value), None, "{value}");
        }
    }

    #[test]
    fn the_shared_exponent_puts_the_largest_weight_into_the_top_binade() {
        for (absmax, expected) in [(1.0, 125), (1.749, 125), (1.75, 126), (2.0, 126), (6.0, 127), (7.0, 128)] {
            assert_eq!(shared_exponent(absmax, Element::Fp4E2M1), expected, "{absmax}");
        }
        assert_eq!(shared_exponent(448.0, Element::Fp8E4M3), 128);
        assert_eq!(shared_exponent(447.0, Element::Fp8E4M3), 127);
        assert_eq!(shared_exponent(0.0, Element::Fp4E2M1), 0);
        assert_eq!(shared_exponent(f32::MAX, Element::Fp4E2M1), 253);
        assert_eq!(shared_exponent(1e-45, Element::Fp8E4M3), 0);
    }
}
