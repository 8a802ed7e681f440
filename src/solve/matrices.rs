//! Finds the codes of one matrix: by the solver where its input is known, to nearest where it is not.

use crate::{
    Result,
    codec::{CodecError, CodedMatrix, Coding, Delta, Rotations, RowSource, Whole, range},
    compute::{DEVICE_FAILED, SharedDevice},
    forward::{LinearSpec, Matrix},
    layout::LogicalCheckpoint,
    passes::{
        Deviations, Factoring, Settings, bitdelta,
        gptq::{self, Factor, SolveOptions},
        lowrank_kv, mask, pvq,
        rtn::grid::Grid,
        vptq,
    },
    plan::Encode,
    solve::{Moments, Note, Part, Solutions, SolveFailure, Solved, driver::Job, masks, on_device, record::Step},
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

/// A matrix in codes, what deviated, and the weights that the codes stand for.
pub struct Stored {
    /// The codes.
    pub coded: CodedMatrix,
    /// What deviated from what was asked.
    pub deviations: Deviations,
    /// The weights, not rotated.
    pub decoded: Matrix,
}

/// The weights as they are encoded: rotated where the matrix is stored rotated.
fn rotated(encode: &Encode, weights: &Matrix) -> Matrix {
    let mut rotated = weights.clone();
    if let Some(rotations) = &encode.choice.rotations {
        rotations.apply(&mut rotated.values, weights.rows, weights.columns);
    }
    rotated
}

/// The weights that codes stand for.
///
/// # Errors
/// [`CodecError`] when codes and format do not go together.
pub fn decoded(
    encode: &Encode,
    coded: &CodedMatrix,
    rows: usize,
    columns: usize,
) -> std::result::Result<Matrix, CodecError> {
    let mut values = coded.decode(&encode.choice.codec, rows, columns)?;
    if let Some(rotations) = &encode.choice.rotations {
        rotations.undo(&mut values, rows, columns);
    }
    Ok(Matrix { rows, columns, values })
}

/// What rounding to nearest makes of a matrix.
///
/// # Errors
/// [`SolveFailure::Codec`] when the weights cannot be encoded.
pub fn nearest(encode: &Encode, tensor: &str, weights: &Matrix) -> std::result::Result<Stored, SolveFailure> {
    let failed = |source| SolveFailure::Codec { tensor: tensor.to_owned(), source };
    let turned = rotated(encode, weights);
    let (coded, deviations) = match &encode.choice.codec {
        Coding::Scalar(_) => {
            let encoder = encode.settings.encoder(&encode.pass_matrix, &encode.choice);
            let rows = Rows(&turned);
            let parameters = encoder.prepare(&rows).map_err(failed)?;
            let stripe = encoder.encode(&rows, &parameters, 0, weights.rows).map_err(failed)?;
            (CodedMatrix::Scalar { rows: stripe.rows, parameters }, stripe.deviations)
        }
        Coding::Whole(whole) => {
            let (stored, deviations) = encode.settings.encode_whole(whole, tensor, &turned).map_err(failed)?;
            (CodedMatrix::Whole(stored), deviations)
        }
    };
    let decoded = decoded(encode, &coded, weights.rows, weights.columns).map_err(failed)?;
    Ok(Stored { coded, deviations, decoded })
}

/// What makes two factors of one input differ: damping, order, rotation, columns that stay together.
type Way = (u64, gptq::Order, Option<Rotations>, Option<usize>);

/// The factors of one input, one for each way of factoring that its linears ask for; and what is solved with them where.
#[derive(Default)]
pub struct Factors<'d> {
    known: Vec<(Way, Factor)>,
    rotated: Vec<(Rotations, Moments)>,
    device: Option<&'d SharedDevice>,
}

impl<'d> Factors<'d> {
    /// None yet; matrices are solved on this device as far as that works.
    pub fn on(device: Option<&'d SharedDevice>) -> Self {
        Self { device, ..Self::default() }
    }

