//! The arguments of every command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::ByteSize;
use crate::checkpoint::Dtype;

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

/// Arguments of `bantam run`.
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The checkpoint that differences are taken from, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder to write, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the run may use, such as 8GiB or 500MB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// Memory of the graphics processor that the run may use, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Start over, throwing away what an earlier run left unfinished
    #[arg(long)]
    pub fresh: bool,
    /// Fail instead of doing something else than asked for
    #[arg(long, value_enum, value_name = "WHAT")]
    pub deny: Vec<Denied>,
    /// One JSON object per event on stdout, the manifest last
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The checkpoint that differences are taken from, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder that would be written, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Number of threads that the run would use [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the run may use, such as 8GiB or 500MB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// The plan as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArguments {
    /// A checkpoint or an artifact: a folder, or one .safetensors file
    pub path: PathBuf,
    /// Statistics of these tensors: a role, a glob, or a /regular expression/
    #[arg(long, value_name = "SELECTOR")]
    pub tensor: Vec<String>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArguments {
    /// The reference: a checkpoint or an artifact
    pub a: PathBuf,
    /// What is compared with it
    pub b: PathBuf,
    /// Exit with 1 when a tensor's signal-to-noise ratio is below this many decibels
    #[arg(long, value_name = "DB", allow_negative_numbers = true)]
    pub min_snr: Option<f64>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// The checkpoint it was made of: its hashes are checked and the error figures derived again
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta: its hashes are checked
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The findings as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// What it must be, a TOML file
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// How findings are written to stdout
    #[arg(long, value_enum, default_value_t = FindingsFormat::Text)]
    pub format: FindingsFormat,
}

/// How findings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FindingsFormat {
    /// For people
    Text,
    /// One JSON object
    Json,
    /// `JUnit` XML, for test reports
    Junit,
    /// SARIF 2.1.0, for code hosts
    Sarif,
}

/// Arguments of `bantam init`.
#[derive(Debug, Clone, Args)]
pub struct InitArguments {
    /// The checkpoint
    pub model: PathBuf,
    /// The recipe to write; it must not exist [default: recipe.toml]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `bantam schema`.
#[derive(Debug, Clone, Args)]
pub struct SchemaArguments {
    /// What of
    #[arg(value_enum)]
    pub of: Described,
}

/// What has a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Described {
    /// What `run` and `plan` read
    Recipe,
    /// What `check` reads
    Policy,
}

/// Arguments of `bantam completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArguments {
    /// For which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Arguments of `bantam man`.
