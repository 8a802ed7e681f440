//! The command line: arguments, dispatch, and how a failure becomes a message and an exit code. One file per command.

pub mod arguments;
pub mod audit;
pub mod calibrate;
pub mod check;
pub mod decode;
pub mod devices;
pub mod diff;
pub mod eval;
pub mod exchange;
pub mod failure;
pub mod findings;
pub mod generate;
pub mod init;
pub mod inspect;
mod job;
pub mod masks;
pub mod meter;
mod models;
pub mod output;
pub mod plan;
pub mod plan_text;
pub mod progress;
pub mod report;
pub mod run;
pub mod size;
pub mod table;
pub mod verify;

pub use arguments::{
    AuditArguments, CalibrateArguments, CheckArguments, Command, CommandLine, CompletionsArguments, DecodeArguments,
    Denied, DenseDtype, Described, Device, DevicesArguments, DiffArguments, EvalArguments, ExportArguments,
    FindingsFormat, GlobalArguments, ImportArguments, InitArguments, InspectArguments, ManArguments, MasksArguments,
    PlanArguments, ReportArguments, ReportFormat, RunArguments, SchemaArguments, VerifyArguments,
};
pub use failure::CliError;
pub use output::{Output, Style, Verbosity};
pub use size::{ByteSize, grouped};

use std::ffi::OsString;

use clap::Parser;

use crate::{ExitCode, checkpoint::until_lost};

/// Parses the arguments (the first is the program's name), does what they say and gives the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut command_line = match CommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
            // A help text whose reader has gone away is no failure.
            let _ = error.print();
            return code;
        }
    };
    crate::platform::install_sigbus_handler();
    let output = Output::new(&command_line.global, command_line.command.json());
    let done = models::resolve(&mut command_line.command);
    let done = done.and_then(|()| {
        let lost = until_lost(|| execute(&command_line.command, &output));
        lost.unwrap_or_else(|error| Err(error.into()))
    });
    done.unwrap_or_else(|error| failure::report(&error, &output))
}

fn execute(command: &Command, output: &Output) -> Result<ExitCode, anyhow::Error> {
    match command {
        Command::Run(arguments) => run::execute(arguments, output),
        Command::Plan(arguments) => plan::execute(arguments, output),
        Command::Inspect(arguments) => inspect::execute(arguments, output),
        Command::Decode(arguments) => decode::execute(arguments, output),
        Command::Import(arguments) => exchange::import(arguments, output),
        Command::Export(arguments) => exchange::export(arguments, output),
        Command::Diff(arguments) => diff::execute(arguments, output),
        Command::Eval(arguments) => eval::execute(arguments, output),
        Command::Calibrate(arguments) => calibrate::execute(arguments, output),
        Command::Verify(arguments) => verify::execute(arguments, output),
        Command::Check(arguments) => check::execute(arguments, output),
        Command::Audit(arguments) => audit::execute(arguments, output),
        Command::Report(arguments) => report::execute(arguments, output),
        Command::Masks(arguments) => masks::execute(arguments, output),
        Command::Devices(arguments) => devices::execute(arguments, output),
        Command::Init(arguments) => init::execute(arguments, output),
        Command::Schema(arguments) => generate::schema(arguments, output),
        Command::Completions(arguments) => generate::completions(arguments, output),
        Command::Man(arguments) => generate::man(arguments, output),
    }
}
