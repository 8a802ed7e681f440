//! Finds the matrices of VPTQ checkpoints: `docs/formats/vptq.md`.

use super::{
    Found, Parts,
    config::QuantizationConfig,
    parts::{addressable, expect_float_scale, expect_shape, expect_type},
    whole::{WholeCodes, WholeMatrix},
};
use crate::{
    checkpoint::{Checkpoint, Dtype},
    codec::{ScaleFormat, Whole},
    layout::{LayoutError, vptq_config::layer_config},
};

const CENTROIDS: &str = ".centroids.weight";

pub(super) fn find(checkpoint: &Checkpoint, config: &QuantizationConfig) -> Result<Vec<Found>, LayoutError> {
    let modules = checkpoint.tensors().filter_map(|entry| {
        let module = entry.name.strip_suffix(CENTROIDS)?;
        // The other codebooks' names end likewise.
        let codebook = module.ends_with(".res_centroids") || module.ends_with(".outlier_centroids");
        (!codebook).then_some((module, entry))
    });
    let mut found = Vec::new();
    for (module, centroids) in modules {
        expect_float_scale(centroids)?;
        let storage = match centroids.dtype {
            Dtype::F16 => ScaleFormat::F16,
            Dtype::F32 => ScaleFormat::F32,
            _ => ScaleFormat::BF16,
        };
        let layer = layer_config(&config.value, module, storage)?
            .ok_or_else(|| config.needed("config_for_layers", &centroids.name, "an entry of its module"))?;
        let (rows, columns, format) = (layer.rows, layer.columns, Whole::Vector(layer.format));
        addressable(centroids, rows, columns)?;
        let mut parts = Parts::new(checkpoint, format!("{module}.weight"), "vptq");
        let mut entries = Vec::new();
        for stored in format.tensors(rows, columns) {
            let entry = parts.required(&format!("{module}.{}", stored.suffix))?;
            expect_type(&entry, &[stored.dtype], "the type that the configuration asks for")?;
            expect_shape(&entry, &stored.shape, "what the configuration asks for")?;
            entries.push(entry);
        }
        let dtype = config.decoded_type(centroids.dtype);
        let codes = WholeCodes::Whole { format: format.clone(), entries };
        let matrix = WholeMatrix { rows, columns, stack: 1, codes, rotations: None };
        found.push(Found::whole(parts, dtype, format, matrix, vec![rows, columns]));
    }
    Ok(found)
}
