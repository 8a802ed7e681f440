//! Collected changes of tensors.

use std::collections::BTreeMap;

use super::{
    fold::{Fold, Producer},
    tensor_change::{Clip, MatrixChange, TensorChange},
};
pub use super::{
    saved::Values,
    view::{Transformed, TransformedRows, Turned},
};
use crate::{
    checkpoint::{Dtype, decode_to_f32, encode_from_f32},
    forward::{ForwardError, LinearSpec, WeightSource},
};

/// Row and column multipliers, new norm weights and clip limits per tensor. Later folds multiply into earlier ones.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Transforms {
    pub(super) tensors: BTreeMap<String, TensorChange>,
}

impl Transforms {
    pub(super) fn tensor(&mut self, name: &str, rows: usize, columns: usize, transposed: bool) -> &mut TensorChange {
        self.tensors.entry(name.to_owned()).or_insert_with(|| TensorChange {
            rows,
            columns,
            transposed,
            matrices: BTreeMap::new(),
            replaced: None,
        })
    }

    fn matrix(&mut self, linear: &LinearSpec) -> &mut MatrixChange {
        let tensor = self.tensor(&linear.weight, linear.rows, linear.columns, linear.transposed);
        tensor.matrices.entry(linear.expert.unwrap_or(0)).or_default()
    }

    /// Multiplies the consumers' columns by the scales and divides the producer by them. `source` has the stored
    /// tensors, `norm_dtype` their types by name.
    ///
    /// A norm's new weight γ' is rounded to its stored type first, and the scale is what that leaves: γ/γ', so that the
    /// fold stays exact (Gemma: (1 + γ)/(1 + γ')). The bias of a layer norm is divided by the same scale and rounded, which
    /// cannot be exact. Channels without a usable scale (γ is zero; γ' would be zero, subnormal or infinite; the asked
    /// scale is no positive number) keep 1.
    ///
    /// Clip limits of rows that are divided are divided too; those of multiplied columns are dropped, because a limit
    /// belongs to a group of columns: clip when all folds are done.
    ///
    /// Returns the scales that were used, one per free channel.
    ///
    /// # Errors
    /// As [`WeightSource::read`], and [`ForwardError::Tensor`] when shapes disagree.
    pub fn apply_fold(
        &mut self,
        fold: &Fold,
        scales: &[f64],
        source: &dyn WeightSource,
        norm_dtype: impl Fn(&str) -> Option<Dtype>,
    ) -> Result<Vec<f64>, ForwardError> {
        if scales.len() != fold.channels {
            let problem = format!("has {} free channels, got {} scales", fold.channels, scales.len());
            return Err(ForwardError::Tensor { tensor: fold.name.clone(), problem });
        }
        let usable = |scale: &f64| if scale.is_finite() && *scale > 0.0 { *scale } else { 1.0 };
        let scales: Vec<f64> = scales.iter().map(usable).collect();
        let scales = match &fold.producer {
            Producer::Norm { name, offset_one } => self.divide_norm(name, *offset_one, &scales, source, norm_dtype)?,
            Producer::Rows { linear, rows } => {
                self.divide_rows(linear, rows, &scales);
                scales
            }
        };
        let spread = fold.sharing().spread(&scales);
        for linear in &fold.consumers {
            let matrix = self.matrix(linear);
            matrix.clip = None;
            multiply(&mut matrix.columns, &spread);
        }
        for name in &fold.others {
            let shape = source.shape(name).ok_or_else(|| missing(name))?;
            let rows = shape.iter().product::<usize>() / fold.width.max(1);
            let matrix = self.tensor(name, rows, fold.width, false).matrices.entry(0).or_default();
            multiply(&mut matrix.columns, &spread);
        }
        Ok(scales)
    }

    fn divide_norm(
        &mut self,
        norm: &str,
        offset_one: bool,
        scales: &[f64],
        source: &dyn WeightSource,
        dtype: impl Fn(&str) -> Option<Dtype>,
    ) -> Result<Vec<f64>, ForwardError> {
        let name = format!("{norm}.weight");
        // A LayerNorm without weights has nothing to be divided.
        if source.shape(&name).is_none() {
            return Ok(vec![1.0; scales.len()]);
        }
        let old = self.current(&name, scales.len(), source)?;
        // As the runtime sees it: the sum is rounded to F32.
        let seen = |stored: f32| if offset_one { 1.0 + stored } else { stored };
        let wanted: Vec<f32> = old
            .iter()
            .zip(scales)
            .map(|(old, scale)| (f64::from(seen(*old)) / scale - f64::from(u8::from(offset_one))) as f32)
            .collect();
        let dtype_of_weight = dtype(&name).unwrap_or(Dtype::F32);
        let mut new = rounded(&wanted, dtype_of_weight);
        let least = if offset_one { f64::from(f32::MIN_POSITIVE) } else { least_normal(dtype_of_weight) };
        let used: Vec<f64> = old
            .iter()
            .zip(&mut new)
            .map(|(old, new)| {
                let (before, after) = (f64::from(seen(*old)), f64::from(seen(*new)));
                let scale = before / after;
                if after.abs() >= least && after.is_finite() && scale.is_finite() && scale > 0.0 {
                    return scale;
                }
                *new = *old;
                1.0
            })
            .collect();
        self.tensor(&name, 1, scales.len(), false).replaced = Some(new);
        let bias = format!("{norm}.bias");
        if source.shape(&bias).is_some() {
            let old = self.current(&bias, scales.len(), source)?;
            let divided: Vec<f32> =
                old.iter().zip(&used).map(|(bias, scale)| (f64::from(*bias) / scale) as f32).collect();
            let dtype = dtype(&bias).unwrap_or(Dtype::F32);
            self.tensor(&bias, 1, scales.len(), false).replaced = Some(rounded(&divided, dtype));
        }
        Ok(used)
    }

