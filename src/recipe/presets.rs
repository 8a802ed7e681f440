//! Presets: a name for a pass with settings. Any setting may be written beside `use` and wins.

/// A named pass with settings.
#[derive(Debug)]
pub struct Preset {
    /// Its `use` name.
    pub name: &'static str,
    /// The pass.
    pub pass: &'static str,
    /// The settings that it fixes, as TOML; all others have the pass's defaults.
    pub settings: &'static str,
    /// What it is for.
    pub summary: &'static str,
}

/// All presets. `docs/recipe.md` shows the same table; a test compares them.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "int4",
        pass: "rtn",
        settings: "bits = 4\ngroup_size = 128\nsymmetric = true",
        summary: "4-bit weights in groups of 128: a quarter of the size, for every runtime",
    },
    Preset {
        name: "int4-asym",
        pass: "rtn",
        settings: "bits = 4\ngroup_size = 128\nsymmetric = false",
        summary: "the same with zero points: a little larger, a little more exact",
    },
    Preset {
        name: "int8",
        pass: "rtn",
        settings: "bits = 8\ngranularity = \"channel\"\nsymmetric = true",
        summary: "8-bit weights, one scale a row: half the size, next to no loss",
    },
    Preset {
        name: "w8a8",
        pass: "rtn",
        settings: "bits = 8\ngranularity = \"channel\"\nsymmetric = true\nactivations = \"dynamic\"",
        summary: "8-bit weights, and 8-bit activations at run time: faster for large batches",
    },
    Preset {
        name: "fp8",
        pass: "rtn",
        settings: "format = \"fp8\"\ngranularity = \"channel\"\nactivations = \"dynamic\"",
        summary: "FP8 E4M3 weights, one scale a row, and FP8 activations at run time",
    },
    Preset {
        name: "fp8-block",
        pass: "rtn",
        settings: "format = \"fp8\"\ngranularity = \"block\"\nactivations = \"dynamic\"",
        summary: "FP8 E4M3 weights, one scale for 128 × 128, and FP8 activations at run time",
    },
    Preset {
        name: "mxfp4",
        pass: "rtn",
        settings: "format = \"mxfp4\"",
        summary: "FP4 E2M1 weights, a power of two for every 32",
    },
    Preset {
        name: "mxfp8",
        pass: "rtn",
        settings: "format = \"mxfp8\"",
        summary: "FP8 E4M3 weights, a power of two for every 32",
    },
    Preset {
        name: "nvfp4",
        pass: "rtn",
        settings: "format = \"nvfp4\"",
        summary: "FP4 E2M1 weights, an FP8 scale for every 16",
    },
    Preset {
        name: "int3",
        pass: "rtn",
        settings: "bits = 3\ngroup_size = 64\nsymmetric = false\nrange = \"mse\"",
        summary: "3-bit weights in groups of 64 with zero points, ranges searched",
    },
    Preset {
        name: "int2",
        pass: "rtn",
        settings: "bits = 2\ngroup_size = 32\nsymmetric = false\nrange = \"mse\"",
        summary: "2-bit weights in groups of 32 with zero points, ranges searched: expect a visible loss",
    },
    Preset {
        name: "hqq4",
        pass: "rtn",
        settings: "bits = 4\ngroup_size = 64\nrange = \"hqq\"",
        summary: "4-bit weights in groups of 64, zero points by half-quadratic optimisation",
    },
];

/// Settings that together say which weights share a scale.
const SHARING: [&str; 6] = ["granularity", "group_size", "block", "block_rows", "block_columns", "target_bits"];

/// The preset of that name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

impl Preset {
    /// Its settings as a table.
    #[must_use]
    pub fn table(&self) -> toml::Table {
        // A test parses every preset, so this never falls back.
        self.settings.parse().unwrap_or_default()
    }

    /// Its settings beside those that a rule and its overrides write: what says in its own way which weights share a
    /// scale (`granularity = "channel"` beside `int4`) takes nothing of the preset's.
    #[must_use]
    pub fn table_beside(&self, written: &toml::Table) -> toml::Table {
        let mut table = self.table();
        if SHARING.iter().any(|key| written.contains_key(*key)) {
            table.retain(|key, _| !SHARING.contains(&key));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::REGISTRY;

    #[test]
    fn every_preset_is_accepted_by_its_pass() {
        for preset in PRESETS {
            let table: toml::Table = preset.settings.parse().unwrap();
            assert!(!table.is_empty());
            assert_eq!(preset.table(), table);
            let pass = REGISTRY.iter().find(|pass| pass.name == preset.pass).unwrap();
            for key in table.keys() {
                assert!(pass.keys.contains(&key.as_str()), "{}: {key}", preset.name);
            }
            if let Err(error) = (pass.parse)(&table) {
                panic!("preset {}: {}: {}", preset.name, error.key, error.message);
            }
        }
    }

    #[test]
    fn no_preset_hides_a_pass_or_another_preset() {
        let mut names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        names.extend(REGISTRY.iter().map(|pass| pass.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
