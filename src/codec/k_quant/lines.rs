//! The line, weight ≈ step·level + offset, that a part's weights are near to, with little squared error.
//!
//! Candidates are tried eight at once, one in each lane, and each is fitted by least squares to the levels that it gives. The
//! best one is fitted on until it settles. Sums are F32 of a fixed order: the same bits for every instruction set.

/// Lanes of a sum.
pub const LANES: usize = 8;
/// Adding and subtracting it rounds a small F32 to the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;
/// How often the best line of a part is fitted on.
const FITS: usize = 3;
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

/// The numbers of `Q4_K`.
pub const Q4_K: Shape = Shape { width: 32, levels: (0.0, 15.0), scales: (0.0, 63.0), largest_minimum: 63.0 };
/// The numbers of `Q6_K`.
pub const Q6_K: Shape = Shape { width: 16, levels: (-32.0, 31.0), scales: (-128.0, 127.0), largest_minimum: 0.0 };

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
    /// Σ q.
    pub levels: f32,
    /// Σ q².
    pub squares: f32,
    /// Σ w·q.
    pub products: f32,
}

/// Without `clamp`'s paths for what is no number, which keep it from being vectorized.
#[inline(always)]
pub fn limit(value: f32, (low, high): (f32, f32)) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// The nearest whole number within the limits, ties to even.
#[inline(always)]
pub fn whole(value: f32, limits: (f32, f32)) -> f32 {
    (limit(value, limits) + MAGIC) - MAGIC
}

/// The level of a line that is nearest to a weight.
#[inline(always)]
pub fn level(weight: f32, line: Line, inverse: f32, levels: (f32, f32)) -> f32 {
    whole((weight - line.offset) * inverse, levels)
}

/// 1 / step; 0 where all levels are to be 0.
#[inline(always)]
pub fn inverse(line: Line) -> f32 {
    if line.step == 0.0 { 0.0 } else { 1.0 / line.step }
}

