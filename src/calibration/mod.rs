//! Calibration: the tokens that a model is shown so that passes see what flows through it.
//!
//! `docs/calibration.md` tells users what is read and which sequences are chosen.

mod chat;
mod error;
mod text;
mod tokens;

pub use error::TokenError;
pub use tokens::{Tokens, read, windows};

#[cfg(test)]
mod tests;
