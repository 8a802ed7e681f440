//! The plan: what every tensor becomes, exactly, from headers alone.
//!
//! All sizes follow from shapes and settings, so the plan fixes every output tensor's name, type, shape, file and byte
//! offset before a weight is read. The run then writes positions in any order; a journal only has to say "unit done".

mod assemble;
mod build;
mod delta;
mod differences;
mod disk;
mod error;
mod expanded;
mod json;
mod lowrank;
mod masks;
mod memory;
mod merge;
mod shards;
mod small_files;
mod solving;

pub use build::Inputs;
pub(crate) use disk::existing_parent;
pub use error::PlanError;
pub(crate) use expanded::{format_of as expanded_format, gate as expanded_gate, up as expanded_up};
use memory::stripe_rows;
pub(crate) use memory::{COPY_CHUNK_BYTES, FACTORS_BYTES_PER_WEIGHT, GRAM_BYTES_PER_PRODUCT};
pub use memory::{MemoryPlan, Slab};
pub use merge::Merge;
pub(crate) use shards::file_name;
pub use small_files::{SmallContent, SmallFile};

use std::path::PathBuf;

use crate::{
    compute::AdapterKind,
    forward::CacheBytes,
    layout::{LayoutName, MatrixSpec, TensorSpec},
    manifest::Fallback,
    passes::{Choice, Factoring, Matrix, Settings, mask},
    recipe::NonFinite,
    solve::SolvePlan,
};

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Worker threads.
    pub threads: usize,
    /// Upper limit of resident memory in bytes; none means a moderate default working set.
    pub max_memory_bytes: Option<u64>,
    /// Whether a fallback is an error.
    pub deny_fallbacks: bool,
    /// The kind of the graphics processor that encodes, if one does: what lies in the processor's memory on its way there
    /// and back counts.
    pub device: Option<AdapterKind>,
    /// Whether the plan is made to gather the statistics that other plans need.
    pub gathers_statistics: bool,
}

/// A complete plan.
#[derive(Debug)]
pub struct Plan {
    /// The checkpoint's folder, as given.
    pub model: PathBuf,
    /// The folder to write.
    pub out: PathBuf,
    /// How.
    pub layout: LayoutName,
    /// Architecture of the model.
    pub architecture: String,
    /// What happens to non-finite weights.
    pub non_finite: NonFinite,
    /// The recipe as resolved.
    pub recipe: serde_json::Value,
    /// The pieces of work, in model order.
    pub units: Vec<Unit>,
    /// The files of weights, complete but for the data.
    pub files: Vec<WeightFile>,
    /// All other files but the manifest.
    pub small_files: Vec<SmallFile>,
    /// Bytes of the source's weight files.
    pub source_bytes: u64,
    /// Where the plan deviates from what was asked.
    pub fallbacks: Vec<Fallback>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
    /// Memory and schedule.
    pub memory: MemoryPlan,
    /// What a runtime keeps of earlier tokens, where that changes.
    pub cache: Option<CacheBytes>,
    /// What is found with calibration data before anything is written.
    pub solve: Option<SolvePlan>,
    /// BLAKE3 over everything that decides the output's bytes but the weights themselves.
    pub digest: String,
}

/// The smallest piece of work that is journalled on its own: one logical tensor.
#[derive(Debug)]
pub struct Unit {
    /// Logical tensor name.
    pub name: String,
    /// Its role, as recipes select it.
    pub role: String,
    /// Dense shape.
    pub shape: Vec<usize>,
    /// Number of weights.
    pub weights: u64,
    /// The stored tensors it is made from.
    pub parts: Vec<String>,
    /// Their bytes.
    pub source_bytes: u64,
    /// Whether the source stores it in codes.
    pub coded_source: bool,
    /// Bytes of the base's tensor that is read beside it.
    pub base_bytes: u64,
    /// Weights of the source that are decoded and kept when any row is read.
    pub decoded_at_once: u64,
    /// What happens.
    pub action: Action,
    /// What is written.
    pub outputs: Vec<Output>,
}

impl Unit {
    /// Bytes written for this unit.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.outputs.iter().map(|output| output.spec.bytes()).sum()
    }

    /// What slabs of this unit count: the rows of its matrix, or the bytes of a copy.
    #[must_use]
    pub fn extent(&self) -> u64 {
        match &self.action {
            Action::Copy | Action::Same => self.source_bytes,
            Action::Rows(rows) => rows.len() as u64,
            Action::Decode | Action::Cast | Action::Transform | Action::Merge(_) => self.weights / self.columns().max(1) as u64,
            Action::Encode(encode) => encode.matrix.rows as u64,
        }
    }

    /// Whether rows are consecutive bytes of one stored tensor (and not codes, or columns, or several tensors).
    #[must_use]
    pub fn rows_are_contiguous(&self) -> bool {
        match &self.action {
            Action::Copy | Action::Same => true,
            Action::Decode | Action::Cast | Action::Transform | Action::Rows(_) | Action::Merge(_) => false,
            Action::Encode(encode) => !self.coded_source && !encode.matrix.transposed,
        }
    }

    /// Columns of its matrix; 1 for a scalar.
    #[must_use]
    pub fn columns(&self) -> usize {
        match &self.action {
            Action::Encode(encode) => encode.matrix.columns,
            Action::Merge(merge) => merge.columns,
            Action::Copy | Action::Same | Action::Rows(_) | Action::Decode | Action::Cast | Action::Transform => {
                self.shape.last().copied().unwrap_or(1)
            }
        }
    }

    /// Its encoding, where that takes whole matrices.
    #[must_use]
    pub fn whole_matrix(&self) -> Option<&Encode> {
        match &self.action {
            Action::Encode(encode) if encode.matrix.is_whole() => Some(encode),
            _ => None,
        }
    }

    /// Rows that are worked on at a time: a stripe, or one expert's whole matrix.
    #[must_use]
    pub(crate) fn stripe_rows(&self) -> usize {
        match (self.whole_matrix(), &self.action) {
            (Some(encode), _) => encode.matrix.expert_rows().max(1),
            (None, Action::Merge(merge)) if merge.is_whole() => merge.rows.max(1),
            (None, _) => stripe_rows(self.columns()),
        }
    }

    /// Every stored bit over the number of weights.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        if self.weights == 0 { 0.0 } else { self.bytes() as f64 * 8.0 / self.weights as f64 }
    }

    /// The codec's name, or the element type's where no codec is used.
    #[must_use]
    pub fn codec_name(&self) -> String {
        match &self.action {
            Action::Encode(encode) => encode.matrix.codec.name(),
            Action::Same | Action::Rows(_) => self.action.name().to_owned(),
            Action::Copy | Action::Decode | Action::Cast | Action::Transform | Action::Merge(_) => self
                .outputs
                .first()
                .map_or_else(String::new, |output| format!("{:?}", output.spec.dtype).to_lowercase()),
        }
    }
}

