//! How a whole artifact is laid out for a runtime, both ways: which tensors one coded matrix becomes and how their
//! bytes run, and the reverse, reading the coded matrices of any checkpoint back as dense rows.

mod awq;
mod bantam;
mod compressed_tensors;
mod compressed_tensors_config;
mod container;
mod delta;
mod dense;
mod error;
mod gguf;
mod gptq;
mod latent_cache;
mod pieces;
mod read;
mod refusal;
pub mod remote_code;
mod sparse_bitmask;
mod streams;
mod vptq;
pub mod vptq_config;

pub use container::{Contained, Container};
pub use delta::{BaseTensor, BaseTensors};
pub use error::LayoutError;
pub(crate) use gguf::FACTORS as GGUF_CONSTANT;
pub use gguf::GgufContainer;
pub use latent_cache::{CachePolicy, Cached, LatentCache, LayerRanks, QUANTIZED_TOKENS};
pub use pieces::{Piece, scatter};
pub use read::{LogicalCheckpoint, LogicalTensor};
pub use refusal::Refusal;
pub(crate) use streams::transpose;

use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, Dtype},
    codec::{Codec, CodedRows, Coding, MatrixParameters, Rotations, RowSource, ScaleFormat, StoredMatrix},
};

/// The layouts that can be written. Recipes name them in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LayoutName {
    /// vLLM's and transformers' compressed-tensors.
    CompressedTensors,
    /// GPTQ, checkpoint format v1 (stores zero − 1).
    Gptq,
    /// GPTQ, checkpoint format v2 (stores zero).
    GptqV2,
    /// AWQ GEMM.
    Awq,
    /// VPTQ, as the public package and transformers load it.
    Vptq,
    /// Our own documented form, for what no runtime has.
    Bantam,
    /// Differences from a base, of which a model is made only together with the base.
    Delta,
    /// Plain tensors and a modelling file of ours, which transformers loads with `trust_remote_code`.
    RemoteCode,
    /// compressed-tensors' 2:4 sparsity, which runtimes no longer load: written only when asked for.
    #[serde(rename = "sparse-24-bitmask")]
    Sparse24Bitmask,
    /// One GGUF file, as llama.cpp and its relatives load it.
    Gguf,
    /// Plain tensors; no codes.
    Dense,
}

impl LayoutName {
    /// The name that recipes use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CompressedTensors => "compressed-tensors",
            Self::Gptq => "gptq",
            Self::GptqV2 => "gptq-v2",
            Self::Awq => "awq",
            Self::Vptq => "vptq",
            Self::Bantam => "bantam",
            Self::Delta => "delta",
            Self::RemoteCode => "remote-code",
            Self::Sparse24Bitmask => "sparse-24-bitmask",
            Self::Gguf => "gguf",
            Self::Dense => "dense",
        }
    }
}

/// How activations are quantized at run time; never applied to weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Not at all.
    None,
    /// Per token at run time.
    Dynamic,
    /// With one scale for each linear's input, found with calibration data and stored beside the weights.
    Static,
}

/// One matrix that an encoding stores in codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixSpec {
    /// The logical tensor's name, `model.layers.0.mlp.down_proj.weight`.
    pub name: String,
    /// Leading dimension of a stacked (3-D) tensor; `rows` counts all experts' rows.
    pub experts: Option<usize>,
    /// Rows (output features), experts flattened.
    pub rows: usize,
    /// Columns (input features).
    pub columns: usize,
    /// Whether the dense tensor is stored `[columns, rows]` (GPT-2's `Conv1D`, gpt-oss's experts).
    pub transposed: bool,
    /// Element type of the dense tensor (of what decoding gives).
    pub dense_dtype: Dtype,
    /// The number format.
    pub codec: Coding,
    /// How the stored matrix is rotated against the dense one; absent for most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotations: Option<Rotations>,
    /// The matrix whose codebooks it has; absent where it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook_of: Option<String>,
    /// What a runtime keeps instead of its outputs; absent for all but keys and values in factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<LatentCache>,
    /// How the runtime treats activations.
    pub activations: Activations,
    /// Whether a bias stands beside the weights.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
}

