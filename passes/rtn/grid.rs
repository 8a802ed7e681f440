//! What one group of weights can become: the scales that its storage type holds and the levels that its codes mean.

use half::{bf16, f16};

use super::{
    kernels::{self, Extent, Rounding, Sums},
    power::{self, HalfQuadratic},
};
use crate::{
    checkpoint::Dtype,
    codec::{
        Codec, Element, ScaleFormat, ZeroPoint,
        float4::{E2M1_MAX, e2m1_to_f32},
        float8::{E4M3_MAX, e4m3_to_f32},
    },
};

/// Largest global scale of NVFP4: that of a matrix of which no weight is beyond F32's subnormals.
const LARGEST_GLOBAL: f32 = 1.0e38;

/// Scale and zero point of one group, as stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupScale {
    /// The scale as its storage type holds it.
    pub scale: f32,
    /// The zero point as stored; the implied one where none is stored.
    pub zero: f32,
    /// Whether the scale wanted was beyond the storage type.
    pub scale_clamped: bool,
    /// Whether the zero point wanted was below the smallest one that the layout stores.
    pub zero_clamped: bool,
}

/// The levels and scales of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    element: Element,
    scale: ScaleFormat,
    zero: ZeroPoint,
    dense: Dtype,
    /// Smallest whole zero point.
    minimum_zero: f32,
    /// Largest scale for which every level is finite in the dense type.
    largest_scale: f32,
    /// The scale that group scales are stored over (NVFP4), else 1.
    global: f32,
}

impl Grid {
    /// The grid of a codec for dense weights of `dense`. NVFP4's global scale is 1 until [`Grid::with_global`].
    pub fn new(codec: &Codec, dense: Dtype, minimum_zero_point: u8) -> Self {
        let largest_level = match codec.element {
            Element::Integer { bits } if codec.zero == ZeroPoint::None => 2.0_f32.powi(i32::from(bits) - 1),
            Element::Integer { bits } => 2.0_f32.powi(i32::from(bits)),
            Element::Fp8E4M3 => E4M3_MAX,
            Element::Fp4E2M1 => E2M1_MAX,
        };
        let largest_weight = if dense == Dtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
        Self {
            element: codec.element,
            scale: codec.scale,
            zero: codec.zero,
            dense,
            minimum_zero: f32::from(minimum_zero_point),
            largest_scale: largest_weight / largest_level,
            global: 1.0,
        }
    }

    /// NVFP4's global scale for a matrix with this largest magnitude: group scales use E4M3's whole range. In the
    /// dense type and by way of the reciprocal, as compressed-tensors' writer has it: any global scale near this one is as
    /// good, this one keeps the bytes equal.
    pub fn global_for(&self, absmax: f32) -> f32 {
        let reciprocal = self.in_dense_type(1.0 / absmax);
        let global = self.in_dense_type((E4M3_MAX * E2M1_MAX * reciprocal).min(LARGEST_GLOBAL));
        if absmax == 0.0 { 1.0 } else { global }
    }

    fn in_dense_type(&self, value: f32) -> f32 {
        match self.dense {
            Dtype::BF16 => bf16::from_f32(value).to_f32(),
            Dtype::F16 if value < f16::MAX.to_f32() => f16::from_f32(value).to_f32(),
            _ => value,
        }
    }

    /// The same with NVFP4's global scale.
    pub fn with_global(&self, global: f32) -> Self {
        Self { global, ..self.clone() }
    }

    /// The format of scales.
    pub fn scale_format(&self) -> ScaleFormat {
        self.scale
    }

    /// The element type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Whether zero points are stored.
    pub fn zero_point(&self) -> ZeroPoint {
        self.zero
    }

    /// Largest code of an integer element.
    pub fn largest_code(&self) -> f32 {
        match self.element {
            Element::Integer { bits } => 2.0_f32.powi(i32::from(bits)) - 1.0,
            Element::Fp8E4M3 | Element::Fp4E2M1 => 0.0,
        }
    }

    /// The zero point of symmetric integers, 0 for floats.
    fn implied_zero(&self) -> f32 {
        match self.element {
            Element::Integer { bits } => 2.0_f32.powi(i32::from(bits) - 1),
            Element::Fp8E4M3 | Element::Fp4E2M1 => 0.0,
        }
    }

    /// The weight that level 1 stands for.
    pub fn step(&self, group: &GroupScale) -> f32 {
        if self.scale == ScaleFormat::E4M3OverGlobal { group.scale / self.global } else { group.scale }
    }

