//! Speed of one core at finding nearest centroids, beside a plain product of matrices: `cargo bench --bench vector`.
//!
//! Rates are floating-point operations of the products alone, two for each component of a centroid and vector; what the
//! comparisons cost shows in them.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{hint::black_box, time::Duration};

use bantam::{
    forward::{Matrix, multiply_transposed},
    passes::vptq::bench::{LANES, Winners, nearest, nearest_several, with_norms},
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Rows and columns of the plain product's matrices.
const ORDER: usize = 1024;
/// Vector length and centroids.
const CODEBOOKS: [(usize, usize); 6] = [(4, 256), (4, 4096), (8, 256), (8, 4096), (8, 65536), (12, 4096)];
/// Blocks of vectors of one measurement.
const BLOCKS: usize = 16;
/// Candidates of the wide search.
const BEAM: usize = 8;

/// Numbers without a pattern, the same each time.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| uniform()).collect()
}

fn assignment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("centroids");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));

    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let matrix =
        |seed: usize| Matrix { rows: ORDER, columns: ORDER, values: numbers(ORDER * ORDER + seed)[seed..].to_vec() };
    let (left, right) = (matrix(0), matrix(7));
    group.throughput(Throughput::Elements(2 * (ORDER as u64).pow(3)));
    group.bench_function("product of matrices", |bench| {
        one_thread.install(|| bench.iter(|| multiply_transposed(black_box(&left), black_box(&right))));
    });

    for (length, count) in CODEBOOKS {
        let rows = with_norms(&numbers(length * count), length);
        let vectors = numbers(BLOCKS * LANES * length);
        let name = format!("v{length} k{count}");
        group.throughput(Throughput::Elements((2 * BLOCKS * LANES * length * count) as u64));
        group.bench_function(BenchmarkId::new("nearest", &name), |bench| {
            let mut winners = Winners::NONE;
            bench.iter(|| {
                for x in vectors.chunks_exact(LANES * length) {
                    nearest(length, x, black_box(&rows), &mut winners);
                    black_box(&winners);
                }
            });
        });
        group.bench_function(BenchmarkId::new("nearest eight", &name), |bench| {
            let mut candidates = vec![Winners::NONE; BEAM];
            bench.iter(|| {
                for x in vectors.chunks_exact(LANES * length) {
                    nearest_several(length, x, black_box(&rows), &mut candidates);
                    black_box(&candidates);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, assignment);
criterion_main!(benches);
