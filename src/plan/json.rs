//! The plan as JSON, `bantam.plan/1`.

use serde_json::{Value, json};

use super::{Action, Plan};

impl Plan {
    /// The plan as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let tensors: Vec<Value> = self
            .units
            .iter()
            .map(|unit| {
                json!({
                    "name": unit.name,
                    "role": unit.role,
                    "action": unit.action.name(),
                    "pass": match &unit.action {
                        Action::Encode(encode) => Some(encode.pass.as_str()),
                        Action::Merge(_) => Some(crate::passes::breadcrumbs::INFO.name),
                        _ => None,
                    },
                    "codec": unit.codec_name(),
                    "mask": match &unit.action { Action::Encode(encode) => encode.mask_name(), _ => None },
                    "shape": unit.shape,
                    "source_bytes": unit.source_bytes,
                    "bytes": unit.bytes(),
                    "bits_per_weight": unit.bits_per_weight(),
                    "stored": unit.outputs.iter().map(|output| json!({
                        "name": output.spec.name,
                        "dtype": format!("{:?}", output.spec.dtype),
                        "shape": output.spec.shape,
                        "file": self.files[output.file].name,
                        "offset": output.offset,
                        "bytes": output.spec.bytes(),
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let files: Vec<Value> = self
            .files
            .iter()
            .map(|file| json!({"name": file.name, "bytes": file.bytes}))
            .chain(self.small_files.iter().map(|file| json!({"name": file.name, "bytes": file.bytes})))
            .collect();
        let mut plan = json!({
            "schema": "bantam.plan/1",
            "model": self.model,
            "out": self.out,
            "architecture": self.architecture,
            "layout": self.layout,
            "source_bytes": self.source_bytes,
            "artifact_bytes": self.artifact_bytes(),
            "total_bytes": self.all_bytes(),
            "bits_per_weight": self.bits_per_weight(),
            "peak_memory_bytes": self.memory.peak_bytes,
            "smallest_memory_bytes": self.memory.smallest_bytes,
            "scratch_disk_bytes": self.memory.scratch_disk_bytes,
            "threads": self.memory.threads,
            "digest": self.digest,
            "files": files,
            "fallbacks": self.fallbacks,
            "notes": self.notes,
            "tensors": tensors,
        });
        if let Some(cache) = &self.cache {
            plan["cache"] = json!(cache);
        }
        plan
    }
}
