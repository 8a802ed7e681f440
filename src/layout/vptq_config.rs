//! `quantization_config` of VPTQ checkpoints, both ways: one entry for every linear, under its module's name.
//!
//! The package also knows `shared_layer_config`, by the last part of the name; transformers does not read that rightly, so
//! it is read here but never written.

use serde_json::{Map, Value, json};

use super::LayoutError;
use crate::codec::{OutlierColumns, ScaleFormat, VectorFormat};

/// What the configuration says of one linear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerConfig {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// The format. How floats are stored is not in the configuration.
    pub format: VectorFormat,
    /// Whether the module has a bias beside its weights.
    pub bias: bool,
}

impl LayerConfig {
    /// The entry of the linear: all arguments of the package's `VQuantLinear`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let format = &self.format;
        // The package's word for "none".
        let or_none = |count: usize| if count == 0 { json!(-1) } else { json!(count) };
        let outliers = format.outliers.unwrap_or(OutlierColumns { columns: 0, vector_length: 0, centroids: 0 });
        json!({
            "bias": self.bias,
            "enable_norm": format.norm,
            "enable_perm": format.permuted,
            "group_num": format.groups,
            "group_size": format.group_columns(self.columns),
            "in_features": self.columns,
            "indices_as_float": false,
            "is_indice_packed": true,
            "num_centroids": [or_none(outliers.centroids), format.centroids],
            "num_res_centroids": [-1, or_none(format.residual_centroids)],
            "out_features": self.rows,
            "outlier_size": outliers.columns,
            "vector_lens": [or_none(outliers.vector_length), format.vector_length],
            "vector_quant_dim": "out",
        })
    }

    /// Reads an entry; `key` is where it stands in `quantization_config`, `storage` the type of the centroids.
    ///
    /// # Errors
    /// [`LayoutError::Config`] for a key that is missing or cannot be, and for a format that does not fit the shape.
    pub fn from_json(entry: &Value, key: &str, storage: ScaleFormat) -> Result<Self, LayoutError> {
        let wrong = |name: &str, value: &Value, expected: &str| {
            let got = if value.is_null() { "is missing".to_owned() } else { format!("is {value}") };
            LayoutError::Config { key: format!("{key}.{name}"), message: format!("{got}; expected {expected}") }
        };
        let number = |name: &str| {
            let value = &entry[name];
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| wrong(name, value, "a whole number"))
        };
        // Outliers' and others'; nothing and what is not positive are none.
        let pair = |name: &str| -> Result<[usize; 2], LayoutError> {
            let value = &entry[name];
            let count = |value: &Value| usize::try_from(value.as_i64()?.max(0)).ok();
            match value.as_array().map(Vec::as_slice) {
                Some([first, second]) => count(first).zip(count(second)).map(Into::into),
                _ => None,
            }
            .ok_or_else(|| wrong(name, value, "two whole numbers"))
        };
        let switch = |name: &str, missing: bool| match &entry[name] {
            Value::Null => Ok(missing),
            Value::Bool(on) => Ok(*on),
            value => Err(wrong(name, value, "true or false")),
        };
        if !switch("is_indice_packed", false)? {
            return Err(wrong("is_indice_packed", &entry["is_indice_packed"], "true: unpacked indices are not read"));
        }
        if !matches!(entry["vector_quant_dim"].as_str(), None | Some("out")) {
            return Err(wrong("vector_quant_dim", &entry["vector_quant_dim"], "\"out\""));
        }
        let (lengths, centroids) = (pair("vector_lens")?, pair("num_centroids")?);
        let residuals = pair("num_res_centroids")?;
        // As `VQuantLinear` decides it.
        let has_outliers = lengths[0] > 1 && centroids[0] > 0;
        if has_outliers && residuals[0] > 0 {
            return Err(wrong("num_res_centroids", &entry["num_res_centroids"], "no residuals of outliers"));
        }
        let outliers =
            OutlierColumns { columns: number("outlier_size")?, vector_length: lengths[0], centroids: centroids[0] };
        let layer = Self {
            rows: number("out_features")?,
            columns: number("in_features")?,
            format: VectorFormat {
                vector_length: lengths[1],
                centroids: centroids[1],
                residual_centroids: residuals[1],
                groups: number("group_num")?,
                outliers: has_outliers.then_some(outliers),
                norm: switch("enable_norm", false)?,
                permuted: switch("enable_perm", false)?,
                storage,
            },
            bias: switch("bias", false)?,
        };
        layer
            .format
            .validate(layer.rows, layer.columns)
            .map_err(|error| LayoutError::Config { key: key.to_owned(), message: format!("cannot be: {error}") })?;
        let width = layer.format.group_columns(layer.columns);
        if number("group_size")? != width {
            return Err(wrong("group_size", &entry["group_size"], &format!("{width}, all columns in equal groups")));
        }
        Ok(layer)
    }
}

/// The whole `quantization_config`: the entry of each coded module, and the modules that stay dense.
#[must_use]
pub fn quantization_config(layers: &[(&str, LayerConfig)], dense_modules: &[String]) -> Value {
    let entries: Map<String, Value> =
        layers.iter().map(|(module, layer)| ((*module).to_owned(), layer.to_json())).collect();
    json!({
        "quant_method": "vptq",
        "config_for_layers": entries,
        "modules_to_not_convert": dense_modules,
    })
}

