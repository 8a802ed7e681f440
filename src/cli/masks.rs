//! `bantam masks`: which weights a 2:4 model keeps, as a file that masks other models of its shape.

use std::io::BufWriter;

use anyhow::Context as _;
use serde::Serialize;

use super::{CliError, MasksArguments, Output, job};
use crate::{
    ExitCode,
    checkpoint::is_float,
    codec::sparse::{Mask, Pattern, maskllm::MaskWriter},
    layout::LogicalCheckpoint,
    model::{MatrixView, ModelMap, matrix_by_shape},
};

/// Weights that are read at a time.
const STRIPE_WEIGHTS: usize = 1 << 20;

/// The result of the command.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    out: &'a std::path::Path,
    masks: usize,
    /// Matrices that do not keep to the pattern.
    dense: usize,
}

/// Executes the command.
///
/// # Errors
/// When the model is invalid, no matrix is masked, or the file cannot be written.
pub fn execute(arguments: &MasksArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let source = job::open_model(&arguments.model, arguments.base.as_ref())?;
    let map = ModelMap::of(&source);
    let path = &arguments.out;
    let failed = |source: std::io::Error| CliError::Environment {
        message: format!("cannot write `{}`: {source}", path.display()),
        hint: None,
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(std::path::Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let mut writer = MaskWriter::new(BufWriter::new(temporary.as_file()));
    let (mut masks, mut dense) = (0, 0);
    for tensor in source.tensors().iter().filter(|tensor| is_float(tensor.dtype)) {
        let view = match map.tensor(&tensor.name).and_then(|mapped| mapped.matrix.clone()) {
            Some(view) => view,
            None if tensor.shape.len() == 2 => matrix_by_shape(&tensor.shape),
            None => continue,
        };
        match mask(&source, &tensor.name, &view)? {
            Some(mask) => {
                writer.add(&tensor.name, &mask).with_context(|| format!("cannot write `{}`", path.display()))?;
                masks += 1;
            }
            None => dense += 1,
        }
    }
    if masks == 0 {
        let message = format!("{} has no matrix that keeps two of each four weights", arguments.model.display());
        return Err(CliError::Usage { message, hint: Some("`mask_2_4` in a recipe makes them".into()) }.into());
    }
    let file = writer.finish().with_context(|| format!("cannot write `{}`", path.display()))?;
    file.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    if output.json() {
        output.json_result(&Report { schema: "bantam.masks/1", out: path, masks, dense })?;
    } else {
        output.result(&format!("{}: masks of {masks} matrices; {dense} others are dense", path.display()))?;
    }
    Ok(ExitCode::Done)
}

/// The mask of a matrix; none where a quad has more than two weights that are not zero. Of zeros that are kept nevertheless,
/// those of the highest columns are said to be.
fn mask(source: &LogicalCheckpoint, name: &str, view: &MatrixView) -> Result<Option<Mask>, anyhow::Error> {
    let (rows, columns) = (view.rows * view.experts.unwrap_or(1), view.columns);
    let pattern = Pattern::TWO_OF_FOUR;
    let whole = pattern.whole_columns(columns);
    if whole == 0 || rows == 0 {
        return Ok(None);
    }
    let reader = source.rows(name, view.transposed)?;
    let at_once = (STRIPE_WEIGHTS / columns).max(reader.rows_at_once()).max(1);
    let row_bytes = Mask::row_bytes(columns);
    let mut bits = vec![0_u8; rows * row_bytes];
    let mut weights = Vec::new();
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        weights.resize(count * columns, 0.0);
        reader.read_rows(first, &mut weights)?;
        reader.release_rows(first..first + count);
        for (weights, bits) in weights.chunks_exact(columns).zip(bits[first * row_bytes..].chunks_exact_mut(row_bytes))
        {
            let mut keep = |column: usize| bits[column / 8] |= 1 << (column % 8);
            for (quad, weights) in weights[..whole].chunks_exact(pattern.of).enumerate() {
                let kept = weights.iter().filter(|weight| **weight != 0.0).count();
                if kept > pattern.keep {
                    return Ok(None);
                }
                let mut zeros = pattern.keep - kept;
                for (place, weight) in weights.iter().enumerate().rev() {
                    let zero = *weight == 0.0;
                    if !zero || zeros > 0 {
                        keep(quad * pattern.of + place);
                        zeros -= usize::from(zero);
                    }
                }
            }
            (whole..columns).for_each(keep);
        }
    }
    Ok(Some(Mask::new(pattern, rows, columns, bits)?))
}
