//! FineQuant: the granularity of each matrix under a bits-per-weight target over all matrices of a rule; and the other
//! choices that shapes alone do not decide (outliers by σ, or as many as a target leaves room for).
//!
//! One reading of the weights measures Σ(ŵ − w)² / Σw² at every granularity, with min/max scales. What is minimised is
//! the sum of that over the matrices. Each matrix contributes the lower convex hull of its (bits, error) points, and the
//! steps along the hulls are taken by gain per bit as long as they fit: a larger target never gives a larger error.

use super::{
    OutlierRule, Settings,
    grid::Grid,
    kernels,
    matrix::{normal, outlier_columns},
    outliers,
    stripes::{fold, not_finite},
};
use crate::{
    codec::{Codec, CodecError, Granularity, OutlierCount, RowSource, ZeroPoint},
    passes::{Choice, ChooseError, Matrix},
};

/// What is tried.
const LEVELS: [Granularity; 6] = [
    Granularity::Channel,
    Granularity::Group(512),
    Granularity::Group(256),
    Granularity::Group(128),
    Granularity::Group(64),
    Granularity::Group(32),
];
/// Shares of outliers are multiples of 2⁻³²; half is the largest.
const LARGEST_SHARE: u64 = 1 << 31;

/// Says how many bits a matrix takes with a choice; `None` when the layout cannot hold it so.
pub type StoredBits<'a> = &'a dyn Fn(usize, &Choice) -> Option<u64>;
/// Opens a matrix by its index.
pub type Open<'a, E> = &'a dyn Fn(usize) -> Result<Box<dyn RowSource + 'a>, E>;

/// One matrix of the rule.
pub type Member<'a> = (&'a Settings, &'a Matrix);

fn setting(matrix: &Matrix) -> impl Fn(super::SettingError) -> ChooseError + '_ {
    |error| ChooseError::Setting { matrix: matrix.name.clone(), error }
}

fn codec(matrix: &Matrix) -> impl Fn(CodecError) -> ChooseError + '_ {
    |error| ChooseError::Weights { matrix: matrix.name.clone(), error }
}

