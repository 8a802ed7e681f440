//! Scales, minima and codes of a super-block with little squared error.
//!
//! A part's weights lie near a line, w ≈ step·level + offset. From a grid of steps and offsets the line is fitted anew by
//! least squares to the levels that it gives, and the best line is fitted on until it settles. Steps and offsets are then
//! rounded to whole multiples of two common scales. In turn, each part takes the neighbouring multiples that serve it best,
//! with its levels chosen anew, and the common scales are fitted by least squares to all levels at once, as F16 holds them;
//! only what lowers the error is kept. Lines through the parts' extremes, rounded once, are a candidate, too, so that the
//! result is never worse than theirs.
//!
//! Weights are first brought near 1 by a power of two, so that squares neither vanish nor overflow. Sums have eight lanes in
//! F32: the same bits for every instruction set.

use half::f16;
use multiversion::multiversion;

use super::BLOCK;

/// Most parts of a super-block.
const MOST_PARTS: usize = 16;
/// Lanes of a sum.
const LANES: usize = 8;
/// Adding and subtracting it rounds a small F32 to the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;
/// How often the best line of a part is fitted on.
const FITS: usize = 3;
/// Rounds of whole scales and common ones in turn; they settle in fewer.
const ROUNDS: usize = 4;

/// The numbers of a format.
#[derive(Debug)]
pub struct Shape {
    /// Weights of a part.
    pub width: usize,
    /// Smallest and largest level.
    pub levels: (f32, f32),
    /// Smallest and largest whole scale of a part.
    pub scales: (f32, f32),
    /// Largest whole minimum of a part; 0 where there are none.
    pub largest_minimum: f32,
}

/// The numbers of Q4_K.
pub const Q4_K: Shape = Shape { width: 32, levels: (0.0, 15.0), scales: (0.0, 63.0), largest_minimum: 63.0 };
/// The numbers of Q6_K.
pub const Q6_K: Shape = Shape { width: 16, levels: (-32.0, 31.0), scales: (-128.0, 127.0), largest_minimum: 0.0 };

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

/// weight ≈ step·level + offset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    pub step: f32,
    pub offset: f32,
}

/// Sums over the weights w of a part and the levels q that a line gives them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    /// Σ (step·q + offset − w)².
    pub error: f32,
    levels: f32,
    squares: f32,
    products: f32,
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

/// Without `clamp`'s paths for what is no number, which keep it from being vectorized.
#[inline(always)]
fn limit(value: f32, (low, high): (f32, f32)) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

#[inline(always)]
fn level(weight: f32, line: Line, inverse: f32, levels: (f32, f32)) -> f32 {
    (limit((weight - line.offset) * inverse, levels) + MAGIC) - MAGIC
}

/// 1 / step; 0 where all levels are to be 0.
#[inline(always)]
fn inverse(line: Line) -> f32 {
    if line.step == 0.0 { 0.0 } else { 1.0 / line.step }
}

#[inline(always)]
fn sums(weights: &[f32], line: Line, levels: (f32, f32)) -> Sums {
    let inverse = inverse(line);
    let mut lanes = [[0.0_f32; LANES]; 4];
    for weights in weights.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let weight = weights[lane];
            let level = level(weight, line, inverse, levels);
            let error = (line.step * level + line.offset) - weight;
            lanes[0][lane] += error * error;
            lanes[1][lane] += level;
            lanes[2][lane] += level * level;
            lanes[3][lane] += weight * level;
        }
    }
    let total = |lanes: [f32; LANES]| {
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    };
    Sums { error: total(lanes[0]), levels: total(lanes[1]), squares: total(lanes[2]), products: total(lanes[3]) }
}

/// The best line for the levels that the sums are of, offsets at most 0 (0 without minima); none where levels are all alike,
/// or it falls where it must not.
#[inline(always)]
fn fitted(weights: &[f32], total: f64, sums: Sums, shape: &Shape) -> Option<Line> {
    let count = weights.len() as f64;
    let (levels, squares, products) = (f64::from(sums.levels), f64::from(sums.squares), f64::from(sums.products));
    let through_zero = || (squares > 0.0).then(|| products / squares);
    if shape.largest_minimum == 0.0 {
        return through_zero().map(|step| Line { step: step as f32, offset: 0.0 });
    }
    let determinant = count * squares - levels * levels;
    if determinant <= 0.0 {
        return None;
    }
    let step = (count * products - levels * total) / determinant;
    let offset = (total - step * levels) / count;
    let (step, offset) = if offset > 0.0 { (through_zero()?, 0.0) } else { (step, offset) };
    (step > 0.0).then_some(Line { step: step as f32, offset: offset as f32 })
}

