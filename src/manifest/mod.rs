//! The manifest: the proof of what was done.

/// Every way in which a manifest can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {}
