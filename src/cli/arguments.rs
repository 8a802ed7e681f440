//! The arguments of every command.

mod compress;
mod convert;
mod generate;
mod judge;

pub use compress::{CalibrateArguments, Denied, Device, PlanArguments, RunArguments};
pub use convert::{DecodeArguments, DenseDtype, ExportArguments, ImportArguments, MasksArguments};
pub use generate::{CompletionsArguments, Described, DevicesArguments, InitArguments, ManArguments, SchemaArguments};
pub use judge::{
    AuditArguments, CheckArguments, DiffArguments, EvalArguments, FindingsFormat, InspectArguments, ReportArguments,
    ReportFormat, VerifyArguments,
};

use clap::{Args, Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    check, verify or diff found a difference
  2    the command line or the recipe is wrong
  3    a checkpoint or an artifact is invalid
  4    disk, memory or device
  75   stopped safely, run the same command again to continue
  130  interrupted twice";

/// Compresses language models offline: a checkpoint and a recipe in, a smaller checkpoint and a manifest out.
#[derive(Debug, Parser)]
#[command(name = "bantam", version, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 80)]
pub struct CommandLine {
    /// What holds for every command.
    #[command(flatten)]
    pub global: GlobalArguments,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArguments {
    /// No progress; twice: no warnings either
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub quiet: u8,
    /// Say what is decided on the way
    #[arg(long, short, global = true, conflicts_with = "quiet", help_heading = "Output")]
    pub verbose: bool,
    /// No progress bar and no progress lines
    #[arg(long, global = true, help_heading = "Output")]
    pub no_progress: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compress a checkpoint as a recipe says
    ///
    /// The artifact appears under its name only when it is complete, synced and verified. A run that was stopped or
    /// killed continues when the same command is given again.
    #[command(after_help = "Example:\n  bantam run recipes/int4.toml --model ~/models/llama --out llama-int4")]
    Run(RunArguments),
    /// Say exactly what a run would write, from headers alone
    #[command(after_help = "Example:\n  bantam plan recipes/int4.toml --json")]
    Plan(PlanArguments),
    /// Show what a checkpoint or an artifact is
    ///
    /// Without --tensor a page about the model: architecture, sizes, types, and what every role is stored as. With it,
    /// statistics and a histogram of each chosen tensor. The histogram reaches four standard deviations from the mean;
    /// what lies beyond counts in its outermost columns.
    #[command(after_help = "Examples:\n  bantam inspect llama-int4\n  bantam inspect llama --tensor mlp.down")]
    Inspect(InspectArguments),
    /// Turn a compressed model into dense safetensors that any runtime loads
    ///
    /// Reads what bantam writes, and compressed-tensors, GPTQ, AWQ, FP8 with block scales and MXFP4 of other tools.
    /// Weights get the type that the artifact names, other tensors are copied byte for byte; with --dtype every float
    /// tensor gets that type, and a weight that is too large for it is an error.
    #[command(after_help = "Example:\n  bantam decode llama-int4 --out llama-decoded")]
    Decode(DecodeArguments),
    /// Read a fine-tune that BitDelta stored (diff.pt), or CSKV's pair of `.ckpt` files
    ///
    /// Writes an artifact of layout delta, which `decode`, `eval` and `verify` take with `--base`. Of a `.pt` file only a flat
    /// dictionary of tensors is read; nothing in it is executed. Configuration and tokenizer are the base's.
    #[command(after_help = "Example:\n  bantam import diff.pt --base llama --out llama-chat-delta")]
    Import(ImportArguments),
    /// Write an artifact of pass bitdelta with BitDelta's names, or one of `lowrank_kv` as CSKV's pair of `.ckpt` files
    ///
    /// Of `lowrank_kv`: factors of every layer, joint over the heads, as many latent channels in each layer, no biases.
    /// Of bitdelta, in safetensors:
    /// Takes one plane of signs and one scale per matrix (planes = 1, scale = "matrix"). Tensors that are the base's are left
    /// out; where only some rows are stored, --base makes them whole.
    #[command(after_help = "Example:\n  bantam export llama-chat-delta --base llama --out diff.safetensors")]
    Export(ExportArguments),
    /// Compare two models tensor by tensor, worst first
    ///
    /// Either may be a checkpoint or an artifact; compressed tensors are decoded on the way. Exits with 1 when a tensor
    /// is missing on one side, when shapes, integers or kinds of types differ, or with --min-snr when a tensor falls
    /// below the threshold. Errors above the threshold, or without one, do not count.
    #[command(after_help = "Example:\n  bantam diff llama llama-int4 --min-snr 18")]
    Diff(DiffArguments),
    /// Measure a model's perplexity on a text, and how far it is from another model
    ///
    /// The text is tokenised whole and cut into windows of --context tokens that do not overlap; the figure is over the
    /// predicted tokens of all windows. Works on checkpoints and on artifacts, block by block: memory depends on the
    /// largest block. With --reference also the mean KL divergence from it, its 99th percentile, and how often the most
    /// likely token agrees. Standard errors take windows as independent draws.
    ///
    /// An artifact of pass `lowrank_kv` is evaluated as its runtime computes: the latest tokens' keys and values exact, older
    /// ones from latents, quantized where the artifact says so.
    #[command(after_help = "Example:\n  bantam eval llama-int4 --text evaluation.txt --reference llama --context 2048")]
    Eval(EvalArguments),
    /// Save statistics of a model's activations, for runs of the same model and text
    ///
    /// Takes the recipe's calibration text through the original model and writes second moments, channel figures and
    /// examples of every linear's input to one file. A recipe uses it with `statistics = "FILE"` under `[calibration]`; a
    /// file of another model, text or length is refused. For mixtures of experts it says how many tokens each expert saw.
    /// With --coverage it says that alone, after one forward pass and before any hours are spent, and writes nothing.
    #[command(
        after_help = "Examples:\n  bantam calibrate recipes/awq.toml --out llama.statistics.safetensors\n  bantam calibrate recipes/moe.toml --coverage"
    )]
    Calibrate(CalibrateArguments),
    /// Check an artifact against its manifest, its layout and its source
    ///
    /// Checks files, headers, hashes, sums, the layout's demands and that every code decodes. With --source also that
    /// the source is the one it was made of, and that every error figure comes out again. Exits with 1 when something
    /// is found, with 3 when there is no manifest to check against.
    #[command(after_help = "Example:\n  bantam verify llama-int4 --source ~/models/llama")]
    Verify(VerifyArguments),
    /// Hold an artifact against a policy: sizes, errors, formats, provenance
    ///
    /// Verifies the artifact first, then every rule of the policy. Each finding names rule, tensor, value and limit. Exits
    /// with 1 when something is found, with 2 when the policy has an unknown rule, with 3 when there is no manifest.
    #[command(
        after_help = "Examples:\n  bantam check llama-int4 --policy policy.toml\n  bantam check llama-int4 --policy policy.toml --format junit > report.xml"
    )]
    Check(CheckArguments),
    /// Recover weights from an artifact of pass `taylor_mlp`, to show that it does not protect them
    ///
    /// Mounts the known attack on what the artifact stores, and nothing else: the terms of a unit share one column, so that
    /// their ratios tell the polynomial, and the column follows. Says how many of the protected columns that gives back: with
    /// --source by comparing them, else by whether they explain every stored term. It always exits with 0 when it has
    /// an answer.
    #[command(after_help = "Example:\n  bantam audit llama-taylor --source ~/models/llama")]
    Audit(AuditArguments),
    /// Write a report on an artifact: HTML, Markdown, JSON, a model card
    ///
    /// Sizes, errors by layer and role, the tensors that lost most, fallbacks, the recipe; with evaluations their perplexities;
    /// with the source histograms of weights before and after. The HTML form is one file without scripts that needs no
    /// network. Without --out it goes to stdout.
    #[command(
        after_help = "Examples:\n  bantam report llama-int4 --out report.html\n  bantam report llama-int4 --against llama-int8 --evaluation int4.json --out report.html\n  bantam report llama-int4 --card --base-model meta-llama/Llama-3.2-1B"
    )]
    Report(ReportArguments),
    /// Save which weights of a 2:4 model are kept
    ///
    /// Writes MaskLLM's `.npz`: an entry `NAME.mask` for every matrix of which each four neighbouring weights of a row have
    /// two zeros or more, one bit a weight. A recipe takes it with `masks = "FILE"` under `use = "mask_2_4"`.
    #[command(after_help = "Example:\n  bantam masks llama-2of4 --out llama-masks.npz")]
    Masks(MasksArguments),
    /// List the graphics adapters of this machine, and measure them
    ///
    /// Tells each adapter's driver, limits and features, and measures for at most ten seconds how fast it copies, multiplies
    /// and adds, makes products of matrices, and takes and gives data. A machine without adapters says so and exits with 0. The environment variable
    /// `BANTAM_ADAPTER` (a part of a name, or `software`) says which one `--device gpu` uses.
    #[command(after_help = "Example:\n  bantam devices --json")]
    Devices(DevicesArguments),
    /// Write a commented recipe that fits a model and this machine
    ///
    /// Plans 4-bit weights in groups of 128, and smaller groups or 8 bits where those do not divide the model's rows; tells
    /// in comments what the recipe comes to and what else there is.
    #[command(after_help = "Example:\n  bantam init ~/models/llama --out llama.toml")]
    Init(InitArguments),
    /// Print the JSON schema of recipes or policies, so that editors complete and check them
    #[command(
        after_help = "Example:\n  bantam schema recipe > recipe.schema.json\n\nA first line `#:schema recipe.schema.json` in the TOML file names it to editors."
    )]
    Schema(SchemaArguments),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  bantam completions bash > ~/.local/share/bash-completion/completions/bantam")]
    Completions(CompletionsArguments),
    /// Print the man page, or write one for every command
    #[command(after_help = "Example:\n  bantam man --out ~/.local/share/man/man1")]
    Man(ManArguments),
}

impl Command {
    /// Whether the result is wanted as JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        match self {
            Self::Run(arguments) => arguments.json,
            Self::Plan(arguments) => arguments.json,
            Self::Inspect(arguments) => arguments.json,
            Self::Decode(arguments) => arguments.json,
            Self::Import(arguments) => arguments.json,
            Self::Export(arguments) => arguments.json,
            Self::Diff(arguments) => arguments.json,
            Self::Verify(arguments) => arguments.json,
            Self::Check(arguments) => arguments.format == FindingsFormat::Json,
            Self::Audit(arguments) => arguments.json,
            Self::Eval(arguments) => arguments.json,
            Self::Calibrate(arguments) => arguments.json,
            Self::Masks(arguments) => arguments.json,
            Self::Devices(arguments) => arguments.json,
            Self::Report(_) | Self::Init(_) | Self::Schema(_) | Self::Completions(_) | Self::Man(_) => false,
        }
    }
}
