//! Matrices, moments and formats to test with.

use crate::{
    codec::{OutlierColumns, ScaleFormat, VectorFormat},
    passes::{
        gptq::{Factor, Moments, Order, SolveOptions as FactorOptions},
        vptq::random::Random,
    },
};

/// About normal.
pub fn normal(random: &mut Random) -> f64 {
    (0..6).map(|_| random.uniform() * 2.0 - 1.0).sum::<f64>() * 0.7
}

/// Weights whose rows and columns are of unequal size.
pub fn weights(rows: usize, columns: usize, random: &mut Random) -> Vec<f32> {
    let size: Vec<f64> = (0..columns).map(|_| (normal(random) * 0.4).exp() * 0.05).collect();
    (0..rows * columns).map(|index| ((normal(random) + 0.1) * size[index % columns]) as f32).collect()
}

/// Correlated second moments with very unequal channels, as those of a language model are.
pub fn moments(columns: usize, tokens: usize, random: &mut Random) -> Vec<f64> {
    let mix: Vec<f64> = (0..columns * columns).map(|_| normal(random) / (columns as f64).sqrt()).collect();
    let size: Vec<f64> = (0..columns).map(|_| (normal(random) * 0.8).exp()).collect();
    let mut hessian = vec![0.0; columns * columns];
    for _ in 0..tokens {
        let z: Vec<f64> = (0..columns).map(|_| normal(random)).collect();
        let common = normal(random);
        let x: Vec<f64> = (0..columns)
            .map(|i| size[i] * (z[i] * 0.6 + common + (0..columns).map(|j| mix[i * columns + j] * z[j]).sum::<f64>()))
            .collect();
        for i in 0..columns {
            for j in 0..columns {
                hessian[i * columns + j] += x[i] * x[j];
            }
        }
    }
    hessian
}

pub fn identity(columns: usize) -> Vec<f64> {
    (0..columns * columns).map(|index| f64::from(u8::from(index % (columns + 1) == 0))).collect()
}

pub fn factor(hessian: &[f64], columns: usize, damping: f64, order: Order) -> Factor {
    let moments = Moments { columns, hessian, drift: None };
    Factor::new(&moments, &FactorOptions { damping, order, ..FactorOptions::default() }).unwrap()
}

/// tr(Δ H Δᵀ), the slow way.
pub fn loss(values: &[f32], target: &[f32], hessian: &[f64], columns: usize) -> f64 {
    let mut total = 0.0;
    for (values, target) in values.chunks(columns).zip(target.chunks(columns)) {
        let d: Vec<f64> = values.iter().zip(target).map(|(v, t)| f64::from(*v) - f64::from(*t)).collect();
        for i in 0..columns {
            for j in 0..columns {
                total += d[i] * d[j] * hessian[i * columns + j];
            }
        }
    }
    total
}

/// Formats for 24 columns.
pub fn formats() -> Vec<VectorFormat> {
    let plain = |length, centroids, residual| VectorFormat::plain(length, centroids, residual, ScaleFormat::BF16);
    let outliers = Some(OutlierColumns { columns: 3, vector_length: 2, centroids: 11 });
    vec![
        plain(4, 16, 0),
        plain(2, 8, 4),
        VectorFormat { norm: true, ..plain(4, 16, 8) },
        VectorFormat { permuted: true, groups: 3, ..plain(3, 8, 0) },
        VectorFormat { permuted: true, norm: true, outliers, groups: 3, ..plain(3, 16, 4) },
        VectorFormat { storage: ScaleFormat::F16, outliers, ..plain(8, 16, 2) },
        VectorFormat { storage: ScaleFormat::F32, norm: true, permuted: true, ..plain(1, 4, 0) },
    ]
}
