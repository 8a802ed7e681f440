//! The point of a pyramid that is nearest to a vector in direction, for many vectors at once.
//!
//! What [`super::search::nearest_direction`] does, with a vector in each lane: every decision is a comparison and a
//! choice, so that the loops over lanes become vector instructions. Products are compared crosswise, nothing is divided;
//! there is no fused multiply-add, so every processor finds the same points.

use multiversion::multiversion;

use super::search::{ROUNDS, WORTH};

/// Vectors that are worked on at once.
pub const LANES: usize = 64;

/// One number for each of the vectors.
pub type Lane = [f32; LANES];

/// Where the search keeps what it works on.
#[derive(Debug, Clone, Default)]
pub struct Scratch {
    magnitudes: Vec<Lane>,
    /// 2 y + 1 of the first start, then of the second.
    odd: [Vec<Lane>; 2],
}

/// Does what [`super::search::nearest_direction`] does for the vector in each lane; `x` and `y` are `[dimension]`.
///
/// # Panics
/// When y is not as long as x.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
pub fn nearest_directions(x: &[Lane], pulses: u32, y: &mut [Lane], scratch: &mut Scratch) {
    assert_eq!(x.len(), y.len(), "a point has as many coordinates as the vector");
    let mut unit = [0.0_f32; LANES];
    for x in x {
        each(|l| unit[l] = if x[l].abs() > unit[l] { x[l].abs() } else { unit[l] });
    }
    each(|l| unit[l] = if unit[l] > 0.0 { unit[l] } else { 1.0 });
    let Scratch { magnitudes, odd: [from_zero, from_projection] } = scratch;
    magnitudes.clear();
    let mut total = [0.0_f32; LANES];
    for x in x {
        let mut m = [0.0; LANES];
        each(|l| m[l] = x[l].abs() / unit[l]);
        each(|l| total[l] += m[l]);
        magnitudes.push(m);
    }
    each(|l| total[l] = if total[l] > 0.0 { total[l] } else { 1.0 });

    from_zero.clear();
    from_zero.resize(x.len(), [1.0; LANES]);
    place(magnitudes, from_zero, [0.0; LANES], [0.0; LANES], [pulses as f32; LANES], pulses);
    from_projection.clear();
    let (mut product, mut square, mut missing) = ([0.0_f32; LANES], [0.0_f32; LANES], [pulses as f32; LANES]);
    for m in magnitudes.iter() {
        let mut odd = [0.0; LANES];
        each(|l| {
            let y = (pulses as f32 * m[l] / total[l]) as i32 as f32;
            product[l] += m[l] * y;
            square[l] += y * y;
            missing[l] -= y;
            odd[l] = 2.0 * y + 1.0;
        });
        from_projection.push(odd);
    }
    let most = missing.iter().fold(0.0_f32, |most, missing| most.max(*missing)) as u32;
    place(magnitudes, from_projection, product, square, missing, most);

    let (one, one_square) = cosine(magnitudes, from_zero);
    let (other, other_square) = cosine(magnitudes, from_projection);
    let mut second = [false; LANES];
    each(|l| second[l] = other[l] * one_square[l] > one[l] * other_square[l]);
    for (((y, x), one), other) in y.iter_mut().zip(x).zip(from_zero.iter()).zip(from_projection.iter()) {
        each(|l| {
            let odd = if second[l] { other[l] } else { one[l] };
            let magnitude = (odd - 1.0) * 0.5;
            y[l] = if x[l] < 0.0 { 0.0 - magnitude } else { magnitude };
        });
    }
}

#[inline(always)]
fn each(mut of: impl FnMut(usize)) {
    for lane in 0..LANES {
        of(lane);
    }
}

/// (Σ m y)² and Σ y².
#[inline(always)]
fn cosine(m: &[Lane], odd: &[Lane]) -> (Lane, Lane) {
    let (mut product, mut square) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for (m, odd) in m.iter().zip(odd) {
        each(|l| {
            let y = (odd[l] - 1.0) * 0.5;
            product[l] += m[l] * y;
            square[l] += y * y;
        });
    }
    each(|l| product[l] *= product[l]);
    (product, square)
}

/// Adds the pulses that are missing, at most `most` in a lane, then moves pulses as long as that helps.
#[inline(always)]
fn place(m: &[Lane], odd: &mut [Lane], mut product: Lane, mut square: Lane, mut missing: Lane, most: u32) {
    let none = m.len() as f32;
    // The pulse found last is added while the next one is looked for.
    let mut pending = [none; LANES];
    for _ in 0..most {
        let (mut best, mut best_product, mut best_square) = ([0.0_f32; LANES], [0.0_f32; LANES], [0.0_f32; LANES]);
        for (j, (m, odd)) in m.iter().zip(odd.iter_mut()).enumerate() {
            let number = j as f32;
            if j == 0 {
                each(|l| {
                    odd[l] = if pending[l] == number { odd[l] + 2.0 } else { odd[l] };
                    best_product[l] = product[l] + m[l];
                    best_square[l] = square[l] + odd[l];
                });
                continue;
            }
            each(|l| {
                odd[l] = if pending[l] == number { odd[l] + 2.0 } else { odd[l] };
                let (product, square) = (product[l] + m[l], square[l] + odd[l]);
                let better = product * product * best_square[l] > best_product[l] * best_product[l] * square;
                best[l] = if better { number } else { best[l] };
                best_product[l] = if better { product } else { best_product[l] };
                best_square[l] = if better { square } else { best_square[l] };
            });
        }
        each(|l| {
            let adds = missing[l] > 0.0;
            pending[l] = if adds { best[l] } else { none };
            product[l] = if adds { best_product[l] } else { product[l] };
            square[l] = if adds { best_square[l] } else { square[l] };
            missing[l] -= 1.0;
        });
    }
    for (j, odd) in odd.iter_mut().enumerate() {
        each(|l| odd[l] = if pending[l] == j as f32 { odd[l] + 2.0 } else { odd[l] });
    }
    improve(m, odd, product, square);
}

