//! One expanded layer as an artifact stores it.

use super::AuditError;
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, bits_of, decode_to_f32, is_float},
    codec::taylor::{HIGHEST_ORDER, Points, Smooth, gate_of},
    forward::Matrix,
};

/// What follows the down projection's name in that of its terms.
const TERMS: &str = "_terms.weight";
/// Names of up projections beside gates.
const UPS: [(&str, &str); 1] = [("gate_proj", "up_proj")];

/// The stored tensors of an expanded down projection, checked.
#[derive(Debug)]
pub struct Layer<'a> {
    checkpoint: &'a Checkpoint,
    /// The down projection's name without `.weight`.
    pub module: String,
    /// The activation that the config names.
    pub activation: Smooth,
    /// Rows of the down projection.
    pub outputs: usize,
    /// All hidden units.
    pub hidden_units: usize,
    /// Protected units, ascending.
    pub units: Vec<usize>,
    /// How many powers have terms of their own.
    pub powers: usize,
    /// The first of them: 1 where the zeroth terms are merged.
    pub lowest_power: usize,
    /// Where the polynomials stand.
    pub points: Points,
    /// Whether the gate has a bias.
    pub biased: bool,
    terms: &'a TensorEntry,
    merged: Option<&'a TensorEntry>,
    plain: Option<&'a TensorEntry>,
    gate: Option<String>,
    up: Option<String>,
}

impl<'a> Layer<'a> {
    /// Finds all expanded layers of an artifact, by the names of their tensors.
    ///
    /// # Errors
    /// [`AuditError`] for an artifact without any, and for tensors that do not fit together.
    pub fn all(checkpoint: &'a Checkpoint) -> Result<Vec<Self>, AuditError> {
        let modules = checkpoint.tensors().filter_map(|entry| Some((entry.name.strip_suffix(TERMS)?, entry)));
        let modules: Vec<_> = modules.collect();
        if modules.is_empty() {
            return Err(AuditError::NotExpanded { path: checkpoint.root().to_owned() });
        }
        let activation = activation(checkpoint)?;
        modules.into_iter().map(|(module, terms)| Self::read(checkpoint, module, terms, activation)).collect()
    }

    fn read(
        checkpoint: &'a Checkpoint,
        module: &str,
        terms: &'a TensorEntry,
        activation: Smooth,
    ) -> Result<Self, AuditError> {
        let wrong = |tensor: &str, problem: String| AuditError::Malformed { tensor: tensor.to_owned(), problem };
        let find = |part: &str| checkpoint.tensor(&format!("{module}_{part}"));
        let required = |part: &str| find(part).ok_or_else(|| wrong(&format!("{module}_{part}"), "is missing".into()));
        let [powers, outputs, count] = terms.shape[..] else {
            return Err(wrong(&terms.name, format!("has shape {:?}; expected three dimensions", terms.shape)));
        };
        let merged = find("merged.weight");
        let lowest_power = usize::from(merged.is_some());
        if powers == 0 || powers + lowest_power > HIGHEST_ORDER + 1 || outputs == 0 || count == 0 {
            return Err(wrong(&terms.name, format!("has shape {:?}", terms.shape)));
        }
        let (points, units) = (required("points.weight")?, required("units")?);
        for (entry, dtype, shape) in [(points, Dtype::F32, vec![4, count]), (units, Dtype::I32, vec![count])] {
            if entry.dtype != dtype || entry.shape != shape {
                let problem = format!("is {:?} {:?}; expected {dtype:?} {shape:?}", entry.dtype, entry.shape);
                return Err(wrong(&entry.name, problem));
            }
        }
        for entry in [Some(terms), merged, find("plain.weight")].into_iter().flatten() {
            if !is_float(entry.dtype) {
                return Err(wrong(&entry.name, format!("is {:?}; expected a float type", entry.dtype)));
            }
        }
        let plain = find("plain.weight");
        let others = match plain.map(|plain| &plain.shape[..]) {
            None => 0,
            Some([rows, columns]) if *rows == outputs => *columns,
            Some(shape) => return Err(wrong(&format!("{module}_plain.weight"), format!("has shape {shape:?}"))),
        };
        let hidden_units = count + others;
        let numbers = decoded(checkpoint, points);
        let mut parts = numbers.chunks_exact(count).map(<[f32]>::to_vec);
        let mut part = || parts.next().unwrap_or_default();
        let values = Points { z0: part(), h: part(), lo: part(), hi: part() };
        if !numbers.iter().all(|value| value.is_finite()) || !values.h.iter().all(|h| *h >= f32::MIN_POSITIVE) {
            return Err(wrong(&points.name, "has points that are no numbers, or scales that are not positive".into()));
        }
        let stored = checkpoint.bytes(units);
        let indices = stored.as_chunks::<4>().0.iter();
        let indices: Option<Vec<usize>> =
            indices.map(|bytes| usize::try_from(i32::from_le_bytes(*bytes)).ok()).collect();
        let ascending = |indices: &Vec<usize>| {
            indices.is_sorted_by(|a, b| a < b) && indices.last().is_some_and(|last| *last < hidden_units)
        };
        let indices = indices
            .filter(ascending)
            .ok_or_else(|| wrong(&units.name, format!("does not ascend within {hidden_units} units")))?;
        let gate = gate_of(&format!("{module}.weight"));
        let up = gate.as_ref().and_then(|gate| UPS.iter().find_map(|(from, to)| replaced(gate, from, to)));
        let biased = gate.as_ref().is_some_and(|gate| checkpoint.tensor(&gate.replace(".weight", ".bias")).is_some());
        Ok(Self {
            checkpoint,
            module: module.to_owned(),
            activation,
            outputs,
            hidden_units,
            units: indices,
            powers,
            lowest_power,
            points: values,
            biased,
            terms,
            merged,
            plain,
            gate,
            up,
        })
    }