    /// The factor of an input, and its moments, both rotated where its linears are stored rotated.
    pub fn of<'a>(
        &'a mut self,
        moments: &'a Moments,
        factoring: Factoring,
        rotations: Option<Rotations>,
        tensor: &str,
    ) -> std::result::Result<(&'a Factor, &'a Moments), SolveFailure> {
        // Outputs have no part in what is known of inputs.
        let rotations = rotations.filter(|rotations| rotations.inputs).map(|it| Rotations { outputs: false, ..it });
        if let Some(rotations) = rotations
            && !self.rotated.iter().any(|(known, _)| *known == rotations)
        {
            self.rotated.push((rotations, moments.rotated(&rotations)));
        }
        let key = (factoring.damping.to_bits(), factoring.order, rotations, factoring.group);
        let found = rotations.and_then(|rotations| self.rotated.iter().find(|(known, _)| *known == rotations));
        let moments = found.map_or(moments, |(_, moments)| moments);
        if !self.known.iter().any(|(known, _)| *known == key) {
            let options =
                SolveOptions { damping: factoring.damping, order: factoring.order, ..SolveOptions::default() };
            let factor = match factoring.group {
                Some(width) => Factor::grouped(&view(moments), factoring.damping, factoring.order, width),
                None => Factor::new(&view(moments), &options),
            };
            let factor = factor.map_err(|source| SolveFailure::Matrix { tensor: tensor.to_owned(), source })?;
            self.known.push((key, factor));
        }
        let at = self.known.iter().position(|(known, _)| *known == key).unwrap_or_default();
        Ok((&self.known[at].1, moments))
    }
}

pub(super) fn view(moments: &Moments) -> gptq::Moments<'_> {
    moments.view()
}

/// Tokens below which an expert's moments say too little: it is rounded to nearest.
#[must_use]
pub fn fewest_tokens(columns: usize) -> u64 {
    (columns as u64 / 16).max(16)
}

/// What a matrix is solved with beside its input.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// Treat a deviation as an error.
    pub deny: bool,
    /// What differences are from.
    pub base: Option<&'a LogicalCheckpoint>,
}

impl<'a> Given<'a> {
    pub(super) fn of(job: &Job<'a>) -> Self {
        Self { deny: job.deny_fallbacks, base: job.checkpoint.base() }
    }
}

/// The difference from the base, and the base, where that is what is stored.
pub(super) fn without_base(
    encode: &Encode,
    linear: &LinearSpec,
    weights: &Matrix,
    base: Option<&LogicalCheckpoint>,
) -> Result<Option<(Matrix, Matrix)>> {
    let Some(base) = base.filter(|_| encode.choice.codec.whole().is_some_and(Whole::is_difference)) else {
        return Ok(None);
    };
    let base = linear.read_weight(base)?;
    let mut difference = weights.clone();
    for (value, base) in difference.values.iter_mut().zip(&base.values) {
        *value -= base;
    }
    if let Some(at) = range::first_non_finite(&difference.values) {
        let (row, column) = (at / difference.columns, at % difference.columns);
        let source = CodecError::NonFinite { row, column, value: difference.values[at] };
        return Err(SolveFailure::Codec { tensor: linear.weight.clone(), source }.into());
    }
    Ok(Some((difference, base)))
}

