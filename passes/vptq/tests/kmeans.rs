//! k-means against Lloyd's iteration in F64.

use super::fixtures::normal;
use crate::passes::vptq::{
    kernel::LANES,
    kmeans::{Effort, Stored, centroids, lloyd, seed},
    random::Random,
};

const LENGTH: usize = 3;

/// Points around a few places, with weights; the last block is not full.
fn points(blocks: usize, random: &mut Random) -> Stored {
    let places: Vec<f64> = (0..LENGTH * 7).map(|_| normal(random) * 3.0).collect();
    let mut stored =
        Stored { length: LENGTH, x: vec![0.0; blocks * LENGTH * LANES], weights: vec![[0.0; LANES]; blocks] };
    for point in 0..blocks * LANES - 5 {
        let place = random.below(7);
        stored.weights[point / LANES][point % LANES] = (0.1 + random.uniform()) as f32;
        for component in 0..LENGTH {
            let value = places[place * LENGTH + component] + normal(random);
            stored.x[(point / LANES * LENGTH + component) * LANES + point % LANES] = value as f32;
        }
    }
    stored
}

/// The points as rows, with their weights.
fn rows(points: &Stored) -> Vec<(Vec<f64>, f64)> {
    let all = points.weights.as_flattened().iter().enumerate();
    all.map(|(point, weight)| {
        let block = &points.x[point / LANES * LENGTH * LANES..];
        let row = (0..LENGTH).map(|component| f64::from(block[component * LANES + point % LANES])).collect();
        (row, f64::from(*weight))
    })
    .collect()
}

fn square(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Error of the given centroids, and their successors.
fn round(points: &[(Vec<f64>, f64)], centroids: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let mut sums = vec![(vec![0.0; LENGTH], 0.0); centroids.len()];
    let mut error = 0.0;
    for (point, weight) in points {
        let distances: Vec<f64> = centroids.iter().map(|centroid| square(point, centroid)).collect();
        let nearest = (0..centroids.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap();
        error += weight * distances[nearest];
        sums[nearest].1 += weight;
        sums[nearest].0.iter_mut().zip(point).for_each(|(sum, value)| *sum += weight * value);
    }
    let next = sums.into_iter().zip(centroids).map(|((sum, weight), old)| {
        if weight > 0.0 { sum.iter().map(|value| value / weight).collect() } else { old.clone() }
    });
    (error, next.collect())
}

#[test]
fn rounds_are_those_of_lloyd_in_f64_and_errors_fall() {
    let mut random = Random::new("rounds", "");
    let points = points(40, &mut random);
    let mut found = seed(&points, 12, &mut random);
    let mut reference: Vec<Vec<f64>> =
        found.chunks(LENGTH).map(|centroid| centroid.iter().map(|value| f64::from(*value)).collect()).collect();
    let errors = lloyd(&points, &mut found, 8);
    let all = rows(&points);
    for (index, error) in errors.iter().enumerate() {
        let (expected, next) = round(&all, &reference);
        assert!((error - expected).abs() < 1e-4 * expected, "round {index}: {error} instead of {expected}");
        if index + 1 < errors.len() || errors.len() == 8 {
            reference = next;
        }
    }
    assert!(errors.len() > 2 && errors.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{errors:?}");
    for (centroid, expected) in found.chunks(LENGTH).zip(&reference) {
        for (value, expected) in centroid.iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-3, "{value} instead of {expected}");
        }
    }
}

#[test]
fn empty_clusters_go_where_the_error_is_largest() {
    let mut random = Random::new("empty", "");
    let points = points(40, &mut random);
    let start = &seed(&points, 1, &mut random);
    let mut found = start.repeat(10);
    // All but the first of equal centroids are empty.
    let errors = lloyd(&points, &mut found, 30);
    assert!(errors.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-6)), "{errors:?}");
    let centroids: Vec<Vec<f64>> =
        found.chunks(LENGTH).map(|centroid| centroid.iter().map(|value| f64::from(*value)).collect()).collect();
    let all = rows(&points);
    let used: std::collections::BTreeSet<usize> = all
        .iter()
        .filter(|(_, weight)| *weight > 0.0)
        .map(|(point, _)| {
            let near = |a: &usize, b: &usize| square(point, &centroids[*a]).total_cmp(&square(point, &centroids[*b]));
            (0..10).min_by(near).unwrap()
        })
        .collect();
    assert_eq!(used.len(), 10, "every centroid is some point's nearest");
    // The first nine came after one round: the farthest points from the mean.
    let mut one = start.repeat(10);
    lloyd(&points, &mut one, 1);
    let mean: Vec<f64> = one[..LENGTH].iter().map(|value| f64::from(*value)).collect();
    let mut far: Vec<f64> = all.iter().map(|(point, weight)| weight * square(point, &mean)).collect();
    far.sort_by(|a, b| b.total_cmp(a));
    for (index, centroid) in one.chunks(LENGTH).skip(1).enumerate() {
        let point: Vec<f64> = centroid.iter().map(|value| f64::from(*value)).collect();
        let (_, weight) = all.iter().find(|(row, _)| *row == point).expect("an empty centroid became a point");
        assert!((weight * square(&point, &mean) - far[index]).abs() < 1e-4 * far[index]);
    }
}

#[test]
fn fewer_points_than_centroids_are_stored_exactly() {
    let mut random = Random::new("few", "");
    let mut points = points(4, &mut random);
    for point in 0..4 * LANES {
        // Five distinct points.
        for component in 0..LENGTH {
            points.x[(point / LANES * LENGTH + component) * LANES + point % LANES] =
                ((point % 5) * (component + 1)) as f32 * 0.375;
        }
    }
    let effort = Effort { sample: 8, sample_rounds: 5, rounds: 5 };
    let (found, [errors, _]) = centroids(&points, 16, effort, &mut random);
    assert!(found.iter().all(|value| value.is_finite()));
    assert!(errors.last().is_some_and(|error| *error < 1e-9), "{errors:?}");
}

#[test]
fn a_sample_leads_to_about_as_good_centroids() {
    let mut random = Random::new("sample", "");
    let points = points(400, &mut random);
    let all = rows(&points);
    let error = |centroids: &[f32]| {
        let rows: Vec<Vec<f64>> =
            centroids.chunks(LENGTH).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
        round(&all, &rows).0
    };
    let full = Effort { sample: usize::MAX >> 8, sample_rounds: 30, rounds: 0 };
    let part = Effort { sample: 40, sample_rounds: 30, rounds: 5 };
    let (best, [_, none]) = centroids(&points, 20, full, &mut Random::new("a", ""));
    let (sampled, [_, more]) = centroids(&points, 20, part, &mut Random::new("a", ""));
    assert!(none.is_empty() && !more.is_empty());
    assert!(error(&sampled) < error(&best) * 1.1, "{} {}", error(&sampled), error(&best));
    // Seeds alone are worse by far.
    let seeds = seed(&points, 20, &mut Random::new("a", ""));
    assert!(error(&best) < error(&seeds) * 0.9);
}