/// Takes a pulse from one coordinate after the other to where it is of more use, until a whole round has moved nothing.
#[inline(always)]
fn improve(m: &[Lane], odd: &mut [Lane], mut product: Lane, mut square: Lane) {
    let mut still = 0;
    for i in (0..m.len()).cycle().take(ROUNDS * m.len()) {
        let (mut best_energy, mut best_product, mut best_square) = ([0.0_f32; LANES], product, square);
        let (mut without, mut square_without, mut to) = ([0.0_f32; LANES], [0.0_f32; LANES], [-1.0_f32; LANES]);
        for l in 0..LANES {
            best_energy[l] = product[l] * product[l] * WORTH;
            without[l] = product[l] - m[i][l];
            // No comparison is won with an infinite square, so no pulse is taken where there is none.
            square_without[l] = if odd[i][l] == 1.0 { f32::INFINITY } else { square[l] - (odd[i][l] - 2.0) };
        }
        for (j, (m, odd)) in m.iter().zip(odd.iter()).enumerate() {
            if i == j {
                continue;
            }
            let number = j as f32;
            for l in 0..LANES {
                let (product, square) = (without[l] + m[l], square_without[l] + odd[l]);
                let energy = product * product;
                let better = energy * best_square[l] > best_energy[l] * square;
                to[l] = if better { number } else { to[l] };
                best_energy[l] = if better { energy } else { best_energy[l] };
                best_product[l] = if better { product } else { best_product[l] };
                best_square[l] = if better { square } else { best_square[l] };
            }
        }
        still += 1;
        if to.iter().fold(-1.0_f32, |most, to| if *to > most { *to } else { most }) >= 0.0 {
            (product, square) = (best_product, best_square);
            for l in 0..LANES {
                odd[i][l] -= if to[l] >= 0.0 { 2.0 } else { 0.0 };
            }
            for (j, odd) in odd.iter_mut().enumerate() {
                let number = j as f32;
                for l in 0..LANES {
                    odd[l] += if to[l] == number { 2.0 } else { 0.0 };
                }
            }
            still = 0;
        }
        if still == m.len() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::search::nearest_direction, *};

    /// About normal, with zeros and vectors of zeros among them, and of very different lengths.
    fn vectors(dimension: usize, state: &mut u64) -> Vec<Lane> {
        let mut next = || {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let lengths: Vec<f32> = (0..LANES).map(|lane| [1.0, 1e-30, 1e30, 0.0, 1e-41][lane % 5]).collect();
        let mut element = |length: f32| {
            let x = next() + next() + next();
            if x.abs() < 0.1 { 0.0 } else { x * length }
        };
        (0..dimension).map(|_| std::array::from_fn(|lane| element(lengths[lane]))).collect()
    }

    #[test]
    fn points_are_those_of_the_plain_search() {
        let mut state = 1;
        let mut scratch = Scratch::default();
        for (dimension, pulses) in
            [(2, 1), (2, 9), (5, 3), (8, 36), (16, 1), (16, 12), (16, 58), (24, 30), (33, 4), (128, 28)]
        {
            let x = vectors(dimension, &mut state);
            let mut y = vec![[0.0; LANES]; dimension];
            nearest_directions(&x, pulses, &mut y, &mut scratch);
            for lane in 0..LANES {
                let vector: Vec<f32> = x.iter().map(|x| x[lane]).collect();
                let mut expected = vec![0.0; dimension];
                nearest_direction(&vector, pulses, &mut expected);
                let found: Vec<f32> = y.iter().map(|y| y[lane]).collect();
                assert_eq!(found, expected, "{dimension} {pulses}: {vector:?}");
                assert_eq!(found.iter().map(|y| y.abs()).sum::<f32>(), pulses as f32);
            }
        }
    }

    #[test]
    fn no_single_move_and_no_small_pyramid_point_is_better() {
        let mut state = 7;
        let mut scratch = Scratch::default();
        // All points of small pyramids, so that the best is known; moves of single pulses seldom miss it.
        let (dimension, pulses) = (4_usize, 3_i32);
        let (mut best, mut total) = (0, 0);
        for _ in 0..20 {
            let x = vectors(dimension, &mut state);
            let mut y = vec![[0.0; LANES]; dimension];
            nearest_directions(&x, pulses as u32, &mut y, &mut scratch);
            for lane in (0..LANES).step_by(5) {
                let cosine = |point: &[f64]| {
                    let product: f64 = point.iter().zip(&x).map(|(y, x)| y * f64::from(x[lane])).sum();
                    product / point.iter().map(|y| y * y).sum::<f64>().sqrt()
                };
                let found = cosine(&y.iter().map(|y| f64::from(y[lane])).collect::<Vec<_>>());
                let mut most = f64::MIN;
                for code in 0..7_i32.pow(4) {
                    let point: Vec<i32> = (0..4).map(|place| code / 7_i32.pow(place) % 7 - 3).collect();
                    if point.iter().map(|y| y.abs()).sum::<i32>() == pulses {
                        most = most.max(cosine(&point.iter().copied().map(f64::from).collect::<Vec<_>>()));
                    }
                }
                total += 1;
                best += usize::from(found > most - 1e-6);
            }
        }
        assert!(best * 100 >= total * 97, "{best} of {total}");
    }
}