/// What `quantization_config` says of a module; nothing where it is dense.
///
/// # Errors
/// As for [`LayerConfig::from_json`].
pub fn layer_config(config: &Value, module: &str, storage: ScaleFormat) -> Result<Option<LayerConfig>, LayoutError> {
    let tail = module.rsplit('.').next().unwrap_or(module);
    for (key, name) in [("config_for_layers", module), ("shared_layer_config", tail)] {
        let entry = &config[key][name];
        if !entry.is_null() {
            return LayerConfig::from_json(entry, &format!("{key}.{name}"), storage).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn layer(name: &str, rows: usize, columns: usize) -> LayerConfig {
        let format = VectorFormat::parse_name(name, ScaleFormat::BF16).unwrap();
        LayerConfig { rows, columns, format, bias: false }
    }

    #[test]
    fn another_encoders_configuration_is_read_and_written_alike() {
        let path =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/interop/golden/vptq-v4-k256-r16/config.json"));
        let Ok(text) = std::fs::read_to_string(path) else {
            eprintln!("SKIPPED: there is no {}", path.display());
            return;
        };
        let config = &serde_json::from_str::<Value>(&text).unwrap()["quantization_config"];
        let modules: Vec<&String> = config["config_for_layers"].as_object().unwrap().keys().collect();
        assert_eq!(modules.len(), 14);
        let mut layers = Vec::new();
        for module in modules {
            let read = layer_config(config, module, ScaleFormat::BF16).unwrap().unwrap();
            assert_eq!(read.format, layer("vptq-v4-k256-r16-norm-perm", 0, 0).format);
            layers.push((module.as_str(), read));
        }
        assert_eq!(quantization_config(&layers, &["lm_head".to_owned()]), *config);
        assert_eq!(layer_config(config, "lm_head", ScaleFormat::BF16).unwrap(), None);
    }

    #[test]
    fn entries_are_read_back() {
        for name in ["vptq-v8-k65536", "vptq-v8-k4096-r256-g4", "vptq-v12-k4096-r4096-g4-o64v4k8192-norm-perm"] {
            for bias in [false, true] {
                let layer = LayerConfig { bias, ..layer(name, 100, 4096) };
                let again = LayerConfig::from_json(&layer.to_json(), "x", ScaleFormat::BF16).unwrap();
                assert_eq!(again, layer);
            }
        }
        // What the package's `VQuantLinear` takes for outliers.
        let entry = layer("vptq-v12-k4096-r4096-g4-o64v4k8192-norm-perm", 100, 4096).to_json();
        assert_eq!(entry["vector_lens"], json!([4, 12]));
        assert_eq!(entry["num_centroids"], json!([8192, 4096]));
        assert_eq!(entry["num_res_centroids"], json!([-1, 4096]));
        assert_eq!((&entry["outlier_size"], &entry["group_size"]), (&json!(64), &json!(1008)));
    }

    #[test]
    fn shared_entries_are_known_by_the_last_part_of_the_name() {
        let layer = layer("vptq-v8-k256", 16, 32);
        let config = json!({ "shared_layer_config": { "q_proj": layer.to_json() } });
        let read = layer_config(&config, "model.layers.3.self_attn.q_proj", ScaleFormat::BF16).unwrap();
        assert_eq!(read, Some(layer));
    }

    #[test]
    fn entries_that_cannot_be_are_refused_by_their_key() {
        let good = layer("vptq-v8-k256-r16-g4-o4v2k9-norm-perm", 16, 36).to_json();
        let refused = |key: &str, value: Value| {
            let mut entry = good.clone();
            entry[key] = value;
            match LayerConfig::from_json(&entry, "layer", ScaleFormat::F16) {
                Err(LayoutError::Config { key, .. }) => key,
                other => panic!("{key}: {other:?}"),
            }
        };
        for (key, value) in [
            ("in_features", Value::Null),
            ("out_features", json!(-1)),
            ("out_features", json!(1.5)),
            ("group_num", json!("4")),
            ("group_size", json!(9)),
            ("vector_lens", json!([2, 8, 8])),
            ("vector_lens", json!(8)),
            ("num_centroids", json!([9, null])),
            ("num_res_centroids", json!([4, 16])),
            ("outlier_size", Value::Null),
            ("enable_norm", json!(1)),
            ("bias", json!("no")),
            ("is_indice_packed", json!(false)),
            ("is_indice_packed", Value::Null),
            ("vector_quant_dim", json!("in")),
        ] {
            assert_eq!(refused(key, value.clone()), format!("layer.{key}"), "{value}");
        }
        for (key, value) in [
            ("in_features", json!(u64::MAX)),
            ("out_features", json!(u64::MAX)),
            ("group_num", json!(0)),
            ("group_num", json!(5)),
            ("vector_lens", json!([2, 0])),
            ("num_centroids", json!([9, 255])),
            ("num_res_centroids", json!([-1, 512])),
        ] {
            assert_eq!(refused(key, value.clone()), "layer", "{key} {value}");
        }
    }
}
