//! What lies between two stages.

use super::Matrix;

/// Activations of some sequences of equal length between two stages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Tokens of each sequence.
    pub length: usize,
    /// The residual stream, `[tokens, hidden]`.
    pub hidden: Matrix,
    /// What the next stages need besides.
    pub carried: Vec<Matrix>,
}

impl State {
    /// All values one after the other, for a file.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        std::iter::once(&self.hidden).chain(&self.carried)
    }

    /// Number of values of one token.
    #[must_use]
    pub fn width(&self) -> usize {
        self.matrices().map(|matrix| matrix.columns).sum()
    }
}
