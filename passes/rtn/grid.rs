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
        float4::{self, E2M1_MAX, e2m1_to_f32},
        float8::{self, E4M3_MAX, e4m3_to_f32},
        integer, mx,
    },
};

/// Smallest normal F16.
const F16_NORMAL: f32 = 6.103_515_6e-5;
/// Smallest normal E4M3.
const E4M3_NORMAL: f32 = 0.015_625;
/// The smallest range of a group with a minimum, as a share of that: zero points stay numbers of few digits.
const SMALLEST_RANGE: f64 = 1.0 / 4096.0;
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
    /// Largest code of an integer element.
    largest_code: f32,
    /// The zero point of symmetric integers, 0 for floats.
    implied_zero: f32,
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
            Element::Integer { .. } if codec.zero == ZeroPoint::None => codec.implied_zero(),
            Element::Integer { bits } => f32::from(1_u16 << bits),
            Element::Fp8E4M3 => E4M3_MAX,
            Element::Fp4E2M1 => E2M1_MAX,
        };
        let largest_weight = if dense == Dtype::F16 { f16::MAX.to_f32() } else { f32::MAX };
        Self {
            element: codec.element,
            scale: codec.scale,
            zero: codec.zero,
            dense,
            largest_code: (f32::from(1_u16 << codec.element.bits())) - 1.0,
            implied_zero: codec.implied_zero(),
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
        self.largest_code
    }

    /// The weight that level 1 stands for.
    pub fn step(&self, group: &GroupScale) -> f32 {
        if self.scale == ScaleFormat::E4M3OverGlobal { group.scale / self.global } else { group.scale }
    }

    /// A group with the stored scale nearest to `step`, the weight that level 1 is to stand for, and the zero point as it is;
    /// with minima, that of the stored minimum nearest to it.
    pub fn group(&self, step: f32, zero: f32) -> GroupScale {
        let group = self.usual_group(step, zero).unwrap_or_else(|| self.extreme_group(step, zero));
        if self.zero == ZeroPoint::Minimum { self.moved(&group, f64::from(zero)) } else { group }
    }

    /// A group with the same scale, and the stored zero point nearest to this one.
    pub fn moved(&self, group: &GroupScale, zero: f64) -> GroupScale {
        let zero = match self.zero {
            ZeroPoint::None => group.zero,
            ZeroPoint::Integer => self.whole_zero(zero),
            ZeroPoint::Float => self.float_zero(zero),
            ZeroPoint::Minimum => {
                let step = f64::from(self.step(group));
                (-f64::from(self.float_zero(-zero * step)) / step) as f32
            }
        };
        GroupScale { zero, ..*group }
    }

    /// A group with another scale, whose code 0 stands for the same weight where minima are stored, and whose zero point is the
    /// same where those are.
    pub fn rescaled(&self, group: &GroupScale, step: f32) -> GroupScale {
        if self.zero != ZeroPoint::Minimum {
            return self.group(step, group.zero);
        }
        let scaled = self.group(step, group.zero);
        let share = f64::from(self.step(group)) / f64::from(self.step(&scaled));
        self.moved(&scaled, f64::from(group.zero) * share)
    }

    /// The zero point as it is stored: the weight of code 0 where minima are.
    pub fn stored_zero(&self, group: &GroupScale) -> f32 {
        if self.zero != ZeroPoint::Minimum {
            return group.zero;
        }
        // Rounding gives back what the zero point was computed from.
        self.float_zero(0.0 - f64::from(group.zero) * f64::from(self.step(group)))
    }

    /// The same, fast, for scales well within the storage type: nothing is clamped there.
    fn usual_group(&self, step: f32, zero: f32) -> Option<GroupScale> {
        let within = |value: f32, smallest: f32, largest: f32| value >= smallest && value <= largest;
        if !within(step, f32::MIN_POSITIVE, self.largest_scale / 2.0) {
            return None;
        }
        let scale = match self.scale {
            ScaleFormat::F32 => step,
            ScaleFormat::BF16 => kernels::to_mantissa(step, 7),
            ScaleFormat::F16 if within(step, F16_NORMAL, 32768.0) => kernels::to_mantissa(step, 10),
            ScaleFormat::E4M3OverGlobal if within(step * self.global, E4M3_NORMAL, E4M3_MAX) => {
                kernels::to_mantissa(step * self.global, 3)
            }
            _ => return None,
        };
        Some(GroupScale { scale, zero, scale_clamped: false, zero_clamped: false })
    }

    fn extreme_group(&self, step: f32, zero: f32) -> GroupScale {
        let wanted = step.min(self.largest_scale);
        let scale = match self.scale {
            ScaleFormat::E8M0 | ScaleFormat::F16 => self.rounded(wanted),
            // What is below the normal numbers, runtimes flush to zero.
            ScaleFormat::F32 | ScaleFormat::BF16 => self.rounded(wanted).max(f32::MIN_POSITIVE),
            ScaleFormat::E4M3OverGlobal => self.scale.round((wanted * self.global).max(f32::MIN_POSITIVE)).value,
        };
        let group = GroupScale { scale, zero, scale_clamped: false, zero_clamped: false };
        // Rounding of normal numbers stays within this tolerance in every format.
        let tolerance = if self.scale == ScaleFormat::E8M0 { 2.0 } else { 1.0 + 1.0 / 16.0 };
        let stored = self.step(&group);
        GroupScale { scale_clamped: !(stored <= step * tolerance && step <= stored * tolerance), ..group }
    }

    /// The nearest scale of the storage type that is not above the largest one.
    fn rounded(&self, wanted: f32) -> f32 {
        let scale = self.scale.round(wanted.max(f32::from_bits(1))).value;
        if scale <= self.largest_scale {
            return scale;
        }
        let below = if self.scale == ScaleFormat::E8M0 { 0.5 } else { 1.0 - 1.0 / 128.0 };
        self.scale.round(wanted * below).value
    }

    /// The group with a scale and zero point that have been stored before.
    pub fn stored(&self, scale: f32, zero: Option<f32>) -> GroupScale {
        let zero = match zero {
            None => self.implied_zero,
            Some(minimum) if self.zero == ZeroPoint::Minimum => -minimum / scale,
            Some(zero) => zero,
        };
        GroupScale { scale, zero, scale_clamped: false, zero_clamped: false }
    }

    /// The group of all-zero weights: the same scale that compressed-tensors' writer gives.
    fn all_zero(&self, zero: f32) -> GroupScale {
        let scale = match self.scale {
            ScaleFormat::F32 => f32::EPSILON,
            ScaleFormat::F16 => f16::EPSILON.to_f32(),
            ScaleFormat::BF16 => bf16::EPSILON.to_f32(),
            ScaleFormat::E8M0 => mx::e8m0_to_f32(0),
            ScaleFormat::E4M3OverGlobal => 0.125,
        };
        GroupScale { scale, zero, scale_clamped: false, zero_clamped: false }
    }

    /// Scale and zero point from the extremes of the group.
    pub fn min_max(&self, extent: Extent) -> GroupScale {
        let absmax = extent.absmax();
        if absmax == 0.0 {
            return self.all_zero(if self.zero == ZeroPoint::Minimum { 0.0 } else { self.implied_zero });
        }
        match (self.element, self.zero) {
            (Element::Integer { .. }, ZeroPoint::None) => {
                self.group(absmax / (self.largest_code / 2.0), self.implied_zero)
            }
            (Element::Integer { .. }, ZeroPoint::Minimum) => self.from_minimum(extent),
            (Element::Integer { .. }, _) => self.asymmetric(extent),
            (Element::Fp8E4M3 | Element::Fp4E2M1, _) if self.scale == ScaleFormat::E8M0 => self.exponent(absmax),
            (Element::Fp8E4M3, _) => self.group(absmax / E4M3_MAX, 0.0),
            // The detour over the dense type is the reference's; it keeps the bytes equal.
            (Element::Fp4E2M1, _) => self.group(self.in_dense_type(absmax / E2M1_MAX).max(f32::MIN_POSITIVE), 0.0),
        }
    }

    /// The rule of the MX formats.
    fn exponent(&self, absmax: f32) -> GroupScale {
        let mut scale = mx::e8m0_to_f32(mx::shared_exponent(absmax, self.element));
        while scale > self.largest_scale {
            scale /= 2.0;
        }
        let largest_level = if self.element == Element::Fp8E4M3 { E4M3_MAX } else { E2M1_MAX };
        // The largest weight is at most a seventh beyond the largest level, and at least in its binade.
        let level = f64::from(absmax) / f64::from(scale) / f64::from(largest_level);
        let scale_clamped = !(0.5..1.2).contains(&level);
        GroupScale { scale, zero: 0.0, scale_clamped, zero_clamped: false }
    }

    fn asymmetric(&self, extent: Extent) -> GroupScale {
        let (min, max) = (f64::from(extent.min).min(0.0), f64::from(extent.max).max(0.0));
        let levels = f64::from(self.largest_code);
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

    /// Code 0 stands for the smallest weight as it is stored, the largest code for the largest weight.
    fn from_minimum(&self, extent: Extent) -> GroupScale {
        let (min, max) = (f64::from(extent.min), f64::from(extent.max));
        let minimum = f64::from(self.float_zero(min));
        // Weights much closer together than to zero are not told apart by more than their type does.
        let range = (max - minimum).max(minimum.abs() * SMALLEST_RANGE);
        let group = self.group((range / f64::from(self.largest_code)) as f32, 0.0);
        self.moved(&group, -minimum / f64::from(self.step(&group)))
    }

    /// The whole zero point nearest to `zero`.
    pub fn whole_zero(&self, zero: f64) -> f32 {
        zero.round_ties_even().clamp(f64::from(self.minimum_zero), f64::from(self.largest_code)) as f32
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

    fn rounding(&self, zero: f32) -> Rounding {
        match (self.element, self.zero) {
            (Element::Fp8E4M3, _) => Rounding::E4M3,
            (Element::Fp4E2M1, _) => Rounding::E2M1,
            (Element::Integer { .. }, ZeroPoint::Float | ZeroPoint::Minimum) => {
                Rounding::Integer { offset: zero, low: 0.0, high: self.largest_code }
            }
            (Element::Integer { .. }, _) => {
                Rounding::Integer { offset: 0.0, low: -zero, high: self.largest_code - zero }
            }
        }
    }

    /// Writes the codes of a row: `steps` and `zeros` are of its groups of `width` columns.
    pub fn encode_row(&self, row: &[f32], steps: &[f32], zeros: &[f32], width: usize, codes: &mut [u8]) {
        match (self.element, self.zero) {
            (Element::Integer { bits }, ZeroPoint::None) => {
                integer::quantize_symmetric_row(row, steps, width, bits, codes);
            }
            (Element::Integer { bits }, ZeroPoint::Integer) => {
                integer::quantize_asymmetric_row(row, steps, zeros, width, bits, codes);
            }
            (Element::Integer { bits }, ZeroPoint::Float | ZeroPoint::Minimum) => {
                integer::quantize_float_zero_row(row, steps, zeros, width, bits, codes);
            }
            (Element::Fp8E4M3, _) => float8::quantize_fp8_row(row, steps, width, codes),
            (Element::Fp4E2M1, _) => float4::quantize_fp4_row(row, steps, width, codes),
        }
    }

    /// Writes the codes of one group.
    pub fn encode(&self, weights: &[f32], group: &GroupScale, codes: &mut [u8]) {
        self.encode_row(weights, &[self.step(group)], &[group.zero], weights.len().max(1), codes);
    }

    /// Sums for a search, in units of the step. Not for float zero points.
    pub fn sums(&self, weights: &[f32], group: &GroupScale) -> Sums {
        let inverse = 1.0 / self.step(group);
        if !inverse.is_finite() {
            return Sums { error_squares: f64::INFINITY, ..Sums::default() };
        }
        if self.zero == ZeroPoint::Minimum {
            // Levels from the minimum on are whole, and so they are what a search fits a scale to.
            let minimum = self.stored_zero(group);
            let above: Vec<f32> = weights.iter().map(|weight| weight - minimum).collect();
            return kernels::sums(
                &above,
                inverse,
                Rounding::Integer { offset: 0.0, low: 0.0, high: self.largest_code },
            );
        }
        kernels::sums(weights, inverse, self.rounding(group.zero))
    }

    /// Sums for the half-quadratic search, in units of the step.
    pub fn half_quadratic(&self, weights: &[f32], group: &GroupScale, beta: f32) -> HalfQuadratic {
        power::half_quadratic(weights, 1.0 / self.step(group), self.rounding(group.zero), beta)
    }

    /// What a code decodes to.
    pub fn decode(&self, code: u8, group: &GroupScale) -> f32 {
        if self.zero == ZeroPoint::Minimum {
            return f32::from(code) * self.step(group) + self.stored_zero(group);
        }
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
