//! The model map: what `config.json` and the tensor names say about the model. Headers only, no weights.
//!
//! What is known of each architecture is a table (`families`); `known` reads a model by its family's table, and
//! `unknown` guesses by shape and name where there is none. `docs/models.md` shows the result.

mod config;
mod families;
mod fused;
mod known;
mod names;
mod role;
mod unknown;

use serde_json::Value;

use config::ConfigView;

use crate::layout::{LogicalCheckpoint, LogicalTensor};

/// Name and dense shape of a logical tensor: all that the map needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedShape {
    /// Logical tensor name.
    pub name: String,
    /// Dense shape as stored.
    pub shape: Vec<usize>,
}

/// What a tensor is for. Displayed as a dotted path, the one that recipes select by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `embedding`: token embedding.
    Embedding,
    /// `embedding.position`, `embedding.type`: other embeddings.
    OtherEmbedding(&'static str),
    /// `head`: output projection to the vocabulary.
    Head,
    /// `norm`: any norm weight or bias.
    Norm,
    /// `router`: expert routing.
    Router,
    /// `attention.<part>`: `query`, `key`, `value`, `output`, fused `qkv`; latent attention's `query_a`, `query_b`,
    /// `key_value_a`, `key_value_b`.
    Attention(&'static str),
    /// `mlp.<part>`: `gate`, `up`, `down`, fused `gate_up`.
    Mlp(&'static str),
    /// `shared_expert.<part>`: an expert that sees every token.
    SharedExpert(&'static str),
    /// `expert.<index>.<part>`; index `None` for stacked experts (`expert.<part>`).
    Expert(Option<usize>, &'static str),
    /// `linear`: a matrix with no finer role that a pass may take: of an unknown architecture, or beside the blocks
    /// (BERT's pooler, OPT's projections around its narrow embedding).
    Linear,
    /// `other`: everything else (biases, sinks, rotary tables, vision towers, …).
    Other,
}

/// How a tensor is a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixView {
    /// Experts of a stacked tensor.
    pub experts: Option<usize>,
    /// Output features, of one expert.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Whether it is stored `[input, output]`.
    pub transposed: bool,
    /// Parts of a fused projection, in row order: part name and rows. Empty when not fused, when the parts alternate
    /// row by row (gpt-oss's `gate_up_proj`: even rows gate, odd rows up), or when the config does not say where to cut.
    pub fused: Vec<(&'static str, usize)>,
}

/// One tensor of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTensor {
    /// Logical tensor name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Decoder block it belongs to. At least [`ModelMap::blocks`] for a multi-token-prediction layer behind them.
    pub block: Option<usize>,
    /// Set for linears (matrices that multiply activations), the head included, embeddings not.
    pub matrix: Option<MatrixView>,
    /// Linears with the same value share one input; an index into [`ModelMap::inputs`].
    pub input: Option<usize>,
}

/// One activation that feeds linears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The norm weight that produces it, where a norm does (`model.layers.0.input_layernorm.weight`) and feeds nothing
    /// but the readers listed here, so that a scale can be folded into it (and into its `.bias`, where it has one).
    /// `None` too in models that normalise after the residual sum: there the residual stream reads it as well.
    pub norm: Option<String>,
    /// The linears that read it.
    pub linears: Vec<String>,
    /// Other readers that a rescaled input must reach too (routers, shared experts' gates).
    pub others: Vec<String>,
}

/// The map of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMap {
    /// `architectures[0]` of the config, or `model_type`, or `unknown`.
    pub architecture: String,
    /// Whether bantam knows this architecture; if not, linears were found by shape and name alone.
    pub known: bool,
    /// Prefix of the language model inside a multimodal one, `""` or e.g. `"language_model."`.
    pub prefix: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// Name under which the head module is known even when tied (`lm_head`), for layouts' ignore lists.
    pub head_module: Option<String>,
    /// All tensors, in the order given.
    pub tensors: Vec<MappedTensor>,
    /// The shared inputs.
    pub inputs: Vec<Input>,
    /// What the user should be told, one line each (unknown architecture, …).
    pub notes: Vec<String>,
}

impl ModelMap {
    /// Maps the model. Never fails: an unknown architecture gets a map by shape and name, with a note.
    #[must_use]
    pub fn new(config: Option<&Value>, tensors: &[NamedShape]) -> Self {
        let mut config = ConfigView::new(config);
        match known::find(&config, tensors) {
            known::Found::Language(language) => known::map(&mut config, &language, tensors),
            known::Found::OtherNames(family) => unknown::map(&mut config, tensors, Some(family)),
            known::Found::Nothing => unknown::map(&mut config, tensors, None),
        }
    }

    /// Maps the logical tensors of a checkpoint or an artifact.
    #[must_use]
    pub fn of(source: &LogicalCheckpoint) -> Self {
        let named = |tensor: &LogicalTensor| NamedShape { name: tensor.name.clone(), shape: tensor.shape.clone() };
        let shapes: Vec<NamedShape> = source.tensors().iter().map(named).collect();
        Self::new(source.checkpoint().config().map(|config| &config.value), &shapes)
    }

    /// One tensor by name. Quick (a binary search) where tensors are sorted by name, as checkpoints list them; an
    /// absent name, or another order, costs a scan.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&MappedTensor> {
        match self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)) {
            Ok(index) => self.tensors.get(index),
            Err(_) => self.tensors.iter().find(|tensor| tensor.name == name),
        }
    }
}

/// The plain reading of any tensor as a matrix, `[d0·…·d(n−2), d(n−1)]`, for a pass that was pointed at a tensor which
/// the map does not call a linear. A vector is one row.
#[must_use]
pub fn matrix_by_shape(shape: &[usize]) -> MatrixView {
    let (columns, leading) = shape.split_last().map_or((1, shape), |(last, leading)| (*last, leading));
    let rows = leading.iter().fold(1, |rows: usize, dimension| rows.saturating_mul(*dimension));
    MatrixView { experts: None, rows, columns, transposed: false, fused: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_found_in_any_order() {
        for names in [["a", "b", "c"], ["c", "a", "b"]] {
            let tensors: Vec<_> = names.map(|name| NamedShape { name: name.into(), shape: vec![1] }).into();
            let map = ModelMap::new(None, &tensors);
            for name in names {
                assert_eq!(map.tensor(name).map(|tensor| tensor.name.as_str()), Some(name));
            }
            assert_eq!(map.tensor("d"), None);
        }
    }

    #[test]
    fn any_shape_reads_as_a_matrix() {
        let rows_and_columns = |shape: &[usize]| (matrix_by_shape(shape).rows, matrix_by_shape(shape).columns);
        assert_eq!(rows_and_columns(&[3, 5]), (3, 5));
        assert_eq!(rows_and_columns(&[7]), (1, 7));
        assert_eq!(rows_and_columns(&[2, 3, 5]), (6, 5));
        assert_eq!(rows_and_columns(&[]), (1, 1));
        assert_eq!(rows_and_columns(&[usize::MAX, usize::MAX, 2]), (usize::MAX, 2));
    }
}
