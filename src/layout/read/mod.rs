//! Reads the coded matrices of any checkpoint back as dense rows: one file per family of formats finds them by the
//! names and shapes of tensors, [`matrix`] reads them.

mod awq;
mod bantam;
mod codes;
mod compressed_tensors;
mod config;
mod delta;
mod expanded;
mod gguf;
mod gptq;
mod inputs;
mod masks;
mod matrix;
mod named;
mod parts;
mod scales;
mod sources;
mod vptq;
mod whole;

use std::{collections::BTreeMap, sync::atomic::AtomicUsize};

use super::{
    LayoutError,
    gguf::rows::{HeadOrder, Reordered},
};
use crate::{
    checkpoint::{Checkpoint, Dtype, TensorEntry, is_float},
    codec::{
        CodecError, CodedRows, Coding, DenseRows, Factors, MatrixParameters, Rotations, RowSource, Whole,
        factors::{EXACT, LATENT, OUTPUT},
    },
};
use config::{Method, QuantizationConfig};
use delta::ChangedRows;
use matrix::CodedMatrix;
use parts::Parts;
use sources::{CodedSource, SparseMatrix, SparseSource, TurnedSource};
use whole::{WholeCodes, WholeMatrix, WholeSource};

/// The format of a tensor that is stored as it is.
const PLAIN: &str = "plain";

/// One tensor of a model as a model sees it: dense values, however they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalTensor {
    /// The dense tensor's name.
    pub name: String,
    /// The dense shape, as the dense tensor would be stored.
    pub shape: Vec<usize>,
    /// The type it decodes to (for plain tensors, the stored type).
    pub dtype: Dtype,
    /// The number format; `None` for plain tensors, and for stored forms that no codec describes
    /// (see [`LogicalTensor::is_plain`]).
    pub codec: Option<Coding>,
    /// The stored form: `plain`, `compressed-tensors`, `gptq`, `gptq-act-order`, `awq`, `fp8-block-inverse`,
    /// `mxfp4-blocks`, `sparse-24-bitmask`, `vptq`, `bantam`, `gguf`; beside a base `delta`, `same`, `rows`.
    pub format: &'static str,
    /// The stored tensors it is made of (for a plain tensor its own name).
    pub parts: Vec<String>,
    /// Stored bytes of all parts.
    pub stored_bytes: u64,
    /// Weights that are decoded and kept when any row is read; 0 where rows are decoded on their own.
    pub decoded_at_once: u64,
}

impl LogicalTensor {
    /// Whether it is stored as it is. A tensor without a codec need not be.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.format == PLAIN
    }

    /// What to call the number format in a table: the codec's name, else the stored form's, else the element type.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.codec {
            Some(codec) => codec.name(),
            None if self.is_plain() => format!("{:?}", self.dtype).to_lowercase(),
            None => self.format.to_owned(),
        }
    }
}

/// How a logical tensor is stored.
#[derive(Debug)]
enum Stored {
    Plain,
    Coded {
        matrix: Box<CodedMatrix>,
        /// Matrices in a stack.
        stack: usize,
        /// Whether the dense tensor is stored `[columns, rows]`.
        transposed: bool,
    },
    Sparse(SparseMatrix),
    Whole {
        matrix: WholeMatrix,
        /// Whether the dense tensor is stored `[columns, rows]`.
        transposed: bool,
    },
    /// What is added to the base's.
    Difference {
        matrix: WholeMatrix,
        /// Whether the dense tensor is stored `[columns, rows]`.
        transposed: bool,
    },
    /// The base's.
    Same,
    /// The base's but for some rows.
    Rows(ChangedRows),
    /// As one of the others, but with rows in another order.
    Reordered {
        stored: Box<Stored>,
        order: HeadOrder,
    },
    /// As it is, but for signs of units that the terms of a down-projection tell.
    Signed {
        /// The down-projection.
        down: String,
    },
}

/// A logical tensor that was recognised.
struct Found {
    logical: LogicalTensor,
    stored: Stored,
}

