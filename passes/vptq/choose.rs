//! Which vector length and codebooks store a matrix best in so many bits, codebooks counted.

use crate::codec::VectorFormat;

/// Bits of indices for which the public package has GPU kernels.
pub const KERNEL_INDEX_BITS: [u32; 8] = [4, 8, 10, 12, 13, 14, 15, 16];
/// Vector lengths, each with the least mean squared error that codebooks of high rate have for normal numbers, over that of
/// rate-distortion theory: Zador's 2π G (1 + 2/v)^(v/2 + 1), with G the normalized second moment of the best known lattice
/// (Conway and Sloane, "Sphere Packings, Lattices and Groups", table 2.3).
const LENGTHS: [(usize, f64); 6] = [(2, 2.015), (4, 1.624), (6, 1.474), (8, 1.374), (12, 1.296), (16, 1.239)];
/// What a second stage costs: residuals are less alike normal numbers than weights.
const SECOND_STAGE: f64 = 1.15;

/// The format of at most so many bits per weight with the least expected error, or none if there is none. Codebooks have at
/// most `largest` centroids, and sizes that the public package has GPU kernels for.
///
/// What is left beside vector length and codebooks is as in `like`. Small matrices get small codebooks by themselves, for
/// every stored bit counts.
#[must_use]
pub fn choose(
    like: &VectorFormat,
    rows: usize,
    columns: usize,
    target_bits: f64,
    largest: usize,
) -> Option<VectorFormat> {
    let sizes = || KERNEL_INDEX_BITS.into_iter().filter(|bits| 1_usize << bits <= largest);
    let mut best: Option<(f64, u64, VectorFormat)> = None;
    for (vector_length, factor) in LENGTHS {
        for bits in sizes() {
            for residual_bits in std::iter::once(0).chain(sizes().filter(|residual| *residual <= bits)) {
                let format = VectorFormat {
                    vector_length,
                    centroids: 1 << bits,
                    residual_centroids: if residual_bits == 0 { 0 } else { 1 << residual_bits },
                    ..like.clone()
                };
                if format.validate(rows, columns).is_err() {
                    continue;
                }
                let stored = format.stored_bits(rows, columns);
                if stored as f64 > target_bits * rows as f64 * columns as f64 {
                    continue;
                }
                let rate = f64::from(bits + residual_bits) / vector_length as f64;
                let stages = if residual_bits == 0 { 1.0 } else { SECOND_STAGE };
                let error = factor * stages * (-2.0 * rate).exp2();
                let better =
                    best.as_ref().is_none_or(|(least, bits, _)| error.total_cmp(least).then(stored.cmp(bits)).is_lt());
                if better {
                    best = Some((error, stored, format));
                }
            }
        }
    }
    best.map(|(.., format)| format)
}