/// Finds and keeps the codes of one linear where its encoding needs to know its input, else rounds to nearest; gives
/// what the codes stand for. Takes over what was kept before.
pub fn solve_linear(
    solutions: &mut Solutions,
    encode: &Encode,
    linear: &LinearSpec,
    weights: &Matrix,
    moments: &Moments,
    factors: &mut Factors<'_>,
    Given { deny, base }: Given<'_>,
) -> Result<Matrix> {
    let name = &linear.weight;
    let of_base = without_base(encode, linear, weights, base)?;
    // What is stored, and what it is added to.
    let (target, base) = match &of_base {
        Some((difference, base)) => (difference, Some(base)),
        None => (weights, None),
    };
    let added = |mut matrix: Matrix| {
        if let Some(base) = base {
            matrix.add(base);
        }
        matrix
    };
    if !encode.is_solved() {
        return Ok(added(nearest(encode, name, target)?.decoded));
    }
    let expert = linear.expert.unwrap_or(0);
    let coding = &encode.choice.codec;
    let Matrix { rows, columns, .. } = *weights;
    let codec_error = |source| SolveFailure::Codec { tensor: name.clone(), source };
    if let Some((coded, _)) = solutions.matrix(name, expert, coding, rows, columns) {
        return Ok(added(decoded(encode, &coded, rows, columns).map_err(codec_error)?));
    }
    let denied = |deviations: &Deviations| -> std::result::Result<(), SolveFailure> {
        match deviations.iter().next() {
            Some((kind, count)) if deny => {
                Err(SolveFailure::Denied { tensor: name.clone(), kind: (*kind).to_owned(), count: *count })
            }
            _ => Ok(()),
        }
    };
    if moments.count < fewest_tokens(columns) {
        let Stored { coded, mut deviations, decoded } = nearest(encode, name, target)?;
        let kind = match (moments.count, linear.expert.is_some() || name.contains(".experts.")) {
            (0, _) => "no-statistics",
            (_, true) => "starved-expert",
            (_, false) => "few-tokens",
        };
        deviations.insert(kind, 1);
        denied(&deviations)?;
        let solved = Solved { tokens: moments.count, ..Solved::default() };
        solutions.keep(name, linear.expert, coding, &coded, solved, &deviations)?;
        return Ok(added(decoded));
    }
    let (coded, report, note, damping) = match (encode.mask(), encode.settings.factoring()) {
        (None, Some(_)) if matches!(encode.settings, Settings::LowrankKv(_)) => {
            let solution = solutions.clock.time(Part::Solve, || lowrank(encode, name, weights, moments))?;
            (CodedMatrix::Whole(solution.tensors), solution.report, Note::default(), 0.0)
        }
        (None, Some(factoring)) => {
            let (rotations, device) = (encode.choice.rotations, factors.device);
            let (factor, turned) =
                solutions.clock.time(Part::Factor, || factors.of(moments, factoring, rotations, name))?;
            let (coded, report, note) = solutions
                .clock
                .time(Part::Solve, || solve_known(encode, name, (weights, base), factor, turned, device))?;
            (coded, report, note, factor.damping())
        }
        (Some(settings), _) => {
            solutions.clock.time(Part::Factor, || {
                encode.factorings().try_for_each(|way| factors.of(moments, way, None, name).map(drop))
            })?;
            let masked = || masks::solve(encode, settings, name, weights, moments, factors);
            let masks::Masked { coded, report, damping } = solutions.clock.time(Part::Solve, masked)?;
            (coded, report, Note::default(), damping)
        }
        (None, None) => return Ok(added(nearest(encode, name, target)?.decoded)),
    };
    if deny && note.failures > 0 {
        denied(&[(DEVICE_FAILED, note.failures)].into())?;
    }
    solutions.note(name, Step::Codes, &note)?;
    let deviations = report.deviations.clone();
    denied(&deviations)?;
    let per_token = moments.count.max(1) as f64;
    let solved = Solved {
        tokens: moments.count,
        loss_nearest: report.loss_nearest / per_token,
        loss_sweep: report.loss_sweep.map(|loss| loss / per_token),
        loss: report.loss_refined / per_token,
        damping,
    };
    solutions.keep(name, linear.expert, coding, &coded, solved, &deviations)?;
    Ok(added(decoded(encode, &coded, rows, columns).map_err(codec_error)?))
}