impl MatrixSpec {
    /// The module's name: the tensor's without `.weight`.
    #[must_use]
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// The format of codes that each stand for one weight.
    ///
    /// # Panics
    /// Panics for codes of whole matrices, which layouts for scalar codes refuse in [`Layout::accepts`].
    #[must_use]
    pub fn scalar(&self) -> &Codec {
        self.codec.scalar().expect("accepted by a layout of scalar codes")
    }

    /// Whether it is encoded and read as a whole, expert by expert: rows mix in its codes or in its rotations.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.codec.whole().is_some() || self.rotations.is_some()
    }

    /// Rows of one expert's matrix: all rows where there are no experts.
    #[must_use]
    pub fn expert_rows(&self) -> usize {
        self.rows / self.experts.unwrap_or(1).max(1)
    }
}

/// Name, type and shape of one stored tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bits = self.shape.iter().product::<usize>() as u64 * crate::checkpoint::bits_of(self.dtype) as u64;
        bits.div_ceil(8)
    }
}

/// What a layout stores of 2:4 masked weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskedForm {
    /// Kept weights and their places, as [`crate::codec::sparse::Sparse`] has them.
    Places,
    /// Kept weights, a bit for each weight, and the shape.
    Bits,
    /// All weights, those that are not kept being +0.
    Dense,
}

/// Whether a layout stores the minimum of asymmetric codes in place of a zero point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Minima {
    /// It has no place for it.
    #[default]
    Never,
    /// Where a recipe asks for it.
    WhereAsked,
    /// It stores nothing else.
    Always,
}

/// One artifact layout, the writing side.
pub trait Layout: Send + Sync {
    /// Its name.
    fn name(&self) -> LayoutName;
    /// The type in which float scales are stored beside dense weights of this type.
    fn scale_format(&self, dense: Dtype) -> ScaleFormat;
    /// Whether the matrix can be expressed.
    ///
    /// # Errors
    /// [`Refusal`] with a message that names the numbers.
    fn accepts(&self, matrix: &MatrixSpec) -> Result<(), Refusal>;
    /// Whether these matrices, each acceptable alone, fit into one artifact: GPTQ and AWQ have one format for all.
    ///
    /// # Errors
    /// [`Refusal::Format`] naming two matrices that differ.
    fn accepts_together(&self, _matrices: &[MatrixSpec]) -> Result<(), Refusal> {
        Ok(())
    }
    /// The smallest integer zero point that the layout stores (GPTQ v1 stores zero − 1 and so needs 1).
    fn minimum_zero_point(&self) -> u8 {
        0
    }
    /// Whether the layout stores zero points that are not whole ([`crate::codec::ZeroPoint::Float`]).
    fn float_zero_allowed(&self) -> bool {
        false
    }
    /// Whether asymmetric codes have minima in place of zero points ([`crate::codec::ZeroPoint::Minimum`]).
    fn minima(&self) -> Minima {
        Minima::Never
    }
    /// The tensors that the matrix becomes, in a fixed order. Exact: sizes follow from shape and codec.
    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec>;
    /// The number format that readers find; none where the matrix is stored as a plain tensor.
    fn reads_back(&self, matrix: &MatrixSpec) -> Option<Coding> {
        Some(matrix.codec.clone())
    }
    /// Packs one expert's matrix (the only one where there are no experts) of a format whose codes are of whole matrices.
    fn pack_whole(&self, _matrix: &MatrixSpec, _expert: usize, _stored: StoredMatrix) -> Vec<Piece> {
        Vec::new()
    }
    /// The form in which it stores 2:4 masked weights, where it does.
    fn masked_form(&self) -> MaskedForm {
        MaskedForm::Places
    }
    /// Packs some rows. `rows.first_row` is a multiple of [`STRIPE_ALIGNMENT`], and so is `rows.rows` except at the end.
    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece>;
    /// Whether the pieces of consecutive stripes interleave in a tensor (GPTQ, AWQ pack along the input), so that the
    /// writer has to gather whole tensors.
    fn interleaves(&self, _matrix: &MatrixSpec) -> bool {
        false
    }
    /// The tensor that one which is not encoded becomes.
    ///
    /// # Errors
    /// [`Refusal::Format`] for a tensor that the layout has no place for.
    fn plain(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<TensorSpec, Refusal> {
        Ok(TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() })
    }
    /// Whether rows of this tensor lie in the source's order.
    fn keeps_rows(&self, _name: &str) -> bool {
        true
    }
    /// Whether a tensor of this name that keeps its type keeps its bytes, whatever the model.
    fn keeps_sources_bytes(&self, _name: &str) -> bool {
        true
    }
    /// Rows of a tensor that is not encoded, in the order in which they are stored.
    fn stored_rows<'a>(&self, _name: &str, rows: Box<dyn RowSource + 'a>) -> Box<dyn RowSource + 'a> {
        rows
    }
    /// The kind of file that holds the weights.
    ///
    /// # Errors
    /// [`Refusal::Format`] for what the files would have to say and cannot.
    fn container(&self, _checkpoint: &Checkpoint) -> Result<Contained, Refusal> {
        Ok(Contained::default())
    }
    /// The bytes that are known once per matrix (global scales, shapes, outliers, constant tensors).
    fn pack_parameters(&self, matrix: &MatrixSpec, parameters: &MatrixParameters) -> Vec<Piece>;
    /// The bytes of the one scale of a matrix's input, where its [`Activations`] are static and the layout accepts that.
    fn pack_input_scale(&self, _matrix: &MatrixSpec, _scale: f32) -> Vec<Piece> {
        Vec::new()
    }
    /// The `quantization_config` for `config.json`, from all coded matrices and the names of the modules left dense.
    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<serde_json::Value>;
    /// Further members of `config.json`, from all coded matrices and the source's config.
    ///
    /// # Errors
    /// [`Refusal::Format`] for a model that the layout has no runtime for.
    fn config_members(
        &self,
        _matrices: &[MatrixSpec],
        _config: Option<&serde_json::Value>,
    ) -> Result<Vec<(&'static str, serde_json::Value)>, Refusal> {
        Ok(Vec::new())
    }
    /// Whole small files that the layout wants beside `config.json` (GPTQ's `quantize_config.json`).
    fn extra_files(&self, _matrices: &[MatrixSpec], _dense_modules: &[String]) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
}

