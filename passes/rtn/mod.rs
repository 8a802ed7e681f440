//! Round to nearest, and the data-free methods that choose its scales better: least squares, HQQ's half-quadratic
//! zero points, EasyQuant's outliers, FineQuant's granularity under a target. `docs/passes/rtn.md` has the formulas.

mod device;
#[cfg(test)]
mod device_tests;
mod encoder;
mod fine_quant;
pub(crate) mod grid;
mod hqq;
pub(crate) mod k_quant;
pub(crate) mod kernels;
mod matrix;
mod outliers;
mod parse;
mod power;
pub(crate) mod search;
mod settings;
mod stripes;
#[cfg(test)]
mod tests;

pub use fine_quant::choose;
pub use parse::FORMATS;
pub use settings::{FloatFormat, Number, OutlierRule, Range, Settings, Sharing, ZeroKind};

use crate::codec::Codec;

use super::{Kind, Matrix, MatrixEncoder, PassInfo, SettingError, Settings as AnySettings};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "rtn",
    kind: Kind::Encoding,
    keys: parse::KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse,
};

fn parse(table: &toml::Table) -> Result<AnySettings, SettingError> {
    Settings::parse(table).map(AnySettings::Rtn)
}

impl Settings {
    /// See [`super::Settings::encoder`].
    #[must_use]
    pub fn encoder(&self, matrix: &Matrix, codec: &Codec) -> Box<dyn MatrixEncoder> {
        Box::new(encoder::Encoder::new(self, matrix, codec))
    }
}
