//! How a whole artifact is laid out for a runtime, both ways: which tensors one coded matrix becomes and how their
//! bytes run, and the reverse, reading the coded matrices of any checkpoint back as dense rows.

use serde::{Deserialize, Serialize};

use crate::{
    ExitCode,
    checkpoint::{Checkpoint, Dtype},
    codec::{Codec, CodedRows, MatrixParameters, RowSource, ScaleFormat},
};

/// The layouts that can be written. Recipes name them in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Our own documented form, for what no runtime has.
    Bantam,
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
            Self::Bantam => "bantam",
            Self::Dense => "dense",
        }
    }
}

/// How activations are quantized at run time; only recorded, never applied to weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Not at all.
    None,
    /// Per token at run time.
    Dynamic,
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
    /// Whether the dense tensor is stored `[columns, rows]` (GPT-2's Conv1D, gpt-oss's experts).
    pub transposed: bool,
    /// Element type of the dense tensor (of what decoding gives).
    pub dense_dtype: Dtype,
    /// The number format.
    pub codec: Codec,
    /// How the runtime treats activations.
    pub activations: Activations,
}

impl MatrixSpec {
    /// The module's name: the tensor's without `.weight`.
    #[must_use]
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
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

/// Bytes of one stored tensor: `bytes` cut into runs of `run` bytes, the i-th of which starts at `offset + i · stride`
/// from the tensor's start. A contiguous piece has `run == bytes.len()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index into [`Layout::tensors`]'s list for the matrix.
    pub tensor: usize,
    /// Byte offset of the first run.
    pub offset: u64,
    /// Length of a run in bytes.
    pub run: usize,
    /// Distance of run starts in bytes.
    pub stride: u64,
    /// The runs, one after the other.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Copies the runs to their places in the whole tensor's bytes.
    ///
    /// # Panics
    /// Panics when a run lies outside the tensor: a defect of the layout.
    pub fn scatter(&self, tensor: &mut [u8]) {
        for (index, run) in self.bytes.chunks(self.run.max(1)).enumerate() {
            let start = (self.offset + index as u64 * self.stride) as usize;
            tensor[start..start + run.len()].copy_from_slice(run);
        }
    }
}

/// Why a layout cannot hold a matrix in a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This one matrix's shape does not fit (group size, word size): the plan keeps it dense as a named fallback.
    Shape(String),
    /// The layout has no such format at all: the plan stops.
    Format(String),
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
    /// The tensors that the matrix becomes, in a fixed order. Exact: sizes follow from shape and codec.
    fn tensors(&self, matrix: &MatrixSpec) -> Vec<TensorSpec>;
    /// Packs some rows. `rows.first_row` is a multiple of [`STRIPE_ALIGNMENT`], and so is `rows.rows` except at the end.
    fn pack(&self, matrix: &MatrixSpec, rows: &CodedRows) -> Vec<Piece>;
    /// Whether the pieces of consecutive stripes interleave in a tensor (GPTQ, AWQ pack along the input), so that the
    /// writer has to gather whole tensors.
    fn interleaves(&self) -> bool {
        false
    }
    /// The bytes that are known once per matrix (global scales, shapes, outliers, constant tensors).
    fn pack_parameters(&self, matrix: &MatrixSpec, parameters: &MatrixParameters) -> Vec<Piece>;
    /// The `quantization_config` for `config.json`, from all coded matrices and the names of the modules left dense.
    fn quantization_config(&self, matrices: &[MatrixSpec], dense_modules: &[String]) -> Option<serde_json::Value>;
    /// Whole small files that the layout wants beside `config.json` (GPTQ's `quantize_config.json`).
    fn extra_files(&self, _matrices: &[MatrixSpec], _dense_modules: &[String]) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
}

/// Stripes of rows start at multiples of this: every layout's words and blocks divide it.
pub const STRIPE_ALIGNMENT: usize = 128;

/// The layout of that name.
#[must_use]
pub fn layout(_name: LayoutName) -> Box<dyn Layout> {
    todo!()
}

/// One tensor of a model as a model sees it: dense values, however they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalTensor {
    /// The dense tensor's name.
    pub name: String,
    /// The dense shape, as the dense tensor would be stored.
    pub shape: Vec<usize>,
    /// The type it decodes to (for plain tensors, the stored type).
    pub dtype: Dtype,
    /// The number format, `None` for a plain tensor.
    pub codec: Option<Codec>,
    /// The stored tensors it is made of (for a plain tensor its own name).
    pub parts: Vec<String>,
    /// Stored bytes of all parts.
    pub stored_bytes: u64,
}

/// A checkpoint or artifact as dense tensors: every coded matrix, in any layout that bantam reads, behind its dense
/// name. Reads compressed-tensors, GPTQ v1/v2, AWQ, FP8 with `weight_scale_inv` blocks (DeepSeek-V3), MXFP4 experts
/// (`*_blocks`/`*_scales`, gpt-oss) and our own layout.
#[derive(Debug)]
pub struct LogicalCheckpoint {
    checkpoint: Checkpoint,
    tensors: Vec<LogicalTensor>,
}

impl LogicalCheckpoint {
    /// Finds the coded matrices of a checkpoint from `quantization_config` and tensor names; headers only.
    ///
    /// # Errors
    /// [`LayoutError`] for a quantization method that bantam does not read, or parts that do not fit together.
    pub fn open(_checkpoint: Checkpoint) -> Result<Self, LayoutError> {
        todo!()
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
        let index = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[index])
    }

    /// The rows of a float tensor as a matrix: `[d0·…·d(n−2), d(n−1)]` of the dense shape (1-D: one row); with
    /// `transposed` the last two dimensions change places first, so that rows are output features.
    ///
    /// # Errors
    /// [`LayoutError`] when there is no such tensor or it has no float values.
    pub fn rows(&self, _name: &str, _transposed: bool) -> Result<Box<dyn RowSource + '_>, LayoutError> {
        todo!()
    }
}

/// What a layout cannot read or express.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {}

impl LayoutError {
    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::Input
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        None
    }
}