/// The sums of one line.
#[inline(always)]
pub fn sums(weights: &[f32], line: Line, levels: (f32, f32)) -> Sums {
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

/// Lines tried at once, one in each lane.
#[derive(Clone, Copy, Default)]
pub struct Lines {
    pub step: [f32; LANES],
    pub offset: [f32; LANES],
}

/// Their [`Sums`].
#[derive(Default)]
pub struct ManySums {
    error: [f32; LANES],
    levels: [f32; LANES],
    squares: [f32; LANES],
    products: [f32; LANES],
}

impl ManySums {
    /// The lane with the least error, the first of equals, and its sums.
    #[inline(always)]
    pub fn least(&self) -> (usize, Sums) {
        let mut best = 0;
        for lane in 1..LANES {
            best = if self.error[lane] < self.error[best] { lane } else { best };
        }
        let sums = Sums {
            error: self.error[best],
            levels: self.levels[best],
            squares: self.squares[best],
            products: self.products[best],
        };
        (best, sums)
    }
}

impl Lines {
    #[inline(always)]
    fn of(&self, lane: usize) -> Line {
        Line { step: self.step[lane], offset: self.offset[lane] }
    }

    /// The sums of each.
    #[inline(always)]
    pub fn sums(&self, weights: &[f32], levels: (f32, f32)) -> ManySums {
        let inverses: [f32; LANES] = std::array::from_fn(|lane| inverse(self.of(lane)));
        let mut sums = ManySums::default();
        for &weight in weights {
            for (lane, inverse) in inverses.iter().enumerate() {
                let level = level(weight, self.of(lane), *inverse, levels);
                let error = (self.step[lane] * level + self.offset[lane]) - weight;
                sums.error[lane] += error * error;
                sums.levels[lane] += level;
                sums.squares[lane] += level * level;
                sums.products[lane] += weight * level;
            }
        }
        sums
    }

    /// The best lines for the levels that the sums are of, as [`fitted`] has them; as they are where there is none.
    #[inline(always)]
    fn fitted(&self, count: f32, total: f32, sums: &ManySums, shape: &Shape) -> Self {
        let mut next = *self;
        for lane in 0..LANES {
            let (levels, squares, products) = (sums.levels[lane], sums.squares[lane], sums.products[lane]);
            let through_zero = products / squares;
            let (step, offset) = if shape.largest_minimum == 0.0 {
                (through_zero, 0.0)
            } else {
                let step = (count * products - levels * total) / (count * squares - levels * levels);
                let offset = (total - step * levels) / count;
                if offset > 0.0 { (through_zero, 0.0) } else { (step, offset) }
            };
            let usable = step.abs() < f32::MAX && (step > 0.0 || shape.largest_minimum == 0.0);
            next.step[lane] = if usable { step } else { next.step[lane] };
            next.offset[lane] = if usable { offset } else { next.offset[lane] };
        }
        next
    }
}

/// Batches of lines that a search begins with.
const BATCHES: usize = 3;

/// The line through the extremes of a part, and those that a search begins with.
#[inline(always)]
fn starts(weights: &[f32], shape: &Shape) -> (Line, [Lines; BATCHES]) {
    let mut extremes = (f32::INFINITY, f32::NEG_INFINITY);
    for &weight in weights {
        extremes.0 = if weight < extremes.0 { weight } else { extremes.0 };
        extremes.1 = if weight > extremes.1 { weight } else { extremes.1 };
    }
    let (low, high) = shape.levels;
    let mut batches = [Lines::default(); BATCHES];
    if shape.largest_minimum == 0.0 {
        // The larger reach of levels goes to the largest weight first.
        let largest = if extremes.1 > -extremes.0 { -extremes.1 } else { -extremes.0 };
        for (batch, lines) in batches.iter_mut().enumerate() {
            for lane in 0..LANES {
                let (sign, place) = if batch < 2 { (1.0, LANES * batch + lane) } else { (-1.0, 2 * lane) };
                lines.step[lane] = sign * largest / (28.75 + 0.375 * place as f32);
            }
        }
        return (Line { step: largest / -low, offset: 0.0 }, batches);
    }
    let min = limit(extremes.0, (f32::MIN, 0.0));
    let range = extremes.1 - min;
    for (lines, share) in batches.iter_mut().zip([0.0, 0.5, 1.0]) {
        for lane in 0..LANES {
            let step = range / (11.5 + 0.6 * lane as f32);
            lines.step[lane] = step;
            lines.offset[lane] = limit(min + share * (range - high * step), (f32::MIN, 0.0));
        }
    }
    (Line { step: range / high, offset: min }, batches)
}

/// The best line found for a part's weights, and the one through its extremes.
#[inline(always)]
pub fn of_part(weights: &[f32], shape: &Shape) -> (Line, Line) {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let (plain, batches) = starts(weights, shape);
    let (mut best, mut best_sums) = (plain, sums(weights, plain, shape.levels));
    for mut lines in batches {
        for _ in 0..2 {
            let found = lines.sums(weights, shape.levels);
            let (lane, least) = found.least();
            if least.error < best_sums.error {
                (best, best_sums) = (lines.of(lane), least);
            }
            lines = lines.fitted(weights.len() as f32, total as f32, &found, shape);
        }
    }
    for _ in 0..FITS {
        let Some(line) = fitted(weights, total, best_sums, shape) else { break };
        let found = sums(weights, line, shape.levels);
        if found.error >= best_sums.error {
            break;
        }
        (best, best_sums) = (line, found);
    }
    (best, plain)
}

/// The best line found, and its squared error, for tests.
#[cfg(test)]
pub fn line_of_part(weights: &[f32], shape: &Shape) -> (Line, f32) {
    let (best, _) = of_part(weights, shape);
    (best, sums(weights, best, shape.levels).error)
}
