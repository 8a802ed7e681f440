//! Finds masks under second moments of the input, and codes that keep to them.

use super::{Moments, SolveFailure};
use crate::{
    codec::{CodecError, CodedMatrix, Coding, Whole},
    forward::Matrix,
    passes::{
        Settings, gptq,
        mask::{self, Mask},
        rtn::grid::Grid,
    },
    plan::Encode,
    solve::matrices::{Factors, Rows, view},
};

/// The codes of a masked matrix, how well it went, and the damping used.
pub struct Masked {
    /// The codes.
    pub coded: CodedMatrix,
    /// How well it went.
    pub report: gptq::Report,
    /// The damping of the last factor.
    pub damping: f64,
}

/// Which weights are kept, and what the mask alone makes of a matrix.
struct Kept {
    mask: Mask,
    weights: Vec<f32>,
    report: gptq::Report,
    damping: f64,
}

/// Masks a matrix, then encodes what is kept.
///
/// # Errors
/// [`SolveFailure`] when the weights cannot be masked or encoded.
pub fn solve(
    encode: &Encode,
    settings: &mask::Settings,
    name: &str,
    weights: &Matrix,
    moments: &Moments,
    factors: &mut Factors<'_>,
) -> Result<Masked, SolveFailure> {
    let failed = |source| SolveFailure::Matrix { tensor: name.to_owned(), source };
    let codec_failed = |source| SolveFailure::Codec { tensor: name.to_owned(), source };
    let residual = (moments.residual.len() == weights.values.len()).then_some(&moments.residual[..]);
    let Kept { mask, weights: kept, mut report, damping } = keep(settings, name, weights, moments, factors)?;
    match (&encode.settings, &encode.choice.codec) {
        (Settings::Mask(_), Coding::Whole(Whole::Sparse(sparse))) => {
            let stored = sparse.encode(&kept, &mask).map_err(codec_failed)?;
            Ok(Masked { coded: CodedMatrix::Whole(stored.into()), report, damping })
        }
        (Settings::Gptq(gptq), Coding::Scalar(codec)) => {
            let factoring = encode.settings.factoring().ok_or_else(|| codec_failed(unknown()))?;
            let (factor, moments) = factors.of(moments, factoring, None, name)?;
            let grid = Grid::new(codec, encode.pass_matrix.dense_dtype, encode.pass_matrix.minimum_zero_point);
            let problem = gptq::Linear { weights: &weights.values, rows: weights.rows, codec, grid: &grid };
            let solution = if settings.solve.changes_weights() {
                // What was left out is made up for already.
                gptq::solve_kept(factor, &view(moments), &problem, (&mask, kept), &gptq.solve)
            } else {
                gptq::solve_masked(factor, &view(moments), &problem, residual, Some(&mask), &gptq.solve)
            };
            let gptq::Solution { coded, parameters, report, .. } = solution.map_err(failed)?;
            let coded = CodedMatrix::Scalar { rows: coded, parameters };
            Ok(Masked { coded, report, damping: factor.damping() })
        }
        (Settings::Rtn(_), Coding::Scalar(_)) => {
            let encoder = encode.settings.encoder(&encode.pass_matrix, &encode.choice);
            let kept = Matrix { values: kept, ..*weights };
            let rows = Rows(&kept);
            let parameters = encoder.prepare(&rows).map_err(codec_failed)?;
            let stripe = encoder.encode(&rows, &parameters, 0, weights.rows).map_err(codec_failed)?;
            report.deviations.extend(stripe.deviations);
            let coded = CodedMatrix::Scalar { rows: stripe.rows, parameters };
            let decoded = coded.decode(&encode.choice.codec, weights.rows, weights.columns).map_err(codec_failed)?;
            if let Some(factoring) = settings.factoring() {
                let (factor, _) = factors.of(moments, factoring, None, name)?;
                report.loss_refined = mask::loss(factor, &weights.values, &decoded, weights.rows).map_err(failed)?;
            }
            Ok(Masked { coded, report, damping })
        }
        _ => Err(codec_failed(unknown())),
    }
}

fn unknown() -> CodecError {
    CodecError::Missing { what: "solver of masks for this number format" }
}

/// Finds the mask, and the weights that it keeps where settings say how those change.
fn keep(
    settings: &mask::Settings,
    name: &str,
    weights: &Matrix,
    moments: &Moments,
    factors: &mut Factors<'_>,
) -> Result<Kept, SolveFailure> {
    let (rows, columns) = (weights.rows, weights.columns);
    let Some(factoring) = settings.factoring() else {
        let source = |source| SolveFailure::Codec { tensor: name.to_owned(), source };
        let mask = settings.unseen(&weights.values, rows, columns).map_err(source)?;
        let mut kept = weights.values.clone();
        mask.apply(&mut kept).map_err(source)?;
        return Ok(Kept { mask, weights: kept, report: gptq::Report::default(), damping: 0.0 });
    };
    let residual = (moments.residual.len() == weights.values.len()).then_some(&moments.residual[..]);
    let (factor, moments) = factors.of(moments, factoring, None, name)?;
    let given = settings.given.as_ref().map(|given| given.mask(rows, columns, settings.solve.pattern)).transpose();
    let given = given.map_err(|source| SolveFailure::Codec { tensor: name.to_owned(), source })?;
    let weights = (&weights.values[..], rows);
    let solution = mask::solve(factor, &view(moments), weights, residual, given.as_ref(), &settings.solve)
        .map_err(|source| SolveFailure::Matrix { tensor: name.to_owned(), source })?;
    let mask::Report { loss_magnitude, loss, target_loss_selected, target_loss, deviations, .. } = solution.report;
    let report = gptq::Report {
        loss_nearest: loss_magnitude,
        loss_sweep: None,
        loss_refined: loss,
        target_loss_sweep: target_loss_selected,
        target_loss_refined: target_loss,
        deviations,
        ..gptq::Report::default()
    };
    Ok(Kept { mask: solution.mask, weights: solution.weights, report, damping: factor.damping() })
}