    /// A group with the stored scale nearest to `step`, the weight that level 1 is to stand for.
    pub fn group(&self, step: f32, zero: f32) -> GroupScale {
        let wanted = step.min(self.largest_scale);
        let stored = match self.scale {
            ScaleFormat::F32 => wanted.max(f32::MIN_POSITIVE),
            ScaleFormat::BF16 => {
                truncated(wanted, |x| bf16::from_f32(x).to_f32(), self.largest_scale).max(f32::MIN_POSITIVE)
            }
            ScaleFormat::F16 => {
                let largest = self.largest_scale.min(f16::MAX.to_f32());
                truncated(wanted.min(largest), |x| f16::from_f32(x).to_f32(), largest).max(f16::from_bits(1).to_f32())
            }
            ScaleFormat::E8M0 => self.power_of_two(i64::from((wanted.to_bits() + (1 << 22)) >> 23)),
            ScaleFormat::E4M3OverGlobal => kernels::round_e4m3(wanted * self.global).max(1.0 / 512.0),
        };
        let group = GroupScale { scale: stored, zero, scale_clamped: false, zero_clamped: false };
        // Rounding of normal numbers stays within this tolerance in every format.
        let off = f64::from(self.step(&group)) / f64::from(step);
        let tolerance = if self.scale == ScaleFormat::E8M0 { 2.0 } else { 1.0 + 1.0 / 16.0 };
        GroupScale { scale_clamped: off > tolerance || off < 1.0 / tolerance, ..group }
    }

    /// The group with a scale and zero point that have been stored before.
    pub fn stored(&self, scale: f32, zero: Option<f32>) -> GroupScale {
        GroupScale {
            scale,
            zero: zero.unwrap_or_else(|| self.implied_zero()),
            scale_clamped: false,
            zero_clamped: false,
        }
    }

    fn power_of_two(&self, biased_exponent: i64) -> f32 {
        let largest = i64::from(self.largest_scale.to_bits() >> 23);
        exact_power_of_two(biased_exponent.clamp(0, largest))
    }

    /// The group of all-zero weights: the same scale that compressed-tensors' writer gives.
    fn all_zero(&self, zero: f32) -> GroupScale {
        let scale = match self.scale {
            ScaleFormat::F32 => f32::EPSILON,
            ScaleFormat::F16 => f16::EPSILON.to_f32(),
            ScaleFormat::BF16 => bf16::EPSILON.to_f32(),
            ScaleFormat::E8M0 => exact_power_of_two(0),
            ScaleFormat::E4M3OverGlobal => 0.125,
        };
        GroupScale { scale, zero, scale_clamped: false, zero_clamped: false }
    }

    /// Scale and zero point from the extremes of the group.
    pub fn min_max(&self, extent: Extent) -> GroupScale {
        let absmax = extent.absmax();
        if absmax == 0.0 {
            return self.all_zero(self.implied_zero());
        }
        match (self.element, self.zero) {
            (Element::Integer { .. }, ZeroPoint::None) => {
                self.group(absmax / (self.largest_code() / 2.0), self.implied_zero())
            }
            (Element::Integer { .. }, _) => self.asymmetric(extent),
            (Element::Fp8E4M3, _) if self.scale == ScaleFormat::E8M0 => self.exponent(absmax, 8),
            (Element::Fp4E2M1, _) if self.scale == ScaleFormat::E8M0 => self.exponent(absmax, 2),
            (Element::Fp8E4M3, _) => self.group(absmax / E4M3_MAX, 0.0),
            // The detour over the dense type is the reference's; it keeps the bytes equal.
            (Element::Fp4E2M1, _) => self.group(self.in_dense_type(absmax / E2M1_MAX).max(f32::MIN_POSITIVE), 0.0),
        }
    }

    /// The rule of the MX formats: the exponent of the largest magnitude, which counts as the next power of two from
    /// 1.75 on, less the exponent of the element's largest value.
    fn exponent(&self, absmax: f32, element_exponent: i64) -> GroupScale {
        let exponent = i64::from((absmax.to_bits() + 0x20_0000) >> 23) - element_exponent;
        let scale = self.power_of_two(exponent);
        let scale_clamped = scale != exact_power_of_two(exponent.clamp(0, 254)) || exponent < 0;
        GroupScale { scale, zero: 0.0, scale_clamped, zero_clamped: false }
    }