/// The lines that a search begins with: first the one through the extremes.
#[inline(always)]
fn starts(weights: &[f32], shape: &Shape, mut take: impl FnMut(Line)) {
    let mut extremes = (f32::INFINITY, f32::NEG_INFINITY);
    for &weight in weights {
        extremes.0 = if weight < extremes.0 { weight } else { extremes.0 };
        extremes.1 = if weight > extremes.1 { weight } else { extremes.1 };
    }
    let (low, high) = shape.levels;
    if shape.largest_minimum == 0.0 {
        let (largest, sign) = if extremes.1 > -extremes.0 { (extremes.1, -1.0) } else { (-extremes.0, 1.0) };
        take(Line { step: sign * largest / -low, offset: 0.0 });
        for sign in [sign, -sign] {
            for step in 0..9_u8 {
                take(Line { step: sign * largest / (28.5 + 0.625 * f32::from(step)), offset: 0.0 });
            }
        }
        return;
    }
    let min = limit(extremes.0, (f32::MIN, 0.0));
    let range = extremes.1 - min;
    take(Line { step: range / high, offset: min });
    for step in 0..8_u8 {
        let step = range / (11.5 + 0.6 * f32::from(step));
        let left = range - high * step;
        for share in [0.0, 0.5, 1.0] {
            take(Line { step, offset: limit(min + share * left, (f32::MIN, 0.0)) });
        }
    }
}

/// The best line found for a part's weights, and the one through its extremes.
#[inline(always)]
fn lines(weights: &[f32], shape: &Shape) -> (Line, Line) {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let mut plain = None;
    let (mut best, mut best_sums) = (Line { step: 0.0, offset: 0.0 }, Sums { error: f32::INFINITY, ..Sums::default() });
    let mut keep = |line: Line, sums: Sums, best_sums: &mut Sums| {
        let better = sums.error < best_sums.error;
        if better {
            (best, *best_sums) = (line, sums);
        }
        better
    };
    starts(weights, shape, |line| {
        plain.get_or_insert(line);
        let found = sums(weights, line, shape.levels);
        keep(line, found, &mut best_sums);
        if let Some(line) = fitted(weights, total, found, shape) {
            keep(line, sums(weights, line, shape.levels), &mut best_sums);
        }
    });
    for _ in 0..FITS {
        let Some(line) = fitted(weights, total, best_sums, shape) else { break };
        if !keep(line, sums(weights, line, shape.levels), &mut best_sums) {
            break;
        }
    }
    (best, plain.unwrap_or(best))
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
            if units == 0.0 { 0.0 } else { (limit(value / units, limits) + MAGIC) - MAGIC }
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
        for part in 0..self.parts() {
            state.scales[part] = nearest(lines[part].step, scale_units, (low, high));
            state.minima[part] = nearest(-lines[part].offset, minimum_units, (0.0, self.shape.largest_minimum));
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

    /// Gives each part the best of the whole numbers next to its own.
    #[inline(always)]
    fn choose_whole(&self, state: &mut State) {
        let (scale, minimum) = (self.unit.units(state.scale), self.unit.units(state.minimum));
        let largest = self.shape.largest_minimum;
        for part in 0..self.parts() {
            let (own_scale, own_minimum) = (state.scales[part], state.minima[part]);
            for scale_move in [-1.0, 0.0, 1.0] {
                for minimum_move in [-1.0, 0.0, 1.0] {
                    let whole = (own_scale + scale_move, own_minimum + minimum_move);
                    let (low, high) = self.shape.scales;
                    let within = whole.0 >= low && whole.0 <= high && whole.1 >= 0.0 && whole.1 <= largest;
                    if !within || (scale_move == 0.0 && minimum_move == 0.0) {
                        continue;
                    }
                    let line = Line { step: scale * whole.0, offset: -(minimum * whole.1) };
                    let found = sums(self.part(part), line, self.shape.levels);
                    if found.error < state.sums[part].error {
                        (state.scales[part], state.minima[part]) = whole;
                        state.sums[part] = found;
                    }
                }
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
        (best[part], plain[part]) = lines(block.part(part), shape);
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

/// The line that [`search`] begins with for one part, and its squared error, for tests.
#[cfg(test)]
pub fn line_of_part(weights: &[f32], shape: &Shape) -> (Line, f32) {
    let (best, _) = lines(weights, shape);
    (best, sums(weights, best, shape.levels).error)
}
