//! Weights as rounding to nearest would store them, for trying transforms on a whole model.

use std::collections::BTreeMap;

use super::{inputs::input_format, matrices::nearest};
use crate::{
    forward::{ForwardError, InputFormat, Matrix, WeightSource},
    plan::Encode,
};

/// A source whose encoded matrices read as their codes would decode.
pub struct Quantized<'a> {
    /// The weights that would be encoded.
    pub inner: &'a dyn WeightSource,
    /// How.
    pub encodes: &'a BTreeMap<&'a str, &'a Encode>,
}

impl WeightSource for Quantized<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.inner.shape(name)
    }

    fn read(&self, name: &str, transposed: bool, first_row: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        self.inner.read(name, transposed, first_row, out)?;
        let Some(encode) = self.encodes.get(name) else { return Ok(()) };
        let columns = encode.matrix.columns;
        let matrix = Matrix { rows: out.len() / columns.max(1), columns, values: out.to_vec() };
        let stored = nearest(encode, name, &matrix)
            .map_err(|error| ForwardError::Tensor { tensor: name.to_owned(), problem: error.to_string() })?;
        out.copy_from_slice(&stored.decoded.values);
        Ok(())
    }

    fn activations(&self, weight: &str) -> InputFormat {
        match self.encodes.get(weight).map_or(InputFormat::Exact, |encode| input_format(encode)) {
            // Static scales are found for the scales that win; until then a token's own range stands in.
            InputFormat::Int8Static(_) => InputFormat::Int8PerToken,
            InputFormat::Fp8Static(_) => InputFormat::Fp8PerToken,
            format => format,
        }
    }
}