/// The codes under second moments of the input, both rotated as the matrix is.
fn solve_known(
    encode: &Encode,
    name: &str,
    (weights, base): (&Matrix, Option<&Matrix>),
    factor: &Factor,
    moments: &Moments,
    device: Option<&SharedDevice>,
) -> std::result::Result<(CodedMatrix, gptq::Report, Note), SolveFailure> {
    let failed = |source| SolveFailure::Matrix { tensor: name.to_owned(), source };
    let rotations = encode.choice.rotations;
    let weights = rotated(encode, weights);
    let mut residual = (moments.residual.len() == weights.values.len()).then(|| moments.residual.clone());
    if let (Some(residual), Some(rotation)) =
        (&mut residual, rotations.and_then(|rotations| rotations.of_outputs(weights.rows)))
    {
        rotation.columns_forward(residual, weights.columns);
    }
    let residual = residual.as_deref();
    match (&encode.settings, &encode.choice.codec) {
        (Settings::Gptq(settings), Coding::Scalar(codec)) => {
            let grid = Grid::new(codec, encode.pass_matrix.dense_dtype, encode.pass_matrix.minimum_zero_point);
            let problem = gptq::Linear { weights: &weights.values, rows: weights.rows, codec, grid: &grid };
            let solution = on_device::solve(device, factor, &view(moments), &problem, residual, &settings.solve);
            let (gptq::Solution { coded, parameters, report, .. }, note) = solution.map_err(failed)?;
            Ok((CodedMatrix::Scalar { rows: coded, parameters }, report, note))
        }
        (Settings::Pvq(settings), Coding::Whole(Whole::Pyramid(pyramid))) => {
            let (rows, columns) = (weights.rows, weights.columns);
            let problem = pvq::Linear { weights: &weights.values, rows, columns, pyramid: *pyramid };
            let solution = pvq::solve(factor, &view(moments), &problem, residual, &settings.solve).map_err(failed)?;
            Ok((CodedMatrix::Whole(solution.tensors), solution.report, Note::default()))
        }
        (Settings::Vptq(settings), Coding::Whole(Whole::Vector(format))) => {
            let (values, rows) = (&weights.values, weights.rows);
            let problem = vptq::Linear { name, weights: values, rows, format, arithmetic: format.storage };
            let solution = vptq::solve_towards(factor, &view(moments), &problem, residual, &settings.solve);
            let solution = solution.map_err(failed)?;
            Ok((CodedMatrix::Whole(solution.tensors), solution.report, Note::default()))
        }
        (Settings::BitDelta(settings), Coding::Whole(Whole::Delta(_))) => {
            let base = base.map_or(&[][..], |base| &base.values);
            bitdelta_of(settings, (&weights, base), factor, moments, residual).map_err(failed)
        }
        _ => Err(SolveFailure::Codec {
            tensor: name.to_owned(),
            source: CodecError::Missing { what: "solver for this number format" },
        }),
    }
}

/// Two factors under what is known of the input.
fn lowrank(
    encode: &Encode,
    name: &str,
    weights: &Matrix,
    moments: &Moments,
) -> std::result::Result<lowrank_kv::Solution, SolveFailure> {
    let (Settings::LowrankKv(settings), Coding::Whole(Whole::Factors(format))) =
        (&encode.settings, &encode.choice.codec)
    else {
        let source = CodecError::Missing { what: "solver for this number format" };
        return Err(SolveFailure::Codec { tensor: name.to_owned(), source });
    };
    let (weights, columns) = (&weights.values, weights.columns);
    let linear = lowrank_kv::Linear { name, weights, columns, format, rotate: settings.rotate };
    lowrank_kv::solve(&linear, settings.method, &moments.hessian, &moments.mean_abs())
        .map_err(|source| SolveFailure::Matrix { tensor: name.to_owned(), source })
}

/// Planes of a difference under second moments. Losses are those of the weights, so that they include what the
/// correction for the lossy input moves.
fn bitdelta_of(
    settings: &bitdelta::Settings,
    (weights, base): (&Matrix, &[f32]),
    factor: &Factor,
    moments: &Moments,
    residual: Option<&[f32]>,
) -> std::result::Result<(CodedMatrix, gptq::Report, Note), gptq::SolveError> {
    let (rows, columns) = (weights.rows, weights.columns);
    let delta: Delta = settings.delta();
    let linear = bitdelta::Linear { weights: &weights.values, base, rows, planes: delta.planes, share: delta.share };
    let solution = bitdelta::solve(factor, &view(moments), &linear, residual, &settings.solve)?;
    let with_base = |planes: &[bitdelta::Plane]| {
        let mut sum = Matrix { rows, columns, values: base.to_vec() };
        for plane in planes {
            plane.add_to(&mut sum, 1.0);
        }
        sum.values
    };
    let mut difference = weights.clone();
    difference.values.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
    let plain = bitdelta::decompose(difference, delta.planes, delta.share, None);
    let loss = |planes: &[bitdelta::Plane]| mask::loss(factor, &weights.values, &with_base(planes), rows);
    let (loss_nearest, loss_refined) = (loss(&plain)?, loss(&solution.planes)?);
    let report = gptq::Report {
        loss_nearest,
        loss_refined,
        target_loss_refined: loss_refined,
        deviations: solution.deviations,
        ..gptq::Report::default()
    };
    Ok((CodedMatrix::Whole(bitdelta::pack(&solution.planes)), report, Note::default()))
}
