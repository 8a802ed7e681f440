//! Scales, minima and codes of a super-block with little squared error.
//!
//! Steps and offsets of the parts' [lines] are rounded to whole multiples of two common scales. In turn, each part takes the
//! neighbouring multiples that serve it best, with its levels chosen anew, and the common scales are fitted by least squares
//! to all levels at once, as F16 holds them; only what lowers the error is kept. Lines through the parts' extremes, rounded
//! once, are a candidate, too, so that the result is never worse than theirs.
//!
//! Weights are first brought near 1 by a power of two, so that squares neither vanish nor overflow.

use half::f16;
use multiversion::multiversion;

use super::{
    BLOCK,
    lines::{self, LANES, Line, Lines, Shape, Sums, inverse, level, limit, sums, whole},
};

/// Most parts of a super-block.
const MOST_PARTS: usize = 16;
/// Rounds of whole scales and common ones in turn; they settle in fewer.
const ROUNDS: usize = 4;

/// Neighbours of a whole scale and a whole minimum.
const AROUND: [(f32, f32); LANES] =
    [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)];
/// Those of a whole scale alone.
const ALONG: [(f32, f32); LANES] =
    [(-1.0, 0.0), (1.0, 0.0), (-2.0, 0.0), (2.0, 0.0), (-3.0, 0.0), (3.0, 0.0), (-4.0, 0.0), (4.0, 0.0)];

/// A super-block as it is stored, and what it costs.
#[derive(Debug, Clone)]
pub struct Found {
    /// The scale of scales.
    pub scale: f16,
    /// The scale of minima.
    pub minimum: f16,
    /// Whole scales of the parts.
    pub scales: [i8; MOST_PARTS],
    /// Whole minima of the parts.
    pub minima: [u8; MOST_PARTS],
    /// Level less the smallest one of each weight.
    pub codes: [u8; BLOCK],
    /// Squared error, in units of the block's power of two.
    pub error: f64,
    /// Whether a common scale is beyond F16.
    pub clamped: bool,
}

/// The power of two that brings the weights near 1.
#[derive(Clone, Copy)]
struct Unit(i32);

impl Unit {
    fn of(largest: f32) -> Self {
        Self((largest.to_bits() >> 23) as i32 - 127)
    }

    fn power(exponent: i32) -> f64 {
        f64::from_bits(((1023 + exponent) as u64) << 52)
    }

    fn normal(self, weight: f32) -> f32 {
        (f64::from(weight) * Self::power(-self.0)) as f32
    }

    /// The finite F16 nearest to a scale of so many units.
    fn stored(self, scale: f32) -> f16 {
        let limit = f16::MAX.to_f32();
        f16::from_f32(((f64::from(scale) * Self::power(self.0)) as f32).clamp(-limit, limit))
    }

    /// A stored scale in units.
    fn units(self, stored: f16) -> f32 {
        (stored.to_f64() * Self::power(-self.0)) as f32
    }
}

/// A super-block with whole scales over common ones.
#[derive(Clone, Copy)]
struct State {
    scale: f16,
    minimum: f16,
    scales: [f32; MOST_PARTS],
    minima: [f32; MOST_PARTS],
    sums: [Sums; MOST_PARTS],
    error: f64,
    clamped: bool,
}

/// A block's weights in units.
struct Block<'a> {
    weights: &'a [f32; BLOCK],
    unit: Unit,
    shape: &'a Shape,
}