    /// Bytes of its terms.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.powers * self.outputs * self.units.len() * bits_of(self.terms.dtype) / 8) as u64
    }

    /// Whether zeroth terms are withheld.
    #[must_use]
    pub fn is_hardened(&self) -> bool {
        self.merged.is_some()
    }

    /// Row `row` of the term at `index`, `[units]`.
    pub fn read_term(&self, index: usize, row: usize, out: &mut [f32]) {
        let width = self.units.len() * bits_of(self.terms.dtype) / 8;
        let start = (index * self.outputs + row) * width;
        decode_to_f32(self.terms.dtype, &self.checkpoint.range(self.terms, start..start + width), out);
    }

    /// The merged zeroth terms, `[outputs, inputs]`, or `[outputs, 1]` where nothing multiplies the activation.
    #[must_use]
    pub fn merged(&self) -> Option<Matrix> {
        let entry = self.merged?;
        let columns = if entry.shape.len() == 2 { entry.shape[1] } else { 1 };
        let values = decoded(self.checkpoint, entry);
        (values.len() == self.outputs * columns).then_some(Matrix { rows: self.outputs, columns, values })
    }

    /// Columns of the units that are not protected, `[outputs, units]`.
    #[must_use]
    pub fn plain(&self) -> Option<Matrix> {
        let entry = self.plain?;
        Some(Matrix { rows: self.outputs, columns: entry.shape[1], values: decoded(self.checkpoint, entry) })
    }

    /// The gate's rows, `[hidden units, inputs]`, where they are stored as they are.
    #[must_use]
    pub fn gate(&self) -> Option<Matrix> {
        dense(self.checkpoint, self.gate.as_deref()?, self.hidden_units)
    }

    /// The up projection's rows, `[hidden units, inputs]`, where there is one.
    #[must_use]
    pub fn up(&self) -> Option<Matrix> {
        dense(self.checkpoint, self.up.as_deref()?, self.hidden_units)
    }

    /// Name of the gate.
    #[must_use]
    pub fn gate_name(&self) -> Option<&str> {
        self.gate.as_deref()
    }

    /// Name of the up projection; there may be none of that name.
    #[must_use]
    pub fn up_name(&self) -> Option<&str> {
        self.up.as_deref()
    }
}

fn replaced(name: &str, from: &str, to: &str) -> Option<String> {
    name.contains(from).then(|| name.replace(from, to))
}

fn decoded(checkpoint: &Checkpoint, entry: &TensorEntry) -> Vec<f32> {
    let mut values = vec![0.0; entry.shape.iter().product()];
    decode_to_f32(entry.dtype, &checkpoint.bytes(entry), &mut values);
    values
}

/// A dense matrix with so many rows, turned where it is stored the other way round (GPT-2's `Conv1D`).
pub(super) fn dense(checkpoint: &Checkpoint, name: &str, rows: usize) -> Option<Matrix> {
    let entry = checkpoint.tensor(name).filter(|entry| is_float(entry.dtype))?;
    let [first, second] = entry.shape[..] else { return None };
    let matrix = Matrix { rows: first, columns: second, values: decoded(checkpoint, entry) };
    if first == rows {
        return Some(matrix);
    }
    (second == rows).then(|| transposed(&matrix))
}

pub(super) fn transposed(matrix: &Matrix) -> Matrix {
    let mut turned = Matrix::zeros(matrix.columns, matrix.rows);
    for (row, values) in matrix.values.chunks_exact(matrix.columns.max(1)).enumerate() {
        for (column, value) in values.iter().enumerate() {
            turned.values[column * matrix.rows + row] = *value;
        }
    }
    turned
}

/// The activation that a config names.
fn activation(checkpoint: &Checkpoint) -> Result<Smooth, AuditError> {
    let config = checkpoint.config().map(|config| &config.value);
    let keys = ["hidden_act", "hidden_activation", "activation_function", "activation"];
    let name = config.and_then(|config| keys.iter().find_map(|key| config[key].as_str()));
    match name {
        Some("silu" | "swish") => Ok(Smooth::Silu),
        Some("gelu") => Ok(Smooth::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh") => Ok(Smooth::GeluTanh),
        Some("quick_gelu") => Ok(Smooth::GeluQuick),
        other => Err(AuditError::Activation { name: other.unwrap_or("none").to_owned() }),
    }
}
