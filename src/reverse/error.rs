//! Why gradients cannot be computed.

use crate::{ExitCode, forward::ForwardError};

/// Why gradients cannot be computed, or a training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReverseError {
    /// The forward pass fails.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A part of the model has no reverse pass.
    #[error("{place} has {part}, which gradients cannot be taken through yet")]
    Unsupported {
        /// Which block, or the head.
        place: String,
        /// What is missing.
        part: &'static str,
    },
    /// Two things that belong together differ in shape.
    #[error("`{what}` has {found} values, expected {expected}")]
    Shape {
        /// A tensor or a list of parameters.
        what: String,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A trained linear is not in the model.
    #[error("`{tensor}` is to be trained, but no block of the model has such a linear")]
    Unknown {
        /// Its name.
        tensor: String,
    },
    /// Teacher and student cannot be compared.
    #[error("the student has {student} classes, the teacher {teacher}; their logits cannot be compared")]
    Classes {
        /// Rows of the student's head.
        student: usize,
        /// Rows of the teacher's.
        teacher: usize,
    },
    /// A loss cannot be computed from what is given.
    #[error("this loss compares with a teacher's logits or with the text, and the other one is given")]
    NoTeacher,
    /// There is nothing to train on.
    #[error("{what}")]
    Sequences {
        /// What is wrong with the sequences.
        what: String,
    },
    /// Loss or gradients became infinite or not-a-number.
    #[error("training step {step}: the {what} is not finite; a lower learning rate or gradient clipping may help")]
    NotFinite {
        /// The step, from zero.
        step: u64,
        /// What overflowed.
        what: &'static str,
    },
    /// A saved state of a training does not fit.
    #[error("the saved state of the training {problem}")]
    Saved {
        /// What is wrong.
        problem: String,
    },
    /// The file of hidden states fails.
    #[error("the file of hidden states: {0}")]
    Store(#[from] std::io::Error),
}

impl ReverseError {
    /// The exit code of this failure.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Store(_) => ExitCode::Environment,
            Self::Forward(error) => error.exit_code(),
            _ => ExitCode::Input,
        }
    }

    pub(super) fn saved(problem: impl Into<String>) -> Self {
        Self::Saved { problem: problem.into() }
    }
}