impl Found {
    /// A coded matrix whose dense tensor is `[rows, columns]`.
    fn matrix(parts: Parts, dtype: Dtype, matrix: CodedMatrix) -> Self {
        let shape = vec![matrix.rows, matrix.columns];
        let act_order = matrix.group_of_column.is_some();
        let codec = if act_order { None } else { Some(matrix.codec.clone().into()) };
        let format = if act_order { "gptq-act-order" } else { parts.format };
        Self {
            logical: LogicalTensor {
                name: parts.name,
                shape,
                dtype,
                codec,
                format,
                parts: parts.names,
                stored_bytes: parts.stored_bytes,
                decoded_at_once: 0,
            },
            stored: Stored::Coded { matrix: Box::new(matrix), stack: 1, transposed: false },
        }
    }

    /// A matrix in codes of the whole, or a stack of such.
    fn whole(parts: Parts, dtype: Dtype, format: Whole, matrix: WholeMatrix, shape: Vec<usize>) -> Self {
        Self {
            logical: LogicalTensor {
                name: parts.name,
                shape,
                dtype,
                codec: Some(Coding::Whole(format)),
                format: parts.format,
                parts: parts.names,
                stored_bytes: parts.stored_bytes,
                decoded_at_once: (matrix.rows * matrix.columns) as u64,
            },
            stored: Stored::Whole { matrix, transposed: false },
        }
    }

    /// The same matrix stored rotated.
    fn rotated(mut self, rotations: Option<Rotations>) -> Self {
        let Some(rotations) = rotations else { return self };
        match self.stored {
            Stored::Coded { matrix, stack, transposed } => {
                let (rows, columns) = (matrix.rows / stack.max(1), matrix.columns);
                self.logical.decoded_at_once = (rows * columns) as u64;
                let codes = WholeCodes::Scalar(matrix);
                let matrix = WholeMatrix { rows, columns, stack, codes, rotations: Some(rotations) };
                self.stored = Stored::Whole { matrix, transposed };
            }
            Stored::Whole { ref mut matrix, .. } => matrix.rotations = Some(rotations),
            Stored::Plain
            | Stored::Sparse(_)
            | Stored::Difference { .. }
            | Stored::Same
            | Stored::Rows(_)
            | Stored::Reordered { .. }
            | Stored::Signed { .. } => {}
        }
        self
    }

    /// The same tensor with its rows in another order.
    fn reordered(mut self, order: HeadOrder) -> Self {
        if self.logical.is_plain() {
            self.logical.format = "gguf";
        }
        Self { logical: self.logical, stored: Stored::Reordered { stored: Box::new(self.stored), order } }
    }

    /// The same matrix as a stack, or turned, with the dense tensor's shape.
    fn stacked(mut self, shape: Vec<usize>, experts: usize, turned: bool) -> Self {
        self.logical.shape = shape;
        if let Stored::Whole { transposed, .. } = &mut self.stored {
            *transposed = turned;
        }
        if let Stored::Coded { stack, transposed, .. } = &mut self.stored {
            *stack = experts;
            *transposed = turned;
        }
        self
    }
}

/// A checkpoint or artifact as dense tensors: every coded matrix, in any layout that bantam reads, behind its dense
/// name. Reads compressed-tensors, GPTQ v1/v2, AWQ, FP8 with `weight_scale_inv` blocks (DeepSeek-V3), MXFP4 experts
/// (`*_blocks`/`*_scales`, gpt-oss), VPTQ and our own layouts. What holds differences is a model only beside its base:
/// see [`LogicalCheckpoint::with_base`].
#[derive(Debug)]
pub struct LogicalCheckpoint {
    checkpoint: Checkpoint,
    tensors: Vec<LogicalTensor>,
    stored: Vec<Stored>,
    /// Whether tensors are read from a base.
    delta: bool,
    base: Option<Box<LogicalCheckpoint>>,
    /// Others that are merged with it.
    merged: Vec<LogicalCheckpoint>,
}

