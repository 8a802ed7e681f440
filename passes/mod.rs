//! The passes: one file or folder each, and the registry that names them.

pub mod awq;
pub mod bitdelta;
pub mod breadcrumbs;
pub mod custom;
pub mod folding;
pub mod gptq;
pub mod lowrank_kv;
pub mod mask;
pub mod pvq;
pub mod rotate;
pub mod rtn;
mod setting;
pub mod smoothquant;
pub mod smoothquant_plus;
pub mod taylor_mlp;
pub mod vptq;

use crate::{
    checkpoint::Dtype,
    codec::{CodecError, CodedRows, Coding, MatrixParameters, Rotations, RowSource, ScaleFormat, StoredMatrix, Whole},
    compute::{ComputeError, Device},
    layout::{Activations, Minima},
};

/// Settings of one pass for one tensor, typed and complete.
#[derive(Debug, Clone, PartialEq)]
pub enum Settings {
    /// Round to nearest.
    Rtn(rtn::Settings),
    /// GPTQ.
    Gptq(gptq::Settings),
    /// SmoothQuant.
    SmoothQuant(smoothquant::Settings),
    /// SmoothQuant+.
    SmoothQuantPlus(smoothquant_plus::Settings),
    /// AWQ.
    Awq(awq::Settings),
    /// n:m masks.
    Mask(mask::Settings),
    /// Pyramid vector quantization.
    Pvq(pvq::Settings),
    /// Vector quantization.
    Vptq(vptq::Settings),
    /// Rotation.
    Rotate(rotate::Settings),
    /// Signs and scales of the difference from a base.
    BitDelta(bitdelta::Settings),
    /// Masked differences from a base.
    Breadcrumbs(breadcrumbs::Settings),
    /// Keys and values in factors.
    LowrankKv(lowrank_kv::Settings),
    /// Polynomials in place of activations.
    TaylorMlp(taylor_mlp::Settings),
    /// An encoding from outside of this crate.
    Custom(custom::Settings),
}

/// What is wrong with a setting; the recipe adds where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingError {
    /// The offending key.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

/// Kind of a pass: `transform* encoding?` is the grammar of what one tensor may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Dense to dense.
    Transform,
    /// Dense to codes, at most one and last.
    Encoding,
}

/// One registered pass.
#[derive(Clone, Copy)]
pub struct PassInfo {
    /// Its `use` name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Setting keys it knows, for the nearest-key help.
    pub keys: &'static [&'static str],
    /// What it takes when the rule has no `select`.
    pub default_select: &'static [&'static str],
    /// What it leaves out when the rule has no `skip`.
    pub default_skip: &'static [&'static str],
    /// Types and checks merged settings.
    pub parse: fn(&toml::Table) -> Result<Settings, SettingError>,
}

/// All passes.
pub const REGISTRY: &[PassInfo] = &[
    rtn::INFO,
    gptq::INFO,
    smoothquant::INFO,
    smoothquant_plus::INFO,
    awq::INFO,
    rotate::INFO,
    mask::INFO,
    pvq::INFO,
    vptq::INFO,
    bitdelta::INFO,
    breadcrumbs::INFO,
    lowrank_kv::INFO,
    taylor_mlp::INFO,
];

/// One matrix as a pass sees it at plan time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Logical tensor name.
    pub name: String,
    /// Rows (output features), experts flattened.
    pub rows: usize,
    /// Columns (input features).
    pub columns: usize,
    /// Experts that are stacked in it; 1 where there are none.
    pub experts: usize,
    /// Decides random choices.
    pub seed: u64,
    /// Type of the dense weights.
    pub dense_dtype: Dtype,
    /// The layout's scale type for it.
    pub scale: ScaleFormat,
    /// The smallest zero point that the layout stores (GPTQ v1 stores zero − 1, so 1; others 0).
    pub minimum_zero_point: u8,
    /// Whether the layout stores zero points that are not whole (HQQ).
    pub float_zero_allowed: bool,
    /// Whether the layout stores minima in place of zero points.
    pub minima: Minima,
}

/// A count of something that deviates from what was asked, by name (`scale-clamped`, …).
pub type Deviations = std::collections::BTreeMap<&'static str, u64>;

/// The result of encoding a stripe.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedStripe {
    /// The rows in codes.
    pub rows: CodedRows,
    /// What deviated.
    pub deviations: Deviations,
}

