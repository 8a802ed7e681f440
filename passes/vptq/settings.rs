//! What a recipe may say about `vptq`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use super::{SolveOptions, choose};
use crate::{
    codec::{Coding, OutlierColumns, VectorFormat, Whole},
    layout::Activations,
    passes::{Choice, Kind, Matrix, PassInfo, SettingError, Settings as AnySettings, setting::Setting},
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "vptq",
    kind: Kind::Encoding,
    keys: KEYS,
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |table| Settings::parse(table).map(AnySettings::Vptq),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &[
    "asymmetric",
    "beam",
    "bits",
    "block_size",
    "calibrated",
    "centroids",
    "damping",
    "groups",
    "largest_codebook",
    "norm",
    "order",
    "outlier_centroids",
    "outlier_vector_length",
    "outliers",
    "permute",
    "refine_rounds",
    "residual_centroids",
    "shared",
    "sweeps",
    "vector_length",
];

/// Bits per weight where a recipe says nothing.
const DEFAULT_BITS: f64 = 3.0;

/// Settings of one matrix.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a recipe, each on its own")]
pub struct Settings {
    /// Bits per weight that are not exceeded, codebooks counted; none where the codebooks are given.
    pub bits: Option<f64>,
    /// Rows of a vector; none to choose.
    pub vector_length: Option<usize>,
    /// Centroids of the main codebook; none to choose.
    pub centroids: Option<usize>,
    /// Centroids of the residual codebook; 0 for none.
    pub residual_centroids: usize,
    /// Most centroids of a codebook that is chosen.
    pub largest_codebook: usize,
    /// Whether matrices that share an input share codebooks.
    pub shared: bool,
    /// Groups of columns with codebooks of their own.
    pub groups: usize,
    /// Share of the columns that have a codebook apart.
    pub outliers: f64,
    /// Rows of their vectors.
    pub outlier_vector_length: usize,
    /// Their centroids.
    pub outlier_centroids: usize,
    /// Whether each column has a scale and a bias.
    pub norm: bool,
    /// Whether columns are stored in the order of their second moments.
    pub permute: bool,
    /// Whether codes are found under second moments of the input.
    pub calibrated: bool,
    /// How codes are found.
    pub solve: SolveOptions,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("asymmetric", &(self.solve.drift_share > 0.0))?;
        map.serialize_entry("beam", &self.solve.beam)?;
        if let Some(bits) = self.bits {
            map.serialize_entry("bits", &bits)?;
            map.serialize_entry("largest_codebook", &self.largest_codebook)?;
        }
        map.serialize_entry("block_size", &self.solve.block_size)?;
        map.serialize_entry("calibrated", &self.calibrated)?;
        if let (Some(length), Some(centroids)) = (self.vector_length, self.centroids) {
            map.serialize_entry("vector_length", &length)?;
            map.serialize_entry("centroids", &centroids)?;
            map.serialize_entry("residual_centroids", &self.residual_centroids)?;
        }
        map.serialize_entry("damping", &self.solve.damping)?;
        map.serialize_entry("groups", &self.groups)?;
        map.serialize_entry("norm", &self.norm)?;
        map.serialize_entry("order", self.solve.order.name())?;
        map.serialize_entry("outliers", &self.outliers)?;
        map.serialize_entry("outlier_vector_length", &self.outlier_vector_length)?;
        map.serialize_entry("outlier_centroids", &self.outlier_centroids)?;
        map.serialize_entry("permute", &self.permute)?;
        map.serialize_entry("refine_rounds", &self.solve.refine_rounds)?;
        map.serialize_entry("shared", &self.shared)?;
        map.serialize_entry("sweeps", &self.solve.sweeps)?;
        map.end()
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        let mut settings = Self {
            bits: None,
            vector_length: None,
            centroids: None,
            residual_centroids: 0,
            largest_codebook: 4096,
            shared: false,
            groups: 1,
            outliers: 0.0,
            outlier_vector_length: 4,
            outlier_centroids: 4096,
            norm: false,
            permute: false,
            calibrated: true,
            solve: SolveOptions::default(),
        };
        for (key, value) in table {
            settings.take(&Setting { key, value })?;
        }
        if settings.shared && !settings.calibrated {
            let message = "codebooks are shared where matrices are found together, which needs `calibrated`";
            return Err(SettingError::new("shared", message));
        }
        match (settings.bits, settings.vector_length, settings.centroids) {
            (None, Some(_), Some(_)) => {}
            (None, None, None) if settings.residual_centroids == 0 => settings.bits = Some(DEFAULT_BITS),
            (Some(_), None, None) if settings.residual_centroids == 0 => {}
            (Some(_), ..) => {
                let message = "`bits` chooses vectors and codebooks; give one of the two";
                return Err(SettingError::new("bits", message));
            }
            _ => return Err(SettingError::new("centroids", "`vector_length` and `centroids` go together")),
        }
        Ok(settings)
    }

    fn take(&mut self, setting: &Setting<'_>) -> Result<(), SettingError> {
        match setting.key {
            "asymmetric" => self.solve.drift_share = if setting.switch()? { self.solve.drift_share } else { 0.0 },
            "norm" => self.norm = setting.switch()?,
            "shared" => self.shared = setting.switch()?,
            "permute" => self.permute = setting.switch()?,
            "calibrated" => self.calibrated = setting.switch()?,
            "bits" => self.bits = Some(setting.bits()?),
            "damping" => self.solve.damping = setting.positive(10.0)?,
            "outliers" => {
                self.outliers = setting.number("a share from 0.0 to 0.5", |share| (0.0..=0.5).contains(&share))?;
            }
            "vector_length" => self.vector_length = Some(setting.whole(1, 64)?),
            "centroids" => self.centroids = Some(setting.whole(2, 65536)?),
            "residual_centroids" => self.residual_centroids = setting.whole(0, 65536)?,
            "largest_codebook" => self.largest_codebook = setting.whole(16, 65536)?,
            "groups" => self.groups = setting.whole(1, 65536)?,
            "outlier_vector_length" => self.outlier_vector_length = setting.whole(2, 64)?,
            "outlier_centroids" => self.outlier_centroids = setting.whole(2, 65536)?,
            "beam" => self.solve.beam = setting.whole(1, 64)?,
            "block_size" => self.solve.block_size = setting.whole(1, 65536)?,
            "refine_rounds" => self.solve.refine_rounds = setting.whole(0, 20)?,
            "sweeps" => self.solve.sweeps = setting.whole(1, 8)?,
            "order" => self.solve.order = setting.order()?,
            key => return Err(SettingError::unknown(key, "vptq", KEYS)),
        }
        Ok(())
    }

    /// The format of one matrix: what is given, or what is expected to lose least within the bits.
    ///
    /// # Errors
    /// [`SettingError`] when nothing fits.
    pub fn choose(&self, matrix: &Matrix) -> Result<Choice, SettingError> {
        let (rows, columns) = (matrix.rows / matrix.experts.max(1), matrix.columns);
        // The others fall into equal groups.
        let coded = ((1.0 - self.outliers) * columns as f64) as usize / self.groups * self.groups;
        let outliers = (self.outliers > 0.0 && coded < columns).then(|| OutlierColumns {
            columns: columns - coded,
            vector_length: self.outlier_vector_length,
            centroids: self.outlier_centroids,
        });
        let like = VectorFormat {
            groups: self.groups,
            outliers,
            norm: self.norm,
            // The columns apart are the first ones.
            permuted: self.permute || outliers.is_some(),
            ..VectorFormat::plain(1, 2, 0, matrix.scale)
        };
        let format = if let (Some(vector_length), Some(centroids)) = (self.vector_length, self.centroids) {
            let format = VectorFormat { vector_length, centroids, residual_centroids: self.residual_centroids, ..like };
            format.validate(rows, columns).map_err(|error| SettingError::new("centroids", error.to_string()))?;
            format
        } else {
            let bits = self.bits.unwrap_or(DEFAULT_BITS);
            choose(&like, rows, columns, bits, self.largest_codebook).ok_or_else(|| {
                let message = format!("nothing stores a matrix of {rows} × {columns} in {bits} bits per weight");
                SettingError::new("bits", message)
            })?
        };
        Ok(Choice {
            codec: Whole::Vector(format).into(),
            rotations: None,
            codebook_of: None,
            mask: None,
            activations: Activations::None,
        })
    }
}