impl LogicalCheckpoint {
    /// Finds the coded matrices of a checkpoint from `quantization_config` and tensor names. Reads headers, and of coded
    /// matrices the small tensors that decide how others are read (shapes, group indices, GPTQ's and AWQ's zero points).
    ///
    /// # Errors
    /// [`LayoutError`] for a quantization method that bantam does not read, or parts that do not fit together.
    pub fn open(checkpoint: Checkpoint) -> Result<Self, LayoutError> {
        let config = QuantizationConfig::of(&checkpoint)?;
        let found = find(&checkpoint, &config)?;
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for Found { logical, .. } in &found {
            for part in &logical.parts {
                if owners.insert(part, &logical.name).is_some() {
                    return Err(LayoutError::StoredTwice {
                        name: logical.name.clone(),
                        first: part.clone(),
                        second: logical.parts.first().cloned().unwrap_or_default(),
                    });
                }
            }
        }
        let constant = |entry: &&TensorEntry| checkpoint.gguf().is_some() && entry.name == super::GGUF_CONSTANT;
        let unowned = checkpoint.tensors().filter(|entry| !owners.contains_key(entry.name.as_str()) && !constant(entry));
        let plain = unowned.map(|entry| Found {
            logical: LogicalTensor {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                dtype: entry.dtype,
                codec: None,
                format: PLAIN,
                parts: vec![entry.name.clone()],
                stored_bytes: entry.bytes,
                decoded_at_once: 0,
            },
            stored: Stored::Plain,
        });
        let plain: Vec<Found> = plain.collect();
        let mut all: Vec<Found> = found.into_iter().chain(plain).collect();
        all.sort_by(|a, b| a.logical.name.cmp(&b.logical.name));
        if let Some(pair) = all.windows(2).find(|pair| pair[0].logical.name == pair[1].logical.name) {
            let part = |found: &Found| found.logical.parts.first().cloned().unwrap_or_default();
            return Err(LayoutError::StoredTwice {
                name: pair[0].logical.name.clone(),
                first: part(&pair[0]),
                second: part(&pair[1]),
            });
        }
        let (tensors, stored) = all.into_iter().map(|found| (found.logical, found.stored)).unzip();
        let delta = config.method == Method::Delta;
        Ok(Self { checkpoint, tensors, stored, delta, base: None, merged: Vec::new() })
    }

    /// The stored form.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// All logical tensors, sorted by name.
    #[must_use]
    pub fn tensors(&self) -> &[LogicalTensor] {
        &self.tensors
    }

