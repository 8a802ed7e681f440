//! What happens when bytes of an opened checkpoint cannot be had any more.
//!
//! A mapped file that shrinks ends the process with a message (`platform`); an object that is gone or has changed ends
//! the work in hand the same way, without the process: everything is unwound up to [`until_lost`], which has the error.
//! So readers of weights need no error path of their own, and no half-read weight gets any further.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::CheckpointError;

struct Lost(CheckpointError);

/// Ends the work in hand; nothing is printed.
pub(super) fn lost(error: CheckpointError) -> ! {
    resume_unwind(Box::new(Lost(error)))
}

/// Does some work, as far as the checkpoints that it reads can be read.
///
/// # Errors
/// What a read failed with after its checkpoint had been opened.
pub fn until_lost<T>(work: impl FnOnce() -> T) -> Result<T, CheckpointError> {
    // What was unwound is not looked at again: files are continued by what their journals say.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| match payload.downcast::<Lost>() {
        Ok(lost) => lost.0,
        Err(other) => resume_unwind(other),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rayon::prelude::*;

    use super::*;

    #[test]
    fn a_loss_in_any_thread_arrives_and_other_panics_pass() {
        let missing = || CheckpointError::Missing { path: PathBuf::from("x") };
        let work = || (0..100).into_par_iter().map(|at| if at == 37 { lost(missing()) } else { at }).sum::<i32>();
        assert!(matches!(until_lost(work), Err(CheckpointError::Missing { .. })));
        assert_eq!(until_lost(|| 7).unwrap(), 7);
        let other = catch_unwind(|| until_lost(|| resume_unwind(Box::new(5_u8))));
        assert_eq!(*other.unwrap_err().downcast::<u8>().unwrap(), 5);
    }
}