    /// A norm's numbers as folds so far have left them.
    fn current(&self, name: &str, count: usize, source: &dyn WeightSource) -> Result<Vec<f32>, ForwardError> {
        if let Some(replaced) = self.tensors.get(name).and_then(|tensor| tensor.replaced.as_ref()) {
            return Ok(replaced.clone());
        }
        let stored: usize = source.shape(name).ok_or_else(|| missing(name))?.iter().product();
        if stored != count {
            let problem = format!("has {stored} elements, expected {count}");
            return Err(ForwardError::Tensor { tensor: name.to_owned(), problem });
        }
        let mut values = vec![0.0; count];
        source.read(name, false, 0, &mut values)?;
        Ok(values)
    }

    /// Divides rows of a linear, and their biases, by these scales.
    pub(super) fn divide_rows(&mut self, linear: &LinearSpec, rows: &[usize], scales: &[f64]) {
        let matrix = self.matrix(linear);
        matrix.rows.resize(linear.rows, 1.0);
        for (row, scale) in rows.iter().zip(scales) {
            matrix.rows[*row] /= scale;
            if let Some(clip) = &mut matrix.clip {
                let groups = linear.columns.div_ceil(clip.group);
                for limit in &mut clip.limits[row * groups..][..groups] {
                    *limit = (f64::from(*limit) / scale) as f32;
                }
            }
        }
        if let Some(bias) = &linear.bias {
            // One row of biases for each expert.
            let tensor = self.tensor(bias, 1, linear.rows, false);
            let matrix = tensor.matrices.entry(linear.expert.unwrap_or(0)).or_default();
            matrix.columns.resize(linear.rows, 1.0);
            for (row, scale) in rows.iter().zip(scales) {
                matrix.columns[*row] /= scale;
            }
        }
    }

    /// Multiplies columns of a linear by these factors.
    pub(super) fn multiply_columns(&mut self, linear: &LinearSpec, columns: &[usize], factors: &[f64]) {
        let matrix = self.matrix(linear);
        matrix.clip = None;
        matrix.columns.resize(linear.columns, 1.0);
        for (column, factor) in columns.iter().zip(factors) {
            matrix.columns[*column] *= factor;
        }
    }

    /// Limits the magnitude of a linear's weights, as they are behind all folds: `[rows, groups]`, groups of `group`
    /// columns, infinite for no limit.
    ///
    /// # Errors
    /// [`ForwardError::Tensor`] when there are not so many groups.
    pub fn set_clip(&mut self, linear: &LinearSpec, group: usize, limits: Vec<f32>) -> Result<(), ForwardError> {
        let expected = if group == 0 { 0 } else { linear.rows * linear.columns.div_ceil(group) };
        if group == 0 || limits.len() != expected {
            let problem = format!("got {} clip limits for groups of {group}, expected {expected}", limits.len());
            return Err(ForwardError::Tensor { tensor: linear.weight.clone(), problem });
        }
        self.matrix(linear).clip = Some(Clip { group, limits });
        Ok(())
    }

    /// What the columns of a linear are multiplied by: the scales of all folds that it reads.
    #[must_use]
    pub fn columns(&self, linear: &LinearSpec) -> Option<&[f64]> {
        let change = self.tensors.get(&linear.weight)?.matrices.get(&linear.expert.unwrap_or(0))?;
        (!change.columns.is_empty()).then_some(&change.columns[..])
    }

    /// Whether a tensor's rows are input features as stored.
    #[must_use]
    pub fn transposed(&self, tensor: &str) -> bool {
        self.tensors.get(tensor).is_some_and(|change| change.transposed)
    }

    /// Whether a tensor is changed.
    #[must_use]
    pub fn touches(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// The tensors that are changed, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn multiply(factors: &mut Vec<f64>, by: &[f64]) {
    factors.resize(by.len(), 1.0);
    factors.iter_mut().zip(by).for_each(|(factor, by)| *factor *= by);
}

fn missing(name: &str) -> ForwardError {
    ForwardError::Tensor { tensor: name.to_owned(), problem: "is missing".to_owned() }
}

/// What storing in this type leaves.
fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let mut bytes = Vec::new();
    encode_from_f32(dtype, values, &mut bytes);
    let mut out = vec![0.0; values.len()];
    decode_to_f32(dtype, &bytes, &mut out);
    out
}

/// The least magnitude with all its digits.
fn least_normal(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => f64::from(half::f16::MIN_POSITIVE),
        Dtype::F8_E4M3 => 2f64.powi(-6),
        Dtype::F8_E5M2 => 2f64.powi(-14),
        _ => f64::from(f32::MIN_POSITIVE),
    }
}