/// Encodes one matrix, stripe by stripe, from many threads. Same input, same result, whatever the order.
pub trait MatrixEncoder: Send + Sync {
    /// Finds what must be known of the whole matrix before its rows are encoded. Returns at once where nothing must.
    ///
    /// # Errors
    /// [`CodecError`] when the weights cannot be encoded.
    fn prepare(&self, source: &dyn RowSource) -> Result<MatrixParameters, CodecError>;
    /// Encodes `rows` rows from `first_row`.
    ///
    /// # Errors
    /// [`CodecError`] when the weights cannot be encoded (a non-finite weight names row and column).
    fn encode(
        &self,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError>;
    /// Whether a graphics processor has kernels for this encoding.
    fn runs_on_devices(&self) -> bool {
        false
    }
    /// Begins to encode the rows on a graphics processor, with the same bytes as a result, and does not wait; `None` where
    /// it has no kernels for this encoding.
    ///
    /// # Errors
    /// [`ComputeError`] when the device fails; [`MatrixEncoder::encode`] does the same work without it.
    fn start_on<'a>(
        &'a self,
        _device: &'a Device,
        _source: &'a dyn RowSource,
        _parameters: &'a MatrixParameters,
        _first_row: usize,
        _rows: usize,
    ) -> Result<Option<Box<dyn StripeOnDevice + 'a>>, ComputeError> {
        Ok(None)
    }
    /// The same to the end; also `None` where the weights are such that [`MatrixEncoder::encode`] has to say what is wrong
    /// with them.
    ///
    /// # Errors
    /// As for [`MatrixEncoder::start_on`].
    fn encode_on(
        &self,
        device: &Device,
        source: &dyn RowSource,
        parameters: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<Option<EncodedStripe>, ComputeError> {
        let Some(mut stripe) = self.start_on(device, source, parameters, first_row, rows)? else { return Ok(None) };
        stripe.go_on()?;
        stripe.finish()
    }
}

/// A stripe on its way through a graphics processor.
pub trait StripeOnDevice {
    /// Waits for what the device found first, and queues the rest of the work; called once.
    ///
    /// # Errors
    /// [`ComputeError`] when the device fails.
    fn go_on(&mut self) -> Result<(), ComputeError>;
    /// Waits for the result; `None` where the weights are such that [`MatrixEncoder::encode`] has to say what is wrong.
    ///
    /// # Errors
    /// [`ComputeError`] when the device fails.
    fn finish(self: Box<Self>) -> Result<Option<EncodedStripe>, ComputeError>;
}

/// How second moments are factored for an encoding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factoring {
    /// Share of H's mean diagonal that is added to the diagonal.
    pub damping: f64,
    /// Order of the columns.
    pub order: gptq::Order,
    /// Share of the correction for the lossy input, from 0 to 1.
    pub drift_share: f64,
    /// Columns that stay together, where they are worked on in groups.
    pub group: Option<usize>,
}

/// How parameters of an encoding are trained through the whole model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainingSettings {
    /// How; the plan gives it the recipe's seed.
    pub training: crate::reverse::Training,
    /// What is made small.
    pub loss: crate::reverse::Loss,
}

/// What an encoding makes of a set of matrices: their codecs, from settings and shapes alone where that is possible.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The number format.
    pub codec: Coding,
    /// How the matrix is rotated before it is encoded.
    pub rotations: Option<Rotations>,
    /// The matrix whose codebooks it has.
    pub codebook_of: Option<String>,
    /// How the mask is found that its codes keep to; none where all weights are coded, or the mask is the encoding.
    pub mask: Option<mask::Settings>,
    /// The run-time treatment of activations.
    pub activations: Activations,
}

/// Why the codecs of a rule's matrices cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// A setting contradicts a matrix.
    #[error("`{matrix}`: setting `{}`: {}", .error.key, .error.message)]
    Setting {
        /// Logical tensor name.
        matrix: String,
        /// What is wrong.
        error: SettingError,
    },
    /// The weights cannot be encoded.
    #[error("`{matrix}`: {error}")]
    Weights {
        /// Logical tensor name.
        matrix: String,
        /// What is wrong.
        #[source]
        error: CodecError,
    },
    /// The target is too small.
    #[error(
        "`target_bits = {target}` cannot be met: the smallest choice stores the {matrices} matrices of this rule in \
         {smallest:.4} bits per weight"
    )]
    Target {
        /// Bits per weight asked for.
        target: f64,
        /// Bits per weight of the smallest choice.
        smallest: f64,
        /// Matrices that share the target.
        matrices: usize,
    },
}

