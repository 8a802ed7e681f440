//! Round to nearest, and the data-free methods that choose its scales better.

use super::{Choice, Kind, Matrix, MatrixEncoder, PassInfo, SettingError, Settings as AnySettings};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "rtn",
    kind: Kind::Encoding,
    keys: &[],
    default_select: &["linear"],
    default_skip: &["head"],
    parse,
};

/// Settings of `rtn`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {}

fn parse(_table: &toml::Table) -> Result<AnySettings, SettingError> {
    todo!()
}

impl Settings {
    /// See [`super::Settings::needs_weights`].
    #[must_use]
    pub fn needs_weights(&self) -> bool {
        todo!()
    }

    /// See [`super::Settings::codec`].
    ///
    /// # Errors
    /// When the settings contradict the matrix.
    pub fn codec(&self, _matrix: &Matrix) -> Result<Choice, SettingError> {
        todo!()
    }

    /// See [`super::Settings::encoder`].
    #[must_use]
    pub fn encoder(&self, _matrix: &Matrix, _choice: &Choice) -> Box<dyn MatrixEncoder> {
        todo!()
    }
}
