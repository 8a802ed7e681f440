//! The state of a training on disk.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::{manifest::ContentHash, reverse::TrainingState};

/// Saving may take one part in so many of the time.
const SHARE: u32 = 20;

/// The first line of the file; the state's bytes follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Head {
    /// `bantam.training/1`.
    schema: String,
    /// What the state belongs to.
    identity: String,
    /// Losses of all steps done.
    losses: Vec<f64>,
    /// Hash of the state's bytes.
    state: ContentHash,
}

/// The file of a training's state, and when it was written last.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    identity: String,
    last: Instant,
    /// How long that took.
    took: Duration,
}

impl Saved {
    /// The file in this folder, which is made where it is not there.
    pub(super) fn new(folder: &Path, identity: String) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(|source| TrainError::io(folder, source))?;
        Ok(Self { path: folder.join("training"), identity, last: Instant::now(), took: Duration::ZERO })
    }

    /// The state and the losses of the steps before it, if the file holds those of this identity. Names and lengths are
    /// those of `like`.
    pub(super) fn read(&self, like: &TrainingState) -> Option<(TrainingState, Vec<f64>)> {
        let bytes = std::fs::read(&self.path).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (head, state) = (&bytes[..end], &bytes[end + 1..]);
        let head: Head = serde_json::from_slice(head).ok()?;
        if head.identity != self.identity || head.state != ContentHash::of(state) {
            return None;
        }
        let counts: Vec<usize> = like.parameters.iter().map(Vec::len).collect();
        let state = TrainingState::from_bytes(state, &like.names, &counts).ok()?;
        (state.step() == head.losses.len() as u64).then_some((state, head.losses))
    }

    /// Whether it is time to write: often where that costs little.
    pub(super) fn is_due(&self) -> bool {
        self.last.elapsed() >= self.took * SHARE
    }

    /// Writes all of it beside the file and puts it in its place.
    pub(super) fn write(&mut self, state: &TrainingState, losses: &[f64]) -> Result<(), TrainError> {
        let start = Instant::now();
        let bytes = state.to_bytes()?;
        let head = Head {
            schema: "bantam.training/1".into(),
            identity: self.identity.clone(),
            losses: losses.to_vec(),
            state: ContentHash::of(&bytes),
        };
        let next = self.path.with_extension("next");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&next)?;
            serde_json::to_writer(&mut file, &head)?;
            file.write_all(b"\n")?;
            file.write_all(&bytes)?;
            std::fs::rename(&next, &self.path)
        };
        write().map_err(|source| TrainError::io(&self.path, source))?;
        self.last = Instant::now();
        self.took = self.last - start;
        Ok(())
    }
}
