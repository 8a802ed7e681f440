//! Prints what the machine reaches in F32 matrix multiplication on all cores, in GFLOP/s: the measure of calibration.
//!
//! `cargo run --release --example matmul_rate -- [SIDE]`

use std::time::Instant;

use faer::{Accum, Mat, Par, linalg::matmul::matmul};

fn main() {
    let side: usize = std::env::args().nth(1).and_then(|side| side.parse().ok()).unwrap_or(4096);
    let fill = |row: usize, column: usize| ((row * 31 + column * 17) % 64) as f32 / 64.0 - 0.5;
    let (left, right) = (Mat::from_fn(side, side, fill), Mat::from_fn(side, side, fill));
    let mut product = Mat::<f32>::zeros(side, side);
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        matmul(product.as_mut(), Accum::Replace, left.as_ref(), right.as_ref(), 1.0, Par::rayon(0));
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{:.1}", 2.0 * (side as f64).powi(3) / best / 1e9);
}