    fn asymmetric(&self, extent: Extent) -> GroupScale {
        let (min, max) = (f64::from(extent.min).min(0.0), f64::from(extent.max).max(0.0));
        let levels = f64::from(self.largest_code());
        let group = self.group(((max - min) / levels) as f32, 0.0);
        let zero = (-min / f64::from(group.scale)).round_ties_even().clamp(0.0, levels);
        if zero >= f64::from(self.minimum_zero) {
            return GroupScale { zero: zero as f32, ..group };
        }
        // With the zero point forced up, the scale must cover what is left above it.
        let smallest = f64::from(self.minimum_zero);
        let step = (max / (levels - smallest)).max(-min / smallest);
        GroupScale { zero: self.minimum_zero, zero_clamped: true, ..self.group(step as f32, 0.0) }
    }

    /// The whole zero point nearest to `zero`.
    pub fn whole_zero(&self, zero: f64) -> f32 {
        zero.round_ties_even().clamp(f64::from(self.minimum_zero), f64::from(self.largest_code())) as f32
    }

    /// A float zero point as stored.
    pub fn float_zero(&self, zero: f64) -> f32 {
        let zero = zero as f32;
        let limit = f16::MAX.to_f32();
        match self.scale {
            ScaleFormat::F16 => f16::from_f32(zero.clamp(-limit, limit)).to_f32(),
            ScaleFormat::BF16 => bf16::from_f32(zero).to_f32(),
            _ => zero,
        }
    }

    fn rounding(&self, zero: f32) -> (Rounding, u8) {
        match (self.element, self.zero) {
            (Element::Fp8E4M3, _) => (Rounding::E4M3, 0),
            (Element::Fp4E2M1, _) => (Rounding::E2M1, 0),
            (Element::Integer { .. }, ZeroPoint::Float) => {
                (Rounding::Integer { offset: zero, low: 0.0, high: self.largest_code() }, 0)
            }
            (Element::Integer { .. }, _) => {
                (Rounding::Integer { offset: 0.0, low: -zero, high: self.largest_code() - zero }, zero as u8)
            }
        }
    }

    /// Writes the codes.
    pub fn encode(&self, weights: &[f32], group: &GroupScale, codes: &mut [u8]) {
        let (rounding, zero) = self.rounding(group.zero);
        kernels::encode(weights, self.step(group), rounding, zero, codes);
    }

    /// The code that decodes to zero, or nearest to it.
    pub fn zero_code(&self, group: &GroupScale) -> u8 {
        let mut code = [0];
        self.encode(&[0.0], group, &mut code);
        code[0]
    }

    /// Sums for a search, in units of the step. Not for float zero points.
    pub fn sums(&self, weights: &[f32], group: &GroupScale) -> Sums {
        let inverse = 1.0 / self.step(group);
        if !inverse.is_finite() {
            return Sums { error_squares: f64::INFINITY, ..Sums::default() };
        }
        kernels::sums(weights, inverse, self.rounding(group.zero).0)
    }

    /// Sums for the half-quadratic search, in units of the step.
    pub fn half_quadratic(&self, weights: &[f32], group: &GroupScale, beta: f32) -> HalfQuadratic {
        power::half_quadratic(weights, 1.0 / self.step(group), self.rounding(group.zero).0, beta)
    }

    /// What a code decodes to.
    pub fn decode(&self, code: u8, group: &GroupScale) -> f32 {
        let level = match self.element {
            Element::Integer { .. } => f32::from(code) - group.zero,
            Element::Fp8E4M3 => e4m3_to_f32(code),
            Element::Fp4E2M1 => e2m1_to_f32(code),
        };
        level * self.step(group)
    }

    /// Σ (ŵ − w)² of what is really stored.
    pub fn squared_error(&self, weights: &[f32], group: &GroupScale) -> f64 {
        let mut codes = [0; 256];
        let mut total = 0.0;
        for weights in weights.chunks(codes.len()) {
            self.encode(weights, group, &mut codes);
            for (weight, code) in weights.iter().zip(codes) {
                let error = f64::from(self.decode(code, group)) - f64::from(*weight);
                total += error * error;
            }
        }
        total
    }
}

/// Rounds to the storage type; one step down where that crosses `largest`.
fn truncated(wanted: f32, round: impl Fn(f32) -> f32, largest: f32) -> f32 {
    let stored = round(wanted);
    if stored <= largest { stored } else { round(wanted * (1.0 - 1.0 / 128.0)) }
}

/// 2^(biased − 127) for 0..=254, subnormal at 0.
fn exact_power_of_two(biased: i64) -> f32 {
    if biased == 0 { f32::from_bits(0x40_0000) } else { f32::from_bits((biased as u32) << 23) }
}
