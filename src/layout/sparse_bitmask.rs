//! compressed-tensors' `sparse-24-bitmask`, as 0.14.0.1 wrote it, the last version that did:
//! `docs/formats/sparse-24-bitmask.md`.

use serde_json::{Value, json};

use super::{Layout, LayoutName, MaskedForm, MatrixSpec, Piece, Refusal, TensorSpec, refusal::without_activations};
use crate::{
    checkpoint::Dtype,
    codec::{
        CodedRows, Coding, MatrixParameters, ScaleFormat, StoredMatrix, Whole,
        sparse::{Pattern, Sparse, bitmask},
    },
};

const NAME: &str = "sparse-24-bitmask";

/// The version whose files these are like: later ones do not know the format.
const VERSION: &str = "0.14.0.1";

/// What masked matrices have of zeros.
const SPARSITY: f64 = 0.5;

/// The layout.
pub(super) struct SparseBitmask;

fn masked(matrix: &MatrixSpec) -> Option<&Sparse> {
    match matrix.codec.whole() {
        Some(Whole::Sparse(sparse)) => Some(sparse),
        _ => None,
    }
}

impl Layout for SparseBitmask {
    fn name(&self) -> LayoutName {
        LayoutName::Sparse24Bitmask
    }

    fn scale_format(&self, dense: Dtype) -> ScaleFormat {
        super::scale_beside(dense)
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        without_activations(NAME, matrix)?;
        let MatrixSpec { name, rows, columns, .. } = matrix;
        let refuse = |what: &str| Err(Refusal::Format(format!("layout `{NAME}` {what} (`{name}`)")));
        let Some(sparse) = masked(matrix) else {
            return refuse("holds masked weights as they are and no codes; use layout `compressed-tensors`");
        };
        if sparse.pattern() != Pattern::TWO_OF_FOUR {
            let Pattern { keep, of } = sparse.pattern();
            return refuse(&format!("keeps 2 of each 4 weights, not {keep} of {of}; use layout `bantam` or `dense`"));
        }
        if matrix.experts.is_some() || matrix.transposed || matrix.rotations.is_some() {
            return refuse(
                "has one module per matrix, stored as [output, input] and not rotated; use layout `bantam` or leave \
                 it dense",
            );
        }
        if let Err(error) = matrix.codec.validate(*rows, *columns) {
            return Err(Refusal::Format(format!("`{name}`: {error}")));
        }
        if *rows == 0 || *columns == 0 || !columns.is_multiple_of(4) {
            return Err(Refusal::Shape(format!(
                "`{name}` has {rows} rows of {columns} columns; layout `{NAME}` needs whole groups of four columns"
            )));
        }
        Ok(())
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let Some(sparse) = masked(matrix) else { return Vec::new() };
        let stored = bitmask::tensors(matrix.rows, matrix.columns, sparse.dtype).into_iter();
        stored
            .map(|stored| TensorSpec {
                name: format!("{}.{}", matrix.module(), stored.suffix),
                dtype: stored.dtype,
                shape: stored.shape,
            })
            .collect()
    }

    fn masked_form(&self) -> MaskedForm {
        MaskedForm::Bits
    }

    // Readers find weights of this form, not a number format.
    fn reads_back(&self, _matrix: &MatrixSpec) -> Option<Coding> {
        None
    }

    fn pack_whole(&self, matrix: &MatrixSpec, _expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        let (Some(sparse), Ok([values, indices])) = (masked(matrix), <[Vec<u8>; 2]>::try_from(stored)) else {
            return Vec::new();
        };
        // What is missing then is found when the unit is closed.
        let Ok(mask) = sparse.mask(matrix.rows, matrix.columns, &indices) else { return Vec::new() };
        // Values are the same in both forms: the columns are whole groups.
        let shape = bitmask::shape(matrix.rows, matrix.columns);
        let tensors = [values, mask.into_bits(), shape].into_iter().enumerate();
        tensors.map(|(index, bytes)| Piece::contiguous(index, 0, bytes)).collect()
    }

    fn pack(&self, _matrix: &MatrixSpec, _rows: &CodedRows) -> Vec<Piece> {
        Vec::new()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<Value> {
        if matrices.is_empty() {
            return None;
        }
        Some(json!({
            "quant_method": "compressed-tensors",
            "sparsity_config": {
                "format": NAME,
                "global_sparsity": SPARSITY,
                "ignore": dense_modules,
                "registry_requires_subclass": false,
                "sparsity_structure": "2:4",
                "targets": ["Linear"],
            },
            "transform_config": {},
            "version": VERSION,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec::sparse::Mask, layout::Activations};

    fn spec(rows: usize, columns: usize, keep: usize, of: usize) -> MatrixSpec {
        MatrixSpec {
            name: "model.a.weight".into(),
            experts: None,
            rows,
            columns,
            transposed: false,
            dense_dtype: Dtype::F32,
            codec: Whole::Sparse(Sparse { keep, of, dtype: Dtype::F32 }).into(),
            rotations: None,
            codebook_of: None,
            cache: None,
            activations: Activations::None,
            bias: false,
        }
    }

    #[test]
    fn a_kept_zero_stays_in_the_mask() {
        let matrix = spec(2, 12, 2, 4);
        // Kept places by hand: 0 1 | 2 3 | 0 3, then 1 2 | 0 2 | 1 3; the weights kept of the second quad are zero.
        let kept = [[0b1100_0011_u8, 0b1001], [0b0101_0110, 0b1010]];
        let mask = Mask::new(Pattern::TWO_OF_FOUR, 2, 12, kept.concat()).unwrap();
        let weights: Vec<f32> = (0..24).map(|i| if (4..8).contains(&i) { 0.0 } else { i as f32 + 1.0 }).collect();
        let sparse = masked(&matrix).unwrap();
        let stored = sparse.encode(&weights, &mask).unwrap();
        let pieces = SparseBitmask.pack_whole(&matrix, 0, stored.into());
        let values: Vec<f32> =
            pieces[0].bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        assert_eq!(values, [1.0, 2.0, 0.0, 0.0, 9.0, 12.0, 14.0, 15.0, 17.0, 19.0, 22.0, 24.0]);
        assert_eq!(pieces[1].bytes, kept.concat());
        assert_eq!(pieces[2].bytes, [2_i64.to_le_bytes(), 12_i64.to_le_bytes()].concat());
        let planned: Vec<u64> = SparseBitmask.tensors(&matrix).iter().map(TensorSpec::bytes).collect();
        let packed: Vec<u64> = pieces.iter().map(|piece| piece.bytes.len() as u64).collect();
        assert_eq!(planned, packed);
    }

    #[test]
    fn what_the_format_has_not_is_refused() {
        let refused = |spec: MatrixSpec| SparseBitmask.accepts(&spec).unwrap_err();
        assert_eq!(SparseBitmask.accepts(&spec(3, 8, 2, 4)), Ok(()));
        assert!(matches!(refused(spec(3, 10, 2, 4)), Refusal::Shape(_)));
        assert!(matches!(refused(spec(3, 8, 4, 8)), Refusal::Format(message) if message.contains("4 of 8")));
        assert!(matches!(refused(MatrixSpec { transposed: true, ..spec(3, 8, 2, 4) }), Refusal::Format(_)));
        assert!(matches!(refused(MatrixSpec { experts: Some(3), ..spec(3, 8, 2, 4) }), Refusal::Format(_)));
    }
}
