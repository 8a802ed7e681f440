//! Finds the codes of one matrix: by the solver where its input is known, to nearest where it is not.

use crate::{
    Result,
    codec::{CodecError, CodedRows, MatrixParameters, RowSource},
    compute::{DEVICE_FAILED, SharedDevice},
    forward::{LinearSpec, Matrix},
    passes::{
        Deviations, Settings,
        gptq::{self, Factor, SolveOptions},
        rtn::grid::Grid,
    },
    plan::Encode,
    solve::{Moments, Part, Solutions, SolveFailure, Solved, on_device, record::Step},
};

/// A matrix in memory as the source of its own rows.
pub struct Rows<'a>(pub &'a Matrix);

impl RowSource for Rows<'_> {
    fn rows(&self) -> usize {
        self.0.rows
    }

    fn columns(&self) -> usize {
        self.0.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> std::result::Result<(), CodecError> {
        let start = first_row * self.0.columns;
        out.copy_from_slice(&self.0.values[start..start + out.len()]);
        Ok(())
    }
}

/// What rounding to nearest makes of a matrix.
pub fn nearest(
    encode: &Encode,
    tensor: &str,
    weights: &Matrix,
) -> std::result::Result<(CodedRows, MatrixParameters, Deviations, Matrix), SolveFailure> {
    let failed = |source| SolveFailure::Codec { tensor: tensor.to_owned(), source };
    let encoder = encode.settings.encoder(&encode.pass_matrix, &encode.choice);
    let rows = Rows(weights);
    let parameters = encoder.prepare(&rows).map_err(failed)?;
    let coded = encoder.encode(&rows, &parameters, 0, weights.rows).map_err(failed)?;
    let mut values = vec![0.0; weights.values.len()];
    encode.choice.codec.dequantize_rows(&coded.rows, &parameters, &mut values).map_err(failed)?;
    let decoded = Matrix { rows: weights.rows, columns: weights.columns, values };
    Ok((coded.rows, parameters, coded.deviations, decoded))
}

/// The factors of one input, one for each way of factoring that its linears ask for; and what is solved with them where.
#[derive(Default)]
pub struct Factors<'a> {
    known: Vec<((u64, gptq::Order), Factor)>,
    device: Option<&'a SharedDevice>,
}

impl<'a> Factors<'a> {
    /// None yet; matrices are solved on this device as far as that works.
    pub fn on(device: Option<&'a SharedDevice>) -> Self {
        Self { known: Vec::new(), device }
    }

    fn of(
        &mut self,
        moments: &Moments,
        options: &SolveOptions,
        tensor: &str,
    ) -> std::result::Result<&Factor, SolveFailure> {
        let key = (options.damping.to_bits(), options.order);
        if let Some(at) = self.known.iter().position(|(known, _)| *known == key) {
            return Ok(&self.known[at].1);
        }
        let factor = Factor::new(&view(moments), options)
            .map_err(|source| SolveFailure::Matrix { tensor: tensor.to_owned(), source })?;
        self.known.push((key, factor));
        Ok(&self.known[self.known.len() - 1].1)
    }
}

fn view(moments: &Moments) -> gptq::Moments<'_> {
    let drift = (!moments.drift.is_empty()).then_some(&moments.drift[..]);
    gptq::Moments { columns: moments.columns, hessian: &moments.hessian, drift }
}

/// Tokens below which an expert's moments say too little: it is rounded to nearest.
#[must_use]
pub fn fewest_tokens(columns: usize) -> u64 {
    (columns as u64 / 16).max(16)
}

/// Finds and keeps the codes of one linear; gives what they decode to. Takes over what was kept before.
pub fn solve_linear(
    solutions: &mut Solutions,
    encode: &Encode,
    linear: &LinearSpec,
    weights: &Matrix,
    moments: &Moments,
    factors: &mut Factors<'_>,
    deny: bool,
) -> Result<Matrix> {
    let Settings::Gptq(settings) = &encode.settings else {
        return Ok(nearest(encode, &linear.weight, weights)?.3);
    };
    let expert = linear.expert.unwrap_or(0);
    let codec = &encode.choice.codec;
    if let Some((coded, parameters, _)) = solutions.matrix(&linear.weight, expert, codec, weights.rows, weights.columns)
    {
        let mut values = vec![0.0; weights.values.len()];
        codec
            .dequantize_rows(&coded, &parameters, &mut values)
            .map_err(|source| SolveFailure::Codec { tensor: linear.weight.clone(), source })?;
        return Ok(Matrix { rows: weights.rows, columns: weights.columns, values });
    }
    let denied = |deviations: &Deviations| -> std::result::Result<(), SolveFailure> {
        match deviations.iter().next() {
            Some((kind, count)) if deny => {
                Err(SolveFailure::Denied { tensor: linear.weight.clone(), kind: (*kind).to_owned(), count: *count })
            }
            _ => Ok(()),
        }
    };
    if moments.count < fewest_tokens(weights.columns) {
        let (coded, parameters, mut deviations, decoded) = nearest(encode, &linear.weight, weights)?;
        let kind = match (moments.count, linear.expert.is_some() || linear.weight.contains(".experts.")) {
            (0, _) => "no-statistics",
            (_, true) => "starved-expert",
            (_, false) => "few-tokens",
        };
        deviations.insert(kind, 1);
        denied(&deviations)?;
        let solved = Solved { tokens: moments.count, ..Solved::default() };
        solutions.keep(&linear.weight, linear.expert, codec, &coded, &parameters, solved, &deviations)?;
        return Ok(decoded);
    }
    let device = factors.device;
    let factor = solutions.clock.time(Part::Factor, || factors.of(moments, &settings.solve, &linear.weight))?;
    let grid = Grid::new(codec, encode.pass_matrix.dense_dtype, encode.pass_matrix.minimum_zero_point);
    let problem = gptq::Linear { weights: &weights.values, rows: weights.rows, codec, grid: &grid };
    let residual = (moments.residual.len() == weights.values.len()).then_some(&moments.residual[..]);
    let (solution, note) = solutions
        .clock
        .time(Part::Solve, || on_device::solve(device, factor, &view(moments), &problem, residual, &settings.solve))
        .map_err(|source| SolveFailure::Matrix { tensor: linear.weight.clone(), source })?;
    if deny && note.failures > 0 {
        denied(&[(DEVICE_FAILED, note.failures)].into())?;
    }
    solutions.note(&linear.weight, Step::Codes, &note)?;
    let deviations = solution.report.deviations.clone();
    denied(&deviations)?;
    let per_token = moments.count.max(1) as f64;
    let solved = Solved {
        tokens: moments.count,
        loss_nearest: solution.report.loss_nearest / per_token,
        loss_sweep: solution.report.loss_sweep.map(|loss| loss / per_token),
        loss: solution.report.loss_refined / per_token,
        damping: factor.damping(),
    };
    let Matrix { rows, columns, .. } = *weights;
    solutions.keep(&linear.weight, linear.expert, codec, &solution.coded, &solution.parameters, solved, &deviations)?;
    Ok(Matrix { rows, columns, values: solution.dequantized })
}