/// Chooses the codecs of all matrices of one rule, where [`Settings::needs_weights`] says that shapes do not decide.
///
/// `stored_bits` is the exact size of a matrix in the artifact's layout, all overhead counted, or `None` when the layout
/// cannot hold it so; such matrices take no part in a target. `open` opens a matrix's weights; one is open at a time, and
/// its rows are read on all cores.
///
/// # Errors
/// [`ChooseError`], or whatever `open` fails with.
pub fn choose<'a, E: From<ChooseError>>(
    matrices: &[(Settings, Matrix)],
    stored_bits: &dyn Fn(usize, &Choice) -> Option<u64>,
    open: &'a dyn Fn(usize) -> Result<Box<dyn RowSource + 'a>, E>,
) -> Result<Vec<Choice>, E> {
    let members: Vec<(&rtn::Settings, &Matrix)> =
        matrices.iter().filter_map(|(settings, matrix)| Some((settings.number()?, matrix))).collect();
    rtn::choose(&members, stored_bits, open)
}

impl Settings {
    /// The format of codes of single weights that an encoding asks for.
    #[must_use]
    pub fn number(&self) -> Option<&rtn::Settings> {
        match self {
            Self::Rtn(settings) => Some(settings),
            Self::Gptq(settings) => Some(&settings.number),
            _ => None,
        }
    }

    /// How its codes are found under second moments of the input; none where nothing has to be known of it.
    #[must_use]
    pub fn factoring(&self) -> Option<Factoring> {
        match self {
            Self::Gptq(gptq::Settings { solve, .. }) => Some(Factoring {
                damping: solve.damping,
                order: solve.order,
                drift_share: solve.drift_share,
                group: None,
            }),
            Self::Pvq(pvq::Settings { solve, calibrated: true, .. }) => Some(Factoring {
                damping: solve.damping,
                order: solve.order,
                drift_share: solve.drift_share,
                group: None,
            }),
            Self::Vptq(vptq::Settings { solve, calibrated: true, .. }) => Some(Factoring {
                damping: solve.damping,
                order: solve.order,
                drift_share: solve.drift_share,
                group: None,
            }),
            Self::Mask(settings) => settings.factoring(),
            Self::BitDelta(settings) => settings.factoring(),
            Self::LowrankKv(settings) => settings.factoring(),
            _ => None,
        }
    }

    /// Whether what it stores is a difference from a base.
    #[must_use]
    pub fn is_difference(&self) -> bool {
        matches!(self, Self::BitDelta(_) | Self::Breadcrumbs(_))
    }

    /// Whether its codes are found under second moments of the input.
    #[must_use]
    pub fn is_solved(&self) -> bool {
        self.factoring().is_some()
    }

    /// How what is stored is trained once it is found, if it is.
    #[must_use]
    pub fn training(&self) -> Option<TrainingSettings> {
        match self {
            Self::BitDelta(settings) => settings.training(),
            Self::Mask(settings) => settings.training(),
            _ => None,
        }
    }

