//! Masked tensors keep no more of each group than their pattern says.

use rayon::prelude::*;

use super::Finding;
use crate::{
    codec::{CodecError, Whole, sparse::Pattern},
    evaluate::{Excess, excess},
    layout::{LayoutError, LogicalCheckpoint},
    manifest::{Manifest, OutputTensor},
};

/// The rule's name.
pub const RULE: &str = "sparsity";

/// The pattern that a tensor of an artifact is said to keep to.
fn stated(tensor: &OutputTensor) -> Option<Pattern> {
    let of_codec = || match tensor.matrix.as_ref()?.codec.whole()? {
        Whole::Sparse(sparse) => Some(sparse.pattern()),
        _ => None,
    };
    tensor.mask.or_else(of_codec)
}

/// Every masked tensor of the manifest against its pattern.
pub(super) fn masked(manifest: &Manifest, artifact: &LogicalCheckpoint) -> Vec<Finding> {
    let masked: Vec<_> = manifest.tensors.iter().filter_map(|tensor| Some((tensor, stated(tensor)?))).collect();
    let findings = masked.into_par_iter().filter_map(|(tensor, pattern)| {
        let transposed = tensor.matrix.as_ref().is_some_and(|matrix| matrix.transposed);
        sparsity(artifact, &tensor.name, transposed, pattern)
    });
    findings.collect()
}

/// One tensor against a pattern, rows being output features (`transposed` where it is stored `[input, output]`): a mask
/// that is stored keeps exactly `keep` of each whole group, and all weights but those of so many are +0. The finding names
/// the first group that does not.
#[must_use]
pub fn sparsity(artifact: &LogicalCheckpoint, name: &str, transposed: bool, pattern: Pattern) -> Option<Finding> {
    let Pattern { keep, of } = pattern;
    let finding = |message: String| Finding::new(RULE, name, message);
    // A tensor that is not there is another rule's.
    artifact.tensor(name)?;
    if pattern.validate().is_err() {
        return Some(finding(format!("{keep}:{of} is no pattern")));
    }
    if let Some(stored) = artifact.stored_pattern(name).filter(|stored| *stored != pattern) {
        let found = format!("{}:{}", stored.keep, stored.of);
        return Some(finding("its mask has another pattern".into()).with(found, format!("{keep}:{of}")));
    }
    let group = |row: usize, column: usize| {
        let last = column + of - 1;
        format!("row {row}, group of columns {column} to {last}")
    };
    match artifact.stored_masks(name) {
        Ok(_) => {}
        Err(CodecError::Mask { row, column, kept, expected }) => {
            let message = format!("{}: the mask keeps {kept} weights, not {expected}", group(row, column));
            return Some(finding(message).with(kept, expected));
        }
        Err(error) => return Some(finding(error.to_string())),
    }
    let rows = match artifact.rows(name, transposed) {
        Ok(rows) => rows,
        Err(LayoutError::NeedsBase { .. }) => return None,
        Err(error) => return Some(finding(error.to_string())),
    };
    match excess(rows.as_ref(), pattern) {
        Ok(None) => None,
        Ok(Some(Excess { row, column, weights })) => {
            let message = format!("{}: {weights} weights are not zero, at most {keep} may be", group(row, column));
            Some(finding(message).with(weights, keep))
        }
        Err(error) => Some(finding(error.to_string())),
    }
}
