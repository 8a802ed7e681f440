//! How far a coded matrix is from its source.

use serde::{Deserialize, Serialize};

/// Error figures of one tensor, as written to manifests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ErrorFigures {
    /// Relative Frobenius error ‖Ŵ − W‖ / ‖W‖.
    pub relative: f64,
    /// Signal-to-noise ratio 10·log10(‖W‖² / ‖Ŵ − W‖²) in dB; `null` when exact.
    pub snr_db: Option<f64>,
    /// Largest |Ŵ − W|.
    pub max_abs: f64,
    /// Cosine of the angle between W and Ŵ as vectors.
    pub cosine: f64,
}

/// Sums from which the figures follow; added up stripe by stripe in a fixed order, so that they are the same for any
/// number of threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorSums {
    /// Σ w².
    pub source_squares: f64,
    /// Σ ŵ².
    pub decoded_squares: f64,
    /// Σ w·ŵ.
    pub products: f64,
    /// Σ (ŵ − w)².
    pub error_squares: f64,
    /// max |ŵ − w|.
    pub max_abs: f32,
}
