//! To be written.

/// Every way in which it fails.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {}

impl PlanError {
    /// Its exit code.
    #[must_use]
    pub fn exit_code(&self) -> crate::ExitCode {
        crate::ExitCode::Environment
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        None
    }
}
