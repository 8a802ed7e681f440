//! Solves block by block what needs calibration.

pub mod fold;
#[cfg(test)]
mod fold_tests;
mod saved;
mod tensor_change;
pub mod transforms;
mod view;