/// Stripes of rows start at multiples of this: every layout's words and blocks divide it.
pub const STRIPE_ALIGNMENT: usize = 128;

/// The layout of that name.
#[must_use]
pub fn layout(name: LayoutName) -> Box<dyn Layout> {
    match name {
        LayoutName::CompressedTensors => Box::new(compressed_tensors::CompressedTensors),
        LayoutName::Gptq => Box::new(gptq::Gptq { version: gptq::Version::V1 }),
        LayoutName::GptqV2 => Box::new(gptq::Gptq { version: gptq::Version::V2 }),
        LayoutName::Awq => Box::new(awq::Awq),
        LayoutName::Vptq => Box::new(vptq::Vptq),
        LayoutName::Bantam => Box::new(bantam::Bantam),
        LayoutName::Delta => Box::new(delta::DeltaLayout),
        LayoutName::RemoteCode => Box::new(remote_code::RemoteCode),
        LayoutName::Sparse24Bitmask => Box::new(sparse_bitmask::SparseBitmask),
        LayoutName::Gguf => Box::new(gguf::Gguf::of_any()),
        LayoutName::Dense => Box::new(dense::Dense),
    }
}

/// The layout of that name for one model, by its configuration: what `layout` gives, except where rows, names or metadata
/// depend on the model.
///
/// # Errors
/// [`Refusal::Format`] for a model that the layout cannot hold.
pub fn layout_for(name: LayoutName, config: Option<&serde_json::Value>) -> Result<Box<dyn Layout>, Refusal> {
    match name {
        LayoutName::Gguf => Ok(Box::new(gguf::Gguf::of_model(config)?)),
        _ => Ok(layout(name)),
    }
}

/// The type in which a layout without an opinion stores float scales beside dense weights of this type.
fn scale_beside(dense: Dtype) -> ScaleFormat {
    match dense {
        Dtype::F16 => ScaleFormat::F16,
        Dtype::F32 | Dtype::F64 => ScaleFormat::F32,
        _ => ScaleFormat::BF16,
    }
}
