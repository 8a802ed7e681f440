//! What leaving weights out of a group costs: one small quadratic form for each choice, shared by all rows.

use multiversion::multiversion;

use super::Pattern;

/// Costs that differ by less are the same but for the order in which they were summed.
const AS_GOOD: f64 = 1.0 - 1e-12;

/// One choice of weights to leave out of a group, P.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The places left out, ascending.
    pub left_out: Vec<usize>,
    /// Bit i for each place i that is kept.
    pub kept: u8,
    /// `(C_PP)⁻¹`, `[left out, left out]`: leaving out `w_P` costs `w_P (C_PP)⁻¹ w_Pᵀ`.
    penalty: Vec<f64>,
    /// `B_·P (C_PP)⁻¹`, `[group, left out]`.
    spread: Vec<f64>,
}

/// All choices of one group.
#[derive(Debug, Clone)]
pub struct Forms {
    /// In the order of [`Pattern::left_out`].
    pub choices: Vec<Choice>,
    of: usize,
}

impl Forms {
    /// Those of a group whose inverse second moments, given what is fixed, are C, `[m, m]`; B, `[m, m]`, is what
    /// [`Forms::spread`] multiplies.
    pub fn new(pattern: Pattern, inverse: &[f64], spread: &[f64]) -> Self {
        let of = pattern.of;
        let choices = pattern.left_out().into_iter().map(|left_out| {
            let count = left_out.len();
            let block: Vec<f64> =
                left_out.iter().flat_map(|a| left_out.iter().map(move |b| inverse[a * of + b])).collect();
            let penalty = inverse_of(&block, count);
            let spread = (0..of).flat_map(|row| {
                let (left_out, penalty) = (&left_out, &penalty);
                (0..count).map(move |column| {
                    let products = left_out.iter().enumerate();
                    products.map(|(index, place)| spread[row * of + place] * penalty[index * count + column]).sum()
                })
            });
            let spread = spread.collect();
            let kept = left_out.iter().fold(u8::MAX >> (8 - of), |kept, place| kept & !(1 << place));
            Choice { left_out, kept, penalty, spread }
        });
        Self { choices: choices.collect(), of }
    }

    /// For each lane the first of the cheapest choices and its cost. `group` is m columns of `best.len()` lanes.
    pub fn cheapest(&self, group: &[f64], best: &mut [f64], chosen: &mut [u16]) {
        best.fill(f64::INFINITY);
        chosen.fill(0);
        let mut costs = vec![0.0; best.len()];
        for (index, choice) in self.choices.iter().enumerate() {
            self.costs(choice, group, &mut costs);
            take_smaller(&costs, index as u16, best, chosen);
        }
    }

    fn costs(&self, choice: &Choice, group: &[f64], costs: &mut [f64]) {
        let lanes = costs.len();
        debug_assert_eq!(group.len(), self.of * lanes);
        costs.fill(0.0);
        let count = choice.left_out.len();
        for (i, a) in choice.left_out.iter().enumerate() {
            for (j, b) in choice.left_out.iter().enumerate().skip(i) {
                let factor = if i == j { 1.0 } else { 2.0 } * choice.penalty[i * count + j];
                add_products(factor, &group[a * lanes..][..lanes], &group[b * lanes..][..lanes], costs);
            }
        }
    }

    /// `B_·P (C_PP)⁻¹ w_P` of one lane, at one place of the group.
    pub fn spread(&self, choice: usize, group: &[f64], lane: usize, place: usize) -> f64 {
        let (choice, lanes) = (&self.choices[choice], group.len() / self.of);
        let count = choice.left_out.len();
        let products = choice.left_out.iter().zip(&choice.spread[place * count..][..count]);
        products.map(|(left_out, factor)| factor * group[left_out * lanes + lane]).sum()
    }

    /// The index of each choice by the bits that it keeps.
    pub fn by_bits(&self) -> [u16; 256] {
        let mut indices = [0; 256];
        self.choices.iter().enumerate().for_each(|(index, choice)| indices[usize::from(choice.kept)] = index as u16);
        indices
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn add_products(factor: f64, a: &[f64], b: &[f64], sums: &mut [f64]) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum += factor * (a * b);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn take_smaller(costs: &[f64], index: u16, best: &mut [f64], chosen: &mut [u16]) {
    for ((cost, best), chosen) in costs.iter().zip(best).zip(chosen) {
        let smaller = *cost < *best * AS_GOOD;
        *best = if smaller { *cost } else { *best };
        *chosen = if smaller { index } else { *chosen };
    }
}

/// The inverse of a small symmetric positive definite matrix, by Gauss and Jordan; such ones need no pivoting.
pub fn inverse_of(matrix: &[f64], order: usize) -> Vec<f64> {
    let mut left = matrix.to_vec();
    let mut right = vec![0.0; order * order];
    (0..order).for_each(|i| right[i * order + i] = 1.0);
    for pivot in 0..order {
        let scale = 1.0 / left[pivot * order + pivot];
        for column in 0..order {
            left[pivot * order + column] *= scale;
            right[pivot * order + column] *= scale;
        }
        for row in (0..order).filter(|row| *row != pivot) {
            let factor = left[row * order + pivot];
            for column in 0..order {
                left[row * order + column] -= factor * left[pivot * order + column];
                right[row * order + column] -= factor * right[pivot * order + column];
            }
        }
    }
    right
}
