//! What is trained behind the closed forms: encodings as subjects of a training, and codes of the parameters found.

use super::{
    SolveFailure,
    driver::Worker,
    matrices::{nearest, without_base},
    record::Line,
};
use crate::{
    Result,
    codec::{CodecError, CodedMatrix, Coding, Whole},
    forward::{BlockSpec, LinearSpec, Matrix, WeightSource},
    passes::{Deviations, Settings, bitdelta, mask},
    plan::Encode,
    reverse::Weighted,
    solve::view::Transformed,
    train::{self, Held, Subject},
};

/// What encodings of these matrices hold while they are trained.
pub fn held<'e>(encodes: impl Iterator<Item = &'e Encode>) -> Held {
    let mut held = Held::default();
    for encode in encodes {
        let (rows, columns) = (encode.matrix.rows, encode.matrix.columns);
        if let Coding::Whole(Whole::Delta(delta)) = &encode.choice.codec {
            let [_, (_, _, scales)] = delta.tensors(rows, columns);
            held.parameters += scales.iter().product::<usize>() as u64;
            held.fixed_bytes += bitdelta::signs_bytes(delta, rows, columns);
        }
        if let Settings::Mask(_) = &encode.settings {
            held.parameters += mask::learned::parameters(rows, columns);
        }
    }
    held
}

/// A masked matrix, and how its mask is learned.
fn prior<'p>(
    encode: &'p Encode,
    coded: &'p CodedMatrix,
    dense: &'p Matrix,
) -> Option<(mask::Prior<'p>, &'p mask::Learning)> {
    match (&encode.settings, &encode.choice.codec, coded) {
        (Settings::Mask(settings), Coding::Whole(Whole::Sparse(sparse)), CodedMatrix::Whole(stored)) => {
            let shape = (encode.matrix.rows, encode.matrix.columns);
            Some((mask::Prior { sparse, stored, dense: &dense.values, shape }, settings.learning.as_ref()?))
        }
        _ => None,
    }
}

/// What is trained of a matrix in codes.
fn subject(encode: &Encode, coded: &CodedMatrix, dense: &Matrix) -> Option<Subject<'static>> {
    let tensor = encode.matrix.name.clone();
    if let Some((prior, learning)) = prior(encode, coded, dense) {
        let (parametrization, start) = prior.parametrization(learning, &tensor, encode.pass_matrix.seed).ok()?;
        return Some(Subject { tensor, parametrization, start });
    }
    match (&encode.settings, &encode.choice.codec, coded) {
        (Settings::BitDelta(_), Coding::Whole(Whole::Delta(delta)), CodedMatrix::Whole(stored)) => {
            let (rows, columns) = (encode.matrix.rows, encode.matrix.columns);
            let (parametrization, start) = bitdelta::parametrization(delta, rows, columns, stored)?;
            Some(Subject { tensor, parametrization, start })
        }
        _ => None,
    }
}

/// The codes of trained parameters.
fn codes(encode: &Encode, coded: &CodedMatrix, dense: &Matrix, parameters: &[f32]) -> Option<CodedMatrix> {
    if let Some((prior, learning)) = prior(encode, coded, dense) {
        let stored = prior.store(learning, &encode.matrix.name, encode.pass_matrix.seed, parameters);
        return stored.ok().map(CodedMatrix::Whole);
    }
    match (&encode.settings, coded) {
        (Settings::BitDelta(_), CodedMatrix::Whole(stored)) => {
            Some(CodedMatrix::Whole(bitdelta::store(stored, parameters)))
        }
        _ => None,
    }
}

impl<'a> Worker<'a> {
    /// Trains what the plan says, and keeps it beside what was found before.
    pub(super) fn train(&mut self) -> Result<()> {
        let job = self.job;
        let Some(plan) = &job.solve.training else { return Ok(()) };
        if self.solutions.training.is_some() {
            return Ok(());
        }
        let trained: Vec<(&'a LinearSpec, &'a Encode)> = (job.solve.model.blocks.iter().flat_map(BlockSpec::linears))
            .filter_map(|linear| Some((linear, self.encodes.get(linear.weight.as_str()).copied()?)))
            .filter(|(_, encode)| encode.settings.training().is_some())
            .collect();
        let transforms = self.transforms.clone();
        let student = Transformed { inner: job.source, transforms: &transforms, clipped: true };
        let mut subjects = Vec::with_capacity(trained.len());
        for (linear, encode) in &trained {
            let (coded, _) = self.untrained(linear, encode)?;
            let dense = linear.read_weight(&student)?;
            subjects.push(subject(encode, &coded, &dense).ok_or_else(|| unknown(&linear.weight))?);
        }
        let bases: &dyn WeightSource = match job.checkpoint.base() {
            Some(base) => base,
            None => &student,
        };
        let model = &job.solve.model;
        let outcome = train::train(train::Job {
            student: Weighted { model, source: &student },
            teacher: Some(Weighted { model, source: job.source }),
            bases,
            subjects,
            loss: plan.settings.loss,
            training: plan.settings.training,
            sequences: &job.solve.tokens.sequences,
            folder: job.folder.join("training"),
            identity: self.solutions.identity().to_owned(),
            stop: job.stop,
            progress: job.training,
        })?;
        for ((linear, encode), parameters) in trained.iter().zip(&outcome.parameters) {
            let (coded, deviations) = self.untrained(linear, encode)?;
            let dense = linear.read_weight(&student)?;
            let coded = codes(encode, &coded, &dense, parameters).ok_or_else(|| unknown(&linear.weight))?;
            self.solutions.keep_trained(&linear.weight, &coded, &deviations)?;
        }
        self.solutions.append(Line::Training { report: outcome.report })?;
        Ok(())
    }

    /// The codes that training begins with.
    fn untrained(&self, linear: &LinearSpec, encode: &Encode) -> Result<(CodedMatrix, Deviations)> {
        let found =
            self.solutions.matrix(&linear.weight, 0, &encode.choice.codec, encode.matrix.rows, encode.matrix.columns);
        if let Some(found) = found {
            return Ok(found);
        }
        let weights: Matrix = linear.read_weight(self.job.source)?;
        let difference = without_base(encode, linear, &weights, self.job.checkpoint.base())?;
        let stored =
            nearest(encode, &linear.weight, difference.as_ref().map_or(&weights, |(difference, _)| difference))?;
        Ok((stored.coded, stored.deviations))
    }
}

fn unknown(tensor: &str) -> SolveFailure {
    let source = CodecError::Missing { what: "training for this number format" };
    SolveFailure::Codec { tensor: tensor.to_owned(), source }
}
