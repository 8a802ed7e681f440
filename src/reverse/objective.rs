//! Loss and gradients of a whole model over a batch: a student whose linears are partly trained, and a teacher.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    Block, Classes, Comparison, Head, Linear, Loss, Matrix, Moment, Parametrization, Pieces, Real, Reference,
    ReverseError, WeightGradient,
    block::supports,
    linear::{exact_input, shape},
    spill::Spill,
};
use crate::forward::{self, BlockSpec, Limits, LinearSpec, Model, State, WeightSource, vector};

/// A model and its weights.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    /// What it computes.
    pub model: &'a Model,
    /// Its weights.
    pub source: &'a dyn WeightSource,
}

/// A linear that is trained.
pub struct Trained<'a, T> {
    /// Logical name of its weight.
    pub tensor: String,
    /// What its weight is made of.
    pub parametrization: Box<dyn Parametrization<T> + 'a>,
}

/// How much may be in memory, and where the rest goes.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// Tokens of a batch and bytes of a teacher's experts.
    pub limits: Limits,
    /// Bytes for logits and classes' weights; 0 means 256 MiB.
    pub class_bytes: usize,
    /// Folder of the files of hidden states; none for that of temporary files.
    pub folder: Option<PathBuf>,
}

/// What a student is trained towards.
pub struct Objective<'a, T> {
    student: Weighted<'a>,
    teacher: Option<Weighted<'a>>,
    bases: &'a dyn WeightSource,
    trained: Vec<Trained<'a, T>>,
    /// Index in `trained` by name.
    by_name: BTreeMap<String, usize>,
    loss: Loss,
    budget: Budget,
}

/// A block's linears, and the bases of those whose gradients need them.
struct Loaded<'m, T> {
    block: Block<'m, T>,
    linears: Vec<Vec<Linear<T>>>,
    bases: BTreeMap<(usize, usize), Matrix<T>>,
}

/// From the student's and the teacher's last hidden states of a batch, and the tokens that come next, to its share of the
/// loss and the gradient of the student's states.
type Compare<'f, T> =
    dyn FnMut(Matrix<T>, Option<State>, &[Option<u32>]) -> Result<(f64, Matrix<T>), ReverseError> + 'f;

/// Sequences that are computed together.
struct Batch {
    index: usize,
    rows: usize,
}

impl<'a, T: Real> Objective<'a, T> {
    /// `student.source` gives every weight but those of `trained` linears, whose fixed parts come from `bases` under the
    /// same names. A teacher is only looked at where the loss has one.
    ///
    /// # Errors
    /// [`ReverseError::Unsupported`] for a student with parts that have no reverse; [`ReverseError::Unknown`] and
    /// [`ReverseError::Shape`] for a trained linear that it does not have or that is shaped otherwise;
    /// [`ReverseError::Classes`] when teacher and student cannot be compared; [`ReverseError::NoTeacher`] when the loss
    /// needs one that is not there.
    pub fn new(
        student: Weighted<'a>,
        teacher: Option<Weighted<'a>>,
        bases: &'a dyn WeightSource,
        trained: Vec<Trained<'a, T>>,
        loss: Loss,
        budget: Budget,
    ) -> Result<Self, ReverseError> {
        student.model.blocks.iter().try_for_each(supports)?;
        let teacher = teacher.filter(|_| loss.has_teacher());
        match &teacher {
            None if loss.has_teacher() => return Err(ReverseError::NoTeacher),
            Some(teacher) if teacher.model.classes() != student.model.classes() => {
                let (student, teacher) = (student.model.classes(), teacher.model.classes());
                return Err(ReverseError::Classes { student, teacher });
            }
            _ => {}
        }
        let linears: BTreeMap<&str, &LinearSpec> = (student.model.blocks.iter().flat_map(BlockSpec::linears))
            .map(|linear| (linear.weight.as_str(), linear))
            .collect();
        let mut by_name = BTreeMap::new();
        for (index, trained) in trained.iter().enumerate() {
            let name = &trained.tensor;
            let Some(linear) = linears.get(name.as_str()) else {
                return Err(ReverseError::Unknown { tensor: name.clone() });
            };
            let (rows, columns) = trained.parametrization.shape();
            shape(&format!("{name} (outputs)"), linear.rows, rows)?;
            shape(&format!("{name} (inputs)"), linear.columns, columns)?;
            if by_name.insert(name.clone(), index).is_some() {
                return Err(ReverseError::Unknown { tensor: format!("{name} (twice)") });
            }
        }
        Ok(Self { student, teacher, bases, trained, by_name, loss, budget })
    }

    /// What is trained, in the order of the parameters.
    #[must_use]
    pub fn trained(&self) -> &[Trained<'a, T>] {
        &self.trained
    }

