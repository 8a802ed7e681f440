//! Where a model lies in an object store, by its URL.

use std::{fmt, path::Path};

use super::RemoteError;

/// The schemes, and whose stores they name.
const SCHEMES: [(&str, Provider); 8] = [
    ("s3", Provider::S3),
    ("s3a", Provider::S3),
    ("gs", Provider::Google),
    ("az", Provider::Azure),
    ("azure", Provider::Azure),
    ("adl", Provider::Azure),
    ("abfs", Provider::Azure),
    ("abfss", Provider::Azure),
];

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Provider {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage and Data Lake Storage.
    Azure,
}

/// A checked URL: `SCHEME://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub(super) provider: Provider,
    scheme: String,
    /// The bucket or container; for `abfs`, `CONTAINER@ACCOUNT.dfs.core.windows.net` is admitted.
    bucket: String,
    /// Below the bucket, without slashes at its ends.
    prefix: String,
}

/// Whether a path is the URL of an object store.
#[must_use]
pub fn is_remote(path: &Path) -> bool {
    split(path).is_some()
}

fn split(path: &Path) -> Option<(&str, Provider, &str)> {
    let (scheme, rest) = path.to_str()?.split_once(":/")?;
    let (scheme, provider) = *SCHEMES.iter().find(|(known, _)| *known == scheme)?;
    // Joining paths leaves two slashes as they are; tidying them leaves one.
    Some((scheme, provider, rest.strip_prefix('/').unwrap_or(rest)))
}

impl Location {
    /// The location that a path is the URL of; none where it is the path of a file.
    ///
    /// # Errors
    /// [`RemoteError::Malformed`] for no bucket, an empty or dotted part of the prefix, a query or a fragment.
    pub fn of(path: &Path) -> Result<Option<Self>, RemoteError> {
        let Some((scheme, provider, rest)) = split(path) else { return Ok(None) };
        let url = || format!("{scheme}://{}", rest.split(['?', '#']).next().unwrap_or_default());
        let wrong = |problem| RemoteError::Malformed { url: url(), problem };
        if rest.contains(['?', '#']) {
            // It could hold a signature.
            return Err(wrong("it has a query or a fragment; credentials come from the environment"));
        }
        if rest.contains(|character: char| character.is_control() || character == '\\') {
            return Err(wrong("it holds a control character or a backslash"));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
        let account = scheme.starts_with("abfs");
        if bucket.is_empty() || !bucket.bytes().all(is_bucket) || (bucket.contains('@') && !account) {
            return Err(wrong("it names no bucket"));
        }
        if prefix.is_empty() {
            return Err(wrong("it names a whole bucket, not what is in it"));
        }
        if prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a part of its prefix is empty, `.` or `..`"));
        }
        let (scheme, bucket, prefix) = (scheme.to_owned(), bucket.to_owned(), prefix.to_owned());
        Ok(Some(Self { provider, scheme, bucket, prefix }))
    }

    /// `SCHEME://BUCKET`, which is what clients are made for.
    #[cfg_attr(not(feature = "object-store"), expect(dead_code, reason = "there is no client"))]
    pub(super) fn bucket_url(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// What all names of the model begin with.
    #[cfg_attr(not(feature = "object-store"), expect(dead_code, reason = "there is no client"))]
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The last part of the prefix.
    pub(super) fn name(&self) -> &str {
        self.prefix.rsplit('/').next().unwrap_or_default()
    }

    /// The URL of what is named below.
    #[cfg_attr(not(feature = "object-store"), expect(dead_code, reason = "there is no client"))]
    pub(super) fn url_of(&self, name: &str) -> String {
        format!("{self}/{name}")
    }

    /// What this lies in, and its name there; none directly below the bucket.
    pub(super) fn parent(&self) -> Option<(Self, &str)> {
        let (prefix, name) = self.prefix.rsplit_once('/')?;
        Some((Self { prefix: prefix.to_owned(), ..self.clone() }, name))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}/{}", self.scheme, self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_all_stores_are_told_from_paths() {
        for (url, bucket, prefix) in [
            ("s3://bucket/models/tiny", "bucket", "models/tiny"),
            ("s3:/bucket/models/tiny", "bucket", "models/tiny"),
            ("gs://b-1/x/", "b-1", "x"),
            ("az://container/x", "container", "x"),
            ("abfss://c@account.dfs.core.windows.net/x/y", "c@account.dfs.core.windows.net", "x/y"),
        ] {
            let location = Location::of(Path::new(url)).unwrap().unwrap();
            assert_eq!((&*location.bucket, &*location.prefix), (bucket, prefix));
            assert!(is_remote(Path::new(url)));
        }
        for path in ["model", "./s3", "hub:org/name", "http://host/x", "C:/models/x"] {
            assert_eq!(Location::of(Path::new(path)).unwrap(), None, "{path}");
        }
    }

    #[test]
    fn malformed_urls_are_refused_and_never_shown_with_their_query() {
        for url in [
            "s3://",
            "s3:///x",
            "s3://bucket",
            "s3://b/../x",
            "s3://b/a//b",
            "s3://b/./x",
            "s3://u:p@b/x",
            "az://c@a/x",
            "s3://b/x\\y",
        ] {
            assert!(matches!(Location::of(Path::new(url)), Err(RemoteError::Malformed { .. })), "{url}");
        }
        let error = Location::of(Path::new("az://c/x?sig=SECRET")).unwrap_err().to_string();
        assert!(error.contains("az://c/x") && !error.contains("SECRET"), "{error}");
    }
}
