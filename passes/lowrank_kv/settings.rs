//! What a recipe may say about `lowrank_kv`.

use serde::{Serialize, Serializer, ser::SerializeMap};
use toml::Table;

use crate::passes::{
    Factoring, Kind, PassInfo, SettingError, Settings as AnySettings, gptq,
    setting::{Setting, known_keys},
};

/// The registry entry.
pub const INFO: PassInfo = PassInfo {
    name: "lowrank_kv",
    kind: Kind::Encoding,
    keys: KEYS,
    // Projections that hold more than keys or values are selected so that the plan can refuse them by name.
    default_select: &[
        "attention.key",
        "attention.value",
        "attention.qkv",
        "attention.key_value_a",
        "attention.key_value_b",
    ],
    default_skip: &[],
    parse: |table| Settings::parse(table).map(AnySettings::LowrankKv),
};

/// All keys, sorted.
pub const KEYS: &[&str] = &[
    "absorb_values",
    "cache_bits",
    "cache_ratio",
    "group_heads",
    "key_density",
    "method",
    "rotate",
    "value_density",
    "window",
];

/// Latent channels of keys over channels of keys, where a recipe says nothing.
const DEFAULT_KEY_DENSITY: f64 = 0.25;
/// The same of values.
const DEFAULT_VALUE_DENSITY: f64 = 0.75;
/// Most tokens of a window.
const MOST_WINDOW: u32 = 1 << 20;

/// Under what the factors are best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The weights alone.
    Svd,
    /// The mean magnitudes of the input's channels.
    Asvd,
    /// The input's second moments.
    Optimal,
}

impl Method {
    const ALL: [Self; 3] = [Self::Svd, Self::Asvd, Self::Optimal];

    /// Its name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Svd => "svd",
            Self::Asvd => "asvd",
            Self::Optimal => "optimal",
        }
    }
}

/// How many latent channels there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranks {
    /// The same share of every head's channels.
    Density {
        /// Of keys.
        key: f64,
        /// Of values.
        value: f64,
    },
    /// So much of all channels of a rule's keys and values, given out where they keep most.
    Ratio(f64),
}

/// Settings of one projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Under what the factors are best.
    pub method: Method,
    /// How many latent channels there are.
    pub ranks: Ranks,
    /// Heads that share latents; 0 for all.
    pub group_heads: usize,
    /// The latest tokens whose keys and values stay exact.
    pub window: usize,
    /// Bits of latents in the cache; none where they stay floats.
    pub cache_bits: Option<u8>,
    /// Whether B of values is folded into the output projection.
    pub absorb_values: bool,
    /// Whether latents are rotated.
    pub rotate: bool,
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("absorb_values", &self.absorb_values)?;
        map.serialize_entry("cache_bits", &self.cache_bits.unwrap_or(0))?;
        if let Ranks::Ratio(ratio) = self.ranks {
            map.serialize_entry("cache_ratio", &ratio)?;
        }
        map.serialize_entry("group_heads", &self.group_heads)?;
        if let Ranks::Density { key, .. } = self.ranks {
            map.serialize_entry("key_density", &key)?;
        }
        map.serialize_entry("method", self.method.name())?;
        map.serialize_entry("rotate", &self.rotate)?;
        if let Ranks::Density { value, .. } = self.ranks {
            map.serialize_entry("value_density", &value)?;
        }
        map.serialize_entry("window", &self.window)?;
        map.end()
    }
}

