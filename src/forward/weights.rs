//! Reads weights as F32, from whatever stores them.

use faer::MatRef;

use super::{Expanded, ForwardError, Matrix, matrix::multiply_transposed_into};
use crate::{checkpoint::Dtype, layout::LogicalCheckpoint};

/// Where a forward pass reads weights from.
pub trait WeightSource: Sync {
    /// The dense shape of a tensor, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Reads rows `first_row..` of a tensor read as a matrix (with `transposed`, the last two dimensions change places
    /// first) into `out`, whole rows.
    ///
    /// # Errors
    /// [`ForwardError`] when the tensor is missing or its codes are malformed.
    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError>;

    /// The type that a tensor's numbers are stored in, where that is known.
    fn stored_type(&self, _name: &str) -> Option<Dtype> {
        None
    }

    /// How inputs of this linear are quantized at run time.
    fn activations(&self, _weight: &str) -> InputFormat {
        InputFormat::Exact
    }

    /// The polynomials in place of an MLP's activation, where its down-projection is to be computed with as stored: then
    /// [`WeightSource::read`] gives zeros in its expanded columns.
    ///
    /// # Errors
    /// [`ForwardError`] when what is stored is malformed.
    fn expanded(&self, _down: &str) -> Result<Option<Expanded>, ForwardError> {
        Ok(None)
    }
}

/// How a runtime rounds the input of a linear before multiplying.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum InputFormat {
    /// Not at all.
    #[default]
    Exact,
    /// INT8 per token: scale = largest magnitude / 127.5, codes −128 to 127.
    Int8PerToken,
    /// FP8 E4M3 per token: scale = largest magnitude / 448.
    Fp8PerToken,
    /// INT8 with this one scale.
    Int8Static(f32),
    /// FP8 E4M3 with this one scale.
    Fp8Static(f32),
}

impl WeightSource for LogicalCheckpoint {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let beside = || self.part_beside(name).map(|tensor| tensor.shape);
        self.tensor(name).map(|tensor| tensor.shape.clone()).or_else(beside)
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        use rayon::prelude::*;
        let rows = self.rows(name, transposed)?;
        let width = rows.columns().max(1);
        // Whole rows in fixed pieces, so that many cores decode one matrix.
        let piece = (1 << 18) / width;
        let piece = piece.max(rows.rows_at_once()).max(1);
        let result = out
            .par_chunks_mut(piece * width)
            .enumerate()
            .try_for_each(|(index, out)| rows.read_rows(first_row + index * piece, out));
        rows.release_rows(first_row..first_row + out.len() / width);
        result.map_err(|source| ForwardError::Codec { tensor: name.to_owned(), source })
    }

    fn stored_type(&self, name: &str) -> Option<Dtype> {
        self.tensor(name).map(|tensor| tensor.dtype).or_else(|| self.part_beside(name).map(|tensor| tensor.dtype))
    }

    fn activations(&self, weight: &str) -> InputFormat {
        self.input_format(weight)
    }
}

/// One linear of a model: where its weights lie and what they look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Logical name of the weight.
    pub weight: String,
    /// Name of the bias, where there is one.
    pub bias: Option<String>,
    /// Output features, of one expert.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Whether it is stored `[input, output]`.
    pub transposed: bool,
    /// Which matrix of a stack it is.
    pub expert: Option<usize>,
}

impl LinearSpec {
    /// Number of weights.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.rows * self.columns
    }

    /// The first row in the stacked tensor.
    #[must_use]
    pub fn first_row(&self) -> usize {
        self.expert.unwrap_or(0) * self.rows
    }

    /// Its weights, `[rows, columns]`.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read_weight(&self, source: &dyn WeightSource) -> Result<Matrix, ForwardError> {
        let mut weight = Matrix::zeros(self.rows, self.columns);
        source.read(&self.weight, self.transposed, self.first_row(), &mut weight.values)?;
        Ok(weight)
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    pub fn read(&self, source: &dyn WeightSource) -> Result<Linear, ForwardError> {
        let mut bias = Vec::new();
        if let Some(name) = &self.bias {
            bias = vec![0.0; self.rows];
            source.read(name, false, self.expert.unwrap_or(0), &mut bias)?;
        }
        Ok(Linear { weight: self.read_weight(source)?, bias, input: source.activations(&self.weight) })
    }
}

/// A linear in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[output, input]`.
    pub weight: Matrix,
    /// `[output]` or empty.
    pub bias: Vec<f32>,
    /// How its input is rounded.
    pub input: InputFormat,
}

/// The outputs of linears that share one input, side by side: `[tokens, Σ output]`.
#[must_use]
pub fn apply_together(linears: &[Linear], x: &Matrix) -> Matrix {
    let total: usize = linears.iter().map(|linear| linear.weight.rows).sum();
    let mut out = Matrix::zeros(x.rows, total);
    let mut first = 0;
    let mut rounded: Option<(InputFormat, Matrix)> = None;
    for linear in linears {
        let x = match linear.input {
            InputFormat::Exact => x,
            format => {
                if rounded.as_ref().is_none_or(|(kept, _)| *kept != format) {
                    rounded = Some((format, super::inputs::rounded(x, format)));
                }
                rounded.as_ref().map_or(x, |(_, rounded)| rounded)
            }
        };
        let view: MatRef<'_, f32> = linear.weight.view();
        multiply_transposed_into(x, view, &mut out, first);
        if !linear.bias.is_empty() {
            for row in out.values.chunks_exact_mut(total) {
                for (value, bias) in row[first..].iter_mut().zip(&linear.bias) {
                    *value += bias;
                }
            }
        }
        first += linear.weight.rows;
    }
    out
}
