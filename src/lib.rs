//! bantam compresses language models offline: a checkpoint and a recipe in, a smaller checkpoint and a manifest out.
//!
//! The modules stand in the order in which data meets them; `docs/architecture.md` tells the whole way. Data flows one
//! way: a pass never opens a file, a codec never sees a recipe, the writer knows no algorithm.
#![deny(missing_docs)]

pub mod error;
pub mod platform;

pub mod recipe;

pub mod check;
pub mod checkpoint;
pub mod remote;

pub mod model;

pub mod calibration;

pub mod codec;

pub mod compute;

pub mod layout;

#[path = "../passes/mod.rs"]
pub mod passes;

pub mod forward;

pub mod reverse;

pub mod train;

pub mod solve;

pub mod plan;

pub mod run;

pub mod evaluate;
pub mod linalg;
pub mod manifest;

pub mod decode;

pub mod exchange;
pub mod torch_file;

pub mod verify;

pub mod audit;

pub mod report;

pub mod cli;

pub use error::{Error, ExitCode, Result};
