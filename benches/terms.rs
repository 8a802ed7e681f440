//! Speed of one core at adding up the terms of polynomials in place of an MLP's activation, beside a plain product of matrices:
//! `cargo bench --bench terms`.
//!
//! Rates are floating-point operations of the products alone, two for each weight of each power and token; what making the
//! powers costs shows in them.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{hint::black_box, time::Duration};

use bantam::forward::{Matrix, add_terms, multiply_transposed};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Outputs and hidden units of a layer.
const OUTPUTS: usize = 1024;
const UNITS: usize = 1024;
/// Tokens of one call: generating, and reading a prompt.
const TOKENS: [usize; 3] = [1, 16, 256];
const ORDER: usize = 8;

/// Numbers without a pattern, the same each time.
fn matrix(rows: usize, columns: usize, seed: u64) -> Matrix {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    Matrix { rows, columns, values: (0..rows * columns).map(|_| uniform()).collect() }
}

fn terms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("terms");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let weights: Vec<Matrix> = (0..=ORDER).map(|power| matrix(OUTPUTS, UNITS, power as u64)).collect();
    let views: Vec<_> = weights.iter().map(Matrix::view).collect();
    for tokens in TOKENS {
        let (s, u) = (matrix(tokens, UNITS, 20), matrix(tokens, UNITS, 21));
        let operations = 2 * (tokens * OUTPUTS * UNITS) as u64;
        group.throughput(Throughput::Elements(operations));
        group.bench_function(BenchmarkId::new("product of matrices", tokens), |bench| {
            one_thread.install(|| bench.iter(|| multiply_transposed(black_box(&s), black_box(&weights[0]))));
        });
        group.throughput(Throughput::Elements(operations * (ORDER as u64 + 1)));
        group.bench_function(BenchmarkId::new("terms of order 8", tokens), |bench| {
            let mut out = Matrix::zeros(tokens, OUTPUTS);
            one_thread.install(|| bench.iter(|| add_terms(black_box(&views), 0, black_box(&s), &u, &mut out)));
        });
    }
    group.finish();
}

criterion_group!(benches, terms);
criterion_main!(benches);