    /// One logical tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&LogicalTensor> {
        Some(&self.tensors[self.index(name)?])
    }

    /// The rows of a float tensor as a matrix: `[d0·…·d(n−2), d(n−1)]` of the dense shape (1-D: one row); with
    /// `transposed` the last two dimensions change places first, so that rows are output features.
    ///
    /// # Errors
    /// [`LayoutError`] when there is no such tensor or it has no float values.
    pub fn rows(&self, name: &str, transposed: bool) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        self.rows_of(name, self.index(name).map(|index| &self.stored[index]), transposed)
    }

    /// Rows of a tensor that is stored so.
    fn rows_of<'a>(
        &'a self,
        name: &str,
        stored: Option<&'a Stored>,
        transposed: bool,
    ) -> Result<Box<dyn RowSource + 'a>, LayoutError> {
        let (Some(index), Some(stored)) = (self.index(name), stored) else {
            let missing = || LayoutError::NoSuchTensor { name: name.to_owned() };
            return self.plain_rows(&self.part_beside(name).ok_or_else(missing)?, transposed);
        };
        let (source, stack, stored_transposed): (Box<dyn RowSource + 'a>, usize, bool) = match stored {
            Stored::Reordered { stored, order } => {
                let rows = self.rows_of(name, Some(stored), false)?;
                (Box::new(Reordered::from_file(rows, *order)), 1, false)
            }
            Stored::Plain => return self.plain_rows(&self.tensors[index], transposed),
            Stored::Same => return self.same_rows(name, transposed),
            Stored::Signed { down } => return self.signed_rows(&self.tensors[index], down, transposed),
            Stored::Rows(changed) => return self.changed_rows(&self.tensors[index], changed, transposed),
            Stored::Difference { matrix, transposed } => {
                (self.summed(name, matrix, *transposed)?, matrix.stack, *transposed)
            }
            Stored::Coded { matrix, stack, transposed } => {
                let parameters = matrix.parameters(&self.checkpoint)?;
                let released = AtomicUsize::new(0);
                let source = CodedSource { checkpoint: &self.checkpoint, matrix, parameters, released };
                (Box::new(source), *stack, *transposed)
            }
            Stored::Whole { matrix, transposed } => {
                let parameters = match &matrix.codes {
                    WholeCodes::Scalar(coded) => coded.parameters(&self.checkpoint)?,
                    WholeCodes::Whole { .. } => MatrixParameters::default(),
                };
                (Box::new(WholeSource::new(&self.checkpoint, matrix, parameters)), matrix.stack, *transposed)
            }
            Stored::Sparse(matrix) => {
                check_mask(&self.checkpoint, matrix)?;
                (Box::new(SparseSource { checkpoint: &self.checkpoint, matrix }), 1, false)
            }
        };
        if transposed == stored_transposed {
            return Ok(source);
        }
        Ok(Box::new(TurnedSource::new(source, stack)))
    }

    /// Canonical codes of some rows of a coded matrix. Rows are output features, experts flattened, whatever the order
    /// of the dense tensor's dimensions.
    ///
    /// # Errors
    /// [`LayoutError`] when there is no such tensor, it has no [`LogicalTensor::codec`], or not so many rows.
    pub fn coded_rows(&self, name: &str, first_row: usize, rows: usize) -> Result<CodedRows, LayoutError> {
        let matrix = self.coded_matrix(name)?;
        let end = first_row.saturating_add(rows);
        if end > matrix.rows {
            let name = name.to_owned();
            return Err(LayoutError::RowsOutside { name, rows: matrix.rows, first: first_row, end });
        }
        let Some(order) = self.order(name) else { return Ok(matrix.coded_rows(&self.checkpoint, first_row, rows)) };
        let mut coded = CodedRows { first_row, rows, columns: matrix.columns, ..CodedRows::default() };
        for row in first_row..end {
            let row = matrix.coded_rows(&self.checkpoint, order.stored(row), 1);
            coded.codes.extend(row.codes);
            coded.scales.extend(row.scales);
            coded.zeros.extend(row.zeros);
        }
        Ok(coded)
    }

    /// What is known once per matrix of a coded matrix.
    ///
    /// # Errors
    /// As for [`LogicalCheckpoint::coded_rows`], and when stored outliers are malformed.
    pub fn parameters(&self, name: &str) -> Result<MatrixParameters, LayoutError> {
        self.coded_matrix(name)?.parameters(&self.checkpoint)
    }

    /// A factor of a matrix, or the matrix itself that is kept beside its factors, by its stored name (`…k_proj_a.weight`,
    /// `…k_proj_b.weight`, `…k_proj_exact.weight`); not one of [`LogicalCheckpoint::tensors`], but
    /// [`LogicalCheckpoint::rows`] reads it like them.
    #[must_use]
    pub fn part_beside(&self, name: &str) -> Option<LogicalTensor> {
        let of_factors = |suffix: &&&str| {
            let matrix = name.strip_suffix(**suffix).and_then(|module| self.tensor(&format!("{module}.weight")));
            let codec = matrix.and_then(|matrix| matrix.codec.as_ref());
            let Some(Coding::Whole(Whole::Factors(Factors { exact, .. }))) = codec else { return false };
            *exact || **suffix != EXACT
        };
        [LATENT, OUTPUT, EXACT].iter().find(of_factors)?;
        let entry = self.checkpoint.tensor(name)?;
        Some(LogicalTensor {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            dtype: entry.dtype,
            codec: None,
            format: PLAIN,
            parts: vec![entry.name.clone()],
            stored_bytes: entry.bytes,
            decoded_at_once: 0,
        })
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// The order of a tensor's rows, where it is not the model's.
    fn order(&self, name: &str) -> Option<HeadOrder> {
        match self.stored[self.index(name)?] {
            Stored::Reordered { order, .. } => Some(order),
            _ => None,
        }
    }

    fn coded_matrix(&self, name: &str) -> Result<&CodedMatrix, LayoutError> {
        let index = self.index(name).ok_or_else(|| LayoutError::NoSuchTensor { name: name.to_owned() })?;
        let stored = match &self.stored[index] {
            Stored::Reordered { stored, .. } => stored,
            stored => stored,
        };
        match stored {
            Stored::Coded { matrix, .. } if matrix.group_of_column.is_none() => Ok(matrix),
            _ => Err(LayoutError::NoCodes { name: name.to_owned(), format: self.tensors[index].format }),
        }
    }

    fn plain_rows(&self, tensor: &LogicalTensor, transposed: bool) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        if !is_float(tensor.dtype) {
            return Err(LayoutError::NotFloat { name: tensor.name.clone(), dtype: tensor.dtype });
        }
        let no_tensor = || LayoutError::NoSuchTensor { name: tensor.name.clone() };
        let entry: &TensorEntry = tensor.parts.first().and_then(|part| self.checkpoint.tensor(part)).ok_or_else(no_tensor)?;
        let bytes = self.checkpoint.bytes(entry);
        let (stack, last) = entry.shape.split_at(entry.shape.len().saturating_sub(1));
        let (rows, columns) = (stack.iter().product(), last.first().copied().unwrap_or(1));
        let source = match stack.split_last() {
            Some((&before, stack)) if transposed => {
                let experts: usize = stack.iter().product();
                DenseRows::transposed(entry.dtype, bytes, experts * columns, before, experts)
            }
            _ => DenseRows::new(entry.dtype, bytes, rows, columns),
        };
        let stored = |error: CodecError| LayoutError::Value { tensor: entry.name.clone(), message: error.to_string() };
        let release = Box::new(|range| self.checkpoint.release(entry, range));
        Ok(Box::new(source.map_err(stored)?.on_release(release)))
    }
}