/// The choices for all matrices of a rule. Matrices with the same `target_bits` share that budget.
///
/// # Errors
/// [`ChooseError`] when a target is below what the smallest choice takes, or weights or settings are wrong; whatever
/// `open` fails with.
pub fn choose<E: From<ChooseError>>(
    members: &[Member<'_>],
    stored_bits: StoredBits<'_>,
    open: Open<'_, E>,
) -> Result<Vec<Choice>, E> {
    let mut choices: Vec<Option<Choice>> = vec![None; members.len()];
    for (index, (settings, matrix)) in members.iter().enumerate() {
        if settings.target_bits.is_none() {
            let count = outlier_count(settings, matrix, index, open)?;
            let choice = settings.codec_with(matrix, settings.granularity().unwrap_or(Granularity::Channel), count);
            choices[index] = Some(choice.map_err(setting(matrix))?);
        }
    }
    let mut targets: Vec<f64> = members.iter().filter_map(|(settings, _)| settings.target_bits).collect();
    targets.sort_by(f64::total_cmp);
    targets.dedup();
    for target in targets {
        for by_outliers in [false, true] {
            let pool: Vec<usize> = (0..members.len())
                .filter(|index| {
                    let settings = members[*index].0;
                    settings.target_bits == Some(target)
                        && (settings.outliers == Some(OutlierRule::Auto)) == by_outliers
                })
                .collect();
            if pool.is_empty() {
                continue;
            }
            let chosen = if by_outliers {
                fill_with_outliers(members, &pool, target, stored_bits)?
            } else {
                choose_granularity(members, &pool, target, stored_bits, open)?
            };
            for (index, choice) in pool.into_iter().zip(chosen) {
                choices[index] = Some(choice);
            }
        }
    }
    // Every member has a target or none.
    Ok(choices.into_iter().flatten().collect())
}

/// How many outliers a matrix has by its own rule.
fn outlier_count<E: From<ChooseError>>(
    settings: &Settings,
    matrix: &Matrix,
    index: usize,
    open: Open<'_, E>,
) -> Result<u64, E> {
    Ok(match settings.outliers {
        Some(OutlierRule::Share(share)) => Settings::shared_outliers(share, matrix),
        Some(OutlierRule::Sigma(sigmas)) => {
            outliers::count_beyond(open(index)?.as_ref(), sigmas).map_err(codec(matrix))?
        }
        Some(OutlierRule::Auto) | None => 0,
    })
}

/// Whole bits that the matrices of a pool may take together.
fn budget(members: &[Member<'_>], pool: &[usize], target: f64) -> (u64, u64) {
    let weights: u64 = pool.iter().map(|index| members[*index].1.rows as u64 * members[*index].1.columns as u64).sum();
    ((target * weights as f64).floor() as u64, weights)
}

fn impossible(target: f64, smallest_bits: u64, weights: u64, matrices: usize) -> ChooseError {
    ChooseError::Target { target, smallest: smallest_bits as f64 / weights.max(1) as f64, matrices }
}

/// The largest share of outliers, the same in every matrix, that fits the target.
fn fill_with_outliers(
    members: &[Member<'_>],
    pool: &[usize],
    target: f64,
    stored_bits: StoredBits<'_>,
) -> Result<Vec<Choice>, ChooseError> {
    let choices = |share: u64| -> Result<Vec<Choice>, ChooseError> {
        let choice = |index: &usize| {
            let (settings, matrix) = members[*index];
            let weights = matrix.rows as u128 * matrix.columns as u128;
            let count = (weights * u128::from(share)) >> 32;
            let granularity = settings.granularity().unwrap_or(Granularity::Channel);
            settings.codec_with(matrix, granularity, count as u64).map_err(setting(matrix))
        };
        pool.iter().map(choice).collect()
    };
    let bits = |choices: &[Choice]| -> u64 {
        pool.iter().zip(choices).filter_map(|(index, choice)| stored_bits(*index, choice)).sum()
    };
    // What the layout cannot hold stays dense and takes no part in the budget.
    let held: Vec<usize> = pool
        .iter()
        .zip(choices(0)?)
        .filter_map(|(index, choice)| stored_bits(*index, &choice).map(|_| *index))
        .collect();
    let (budget, weights) = budget(members, &held, target);
    let smallest = bits(&choices(0)?);
    if smallest > budget {
        return Err(impossible(target, smallest, weights, held.len()));
    }
    let (mut fits, mut too_large) = (0, LARGEST_SHARE + 1);
    while too_large - fits > 1 {
        let middle = u64::midpoint(fits, too_large);
        if choices(middle).is_ok_and(|choices| bits(&choices) <= budget) {
            fits = middle;
        } else {
            too_large = middle;
        }
    }
    choices(fits)
}

/// One granularity of one matrix.
#[derive(Debug, Clone)]
struct Level {
    choice: Choice,
    bits: u64,
    error: f64,
}

fn choose_granularity<E: From<ChooseError>>(
    members: &[Member<'_>],
    pool: &[usize],
    target: f64,
    stored_bits: StoredBits<'_>,
    open: Open<'_, E>,
) -> Result<Vec<Choice>, E> {
    let mut hulls = Vec::with_capacity(pool.len());
    let mut fallbacks = Vec::with_capacity(pool.len());
    let mut held = Vec::new();
    for index in pool {
        let (settings, matrix) = members[*index];
        let count = outlier_count(settings, matrix, *index, open)?;
        let mut levels = Vec::new();
        for (place, granularity) in LEVELS.into_iter().enumerate() {
            if matches!(granularity, Granularity::Group(size) if size >= matrix.columns) {
                continue;
            }
            let choice = settings.codec_with(matrix, granularity, count).map_err(setting(matrix))?;
            if let Some(bits) = stored_bits(*index, &choice) {
                levels.push((place, Level { choice, bits, error: 0.0 }));
            } else if granularity == Granularity::Channel {
                fallbacks.push((*index, choice));
            }
        }
        if levels.len() > 1 {
            // Float zero points are searched for; whole ones tell granularities apart as well.
            let zero = if settings.symmetric { ZeroPoint::None } else { ZeroPoint::Integer };
            let Some(first) = levels[0].1.choice.codec.scalar() else { continue };
            let sample = Codec { zero, ..first.clone() };
            let grid = Grid::new(&sample, matrix.dense_dtype, matrix.minimum_zero_point);
            let errors = measured_errors(open(*index)?.as_ref(), &grid, sample.outliers).map_err(codec(matrix))?;
            for (place, level) in &mut levels {
                level.error = errors[*place];
            }
        }
        if !levels.is_empty() {
            held.push(*index);
        }
        hulls.push(lower_hull(levels.into_iter().map(|(_, level)| level).collect()));
    }
    let (budget, weights) = budget(members, &held, target);
    let taken = take_steps(&hulls, budget).map_err(|smallest| impossible(target, smallest, weights, held.len()))?;
    Ok(pool
        .iter()
        .zip(hulls.into_iter().zip(taken))
        .filter_map(|(index, (mut hull, place))| {
            if hull.is_empty() {
                return fallbacks.iter().find(|(fallback, _)| fallback == index).map(|(_, choice)| choice.clone());
            }
            Some(hull.swap_remove(place).choice)
        })
        .collect())
}

/// Σ(ŵ − w)² / Σw² of each level with min/max scales.
fn measured_errors(
    source: &dyn RowSource,
    grid: &Grid,
    outliers: Option<OutlierCount>,
) -> Result<[f64; LEVELS.len()], CodecError> {
    let outliers = outliers.map(|outliers| outliers::select(source, outliers.count)).transpose()?;
    let stripes = fold(
        source,
        || ([0.0; LEVELS.len()], 0.0),
        |(errors, energy), row, weights| {
            kernels::extent(weights).ok_or_else(|| not_finite(row, weights))?;
            *energy += weights.iter().map(|weight| f64::from(*weight).powi(2)).sum::<f64>();
            for (error, granularity) in errors.iter_mut().zip(LEVELS) {
                let size = if let Granularity::Group(size) = granularity { size } else { weights.len() };
                for first in (0..weights.len()).step_by(size) {
                    let range = first..weights.len().min(first + size);
                    let kept = normal(weights, &range, outlier_columns(outliers.as_ref(), row, &range));
                    let group = grid.min_max(kernels::extent(&kept).unwrap_or_default());
                    *error += f64::from(grid.step(&group)).powi(2) * grid.sums(&kept, &group).error_squares;
                }
            }
            Ok(())
        },
    )?;
    let mut errors = [0.0; LEVELS.len()];
    let mut energy = 0.0;
    for (stripe, stripe_energy) in stripes {
        errors.iter_mut().zip(stripe).for_each(|(error, stripe)| *error += stripe);
        energy += stripe_energy;
    }
    Ok(errors.map(|error| if energy > 0.0 { error / energy } else { 0.0 }))
}

/// The levels from the fewest bits on for which each further bit gains less than the one before.
fn lower_hull(mut levels: Vec<Level>) -> Vec<Level> {
    levels.sort_by(|a, b| a.bits.cmp(&b.bits).then(a.error.total_cmp(&b.error)));
    let mut hull: Vec<Level> = Vec::with_capacity(levels.len());
    for level in levels {
        if hull.last().is_some_and(|last| level.error >= last.error || level.bits == last.bits) {
            continue;
        }
        while let [.., before, last] = hull.as_slice() {
            if gain_per_bit(before, last) > gain_per_bit(last, &level) {
                break;
            }
            hull.pop();
        }
        hull.push(level);
    }
    hull
}

fn gain_per_bit(from: &Level, to: &Level) -> f64 {
    (from.error - to.error) / (to.bits - from.bits) as f64
}

/// How far to go along each hull. Fails with the bits of the smallest choice when they exceed the budget.
fn take_steps(hulls: &[Vec<Level>], budget: u64) -> Result<Vec<usize>, u64> {
    let smallest: u64 = hulls.iter().filter_map(|hull| hull.first()).map(|level| level.bits).sum();
    let mut left = budget.checked_sub(smallest).ok_or(smallest)?;
    let mut steps: Vec<(f64, usize, usize)> = hulls
        .iter()
        .enumerate()
        .flat_map(|(index, hull)| {
            let gain = move |(place, pair): (usize, &[Level])| (gain_per_bit(&pair[0], &pair[1]), index, place + 1);
            hull.windows(2).enumerate().map(gain)
        })
        .collect();
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut taken = vec![0; hulls.len()];
    for (_, index, place) in steps {
        let cost = hulls[index][place].bits - hulls[index][place - 1].bits;
        if taken[index] + 1 == place && cost <= left {
            taken[index] = place;
            left -= cost;
        }
    }
    Ok(taken)
}
