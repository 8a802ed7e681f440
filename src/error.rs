//! One error type over all modules, and the exit codes that scripts rely on.

/// The process's exit codes; `docs/cli.md` and `--help` name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    /// Everything asked for was done.
    Done = 0,
    /// A check, verify or diff found a difference.
    Difference = 1,
    /// The command line or the recipe is wrong.
    Usage = 2,
    /// A checkpoint or an artifact is wrong.
    Input = 3,
    /// The disk, the memory or the device is wrong.
    Environment = 4,
    /// Stopped safely; the same command continues.
    Stopped = 75,
    /// Interrupted twice, stopped at once.
    Interrupted = 130,
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Every way in which a command can fail. Each module has its own typed error; this one only gathers them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    /// A checkpoint is wrong.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// Calibration or evaluation data is wrong, or too little.
    #[error(transparent)]
    Tokens(#[from] crate::calibration::TokenError),
    /// A codec cannot hold or read the data.
    #[error(transparent)]
    Codec(#[from] crate::codec::CodecError),
    /// A layout cannot express or read something.
    #[error(transparent)]
    Layout(#[from] crate::layout::LayoutError),
    /// A pass cannot choose its codecs.
    #[error(transparent)]
    Choose(#[from] crate::passes::ChooseError),
    /// The plan cannot be made.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// The run failed.
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    /// A model cannot be run.
    #[error(transparent)]
    Forward(#[from] crate::forward::ForwardError),
    /// Calibrated passes cannot be solved.
    #[error(transparent)]
    Solve(#[from] crate::solve::SolveFailure),
    /// A training cannot go on.
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    /// A scratch file fails.
    #[error("a scratch file: {0}")]
    Scratch(#[from] std::io::Error),
    /// A graphics processor cannot be used.
    #[error(transparent)]
    Compute(#[from] crate::compute::ComputeError),
    /// A manifest cannot be read.
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
}

impl Error {
    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Recipe(_) | Self::Choose(_) => ExitCode::Usage,
            Self::Checkpoint(_) | Self::Codec(_) | Self::Manifest(_) => ExitCode::Input,
            Self::Tokens(error) => error.exit_code(),
            Self::Scratch(_) | Self::Compute(_) => ExitCode::Environment,
            Self::Solve(error) => error.exit_code(),
            Self::Train(error) => error.exit_code(),
            Self::Layout(error) => error.exit_code(),
            Self::Forward(error) => error.exit_code(),
            Self::Plan(error) => error.exit_code(),
            Self::Run(error) => error.exit_code(),
        }
    }

    /// What the user can do about it, where there is something better than the message itself.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Recipe(error) => error.hint(),
            Self::Checkpoint(error) => error.hint(),
            Self::Tokens(error) => error.hint(),
            Self::Layout(error) => error.hint(),
            Self::Plan(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Solve(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Compute(_)
            | Self::Codec(_)
            | Self::Choose(_)
            | Self::Scratch(_)
            | Self::Forward(_)
            | Self::Manifest(_) => None,
        }
    }
}