    /// The loss over `sequences` of equal length, mean over tokens, and the gradient of every trained linear's
    /// `parameters`.
    ///
    /// # Errors
    /// Whatever the passes or the disk fail with; [`ReverseError::Shape`] when there are not as many parameters as
    /// needed; [`ReverseError::Sequences`] when sequences are empty or differ in length.
    pub fn gradient(
        &self,
        sequences: &[Vec<u32>],
        parameters: &[Vec<T>],
        moment: Moment,
    ) -> Result<(f64, Vec<Vec<T>>), ReverseError> {
        let length = self.check(sequences, parameters)?;
        let (model, limits) = (self.student.model, &self.budget.limits);
        let per_batch = limits.batch_sequences(length);
        let batches: Vec<Batch> = (sequences.chunks(per_batch).enumerate())
            .map(|(index, sequences)| Batch { index, rows: sequences.len() * length })
            .collect();
        let teacher = self.teacher.map(|teacher| self.teacher_states(teacher, sequences)).transpose()?;
        // Record `block · batches + batch` is what the block reads; behind the last one lie gradients.
        let spill = Spill::create::<T>(self.budget.folder.as_deref(), per_batch * length, model.hidden)?;
        let record = |block: usize, batch: &Batch| block * batches.len() + batch.index;
        for (batch, sequences) in batches.iter().zip(sequences.chunks(per_batch)) {
            let hidden = model.embed(self.student.source, sequences)?.hidden;
            spill.write(record(0, batch), &Matrix::<T>::from(hidden))?;
        }
        for index in 0..model.blocks.len() {
            let loaded = self.load(index, parameters, moment, length)?;
            for batch in &batches {
                let (out, _) = loaded.block.forward(spill.read(record(index, batch), batch.rows)?, &loaded.linears)?;
                spill.write(record(index + 1, batch), &out)?;
            }
        }
        let mut loss = 0.0;
        let end = model.blocks.len();
        // The last token of a sequence has no next one.
        let compared = if self.loss == Loss::NextToken { (length - 1).max(1) } else { length };
        self.compare(sequences.len() * compared, &mut |compare| {
            for (batch, sequences) in batches.iter().zip(sequences.chunks(per_batch)) {
                let hidden = spill.read(record(end, batch), batch.rows)?;
                let states = teacher.as_ref().map(|teacher| teacher.read(batch.index)).transpose()?;
                let next = |sequence: &Vec<u32>| {
                    let next = sequence[1..].iter().copied().map(Some);
                    next.chain(std::iter::once(None)).collect::<Vec<_>>()
                };
                let targets: Vec<Option<u32>> = sequences.iter().flat_map(next).collect();
                let (part, d) = compare(hidden, states, &targets)?;
                loss += part;
                spill.write(record(end, batch), &d)?;
            }
            Ok(())
        })?;
        let mut gradients: Vec<Vec<T>> = parameters.iter().map(|list| vec![T::ZERO; list.len()]).collect();
        // Below the first block with something to train no gradient is needed.
        let trained = |linear: &LinearSpec| self.by_name.contains_key(&linear.weight);
        let first = model.blocks.iter().position(|block| block.linears().any(trained)).unwrap_or(end);
        for index in (first..end).rev() {
            let loaded = self.load(index, parameters, moment, length)?;
            for batch in &batches {
                let d = spill.read(record(index + 1, batch), batch.rows)?;
                let (_, tape) = loaded.block.forward(spill.read(record(index, batch), batch.rows)?, &loaded.linears)?;
                let found = loaded.block.reverse(&tape, &loaded.linears, d, &mut |product| {
                    self.add(index, &loaded, product, parameters, moment, &mut gradients);
                    Ok(())
                })?;
                spill.write(record(index, batch), &found.hidden)?;
            }
            loss += self.penalties(index, &loaded, parameters, moment, &mut gradients);
        }
        Ok((loss, gradients))
    }

    fn check(&self, sequences: &[Vec<u32>], parameters: &[Vec<T>]) -> Result<usize, ReverseError> {
        let length = sequences.first().map_or(0, Vec::len);
        if length == 0 || sequences.iter().any(|sequence| sequence.len() != length) {
            let what = "sequences to train on are empty or differ in length".to_owned();
            return Err(ReverseError::Sequences { what });
        }
        let teacher = self.teacher.map_or(usize::MAX, |teacher| teacher.model.vocabulary);
        let vocabulary = self.student.model.vocabulary.min(self.student.model.classes()).min(teacher);
        if let Some(token) = sequences.iter().flatten().find(|token| **token as usize >= vocabulary) {
            let what = format!("token {token} is outside the vocabulary of {vocabulary}");
            return Err(ReverseError::Sequences { what });
        }
        shape("lists of parameters", self.trained.len(), parameters.len())?;
        for (trained, list) in self.trained.iter().zip(parameters) {
            shape(&format!("{} (parameters)", trained.tensor), trained.parametrization.parameters(), list.len())?;
        }
        Ok(length)
    }

    /// The teacher's last hidden states.
    fn teacher_states(
        &self,
        Weighted { model, source }: Weighted<'a>,
        sequences: &[Vec<u32>],
    ) -> Result<forward::Store, ReverseError> {
        let limits = &self.budget.limits;
        // A name of its own that goes away with the file: the store keeps it open.
        let path = match &self.budget.folder {
            Some(folder) => Some(tempfile::NamedTempFile::new_in(folder)?.into_temp_path()),
            None => None,
        };
        let store = model.embed_all(source, sequences, limits, path.as_deref())?;
        for index in 0..model.blocks.len() {
            model.advance(index, source, &store, limits)?;
        }
        Ok(store)
    }

