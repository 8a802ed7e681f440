//! Encodings that a program writes itself, with this crate as its library: `docs/library.md` shows one.
//!
//! Such an encoding goes the whole way of the built-in ones: a rule of a recipe names it, the plan fixes its sizes, rows stream
//! through it in bounded memory on all cores, and the manifest tells of it.

use std::{ops::Range, sync::Arc};

use super::{Choice, EncodedStripe, Matrix, MatrixEncoder, SettingError};
use crate::{
    codec::{Codec, CodecError, MatrixParameters, RowSource},
    layout::Activations,
};

/// An encoding of single matrices in a number format that bantam has, with the settings of one rule.
pub trait Encoding: std::fmt::Debug + Send + Sync {
    /// All settings by name, defaults filled in. They stand in the manifest, and an unfinished run is known again by them,
    /// so everything that decides a byte belongs here.
    fn settings(&self) -> serde_json::Map<String, serde_json::Value>;
    /// The number format of a matrix, from its shape alone. [`Matrix::scale`] is the scale type that the layout stores.
    ///
    /// # Errors
    /// [`SettingError`] when the settings contradict the matrix.
    fn codec(&self, matrix: &Matrix) -> Result<Codec, SettingError>;
    /// What encodes its rows. Weights that are not finite never reach it.
    fn encoder(&self, matrix: &Matrix, codec: &Codec) -> Box<dyn MatrixEncoder>;
}

/// Settings of such an encoding.
#[derive(Debug, Clone)]
pub struct Settings(Arc<dyn Encoding>);

/// Settings as [`super::PassInfo::parse`] gives them.
pub fn settings(encoding: impl Encoding + 'static) -> super::Settings {
    super::Settings::Custom(Settings(Arc::new(encoding)))
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.values() == other.values()
    }
}

impl Settings {
    /// As they stand in the manifest.
    #[must_use]
    pub fn values(&self) -> serde_json::Map<String, serde_json::Value> {
        self.0.settings()
    }

    pub(super) fn choose(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let codec = self.0.codec(matrix)?;
        codec.validate(matrix.rows, matrix.columns).map_err(|error| SettingError::new("use", error.to_string()))?;
        Ok(Choice {
            codec: codec.into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        })
    }

    pub(super) fn encoder(&self, matrix: &Matrix, codec: &Codec) -> Box<dyn MatrixEncoder> {
        Box::new(Checked { encoder: self.0.encoder(matrix, codec), codec: codec.clone() })
    }
}

/// Holds what comes from outside against the number format, so that a mistake there is an error and not a wrong artifact.
struct Checked {
    encoder: Box<dyn MatrixEncoder>,
    codec: Codec,
}

impl MatrixEncoder for Checked {
    fn prepare(&self, source: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        self.encoder.prepare(&FiniteRows(source))
    }

    fn encode(
        &self,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        let stripe = self.encoder.encode(&FiniteRows(source), parameters, first_row, rows)?;
        let coded = &stripe.rows;
        for (what, expected, got) in [
            ("first row", first_row, coded.first_row),
            ("rows", rows, coded.rows),
            ("columns", source.columns(), coded.columns),
        ] {
            if expected != got {
                return Err(CodecError::Length { what, expected, got });
            }
        }
        coded.check(&self.codec)?;
        let stored = |what, problem: &str| CodecError::Stored { what, problem: problem.to_owned() };
        let bits = self.codec.codec_bits();
        if bits < 8 && coded.codes.iter().any(|code| code >> bits != 0) {
            return Err(stored("codes", "an encoder gave one that has too many bits"));
        }
        if coded.scales.iter().chain(&coded.zeros).any(|value| !value.is_finite()) {
            return Err(stored("scales", "an encoder gave one that is not finite"));
        }
        Ok(stripe)
    }
}

/// Rows of finite weights.
struct FiniteRows<'a>(&'a dyn RowSource);

impl RowSource for FiniteRows<'_> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn columns(&self) -> usize {
        self.0.columns()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        self.0.read_rows(first_row, out)?;
        match out.iter().position(|weight| !weight.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let columns = self.columns().max(1);
                Err(CodecError::NonFinite { row: first_row + at / columns, column: at % columns, value: out[at] })
            }
        }
    }

    fn release_rows(&self, rows: Range<usize>) {
        self.0.release_rows(rows);
    }

    fn rows_at_once(&self) -> usize {
        self.0.rows_at_once()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{CodedRows, Element, Granularity, ScaleFormat, ZeroPoint};

    const CODEC: Codec = Codec {
        element: Element::Integer { bits: 4 },
        granularity: Granularity::Group(2),
        scale: ScaleFormat::F32,
        zero: ZeroPoint::None,
        outliers: None,
    };

    struct Weights([f32; 8]);

    impl RowSource for Weights {
        fn rows(&self) -> usize {
            2
        }

        fn columns(&self) -> usize {
            4
        }

        fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
            out.copy_from_slice(&self.0[first_row * 4..][..out.len()]);
            Ok(())
        }
    }

    /// Reads all rows and gives what it was told to.
    struct Gives(CodedRows);

    impl MatrixEncoder for Gives {
        fn prepare(&self, _: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
            Ok(MatrixParameters::default())
        }

        fn encode(
            &self,
            source: &dyn RowSource,
            _: &MatrixParameters,
            _: usize,
            _: usize,
        ) -> Result<EncodedStripe, CodecError> {
            source.read_rows(0, &mut [0.0; 8])?;
            Ok(EncodedStripe { rows: self.0.clone(), ..EncodedStripe::default() })
        }
    }

    fn encoded(rows: CodedRows, weights: [f32; 8]) -> Result<EncodedStripe, CodecError> {
        let checked = Checked { encoder: Box::new(Gives(rows)), codec: CODEC };
        checked.encode(&Weights(weights), &MatrixParameters::default(), 0, 2)
    }

    fn good() -> CodedRows {
        CodedRows { first_row: 0, rows: 2, columns: 4, codes: vec![15; 8], scales: vec![1.0; 4], zeros: Vec::new() }
    }

    #[test]
    fn what_an_encoder_gives_has_to_fit_its_number_format() {
        assert_eq!(encoded(good(), [0.5; 8]).map(|stripe| stripe.rows), Ok(good()));
        let wrong = [
            CodedRows { first_row: 1, ..good() },
            CodedRows { rows: 1, ..good() },
            CodedRows { columns: 8, ..good() },
            CodedRows { codes: vec![15; 7], ..good() },
            CodedRows { codes: vec![16; 8], ..good() },
            CodedRows { scales: vec![1.0; 3], ..good() },
            CodedRows { scales: vec![f32::NAN; 4], ..good() },
            CodedRows { zeros: vec![0.0; 4], ..good() },
        ];
        for rows in wrong {
            assert!(encoded(rows.clone(), [0.5; 8]).is_err(), "{rows:?}");
        }
    }

    #[test]
    fn weights_that_are_not_finite_never_reach_an_encoder() {
        let mut weights = [0.5; 8];
        weights[6] = f32::INFINITY;
        let error = encoded(good(), weights);
        assert_eq!(error, Err(CodecError::NonFinite { row: 1, column: 2, value: f32::INFINITY }));
    }
}