impl Settings {
    /// Types and checks the keys of a rule.
    ///
    /// # Errors
    /// [`SettingError`] naming the key, what was expected and what was there.
    pub fn parse(table: &Table) -> Result<Self, SettingError> {
        known_keys(table, INFO.name, KEYS)?;
        let get = |key: &'static str| table.get(key).map(|value| Setting { key, value });
        let share = |key| get(key).map(|setting| setting.positive(1.0)).transpose();
        let (key, value, ratio) = (share("key_density")?, share("value_density")?, share("cache_ratio")?);
        let ranks = match (ratio, key, value) {
            (Some(ratio), None, None) => Ranks::Ratio(ratio),
            (Some(_), ..) => {
                let message = "gives out what `key_density` and `value_density` fix; give one or the other";
                return Err(SettingError::new("cache_ratio", message));
            }
            (None, key, value) => Ranks::Density {
                key: key.unwrap_or(DEFAULT_KEY_DENSITY),
                value: value.unwrap_or(DEFAULT_VALUE_DENSITY),
            },
        };
        let method = match get("method") {
            None => Method::Optimal,
            Some(setting) => {
                let found = Method::ALL.into_iter().find(|method| setting.value.as_str() == Some(method.name()));
                found.ok_or_else(|| setting.wrong("\"svd\", \"asvd\" or \"optimal\""))?
            }
        };
        let whole = |key, most| get(key).map_or(Ok(0), |setting| setting.whole(0, most));
        let cache_bits = match get("cache_bits") {
            None => None,
            Some(setting) => match setting.value.as_integer() {
                Some(0) => None,
                Some(bits @ (4 | 8)) => Some(bits as u8),
                _ => return Err(setting.wrong("0, 4 or 8")),
            },
        };
        let switch = |key, default| get(key).map_or(Ok(default), |setting| setting.switch());
        Ok(Self {
            method,
            ranks,
            group_heads: whole("group_heads", 1 << 16)?,
            window: whole("window", MOST_WINDOW)?,
            cache_bits,
            absorb_values: switch("absorb_values", false)?,
            rotate: switch("rotate", cache_bits.is_some())?,
        })
    }

    /// How its factors are found under what is known of the input; none where that is nothing. Nothing is inverted, so
    /// nothing is damped.
    #[must_use]
    pub fn factoring(&self) -> Option<Factoring> {
        let none = Factoring { damping: 0.0, order: gptq::Order::None, drift_share: 0.0, group: None };
        (self.method != Method::Svd).then_some(none)
    }

    /// Latent channels of a group of so many heads, by density.
    #[must_use]
    pub fn rank(density: f64, heads: usize, width: usize) -> usize {
        ((density * width as f64) as usize).max(1) * heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, SettingError> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn settings_are_typed_and_contradictions_named() {
        let default = parse("").unwrap();
        let ranks = Ranks::Density { key: DEFAULT_KEY_DENSITY, value: DEFAULT_VALUE_DENSITY };
        assert_eq!((default.method, default.ranks), (Method::Optimal, ranks));
        assert_eq!((default.window, default.cache_bits, default.rotate, default.group_heads), (0, None, false, 0));
        let given =
            parse("method = \"asvd\"\ncache_ratio = 0.2\ncache_bits = 4\nwindow = 32\ngroup_heads = 2").unwrap();
        assert_eq!((given.method, given.ranks), (Method::Asvd, Ranks::Ratio(0.2)));
        assert_eq!((given.window, given.cache_bits, given.rotate, given.group_heads), (32, Some(4), true, 2));
        assert!(!parse("cache_bits = 8\nrotate = false").unwrap().rotate);
        for (text, key) in [
            ("method = \"palu\"", "method"),
            ("key_density = 0", "key_density"),
            ("value_density = 1.01", "value_density"),
            ("key_density = nan", "key_density"),
            ("cache_ratio = 0.5\nkey_density = 0.5", "cache_ratio"),
            ("cache_ratio = inf", "cache_ratio"),
            ("cache_bits = 3", "cache_bits"),
            ("window = -1", "window"),
            ("window = 1048577", "window"),
            ("group_heads = 1.5", "group_heads"),
            ("absorb_values = 1", "absorb_values"),
            ("rank = 3", "rank"),
        ] {
            assert_eq!(parse(text).unwrap_err().key, key, "{text}");
        }
    }

    #[test]
    fn ranks_by_density_are_those_of_cskv() {
        assert_eq!(Settings::rank(0.25, 32, 128), 1024);
        assert_eq!(Settings::rank(0.3, 4, 32), 36);
        assert_eq!(Settings::rank(0.001, 4, 32), 4);
    }
}