#[derive(Debug, Clone, Args)]
pub struct ManArguments {
    /// A folder that gets a page for every command; without it the main page is printed
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `bantam audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArguments {
    /// The folder that a run with pass `taylor_mlp` wrote
    pub artifact: PathBuf,
    /// The checkpoint it was made of: it judges what was recovered, and is not used to recover it
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArguments {
    /// The folder that a run wrote
    pub artifact: PathBuf,
    /// Another artifact, shown beside it
    #[arg(long, value_name = "OTHER")]
    pub against: Option<PathBuf>,
    /// The file to write; one of that name is replaced
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Form of the report [default: what the name of --out says, or markdown]
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    /// The checkpoint that it was made of, for histograms [default: where the run found it]
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Histograms of these tensors: a role, a glob, or a /regular expression/ [default: the worst, the median, the largest]
    #[arg(long, value_name = "SELECTOR")]
    pub tensor: Vec<String>,
    /// A row of the table of perplexities: what `bantam eval --json` printed; the row has the file's name
    #[arg(long, value_name = "FILE")]
    pub evaluation: Vec<PathBuf>,
    /// Evaluate source and artifacts on this text now
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Tokens of a window of --text [default: what the model takes, at most 2048]
    #[arg(long, value_name = "N", value_parser = parse_context, requires = "text")]
    pub context: Option<usize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Write a model card into the artifact, as README.md, and list it in the manifest
    #[arg(long)]
    pub card: bool,
    /// The original model on a hub, for the card [default: as the recipe names it]
    #[arg(long, value_name = "OWNER/NAME", requires = "card")]
    pub base_model: Option<String>,
    /// Replace a README.md that bantam did not write
    #[arg(long, requires = "card")]
    pub force: bool,
}

/// Forms of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// One file for a browser
    Html,
    /// Tables
    Markdown,
    /// One JSON object
    Json,
}

/// Arguments of `bantam decode`.
#[derive(Debug, Clone, Args)]
pub struct DecodeArguments {
    /// A compressed model, of bantam or of another tool
    pub artifact: PathBuf,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Element type of every float tensor [default: what the artifact says]
    #[arg(long, value_enum)]
    pub dtype: Option<DenseDtype>,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArguments {
    /// diff.pt, or a .safetensors file with the same names; or either one of CSKV's `NAME_k.ckpt` and `NAME_v.ckpt`
    pub file: PathBuf,
    /// The checkpoint that the differences are from, or that the factors were made for
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Of CSKV's files: tokens whose keys and values stay exact
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub window: usize,
    /// Of CSKV's files: the artifact's layout
    #[arg(long, value_name = "NAME", default_value = "remote-code", value_parser = ["remote-code", "bantam"])]
    pub layout: String,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArguments {
    /// An artifact of pass bitdelta or `lowrank_kv`
    pub artifact: PathBuf,
    /// The checkpoint that the differences are from; needed where only some rows of a tensor are stored
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The file to write, in safetensors; of factors what stands before `_k.ckpt` and `_v.ckpt`. It must not exist
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam masks`.
#[derive(Debug, Clone, Args)]
pub struct MasksArguments {
    /// The model: a checkpoint or an artifact
    pub model: PathBuf,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The file to write; one of that name is replaced
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What was written as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam calibrate`.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArguments {
    /// The recipe, a TOML file
    pub recipe: PathBuf,
    /// The file to write, in safetensors
    #[arg(long, value_name = "FILE", required_unless_present = "coverage")]
    pub out: Option<PathBuf>,
    /// Only count the tokens that each expert sees, and write nothing
    #[arg(long, conflicts_with = "out")]
    pub coverage: bool,
    /// The checkpoint, instead of the recipe's
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Memory of the graphics processor that may be used, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that it may use, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// What was found as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArguments {
    /// A checkpoint or an artifact
    pub path: PathBuf,
    /// The text: .txt, .jsonl, or token ids in .safetensors; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub text: Vec<PathBuf>,
    /// The checkpoint that the differences are from, for an artifact of pass bitdelta
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// The model to compare with
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Tokens of a window [default: what the model takes, at most 2048]
    #[arg(long, value_name = "N", value_parser = parse_context)]
    pub context: Option<usize>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// Memory of the graphics processor that may be used, such as 6GiB
    #[arg(long, value_name = "SIZE")]
    pub max_device_memory: Option<ByteSize>,
    /// Number of threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Memory that the evaluation may use, such as 8GiB
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,
    /// Also measure retrieval: each window is a passage of half as many tokens and the same passage again, whose tokens are to
    /// be predicted
    #[arg(long)]
    pub retrieval: bool,
    /// Tokens whose keys and values are exact, instead of the window that an artifact of pass `lowrank_kv` records
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// Write all logits to this safetensors file, F32 [windows, context, vocabulary]
    #[arg(long, value_name = "FILE")]
    pub save_logits: Option<PathBuf>,
    /// The result as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bantam devices`.
#[derive(Debug, Clone, Args)]
pub struct DevicesArguments {
    /// The list as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

fn parse_context(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(context) if context >= 2 => Ok(context),
        _ => Err("expected a whole number of at least 2".to_owned()),
    }
}

/// `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    /// What a measurement finds to be faster, where that changes no byte
    #[default]
    Auto,
    /// The processor
    Cpu,
    /// The graphics processor
    Gpu,
}

/// `--deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Denied {
    /// A tensor kept dense or treated otherwise than asked for
    Fallback,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DenseDtype {
    /// 16 bits, 8 of them exponent
    Bf16,
    /// 16 bits, 5 of them exponent
    F16,
    /// 32 bits
    F32,
}

impl From<DenseDtype> for Dtype {
    fn from(dtype: DenseDtype) -> Self {
        match dtype {
            DenseDtype::Bf16 => Self::BF16,
            DenseDtype::F16 => Self::F16,
            DenseDtype::F32 => Self::F32,
        }
    }
}
