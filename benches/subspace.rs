//! Leading eigenvectors by subspace iteration beside the whole decomposition: `cargo bench --bench subspace`.
//!
//! Matrices of order 256, 1024 and 2048 whose eigenvalues fall as 1 / i², as products of outputs do; ranks of 1/16, 1/8 and
//! 1/2 of the order.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{hint::black_box, time::Duration};

use bantam::linalg::{default_backend, subspace::leading_eigenvectors};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::Array2;

/// `X D Xᵀ / order` for X with entries in [−1, 1) and D falling.
fn falling(order: usize) -> Array2<f64> {
    let mut state = 1_u64;
    let noise = Array2::from_shape_simple_fn((order, order), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    });
    let scaled = Array2::from_shape_fn((order, order), |(i, j)| noise[[i, j]] / ((j + 1) * (j + 1) * order) as f64);
    scaled.dot(&noise.t())
}

fn subspace(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("eigenvectors");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    for order in [256, 1024, 2048] {
        let matrix = falling(order);
        group.bench_function(BenchmarkId::new("all", order), |bench| {
            bench.iter(|| default_backend().symmetric_eigen(black_box(matrix.view())).unwrap());
        });
        for share in [16, 8, 2] {
            let name = BenchmarkId::new(format!("leading 1 of {share}"), order);
            group.bench_function(name, |bench| {
                bench.iter(|| leading_eigenvectors(&black_box(matrix.view()), order / share).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, subspace);
criterion_main!(benches);
