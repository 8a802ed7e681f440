//! GGUF, the one file that llama.cpp and its relatives load: `docs/formats/gguf.md`.

pub(in crate::layout) mod blocks;
mod container;
mod metadata;
pub(in crate::layout) mod names;
mod rope;
pub(in crate::layout) mod rows;
mod tokenizer;

pub use container::GgufContainer;
pub(in crate::layout) use metadata::moves_rows;
pub(crate) use rope::FACTORS;

use serde_json::Value;

use self::{metadata::Model, rows::HeadOrder};
use super::{Activations, Container, Contained, Layout, LayoutName, MatrixSpec, Piece, Refusal, TensorSpec};
use crate::{
    checkpoint::{Checkpoint, Dtype, GgmlType},
    codec::{CodedRows, Coding, MatrixParameters, RowSource, ScaleFormat, StoredMatrix},
};

const NAME: &str = "gguf";

/// The layout, for one model; without one, as far as names and number formats go.
pub(super) struct Gguf {
    model: Option<Model>,
}

impl Gguf {
    /// Without a model: enough to say what a matrix becomes.
    pub(super) fn of_any() -> Self {
        Self { model: None }
    }

    /// For the model with this configuration.
    pub(super) fn of_model(config: Option<&Value>) -> Result<Self, Refusal> {
        let none = || Refusal::Format("layout `gguf` needs the model's config.json, and there is none".to_owned());
        let model = Model::of(config.ok_or_else(none)?).map_err(Refusal::Format)?;
        Ok(Self { model: Some(model) })
    }

    /// The order of the rows of a tensor, where it is not the source's.
    fn order(&self, name: &str) -> Option<HeadOrder> {
        self.model.as_ref()?.order(name)
    }

    /// Refuses rows that are no whole heads where rows move within heads.
    fn check_heads(&self, name: &str, rows: usize) -> Result<(), Refusal> {
        match self.order(name) {
            Some(order) if !order.divides(rows) => {
                Err(Refusal::Format(format!("`{name}` has {rows} rows, which the heads of config.json do not divide")))
            }
            _ => Ok(()),
        }
    }
}

impl Layout for Gguf {
    fn name(&self) -> LayoutName {
        LayoutName::Gguf
    }

    fn scale_format(&self, _dense: Dtype) -> ScaleFormat {
        ScaleFormat::F16
    }

    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal> {
        let refuse = |what: String| Err(Refusal::Format(what));
        let name = &matrix.name;
        if matrix.activations != Activations::None {
            return refuse(format!("layout `{NAME}` cannot say that activations are quantized (`{name}`)"));
        }
        if matrix.experts.is_some() || matrix.transposed {
            return refuse(format!("layout `{NAME}` writes no stacked experts and no [input, output] matrices (`{name}`)"));
        }
        if matrix.rotations.is_some() {
            return refuse(format!("layout `{NAME}` cannot say that a matrix is stored rotated (`{name}`)"));
        }
        names::to_file(name).ok_or_else(|| Refusal::Format(no_name(name)))?;
        self.check_heads(name, matrix.rows)?;
        let kind = blocks::kind_of(&matrix.codec).ok_or_else(|| {
            Refusal::Format(format!(
                "layout `{NAME}` has no blocks for {} (`{name}`): {}",
                matrix.codec.name(),
                blocks::EXPECTED
            ))
        })?;
        if !matrix.columns.is_multiple_of(kind.block_weights()) || matrix.columns == 0 {
            return Err(Refusal::Shape(format!(
                "`{name}` has {} columns; {} has blocks of {}",
                matrix.columns,
                kind.name(),
                kind.block_weights()
            )));
        }
        Ok(())
    }

    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec> {
        let Some(kind) = blocks::kind_of(&matrix.codec) else { return Vec::new() };
        let name = names::to_file(&matrix.name).unwrap_or_else(|| matrix.name.clone());
        let shape = vec![matrix.rows, blocks::row_bytes(kind, matrix.columns)];
        vec![TensorSpec { name, dtype: Dtype::U8, shape }]
    }

    fn plain(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<TensorSpec, Refusal> {
        let stored = names::to_file(name).ok_or_else(|| Refusal::Format(no_name(name)))?;
        self.check_heads(name, shape.first().copied().unwrap_or(1))?;
        // ggml adds and multiplies by vectors in F32 alone.
        let dtype = match dtype {
            _ if shape.len() < 2 => Dtype::F32,
            Dtype::F32 | Dtype::F64 => Dtype::F32,
            Dtype::F16 | Dtype::BF16 => dtype,
            _ => {
                return Err(Refusal::Format(format!(
                    "layout `{NAME}` has no {dtype:?} elements (`{name}`): decode the model first"
                )));
            }
        };
        Ok(TensorSpec { name: stored, dtype, shape: shape.to_vec() })
    }

    fn keeps_rows(&self, name: &str) -> bool {
        self.order(name).is_none()
    }

    fn keeps_sources_bytes(&self, name: &str) -> bool {
        // Without the model, it cannot be told whether rows move.
        !names::is_query_or_key(name)
    }

    fn stored_rows<'a>(&self, name: &str, rows: Box<dyn RowSource + 'a>) -> Box<dyn RowSource + 'a> {
        match self.order(name) {
            Some(order) => Box::new(rows::Reordered::to_file(rows, order)),
            None => rows,
        }
    }

    fn pack_whole(&self, matrix: &MatrixSpec, _expert: usize, stored: StoredMatrix) -> Vec<Piece> {
        let Some(bytes) = stored.into_iter().next() else { return Vec::new() };
        let bytes = match self.order(&matrix.name) {
            Some(order) => order.move_rows(&bytes, bytes.len() / matrix.rows.max(1)),
            None => bytes,
        };
        vec![Piece::contiguous(0, 0, bytes)]
    }

    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece> {
        let Some(kind) = blocks::kind_of(&matrix.codec) else { return Vec::new() };
        let row_bytes = blocks::row_bytes(kind, matrix.columns);
        let bytes = blocks::pack(kind, rows);
        match self.order(&matrix.name) {
            None => vec![Piece::contiguous(0, rows.first_row * row_bytes, bytes)],
            Some(order) => order.pieces(rows.first_row, row_bytes, &bytes),
        }
    }

    fn interleaves(&self, matrix: &MatrixSpec) -> bool {
        self.order(&matrix.name).is_some()
    }

    fn pack_parameters(&self, _matrix: &MatrixSpec, _parameters: &MatrixParameters) -> Vec<Piece> {
        Vec::new()
    }

    fn quantization_config(&self, _matrices: &[MatrixSpec], _dense_modules: &[String]) -> Option<Value> {
        None
    }

    fn container(&self, checkpoint: &Checkpoint) -> Result<Contained, Refusal> {
        let Some(model) = &self.model else { return Ok(Contained::default()) };
        let mut lost = model.lost();
        let mut entries = model.entries();
        entries.extend(tokenizer::entries(checkpoint, model.vocabulary, &mut lost).map_err(Refusal::Format)?);
        let constants = model.rope.factors(model.head_dim).map(|factors| (FACTORS.to_owned(), factors));
        let file = GgufContainer::new(entries, constants.into_iter().collect());
        Ok(Contained { container: Container::Gguf(Box::new(file)), lost })
    }
}

fn no_name(name: &str) -> String {
    format!("layout `{NAME}` has no name for the tensor `{name}`")
}

/// The type of a matrix, where the layout holds its number format.
pub(super) fn kind_of(codec: &Coding) -> Option<GgmlType> {
    blocks::kind_of(codec)
}

#[cfg(test)]
mod tests;