impl Block<'_> {
    #[inline(always)]
    fn parts(&self) -> usize {
        BLOCK / self.shape.width
    }

    #[inline(always)]
    fn part(&self, part: usize) -> &[f32] {
        &self.weights[part * self.shape.width..][..self.shape.width]
    }

    /// The common scale over which `largest` is the whole number `most`, or as near to that as F16 gets; whether that is not
    /// near at all.
    #[inline(always)]
    fn common(&self, largest: f32, most: f32) -> (f16, bool) {
        let mut stored = self.unit.stored(largest / most);
        let whole = |stored: f16| if largest == 0.0 { 0.0 } else { (largest / self.unit.units(stored)).abs() };
        let limit = most.abs() + 0.5;
        // What is rounded down much, where F16 has few digits, would leave the largest out.
        if whole(stored) > limit && stored.to_f32().abs() < f16::MAX.to_f32() {
            stored = f16::from_bits(stored.to_bits() + 1);
        }
        (stored, whole(stored) > limit || (largest != 0.0 && whole(stored) < 0.5))
    }

    /// Lines rounded to the nearest multiples of common scales that reach the largest of them.
    #[inline(always)]
    fn rounded(&self, lines: &[Line; MOST_PARTS]) -> State {
        let (low, high) = self.shape.scales;
        let (mut step, mut offset) = (0.0_f32, 0.0_f32);
        for line in &lines[..self.parts()] {
            step = if line.step.abs() > step.abs() { line.step } else { step };
            offset = if line.offset < offset { line.offset } else { offset };
        }
        // Signed scales reach farther below zero.
        let (scale, scale_clamped) = self.common(step, if low < 0.0 { low } else { high });
        let (minimum, minimum_clamped) = self.common(-offset, self.shape.largest_minimum.max(1.0));
        let nearest = |value: f32, units: f32, limits: (f32, f32)| {
            if units == 0.0 { 0.0 } else { whole(value / units, limits) }
        };
        let (scale_units, minimum_units) = (self.unit.units(scale), self.unit.units(minimum));
        let mut state = State {
            scale,
            minimum,
            scales: [0.0; MOST_PARTS],
            minima: [0.0; MOST_PARTS],
            sums: [Sums::default(); MOST_PARTS],
            error: 0.0,
            clamped: scale_clamped || minimum_clamped,
        };
        for (part, line) in lines[..self.parts()].iter().enumerate() {
            state.scales[part] = nearest(line.step, scale_units, (low, high));
            state.minima[part] = nearest(-line.offset, minimum_units, (0.0, self.shape.largest_minimum));
        }
        self.measure(&mut state);
        state
    }

    #[inline(always)]
    fn line(&self, state: &State, part: usize) -> Line {
        Line {
            step: self.unit.units(state.scale) * state.scales[part],
            offset: -(self.unit.units(state.minimum) * state.minima[part]),
        }
    }

    #[inline(always)]
    fn measure(&self, state: &mut State) {
        state.error = 0.0;
        for part in 0..self.parts() {
            state.sums[part] = sums(self.part(part), self.line(state, part), self.shape.levels);
            state.error += f64::from(state.sums[part].error);
        }
    }

    /// Gives each part the best of the whole numbers around its own.
    #[inline(always)]
    fn choose_whole(&self, state: &mut State) {
        let (scale, minimum) = (self.unit.units(state.scale), self.unit.units(state.minimum));
        let moves = if self.shape.largest_minimum == 0.0 { ALONG } else { AROUND };
        for part in 0..self.parts() {
            // Those beyond the limits are tried as the limits.
            let whole = moves.map(|(of_scale, of_minimum)| {
                let scale = limit(state.scales[part] + of_scale, self.shape.scales);
                (scale, limit(state.minima[part] + of_minimum, (0.0, self.shape.largest_minimum)))
            });
            let step = whole.map(|(whole, _)| scale * whole);
            let offset = whole.map(|(_, whole)| -(minimum * whole));
            let lines = Lines { step, offset };
            let (lane, least) = lines.sums(self.part(part), self.shape.levels).least();
            if least.error < state.sums[part].error {
                (state.scales[part], state.minima[part]) = whole[lane];
                state.sums[part] = least;
            }
        }
        state.error = state.sums[..self.parts()].iter().map(|sums| f64::from(sums.error)).sum();
    }

    /// The common scales with the least squared error for the levels as they are: the normal equations of
    /// Σ (w − scale·(whole·q) + minimum·m)².
    #[inline(always)]
    fn fitted(&self, state: &State) -> State {
        let (mut a, mut b, mut c, mut p, mut q) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for part in 0..self.parts() {
            let (scale, minimum) = (f64::from(state.scales[part]), f64::from(state.minima[part]));
            let sums = state.sums[part];
            let total: f64 = self.part(part).iter().map(|weight| f64::from(*weight)).sum();
            a += scale * scale * f64::from(sums.squares);
            b += scale * minimum * f64::from(sums.levels);
            c += minimum * minimum * self.shape.width as f64;
            p += scale * f64::from(sums.products);
            q += minimum * total;
        }
        let determinant = a * c - b * b;
        let both = determinant > 1e-9 * a * c;
        let mut next = *state;
        if both {
            next.scale = self.unit.stored(((p * c - b * q) / determinant) as f32);
            next.minimum = self.unit.stored(((b * p - a * q) / determinant) as f32);
        } else if a > 0.0 {
            let minimum = f64::from(self.unit.units(state.minimum));
            next.scale = self.unit.stored(((p + b * minimum) / a) as f32);
        }
        self.measure(&mut next);
        next
    }

    #[inline(always)]
    fn improved(&self, mut state: State) -> State {
        for _ in 0..ROUNDS {
            self.choose_whole(&mut state);
            let next = self.fitted(&state);
            if next.error >= state.error {
                break;
            }
            state = next;
        }
        state
    }
}

/// The super-block of some finite weights.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn search(weights: &[f32; BLOCK], shape: &Shape) -> Found {
    let largest = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let smallest_level = shape.levels.0;
    let mut found = Found {
        scale: f16::ZERO,
        minimum: f16::ZERO,
        scales: [0; MOST_PARTS],
        minima: [0; MOST_PARTS],
        codes: [-smallest_level as u8; BLOCK],
        error: 0.0,
        clamped: false,
    };
    if largest == 0.0 {
        return found;
    }
    let unit = Unit::of(largest);
    let normal = weights.map(|weight| unit.normal(weight));
    let block = Block { weights: &normal, unit, shape };
    let nothing = Line { step: 0.0, offset: 0.0 };
    let (mut best, mut plain) = ([nothing; MOST_PARTS], [nothing; MOST_PARTS]);
    for part in 0..block.parts() {
        (best[part], plain[part]) = lines::of_part(block.part(part), shape);
    }
    let (best, plain) = (block.improved(block.rounded(&best)), block.rounded(&plain));
    let state = if best.error <= plain.error { best } else { plain };
    (found.scale, found.minimum) = (state.scale, state.minimum);
    (found.error, found.clamped) = (state.error, state.clamped);
    for part in 0..block.parts() {
        found.scales[part] = state.scales[part] as i8;
        found.minima[part] = state.minima[part] as u8;
        let line = block.line(&state, part);
        let inverse = inverse(line);
        let codes = &mut found.codes[part * shape.width..][..shape.width];
        for (code, weight) in codes.iter_mut().zip(block.part(part)) {
            *code = (level(*weight, line, inverse, shape.levels) - smallest_level) as u8;
        }
    }
    found
}
