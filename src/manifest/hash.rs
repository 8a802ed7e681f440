//! Content hashes as the manifest writes them: `blake3:<64 hexadecimal digits>`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A BLAKE3 hash of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(blake3::Hash);

impl ContentHash {
    /// Hashes bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }

    /// Hashes bytes on all threads of the current rayon pool; the same value as [`ContentHash::of`].
    #[must_use]
    pub fn of_in_parallel(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(bytes);
        Self(hasher.finalize())
    }

    /// The hash of a tensor that is stored in several parts: of a single part the part's own, otherwise the hash of the
    /// parts' 32-byte hashes one after the other, so that no byte is hashed twice.
    #[must_use]
    pub fn of_parts(parts: &[Self]) -> Self {
        if let [part] = parts {
            return *part;
        }
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part.0.as_bytes());
        }
        Self(hasher.finalize())
    }
}

impl From<blake3::Hash> for ContentHash {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "blake3:{}", self.0.to_hex())
    }
}

impl FromStr for ContentHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || format!("`{text}` is not a hash, expected `blake3:` and 64 hexadecimal digits");
        let digits = text.strip_prefix("blake3:").ok_or_else(refusal)?;
        blake3::Hash::from_hex(digits).map(Self).map_err(|_| refusal())
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::ContentHash;

    #[test]
    fn the_hash_of_nothing_is_the_published_one() {
        let known = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(ContentHash::of(b"").to_string(), known);
        assert_eq!(known.parse(), Ok(ContentHash::of_in_parallel(b"")));
    }

    #[test]
    fn one_part_keeps_its_hash_and_several_depend_on_their_order() {
        let (a, b) = (ContentHash::of(b"a"), ContentHash::of(b"b"));
        assert_eq!(ContentHash::of_parts(&[a]), a);
        assert_ne!(ContentHash::of_parts(&[a, b]), ContentHash::of_parts(&[b, a]));
        let concatenated = [*blake3::hash(b"a").as_bytes(), *blake3::hash(b"b").as_bytes()].concat();
        assert_eq!(ContentHash::of_parts(&[a, b]), ContentHash::of(&concatenated));
    }

    #[test]
    fn a_malformed_hash_is_refused() {
        assert!("blake3:12".parse::<ContentHash>().unwrap_err().contains("64 hexadecimal digits"));
        assert!("sha256:00".parse::<ContentHash>().is_err());
    }
}
