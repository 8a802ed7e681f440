//! What leaves a wave: pieces written and hashed, records of complete units, pages given back.

use super::{
    super::{RunError, journal::Record},
    Context, UnitState, Work, contiguous, entries,
};
use crate::{
    Result,
    layout::Piece,
    manifest::ContentHash,
    plan::{Action, Slab, Unit},
};

/// Writes a slab's pieces, moves the hashes on, gives the source's pages back; a record when the unit is complete.
pub(super) fn finish_slab<'a>(
    context: &Context<'a>,
    slab: &Slab,
    mut state: UnitState<'a>,
    pieces: Vec<Piece>,
) -> Result<(UnitState<'a>, Option<Record>)> {
    let unit = &context.plan.units[slab.unit];
    let complete = slab.range.end >= unit.extent();
    write_pieces(context, unit, &mut state, pieces)?;
    if complete {
        require_complete(unit, &state)?;
        flush_buffers(context, unit, &mut state)?;
    }
    release(context, unit, slab, complete);
    if !complete {
        return Ok((state, None));
    }
    let hash = |hasher: &blake3::Hasher| ContentHash::from(hasher.finalize());
    let inputs: Vec<ContentHash> = state.inputs.iter().map(hash).collect();
    let outputs = match unit.action {
        Action::Copy => inputs.clone(),
        _ => state.outputs.iter().map(hash).collect(),
    };
    let error = matches!(unit.action, Action::Encode(_)).then(|| state.sums.figures());
    let device = context.device.name().filter(|_| state.on_device);
    let deviations = std::mem::take(&mut state.deviations);
    let record = Record { unit: slab.unit, inputs, outputs, error, deviations, device };
    Ok((state, Some(record)))
}

/// Contiguous pieces arrive in order and are hashed and written as they come; interleaved ones are gathered.
fn write_pieces(context: &Context<'_>, unit: &Unit, state: &mut UnitState<'_>, pieces: Vec<Piece>) -> Result<()> {
    for piece in pieces {
        let output = &unit.outputs[piece.tensor];
        let before = state.written[piece.tensor];
        state.written[piece.tensor] = before + piece.bytes.len() as u64;
        if unit.action.matrix().is_some_and(|matrix| context.layout.interleaves(matrix)) {
            if state.buffers.is_empty() {
                state.buffers = unit.outputs.iter().map(|output| vec![0; output.spec.bytes() as usize]).collect();
            }
            piece.scatter(&mut state.buffers[piece.tensor]);
            continue;
        }
        if piece.run != piece.bytes.len() || piece.offset != before {
            let message = format!("`{}` was packed out of order at byte {}", output.spec.name, piece.offset);
            return Err(RunError::Defect { tensor: unit.name.clone(), message }.into());
        }
        state.outputs[piece.tensor].update(&piece.bytes);
        context.staging.write(context.plan, output.file, output.offset + piece.offset, &piece.bytes)?;
    }
    Ok(())
}

/// Every planned byte must have been written.
fn require_complete(unit: &Unit, state: &UnitState<'_>) -> Result<()> {
    if matches!(state.work, Work::Copy) {
        return Ok(());
    }
    for (output, &written) in unit.outputs.iter().zip(&state.written) {
        if written != output.spec.bytes() {
            let message = format!(
                "`{}` was planned with {} bytes and packed into {written}",
                output.spec.name,
                output.spec.bytes()
            );
            return Err(RunError::Defect { tensor: unit.name.clone(), message }.into());
        }
    }
    Ok(())
}

fn flush_buffers(context: &Context<'_>, unit: &Unit, state: &mut UnitState<'_>) -> Result<()> {
    for ((output, buffer), hasher) in
        unit.outputs.iter().zip(std::mem::take(&mut state.buffers)).zip(&mut state.outputs)
    {
        hasher.update(&buffer);
        context.staging.write(context.plan, output.file, output.offset, &buffer)?;
    }
    Ok(())
}

fn release(context: &Context<'_>, unit: &Unit, slab: &Slab, complete: bool) {
    let checkpoint = context.source.checkpoint();
    match contiguous(unit, slab) {
        Some(range) => {
            if let Some(entry) = entries(context, unit).first() {
                checkpoint.release(entry, range);
            }
        }
        None if complete => {
            for entry in entries(context, unit) {
                checkpoint.release(entry, 0..entry.bytes as usize);
            }
        }
        None => {}
    }
}
