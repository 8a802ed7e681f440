//! `taylor_mlp`: of some hidden units of each MLP, the down-projection's columns are stored only multiplied with the terms of a
//! polynomial that stands for the activation (Wang et al., `TaylorMLP`, arXiv 2410.05331). A slowdown and an obfuscation: the
//! claim that weights cannot be recovered is broken in public, and [`crate::codec::taylor::Expansion::dense`] recovers them.

mod select;
mod settings;
mod terms;
#[cfg(test)]
mod tests;

pub use select::{Figures, Ranges, Selection, TooFew};
pub use settings::{INFO, KEYS, Middle, Settings};
pub use terms::encode;
