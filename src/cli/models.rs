//! Ids of models in arguments become the folders that they stand for.

use super::{CliError, Command};
use crate::{checkpoint::resolve_hub_id, remote::is_remote};

/// Puts the folders of the hub cache in place of ids, wherever an argument names a checkpoint or an artifact.
///
/// # Errors
/// When an id is malformed or the cache does not hold the model, and for a URL where a command needs a folder.
pub(super) fn resolve(command: &mut Command) -> Result<(), anyhow::Error> {
    let named = match command {
        Command::Run(arguments) => vec![arguments.model.as_mut(), arguments.base.as_mut()],
        Command::Plan(arguments) => vec![arguments.model.as_mut(), arguments.base.as_mut()],
        Command::Inspect(arguments) => vec![Some(&mut arguments.path)],
        Command::Decode(arguments) => vec![Some(&mut arguments.artifact), arguments.base.as_mut()],
        Command::Import(arguments) => vec![Some(&mut arguments.base)],
        Command::Export(arguments) => vec![Some(&mut arguments.artifact), arguments.base.as_mut()],
        Command::Diff(arguments) => vec![Some(&mut arguments.a), Some(&mut arguments.b)],
        Command::Eval(arguments) => {
            vec![Some(&mut arguments.path), arguments.base.as_mut(), arguments.reference.as_mut()]
        }
        Command::Calibrate(arguments) => vec![arguments.model.as_mut()],
        Command::Verify(arguments) => {
            vec![Some(&mut arguments.artifact), arguments.source.as_mut(), arguments.base.as_mut()]
        }
        Command::Check(arguments) => vec![Some(&mut arguments.artifact)],
        Command::Report(arguments) => vec![
            Some(&mut arguments.artifact),
            arguments.against.as_mut(),
            arguments.source.as_mut(),
            arguments.base.as_mut(),
        ],
        Command::Audit(arguments) => vec![Some(&mut arguments.artifact), arguments.source.as_mut()],
        Command::Masks(arguments) => vec![Some(&mut arguments.model), arguments.base.as_mut()],
        // The recipe that `init` writes keeps the id.
        Command::Init(_) | Command::Devices(_) | Command::Schema(_) | Command::Completions(_) | Command::Man(_) => {
            Vec::new()
        }
    };
    for path in named.into_iter().flatten() {
        *path = resolve_hub_id(path)?;
    }
    let local = match command {
        Command::Check(arguments) => Some((&arguments.artifact, "check")),
        Command::Report(arguments) => Some((&arguments.artifact, "report")),
        Command::Import(arguments) => Some((&arguments.out, "import")),
        Command::Export(arguments) => Some((&arguments.out, "export")),
        Command::Decode(arguments) => Some((&arguments.out, "decode")),
        Command::Masks(arguments) => Some((&arguments.out, "masks")),
        _ => None,
    };
    match local.filter(|(path, _)| is_remote(path)) {
        Some((path, command)) => {
            let message = format!("{} is in an object store; `{command}` needs a path on this machine", path.display());
            let hint = Some("only `run` writes to object stores; `verify` checks what lies there".into());
            Err(CliError::Usage { message, hint }.into())
        }
        None => Ok(()),
    }
}