/// Whether so many rows are whole vectors of a format, as those of matrices with common codebooks have to be.
#[must_use]
pub fn fits_whole_vectors(coding: &Coding, rows: usize) -> bool {
    let Some(Whole::Vector(format)) = coding.whole() else { return false };
    let outliers = format.outliers.map_or(1, |outliers| outliers.vector_length);
    rows.is_multiple_of(format.vector_length) && rows.is_multiple_of(outliers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_contradictions_named() {
        assert_eq!(parse("").unwrap().bits, Some(DEFAULT_BITS));
        let given = parse("vector_length = 8\ncentroids = 256\nresidual_centroids = 16\nnorm = true").unwrap();
        assert_eq!((given.vector_length, given.centroids, given.bits), (Some(8), Some(256), None));
        assert!(given.norm && !given.permute);
        for (text, key) in [
            ("bits = 0", "bits"),
            ("bits = 2\ncentroids = 16", "bits"),
            ("centroids = 16", "centroids"),
            ("residual_centroids = 16", "centroids"),
            ("vector_length = 65\ncentroids = 16", "vector_length"),
            ("outliers = 0.7", "outliers"),
            ("norm = 1", "norm"),
            ("shared = true\ncalibrated = false", "shared"),
            ("order = \"up\"", "order"),
            ("codebook = 3", "codebook"),
        ] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
    }
}
