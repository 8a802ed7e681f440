//! Speed of one core on points of pyramids: `cargo bench --bench pyramid`.
//!
//! Rates are vectors a second, of D weights each: the slice of a 4096 × 4096 matrix that is 256 columns wide, and the whole
//! matrix with two threads. The search over many vectors at once stands beside the plain one in the same run; both find
//! the same points. `opus_search.c` measures that of libopus on the same vectors.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{hint::black_box, time::Duration};

use bantam::{
    codec::pyramid::{
        Order, Pyramid,
        lanes::{LANES, Lane, Scratch, nearest_directions},
        search::nearest_direction,
    },
    linalg::Rotation,
    passes::pvq::{Linear, SolveOptions, encode},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROWS: usize = 4096;
const COLUMNS: usize = 256;

/// Weights of a bell-like distribution, the same each time.
fn weights(columns: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ROWS * columns).map(|_| (uniform() + uniform() + uniform()) * 0.05).collect()
}

/// A square matrix with two threads, from weights to bytes.
fn whole(criterion: &mut Criterion, pyramid: Pyramid) {
    let weights = weights(ROWS);
    let linear = Linear { weights: &weights, rows: ROWS, columns: ROWS, pyramid };
    let options = SolveOptions { rounds: 0, ..SolveOptions::default() };
    let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let mut group = criterion.benchmark_group(format!("{}, {ROWS} × {ROWS}", pyramid.name()));
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(5));
    group.throughput(Throughput::Elements((weights.len() / pyramid.dimension) as u64));
    group.bench_function("encode, two threads", |bench| {
        bench.iter(|| two.install(|| encode(&linear, &options).unwrap()));
    });
    group.finish();
}

fn pyramids(criterion: &mut Criterion) {
    let weights = weights(COLUMNS);
    for (dimension, pulses, gain_bits) in [(16, 12, 3), (16, 58, 4), (32, 105, 4)] {
        let pyramid = Pyramid { dimension, pulses, gain_bits };
        let mut group = criterion.benchmark_group(pyramid.name());
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
        let vectors = ROWS / dimension * COLUMNS;
        group.throughput(Throughput::Elements(vectors as u64));

        let mut plain = vec![0.0; weights.len()];
        group.bench_function("search, plain", |bench| {
            bench.iter(|| {
                for (x, y) in weights.chunks_exact(dimension).zip(plain.chunks_exact_mut(dimension)) {
                    nearest_direction(black_box(x), pulses, y);
                }
            });
        });
        let mut lanes = vec![[0.0; LANES]; weights.len() / LANES];
        for (chunk, lanes) in weights.chunks_exact(dimension * LANES).zip(lanes.chunks_exact_mut(dimension)) {
            for (lane, vector) in chunk.chunks_exact(dimension).enumerate() {
                lanes.iter_mut().zip(vector).for_each(|(to, x)| to[lane] = *x);
            }
        }
        let mut found: Vec<Lane> = lanes.clone();
        let mut scratch = Scratch::default();
        group.bench_function("search, many at once", |bench| {
            bench.iter(|| {
                for (x, y) in lanes.chunks_exact(dimension).zip(found.chunks_exact_mut(dimension)) {
                    nearest_directions(black_box(x), pulses, y, &mut scratch);
                }
            });
        });

        let points: Vec<i16> = plain.iter().map(|y| *y as i16).collect();
        let mut back = vec![0; dimension];
        if let Some(order) = Order::<u64>::new(dimension, pulses) {
            let indices: Vec<u64> = points.chunks_exact(dimension).map(|point| order.index(point)).collect();
            group.bench_function("index", |bench| {
                bench.iter(|| points.chunks_exact(dimension).fold(0, |sum, point| sum ^ order.index(black_box(point))));
            });
            group.bench_function("point of an index", |bench| {
                bench.iter(|| indices.iter().all(|index| order.point(black_box(*index), &mut back)));
            });
        } else {
            let order = Order::<u128>::new(dimension, pulses).unwrap();
            let indices: Vec<u128> = points.chunks_exact(dimension).map(|point| order.index(point)).collect();
            group.bench_function("index", |bench| {
                bench.iter(|| points.chunks_exact(dimension).fold(0, |sum, point| sum ^ order.index(black_box(point))));
            });
            group.bench_function("point of an index", |bench| {
                bench.iter(|| indices.iter().all(|index| order.point(black_box(*index), &mut back)));
            });
        }

        let linear = Linear { weights: &weights, rows: ROWS, columns: COLUMNS, pyramid };
        let options = SolveOptions { rounds: 0, ..SolveOptions::default() };
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        group.bench_function("encode", |bench| bench.iter(|| one.install(|| encode(&linear, &options).unwrap())));
        let solution = encode(&linear, &options).unwrap();
        let tensors: Vec<&[u8]> = solution.tensors.iter().map(Vec::as_slice).collect();
        group.bench_function("decode", |bench| {
            bench.iter(|| one.install(|| pyramid.decode(ROWS, COLUMNS, &tensors).unwrap()));
        });
        group.finish();
        if dimension == 16 {
            whole(criterion, pyramid);
        }
    }

    let mut group = criterion.benchmark_group("rotation");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements((ROWS * COLUMNS) as u64));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (rows, size) in [(COLUMNS, ROWS), (128, 5120)] {
        let rotation = Rotation::new(size, 1);
        let mut matrix = vec![0.5_f32; rows * size];
        group.throughput(Throughput::Elements(matrix.len() as u64));
        group.bench_function(format!("rows of {size}"), |bench| {
            bench.iter(|| one.install(|| rotation.rows_forward(black_box(&mut matrix))));
        });
    }
    group.finish();
}

criterion_group!(benches, pyramids);
criterion_main!(benches);