    /// Whether what it does to weights follows from what flows through the model.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        match self {
            Self::Rtn(_) | Self::Rotate(_) | Self::Breadcrumbs(_) | Self::Custom(_) => false,
            Self::Mask(settings) => settings.needs_calibration(),
            Self::Pvq(_) | Self::Vptq(_) | Self::LowrankKv(_) => self.is_solved(),
            Self::BitDelta(_) => self.is_solved() || self.training().is_some(),
            Self::Gptq(_) | Self::SmoothQuant(_) | Self::SmoothQuantPlus(_) | Self::Awq(_) | Self::TaylorMlp(_) => true,
        }
    }

    /// Whether choosing the codec needs the weights themselves (a bits-per-weight target over granularities, outliers
    /// by σ); then the plan reads them once, and says so.
    #[must_use]
    pub fn needs_weights(&self) -> bool {
        self.number().is_some_and(rtn::Settings::needs_weights)
    }

    /// The codec of one matrix from shapes alone. Only when [`Settings::needs_weights`] is false.
    ///
    /// # Errors
    /// [`SettingError`] when the settings contradict the matrix or the layout's scale type.
    pub fn codec(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        match self {
            Self::Rtn(settings) => settings.codec(matrix),
            Self::Gptq(settings) => settings.number.codec(matrix),
            Self::Pvq(settings) => settings.choose(matrix),
            Self::Vptq(settings) => settings.choose(matrix),
            Self::Mask(settings) => settings.choose(matrix),
            Self::BitDelta(settings) => Ok(settings.choose()),
            Self::Breadcrumbs(settings) => settings.choose(matrix),
            Self::Custom(settings) => settings.choose(matrix),
            Self::LowrankKv(_) => Err(SettingError::new("use", "ranks follow from the model's heads")),
            Self::TaylorMlp(_) => {
                Err(SettingError { key: "use".into(), message: "takes down-projections of MLPs".into() })
            }
            _ => Err(SettingError { key: "use".into(), message: "a transform has no number format".into() }),
        }
    }

    /// The encoder of one matrix that rounds to nearest in its number format: `rtn`'s work, and what `gptq` falls back to
    /// where nothing is known of the input. With a mask, that of the largest magnitudes, or the one that was given.
    ///
    /// # Panics
    /// Panics for a transform, which has no number format and so no [`Choice`], and for codes of whole matrices.
    #[must_use]
    pub fn encoder(&self, matrix: &Matrix, choice: &Choice) -> Box<dyn MatrixEncoder> {
        let codec = choice.codec.scalar().expect("codes of whole matrices have no encoder of rows");
        if let Self::Custom(settings) = self {
            return settings.encoder(matrix, codec);
        }
        let encoder = self.number().expect("only encodings are chosen").encoder(matrix, codec);
        match &choice.mask {
            Some(settings) => Box::new(mask::MaskedEncoder::new(encoder, settings.selection())),
            None => encoder,
        }
    }

    /// Encodes a whole matrix (rotated already, where it is to be stored rotated; the difference, where that is what is
    /// stored) without knowing its input. Random choices follow from `name`.
    ///
    /// # Errors
    /// [`CodecError`] when the weights cannot be encoded.
    pub fn encode_whole(
        &self,
        whole: &Whole,
        name: &str,
        weights: &crate::forward::Matrix,
    ) -> Result<(StoredMatrix, Deviations), CodecError> {
        match (self, whole) {
            (Self::Pvq(settings), Whole::Pyramid(pyramid)) => {
                let (rows, columns) = (weights.rows, weights.columns);
                let linear = pvq::Linear { weights: &weights.values, rows, columns, pyramid: *pyramid };
                let solution = pvq::encode(&linear, &settings.solve).map_err(gptq::SolveError::into_codec)?;
                Ok((solution.tensors, solution.report.deviations))
            }
            (Self::Rtn(_), Whole::KQuant(format)) => rtn::k_quant::encode(*format, weights),
            (Self::Vptq(settings), Whole::Vector(format)) => {
                let linear = vptq::Linear {
                    name,
                    weights: &weights.values,
                    rows: weights.rows,
                    format,
                    arithmetic: format.storage,
                };
                let solution = vptq::solve_nearest(&linear, weights.columns, &settings.solve)
                    .map_err(gptq::SolveError::into_codec)?;
                Ok((solution.tensors, solution.report.deviations))
            }
            (Self::LowrankKv(settings), Whole::Factors(format)) => {
                let (weights, columns) = (&weights.values, weights.columns);
                let linear = lowrank_kv::Linear { name, weights, columns, format, rotate: settings.rotate };
                let stored = lowrank_kv::encode(&linear).map_err(gptq::SolveError::into_codec)?;
                Ok((stored, Deviations::new()))
            }
            (Self::Mask(settings), Whole::Sparse(sparse)) => {
                let found = settings.unseen(&weights.values, weights.rows, weights.columns)?;
                Ok((sparse.encode(&weights.values, &found)?.into(), Deviations::new()))
            }
            (Self::BitDelta(settings), Whole::Delta(delta)) => {
                Ok((settings.encode_planes(weights, delta.planes), Deviations::new()))
            }
            (Self::BitDelta(_), Whole::LowRank(format)) => {
                Ok((bitdelta::encode_low_rank(*format, weights)?, Deviations::new()))
            }
            (Self::Breadcrumbs(settings), Whole::Crumbs(crumbs)) => {
                Ok((settings.encode(crumbs, weights)?, Deviations::new()))
            }
            _ => Err(CodecError::Missing { what: "encoder for this number format" }),
        }
    }
}
