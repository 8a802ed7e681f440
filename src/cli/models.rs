//! Ids of models in arguments become the folders that they stand for.

use super::Command;
use crate::checkpoint::{CheckpointError, resolve_hub_id};

/// Puts the folders of the hub cache in place of ids, wherever an argument names a checkpoint or an artifact.
///
/// # Errors
/// When an id is malformed or the cache does not hold the model.
pub(super) fn resolve(command: &mut Command) -> Result<(), CheckpointError> {
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
        Command::Audit(arguments) => vec![Some(&mut arguments.artifact), arguments.source.as_mut()],
        Command::Masks(arguments) => vec![Some(&mut arguments.model), arguments.base.as_mut()],
        // The recipe that `init` writes keeps the id.
        Command::Init(_)
        | Command::Devices(_)
        | Command::Schema(_)
        | Command::Completions(_)
        | Command::Man(_) => Vec::new(),
    };
    for path in named.into_iter().flatten() {
        *path = resolve_hub_id(path)?;
    }
    Ok(())
}