    /// Hands `work` what compares a batch's last hidden states with a reference, and gives its share of the loss and the
    /// gradient of the states.
    fn compare(
        &self,
        tokens: usize,
        work: &mut dyn FnMut(&mut Compare<'_, T>) -> Result<(), ReverseError>,
    ) -> Result<(), ReverseError> {
        let head = |side: Weighted<'a>| Ok::<_, ReverseError>((Head::<T>::read(side.model, side.source)?, side.source));
        let (student, source) = head(self.student)?;
        let teacher = self.teacher.map(head).transpose()?;
        let bytes = if self.budget.class_bytes == 0 { 256 << 20 } else { self.budget.class_bytes };
        let width = teacher.as_ref().map_or(0, |(teacher, _)| teacher.width()).max(student.width());
        let mut comparison = Comparison::new(
            self.loss,
            Classes { head: &student, source },
            teacher.as_ref().map(|(head, source)| Classes { head, source: *source }),
            Pieces::within(bytes, width, student.classes(), size_of::<T>()),
        )?;
        work(&mut |hidden, states, targets| {
            let (top, tape) = student.forward(hidden);
            let reference = match (&teacher, states) {
                (Some((teacher, _)), Some(states)) => Some(teacher.forward(states.hidden.into()).0),
                _ => None,
            };
            let reference = reference.as_ref().map_or(Reference::Tokens(targets), Reference::Teacher);
            let (loss, d) = comparison.gradient(&top, reference, tokens, &mut |_| Ok(()))?;
            Ok((loss, student.reverse(&tape, d, &mut |_| Ok(()))?.hidden))
        })
    }

    /// A block with the weights that the parameters make.
    fn load(
        &self,
        index: usize,
        parameters: &[Vec<T>],
        moment: Moment,
        length: usize,
    ) -> Result<Loaded<'a, T>, ReverseError> {
        let spec = &self.student.model.blocks[index];
        let source = self.student.source;
        let block = Block::read(spec, source, length)?;
        let mut bases = BTreeMap::new();
        let mut linears = Vec::with_capacity(spec.stages.len());
        for (stage, specs) in spec.stages.iter().enumerate() {
            let mut row = Vec::with_capacity(specs.linears.len());
            for (at, spec) in specs.linears.iter().enumerate() {
                let Some(trained) = self.by_name.get(&spec.weight) else {
                    row.push(Linear::new(&spec.weight, spec.read(source)?)?);
                    continue;
                };
                exact_input(source, &spec.weight)?;
                let parametrization = &self.trained[*trained].parametrization;
                let base = Matrix::<T>::from(spec.read_weight(self.bases)?);
                if parametrization.needs_base() {
                    bases.insert((stage, at), base.clone());
                }
                let weight = parametrization.weight(&parameters[*trained], base, moment);
                let bias = spec.bias.as_ref().map(|name| vector(source, name)).transpose()?.unwrap_or_default();
                if !bias.is_empty() {
                    shape(&format!("{} (bias)", spec.weight), spec.rows, bias.len())?;
                }
                row.push(Linear { weight, bias: T::from_singles(bias) });
            }
            linears.push(row);
        }
        Ok(Loaded { block, linears, bases })
    }

    /// Adds a batch's gradient of one linear's parameters, where it is trained.
    fn add(
        &self,
        block: usize,
        loaded: &Loaded<'_, T>,
        product: &WeightGradient<'_, T>,
        parameters: &[Vec<T>],
        moment: Moment,
        gradients: &mut [Vec<T>],
    ) {
        let (stage, at) = product.place;
        let name = &self.student.model.blocks[block].stages[stage].linears[at].weight;
        let Some(&trained) = self.by_name.get(name) else { return };
        let empty = Matrix::default();
        let base = loaded.bases.get(&product.place).unwrap_or(&empty);
        let parametrization = &self.trained[trained].parametrization;
        parametrization.gradient(&parameters[trained], base, product, moment, &mut gradients[trained]);
    }

    /// Adds up what a block's parametrizations ask for besides the loss.
    fn penalties(
        &self,
        block: usize,
        loaded: &Loaded<'_, T>,
        parameters: &[Vec<T>],
        moment: Moment,
        gradients: &mut [Vec<T>],
    ) -> f64 {
        let empty = Matrix::default();
        let mut sum = 0.0;
        for (stage, specs) in self.student.model.blocks[block].stages.iter().enumerate() {
            for (at, spec) in specs.linears.iter().enumerate() {
                if let Some(&trained) = self.by_name.get(&spec.weight) {
                    let base = loaded.bases.get(&(stage, at)).unwrap_or(&empty);
                    let parametrization = &self.trained[trained].parametrization;
                    sum += parametrization.penalty(&parameters[trained], base, moment, &mut gradients[trained]);
                }
            }
        }
        sum
    }
}
