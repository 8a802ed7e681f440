//! The kernels of `shaders/` as functions: what they need beside a device is buffers and shapes.
//!
//! Shapes are the caller's: a buffer too short for them is an error, never a wild read. Matrices beyond the largest
//! binding are worked on window by window, which changes no result but the order of sums where it says so.
//!
//! Those of codecs work on tensors as they are stored. Those of linear algebra and of the forward pass take matrices that
//! are on the device already ([`DeviceMatrix`]), add their steps to a [`super::Batch`], and leave the results there. A
//! buffer cannot be read and written by the same step, so inputs and outputs are different matrices unless a function
//! works in place.

mod activate;
mod attention;
mod centroids;
mod channels;
mod difference;
mod gptq_sweep;
mod hadamard;
mod matrix;
mod multiply;
mod normalize;
mod pack;
mod pyramid;
mod quantize;
mod rank_update;
mod rotate;
mod select;
mod signs;
mod source;
mod subspace;
mod terms;
mod triangular_solve;
mod vectors;

#[cfg(test)]
mod shaders;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use activate::{Gate, add_branch};
pub use attention::{QueryKeyValue, Scores, attend, attend_by_scores};
pub use centroids::{CentroidSums, Nearest, centroid_sums};
pub use channels::ChannelFigures;
pub use difference::difference;
pub use gptq_sweep::{Levels, Swept, sweep};
pub use hadamard::hadamard;
pub use matrix::{DeviceMatrix, Number, View};
pub use multiply::{Causal, Heads, Product};
pub(super) use multiply::{Checked, Tiles};
pub use normalize::DeviceNorm;
pub use pack::pack;
pub use pyramid::{PyramidTables, pyramid_search};
pub use quantize::{Coding, Scales, dequantize, quantize};
pub use rank_update::SecondMoments;
pub use rotate::Angles;
pub use select::{Selected, select_2_4};
pub use signs::{PackedSigns, sign_add, sign_pack};
pub use source::{Source, SourceFormat, convert, error_sums, extents};
pub use subspace::{cholesky, iterate_subspace, orthonormalize, weighted_gram};
pub use terms::{DeviceTerms, term};
pub use triangular_solve::solve_lower;

/// The text of a shader for a device: the first one where threads that run in step can exchange values, else the second.
fn by_subgroups(device: &super::Device, with: &'static str, without: &'static str) -> &'static str {
    if device.has(super::Feature::Subgroup) { with } else { without }
}

/// The text of a shader with the parts that it needs after it (a shader may begin with directives, parts may not).
macro_rules! shader {
    ($file:literal $(, $part:literal)*) => {
        concat!(
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file)),
            $("\n", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/parts/", $part)),)*
        )
    };
}
pub(crate) use shader;

use super::Limits;

/// The shader that measures devices.
pub(super) const SCORE: &str = shader!("score.wgsl", "linear.wgsl");

/// Threads of a workgroup, as `shaders/parts/linear.wgsl` has it.
const THREADS: u64 = 256;

/// Workgroups for so many threads in a line: along a second dimension too where the first one does not hold them.
pub(super) fn linear_groups(limits: &Limits, threads: u64) -> [u32; 3] {
    groups(limits, threads.div_ceil(THREADS))
}

/// So many workgroups in a line; up to a row of them too many, which find nothing to do.
fn groups(limits: &Limits, groups: u64) -> [u32; 3] {
    let along = groups.min(u64::from(limits.groups_per_dimension));
    if along == 0 {
        return [0, 1, 1];
    }
    [along as u32, groups.div_ceil(along) as u32, 1]
}

/// Workgroups in a line for `count` items, `per_group` each.
fn groups_for(device: &super::Device, count: usize, per_group: usize) -> [u32; 3] {
    groups(&device.limits(), count.div_ceil(per_group) as u64)
}

/// A uniform block of words.
pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| (*word as u32).to_le_bytes()).collect()
}