/// Every coded matrix of the checkpoint.
fn find(checkpoint: &Checkpoint, config: &QuantizationConfig) -> Result<Vec<Found>, LayoutError> {
    if let Some(file) = checkpoint.gguf() {
        return gguf::find(checkpoint, file, config);
    }
    match config.method {
        Method::Bantam => return bantam::find(checkpoint, config),
        Method::Vptq => return vptq::find(checkpoint, config),
        Method::Delta => return delta::find(checkpoint, config),
        _ => {}
    }
    let mut found = Vec::new();
    for entry in checkpoint.tensors() {
        let name = entry.name.as_str();
        if let Some(module) = name.strip_suffix(".qweight") {
            found.push(match config.method {
                Method::Gptq => gptq::find(checkpoint, config, module)?,
                Method::Awq => awq::find(checkpoint, config, module)?,
                _ => return Err(config.needed("quant_method", name, "\"gptq\" or \"awq\"")),
            });
        } else if let Some(module) = name.strip_suffix(".weight_packed") {
            found.push(compressed_tensors::find_packed(checkpoint, config, module)?);
        } else if let Some(module) = name.strip_suffix(".bitmask") {
            if checkpoint.tensor(&format!("{module}.compressed")).is_some() {
                found.push(compressed_tensors::find_sparse(checkpoint, config, module)?);
            }
        } else if let Some(module) = name.strip_suffix(".weight_scale") {
            if let Some(weight) = checkpoint.tensor(&format!("{module}.weight"))
                && matches!(weight.dtype, Dtype::I8 | Dtype::F8_E4M3)
            {
                found.push(compressed_tensors::find_naive(checkpoint, config, module)?);
            }
        } else if let Some(weight) = name.strip_suffix("_scale_inv") {
            if checkpoint.tensor(weight).is_some() {
                found.push(named::find_scale_inverse(checkpoint, config, weight)?);
            }
        } else if let Some(base) = name.strip_suffix("_blocks")
            && checkpoint.tensor(&format!("{base}_scales")).is_some_and(|scales| scales.dtype == Dtype::U8)
        {
            found.push(named::find_mxfp4(checkpoint, config, base)?);
        }
    }
    Ok(found)
}

/// Refuses a mask that does not keep half of each row: values would slip into other places.
fn check_mask(checkpoint: &Checkpoint, matrix: &SparseMatrix) -> Result<(), LayoutError> {
    let rows = checkpoint.bytes(&matrix.mask).chunks_exact(matrix.columns.div_ceil(8));
    for (row, mask) in rows.enumerate() {
        let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
        if set as usize != matrix.columns / 2 {
            let message = format!("row {row} keeps {set} of {} weights; expected half", matrix.columns);
            return Err(LayoutError::Value { tensor: matrix.mask.name.clone(), message });
        }
    }
    Ok(())
}
