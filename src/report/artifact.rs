//! What a manifest says of an artifact, by role, by layer and by tensor.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

use super::ReportError;
use crate::{
    check::tensors::mean_relative_error,
    layout::LayoutName,
    manifest::{Fallback, Manifest, ManifestError, OutputTensor, RUN_LOG_NAME, Tool, Totals},
    model::{ModelMap, NamedShape, Role},
};

/// An artifact's folder with what is known of it.
#[derive(Debug)]
pub struct Opened {
    /// The folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// What its tensors are for.
    pub map: ModelMap,
    /// Where the run log says that the source was, as it was given to the run.
    pub source: Option<PathBuf>,
    /// What goes into the report.
    pub facts: Artifact,
}

/// What a report says of one artifact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Artifact {
    /// The folder's name.
    pub name: String,
    /// Name of the model that it was made of, from the recipe or the run log: the last part of its path, or `owner/name` of a
    /// folder in the hub's cache.
    pub model: Option<String>,
    /// As `config.json` says; `unknown` where it does not.
    pub architecture: String,
    /// Number of blocks (layers).
    pub blocks: usize,
    /// How it is laid out.
    pub layout: LayoutName,
    /// What wrote it.
    pub tool: Tool,
    /// The recipe as resolved.
    pub recipe: Value,
    /// Sums, as in the manifest.
    pub totals: Totals,
    /// Bytes of the source's tensors over those of the artifact's.
    pub size_ratio: Option<f64>,
    /// Root of the mean square of relative errors over the weights of all tensors that were changed.
    pub mean_relative_error: Option<f64>,
    /// The same in decibels.
    pub mean_snr_db: Option<f64>,
    /// Sizes by role.
    pub roles: Vec<RoleSize>,
    /// Errors by layer and role.
    pub layers: Vec<LayerError>,
    /// Every tensor, by name.
    pub tensors: Vec<TensorRow>,
    /// What was done differently than asked for.
    pub fallbacks: Vec<Fallback>,
}

/// Tensors of one role.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleSize {
    /// The role, of experts without their index.
    pub role: String,
    /// Number formats that occur, sorted.
    pub codecs: Vec<String>,
    /// Number of tensors.
    pub tensors: u64,
    /// Weights.
    pub weights: u64,
    /// Bytes in the source. What several tensors were made of counts at the first.
    pub source_bytes: u64,
    /// Bytes in the artifact.
    pub bytes: u64,
    /// Stored bits over weights.
    pub bits_per_weight: f64,
}

/// The tensors of one role in one layer that were changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerError {
    /// The layer, from 0.
    pub layer: usize,
    /// The role, of experts without their index.
    pub role: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Root of the mean square of their relative errors, over weights; infinite (`null`) where one is.
    pub relative_error: f64,
    /// The same in decibels; `null` where exact or infinite.
    pub snr_db: Option<f64>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// Its role, of experts without their index.
    pub role: String,
    /// The layer, from 0; none outside of the layers.
    pub layer: Option<usize>,
    /// The number format in short.
    pub codec: String,
    /// Weights.
    pub weights: u64,
    /// Bytes in the artifact.
    pub bytes: u64,
    /// Stored bits over weights.
    pub bits_per_weight: f64,
    /// Relative error; none of a tensor that was copied, infinite (`null`) where a decoded weight is not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_error: Option<f64>,
    /// Signal-to-noise ratio.
    pub snr_db: Option<f64>,
    /// Largest difference of a weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_abs: Option<f64>,
}

/// Decibels of a relative error; none where it is zero or infinite.
pub(super) fn snr_db(relative: f64) -> Option<f64> {
    (relative > 0.0 && relative.is_finite()).then(|| -20.0 * relative.log10())
}

impl Opened {
    /// Reads `manifest.json` and `config.json`; weights are not touched.
    ///
    /// # Errors
    /// [`ReportError`] when the folder has no manifest, or either file is wrong.
    pub fn read(folder: &Path) -> Result<Self, ReportError> {
        let manifest = Manifest::read(folder).map_err(|error| match error {
            ManifestError::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ReportError::NoManifest { folder: folder.to_owned() }
            }
            error => error.into(),
        })?;
        let config = json_if_there(&folder.join("config.json"))?;
        let source = json_if_there(&folder.join(RUN_LOG_NAME))
            .ok()
            .flatten()
            .and_then(|log| log.get("model")?.as_str().map(PathBuf::from));
        let named = |tensor: &OutputTensor| NamedShape { name: tensor.name.clone(), shape: tensor.shape.clone() };
        let shapes: Vec<NamedShape> = manifest.tensors.iter().map(named).collect();
        let map = ModelMap::new(config.as_ref(), &shapes);
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let name = name_of(&absolute).unwrap_or_else(|| "artifact".to_owned());
        let model = manifest.recipe.get("model").and_then(Value::as_str).map(Path::new);
        let model = model.or(source.as_deref()).and_then(name_of);
        let facts = Artifact::new(name, model, &manifest, &map);
        Ok(Self { folder: folder.to_owned(), manifest, map, source, facts })
    }
}