/// What happens to one logical tensor.
#[derive(Debug)]
pub enum Action {
    /// The stored bytes are taken over as they are.
    Copy,
    /// Nothing is stored: the bytes are the base's.
    Same,
    /// These rows are stored, ascending; all others are the base's.
    Rows(Vec<u64>),
    /// The stored codes are turned into dense weights (a compressed source that no rule encodes).
    Decode,
    /// The weights are stored in another element type, or their rows in another order, as the layout has them.
    Cast,
    /// The weights are scaled as calibration found, and stay dense.
    Transform,
    /// The changes of several models are merged, and stay dense.
    Merge(Box<Merge>),
    /// The weights are encoded.
    Encode(Box<Encode>),
}

impl Action {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Same => "same",
            Self::Rows(_) => "rows",
            Self::Decode => "decode",
            Self::Cast => "cast",
            Self::Transform => "transform",
            Self::Merge(_) => "merge",
            Self::Encode(_) => "encode",
        }
    }
}

/// An encoding of one matrix.
#[derive(Debug)]
pub struct Encode {
    /// The matrix as layouts see it.
    pub matrix: MatrixSpec,
    /// The matrix as passes see it.
    pub pass_matrix: Matrix,
    /// The pass's name.
    pub pass: String,
    /// The pass's settings for it.
    pub settings: Settings,
    /// The codec chosen.
    pub choice: Choice,
    /// Whether a pass of its own rotates it.
    pub rotated: bool,
}

impl Encode {
    /// Whether its mask or its codes are found under second moments of the input.
    #[must_use]
    pub fn is_solved(&self) -> bool {
        self.factorings().next().is_some()
    }

    /// How those are factored: for the mask before the codes, then for the codes.
    pub fn factorings(&self) -> impl Iterator<Item = Factoring> {
        let mask = self.choice.mask.as_ref().and_then(mask::Settings::factoring);
        mask.into_iter().chain(self.settings.factoring())
    }

    /// How many of how many weights are kept, in short: `2of4`.
    #[must_use]
    pub fn mask_name(&self) -> Option<String> {
        let mask::Pattern { keep, of } = self.mask()?.solve.pattern;
        Some(format!("{keep}of{of}"))
    }

    /// How its mask is found, whether codes follow or not.
    #[must_use]
    pub fn mask(&self) -> Option<&mask::Settings> {
        match &self.settings {
            Settings::Mask(settings) => Some(settings),
            _ => self.choice.mask.as_ref(),
        }
    }

    /// The passes that the matrix goes through but those that scale it.
    #[must_use]
    pub fn passes(&self) -> Vec<String> {
        let rotate = self.rotated.then(|| crate::passes::rotate::INFO.name.to_owned());
        let mask = self.choice.mask.as_ref().map(|_| mask::INFO.name.to_owned());
        rotate.into_iter().chain(mask).chain([self.pass.clone()]).collect()
    }
}

/// One stored tensor and its place.
#[derive(Debug, Clone)]
pub struct Output {
    /// Name, type, shape.
    pub spec: TensorSpec,
    /// Index into [`Plan::files`].
    pub file: usize,
    /// Byte offset from the file's start.
    pub offset: u64,
}

/// One file of the artifact's weights.
#[derive(Debug)]
pub struct WeightFile {
    /// File name.
    pub name: String,
    /// What stands before the data.
    pub header: Vec<u8>,
    /// Length of the whole file in bytes.
    pub bytes: u64,
}

impl Plan {
    /// Bytes of the artifact's weight files, headers included.
    #[must_use]
    pub fn artifact_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of all files but the manifest and the run log.
    #[must_use]
    pub fn all_bytes(&self) -> u64 {
        self.artifact_bytes() + self.small_files.iter().map(|file| file.bytes).sum::<u64>()
    }

    /// Stored bits over weights of the encoded matrices; 0 when none is encoded.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        let (bytes, weights) = self
            .units
            .iter()
            .filter(|unit| matches!(unit.action, Action::Encode(_)))
            .fold((0_u64, 0_u64), |(bytes, weights), unit| (bytes + unit.bytes(), weights + unit.weights));
        if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
    }
}
