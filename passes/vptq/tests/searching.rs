//! The search of centroids against all distances in F64.

use super::fixtures::normal;
use crate::passes::vptq::{
    book::{Book, Found, Scratch, Searcher},
    kernel::{LANES, Winners, nearest, nearest_several, with_norms},
    random::Random,
};

fn numbers(count: usize, random: &mut Random) -> Vec<f32> {
    (0..count).map(|_| normal(random) as f32).collect()
}

fn distance(x: &[f32], lane: usize, centroid: &[f32]) -> f64 {
    let parts = centroid.iter().enumerate();
    parts.map(|(at, value)| (f64::from(x[at * LANES + lane]) - f64::from(*value)).powi(2)).sum()
}

#[test]
fn the_nearest_centroid_is_found_for_every_length() {
    let mut random = Random::new("nearest", "");
    for length in 1..=20 {
        let (x, centroids) = (numbers(length * LANES, &mut random), numbers(length * 77, &mut random));
        let rows = with_norms(&centroids, length);
        let mut winners = Winners::NONE;
        nearest(length, &x, &rows, &mut winners);
        let mut several = vec![Winners::NONE; 5];
        nearest_several(length, &x, &rows, &mut several);
        assert_eq!(several[0], winners, "{length}");
        for lane in 0..LANES {
            let all: Vec<f64> = centroids.chunks(length).map(|centroid| distance(&x, lane, centroid)).collect();
            let least = all.iter().copied().fold(f64::INFINITY, f64::min);
            let found = all[winners.index[lane] as usize];
            assert!(found <= least + 1e-5 * (1.0 + least), "{length} {lane}: {found} instead of {least}");
            let scores: Vec<f32> = several.iter().map(|winners| winners.score[lane]).collect();
            assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "{scores:?}");
            let mut indices: Vec<u32> = several.iter().map(|winners| winners.index[lane]).collect();
            indices.sort_unstable();
            indices.dedup();
            assert_eq!(indices.len(), 5, "candidates differ");
        }
    }
}

#[test]
fn few_centroids_are_all_candidates_in_order() {
    let mut random = Random::new("several", "");
    let length = 3;
    let (x, centroids) = (numbers(length * LANES, &mut random), numbers(length * 16, &mut random));
    let mut several = vec![Winners::NONE; 4];
    nearest_several(length, &x, &with_norms(&centroids, length), &mut several);
    for lane in 0..LANES {
        let mut order: Vec<usize> = (0..16).collect();
        let of = |index: usize| distance(&x, lane, &centroids[index * length..][..length]);
        order.sort_by(|a, b| of(*a).total_cmp(&of(*b)));
        let got: Vec<usize> = several.iter().map(|winners| winners.index[lane] as usize).collect();
        assert_eq!(got, order[..4], "{lane}");
    }
}

#[test]
fn of_equal_centroids_the_first_wins() {
    let rows = with_norms(&[1.0, 2.0, 0.5, 0.5, 1.0, 2.0, 0.5, 0.5], 2);
    let mut winners = Winners::NONE;
    nearest(2, &[0.6; 2 * LANES], &rows, &mut winners);
    assert_eq!(winners.index, [1; LANES]);
}

#[test]
fn a_wide_beam_finds_the_best_pair_and_a_narrow_one_none_better() {
    let mut random = Random::new("pairs", "");
    for length in [2, 4, 7] {
        let book = Book {
            length,
            main: numbers(length * 32, &mut random),
            residual: numbers(length * 8, &mut random).iter().map(|value| value * 0.5).collect(),
        };
        let x = numbers(length * LANES, &mut random);
        let search = |beam| {
            let mut found = Found::default();
            Searcher::new(&book, beam).search(&x, &mut Scratch::default(), &mut found);
            found
        };
        let [all, eight, greedy] = [32, 8, 1].map(search);
        let of = |found: &Found, lane: usize| {
            let (main, residual) = book.pair(found.first[lane] as u16, found.second[lane] as u16);
            let sum: Vec<f32> = main.iter().zip(residual).map(|(a, b)| a + b).collect();
            distance(&x, lane, &sum)
        };
        let mut sums = [0.0; 3];
        for lane in 0..LANES {
            let pairs = book.main.chunks(length).flat_map(|main| {
                book.residual
                    .chunks(length)
                    .map(move |residual| main.iter().zip(residual).map(|(a, b)| a + b).collect::<Vec<f32>>())
            });
            let least = pairs.map(|pair| distance(&x, lane, &pair)).fold(f64::INFINITY, f64::min);
            assert!(of(&all, lane) <= least + 1e-5, "{length} {lane}: {} instead of {least}", of(&all, lane));
            assert!((f64::from(all.distance[lane]) - least).abs() < 1e-4);
            for (sum, found) in sums.iter_mut().zip([&all, &eight, &greedy]) {
                *sum += of(found, lane);
            }
        }
        assert!(sums[0] <= sums[1] + 1e-4 && sums[1] <= sums[2] + 1e-4, "{length}: {sums:?}");
        assert!(sums[0] < sums[2] * 0.99, "greedy is not as good: {sums:?}");
    }
}