fn json_if_there(path: &Path) -> Result<Option<Value>, ReportError> {
    let wrong = |message: String| ReportError::Config { path: path.to_owned(), message };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| wrong(format!("is not JSON: {error}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(wrong(format!("cannot be read: {error}"))),
    }
}

/// The last part of a path, or `owner/name` of a snapshot in the hub's cache (`models--owner--name/snapshots/REVISION`).
fn name_of(path: &Path) -> Option<String> {
    let parts: Vec<String> = path
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    let cached = parts.iter().rev().find_map(|part| part.strip_prefix("models--"));
    cached.map(|name| name.replacen("--", "/", 1)).or_else(|| parts.last().cloned())
}

impl Artifact {
    fn new(name: String, model: Option<String>, manifest: &Manifest, map: &ModelMap) -> Self {
        let totals = manifest.totals.clone();
        let places: BTreeMap<&str, (Role, Option<usize>)> = map
            .tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), (of_all_experts(&tensor.role), tensor.block)))
            .collect();
        let place = |tensor: &OutputTensor| places.get(tensor.name.as_str()).cloned().unwrap_or((Role::Other, None));
        let mean = mean_relative_error(manifest.tensors.iter());
        let tensors = manifest.tensors.iter().map(|tensor| {
            let (role, layer) = place(tensor);
            TensorRow {
                name: tensor.name.clone(),
                role: role.to_string(),
                layer,
                codec: tensor.codec.clone(),
                weights: weights(tensor),
                bytes: bytes(tensor),
                bits_per_weight: tensor.bits_per_weight,
                relative_error: tensor.error.map(|error| error.relative),
                snr_db: tensor.error.and_then(|error| error.snr_db),
                max_abs: tensor.error.map(|error| error.max_abs),
            }
        });
        Self {
            name,
            model,
            architecture: map.architecture.clone(),
            blocks: map.blocks,
            layout: manifest.layout,
            tool: manifest.tool.clone(),
            recipe: manifest.recipe.clone(),
            size_ratio: (totals.artifact_bytes > 0).then(|| totals.source_bytes as f64 / totals.artifact_bytes as f64),
            totals,
            mean_relative_error: mean,
            mean_snr_db: mean.and_then(snr_db),
            roles: roles(manifest, place),
            layers: layers(manifest, place),
            tensors: tensors.collect(),
            fallbacks: manifest.fallbacks.clone(),
        }
    }

    /// Tensors that were changed, furthest from their source first.
    pub(super) fn worst_first(&self) -> Vec<&TensorRow> {
        let mut changed: Vec<&TensorRow> = self.tensors.iter().filter(|row| row.relative_error.is_some()).collect();
        let error = |row: &TensorRow| row.relative_error.unwrap_or(0.0);
        changed.sort_by(|a, b| error(b).total_cmp(&error(a)).then_with(|| a.name.cmp(&b.name)));
        changed
    }
}

/// Of an expert's role that of all experts.
fn of_all_experts(role: &Role) -> Role {
    match role {
        Role::Expert(_, part) => Role::Expert(None, part),
        role => role.clone(),
    }
}

fn weights(tensor: &OutputTensor) -> u64 {
    tensor.shape.iter().fold(1, |product: u64, &length| product.saturating_mul(length as u64))
}

fn bytes(tensor: &OutputTensor) -> u64 {
    tensor.parts.iter().map(|part| part.bytes).sum()
}

fn roles(manifest: &Manifest, place: impl Fn(&OutputTensor) -> (Role, Option<usize>)) -> Vec<RoleSize> {
    let mut inputs: BTreeMap<&str, u64> =
        manifest.inputs.iter().map(|input| (input.name.as_str(), input.bytes)).collect();
    let mut codecs: BTreeMap<Role, BTreeSet<&str>> = BTreeMap::new();
    let mut sizes: BTreeMap<Role, RoleSize> = BTreeMap::new();
    for tensor in &manifest.tensors {
        let role = place(tensor).0;
        codecs.entry(role.clone()).or_default().insert(&tensor.codec);
        let size = sizes.entry(role.clone()).or_insert_with(|| RoleSize {
            role: role.to_string(),
            codecs: Vec::new(),
            tensors: 0,
            weights: 0,
            source_bytes: 0,
            bytes: 0,
            bits_per_weight: 0.0,
        });
        size.tensors += 1;
        size.weights = size.weights.saturating_add(weights(tensor));
        size.source_bytes += tensor.source.iter().filter_map(|name| inputs.remove(name.as_str())).sum::<u64>();
        size.bytes += bytes(tensor);
    }
    let sizes = sizes.into_iter().map(|(role, mut size)| {
        size.codecs = codecs[&role].iter().map(|&codec| codec.to_owned()).collect();
        if size.weights > 0 {
            size.bits_per_weight = size.bytes as f64 * 8.0 / size.weights as f64;
        }
        size
    });
    sizes.collect()
}

fn layers(manifest: &Manifest, place: impl Fn(&OutputTensor) -> (Role, Option<usize>)) -> Vec<LayerError> {
    let mut groups: BTreeMap<(usize, Role), Vec<&OutputTensor>> = BTreeMap::new();
    for tensor in manifest.tensors.iter().filter(|tensor| tensor.error.is_some()) {
        if let (role, Some(layer)) = place(tensor) {
            groups.entry((layer, role)).or_default().push(tensor);
        }
    }
    let errors = groups.into_iter().map(|((layer, role), tensors)| {
        let relative_error = mean_relative_error(tensors.iter().copied()).unwrap_or(0.0);
        let role = role.to_string();
        LayerError { layer, role, tensors: tensors.len() as u64, relative_error, snr_db: snr_db(relative_error) }
    });
    errors.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::name_of;

    #[test]
    fn a_model_is_named_by_its_folder_or_its_repository() {
        let cases = [
            ("../tiny-llama", "tiny-llama"),
            ("/a/b/", "b"),
            ("hub/models--org--some--name/snapshots/0123abcd", "org/some--name"),
            ("models--gpt2/snapshots/0123abcd", "gpt2"),
        ];
        for (path, name) in cases {
            assert_eq!(name_of(Path::new(path)).as_deref(), Some(name));
        }
        assert_eq!(name_of(Path::new("..")), None);
    }
}
