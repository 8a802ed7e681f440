//! Models by their id in the local hub cache, `hub:ORG/NAME` or `hub:ORG/NAME@REVISION`. Nothing is ever downloaded.
//!
//! Layout of the cache: `huggingface_hub`'s documentation, "Understand caching". `models--ORG--NAME/refs/REVISION` holds
//! the commit of a branch or tag, `snapshots/COMMIT/` its files, as links into `blobs/`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Component, Path, PathBuf},
};

use super::{
    CheckpointError,
    index::{INDEX_NAME, Index},
    small_files::file_names,
};

const PREFIX: &str = "hub:";
/// What the hub takes where no revision is named.
const DEFAULT_REVISION: &str = "main";
/// Digits of a full commit hash.
const COMMIT_DIGITS: usize = 40;
/// The fewest digits that stand for a commit.
const SHORT_COMMIT_DIGITS: usize = 4;
/// How like the asked-for id another one must be to be named in the error (Jaro-Winkler).
const SIMILARITY: f64 = 0.75;
/// Other ids that an error names.
const MOST_NAMED: usize = 3;

/// Why a model of the hub cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are what their messages say")]
pub enum HubError {
    /// Not of the form of an id.
    #[error("`{given}` names no model: expected hub:ORG/NAME or hub:ORG/NAME@REVISION")]
    Malformed { given: String },
    /// The environment names no cache.
    #[error("no hub cache is known: none of HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set")]
    NoCache,
    /// The cache has no such model.
    #[error("model `{id}` is not in the hub cache: looked for `{looked}`{}", listed(similar))]
    Absent { id: String, revision: Option<String>, looked: PathBuf, similar: Vec<String> },
    /// The cache has the model, but not this revision.
    #[error("revision `{revision}` of `{id}` is not in the hub cache: looked in `{looked}`{}", listed(there))]
    RevisionAbsent { id: String, revision: String, looked: PathBuf, there: Vec<String> },
    /// Several commits begin so.
    #[error("revision `{revision}` of `{id}` could be any of {}", commits.join(", "))]
    RevisionAmbiguous { id: String, revision: String, commits: Vec<String> },
    /// A reference that is no commit.
    #[error("`{reference}` does not hold a commit hash")]
    BrokenReference { reference: PathBuf },
    /// Some of the files are not there.
    #[error("the download of `{id}` is incomplete: {missing} in `{snapshot}`{}", unfinished_text(*unfinished))]
    Incomplete { id: String, revision: Option<String>, snapshot: PathBuf, missing: String, unfinished: usize },
}

impl HubError {
    /// What the user can do about it.
    pub(super) fn hint(&self) -> Option<String> {
        let download = |id: &str, revision: Option<&str>| {
            let revision = revision.map_or_else(String::new, |revision| format!(" --revision {revision}"));
            Some(format!("bantam never downloads; fetch it with `hf download {id}{revision}`"))
        };
        match self {
            Self::Absent { id, revision, .. } | Self::Incomplete { id, revision, .. } => {
                download(id, revision.as_deref())
            }
            Self::RevisionAbsent { id, revision, .. } => download(id, Some(revision)),
            Self::RevisionAmbiguous { .. } => Some("write more digits of the commit".into()),
            Self::BrokenReference { .. } => Some("name the commit itself: hub:ORG/NAME@COMMIT".into()),
            Self::Malformed { .. } | Self::NoCache => None,
        }
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) }
}

fn unfinished_text(unfinished: usize) -> String {
    match unfinished {
        0 => String::new(),
        1 => "; 1 file is half downloaded".into(),
        count => format!("; {count} files are half downloaded"),
    }
}

/// Whether a path is the id of a model of the hub.
#[must_use]
pub fn is_hub_id(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(PREFIX))
}

/// The folder of `path` where that is an id of the hub, found in the cache that the environment names; `path` itself
/// where it is not.
///
/// # Errors
/// [`HubError`].
pub fn resolve_hub_id(path: &Path) -> Result<PathBuf, CheckpointError> {
    let Some(id) = path.to_str().and_then(|text| text.strip_prefix(PREFIX)) else { return Ok(path.to_owned()) };
    let id =
        Id::parse(id).ok_or_else(|| HubError::Malformed { given: format!("{PREFIX}{}", super::error::shown(id)) })?;
    let cache = cache_folder(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
    Ok(id.find(&cache.ok_or(HubError::NoCache)?)?)
}

/// Where the hub's own tools keep their cache: the first of the variables that is set decides, as it does for them.
fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let below = |name: &str, path: &str| variable(name).map(|folder| folder.join(path));
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| below("HF_HOME", "hub"))
        .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| below("HOME", ".cache/huggingface/hub"))
}

/// A model's id, checked.
struct Id<'a> {
    /// `ORG/NAME`, or `NAME` for the hub's oldest models.
    name: &'a str,
    revision: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// Names are those that the hub admits; a revision is any relative path without `..`.
    fn parse(text: &'a str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let is_part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty()
                && part.bytes().all(plain)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        let is_revision = |revision: &str| {
            let parts = || revision.split('/');
            !revision.starts_with('-')
                && parts().all(|part| !part.is_empty() && part != "." && part != "..")
                && !revision.contains(|character: char| {
                    character.is_control() || character.is_whitespace() || "\\:".contains(character)
                })
        };
        let well_formed = name.split('/').count() <= 2 && name.split('/').all(is_part);
        (well_formed && revision.is_none_or(is_revision)).then_some(Self { name, revision })
    }

    fn find(&self, cache: &Path) -> Result<PathBuf, HubError> {
        let (id, revision) = (self.name.to_owned(), self.revision.map(str::to_owned));
        let model = cache.join(format!("models--{}", self.name.replace('/', "--")));
        if !model.is_dir() {
            return Err(HubError::Absent { similar: similar(cache, &id), id, revision, looked: model });
        }
        let wanted = self.revision.unwrap_or(DEFAULT_REVISION);
        let snapshots = model.join("snapshots");
        let commit = self.commit(&model, wanted)?;
        let snapshot = snapshots.join(&commit);
        if !snapshot.is_dir() {
            let (revision, there) = (wanted.to_owned(), revisions(&model));
            return Err(HubError::RevisionAbsent { id, revision, looked: snapshots, there });
        }
        match missing(&snapshot) {
            None => Ok(snapshot),
            Some(missing) => {
                let unfinished = unfinished(&model);
                Err(HubError::Incomplete { id, revision, snapshot, missing, unfinished })
            }
        }
    }

    /// The commit that a branch, a tag, or the first digits of a commit stand for.
    fn commit(&self, model: &Path, wanted: &str) -> Result<String, HubError> {
        let reference = model.join("refs").join(wanted);
        if reference.is_file() {
            let text = fs::read_to_string(&reference).unwrap_or_default();
            let commit = text.trim();
            let is_name = matches!(Path::new(commit).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
            return if is_name { Ok(commit.to_owned()) } else { Err(HubError::BrokenReference { reference }) };
        }
        let is_hash = wanted.len() >= SHORT_COMMIT_DIGITS
            && wanted.len() <= COMMIT_DIGITS
            && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        let begins = |name: &String| is_hash && name.starts_with(&wanted.to_ascii_lowercase());
        let mut commits: Vec<String> = folders(&model.join("snapshots")).into_iter().filter(begins).collect();
        match commits.len() {
            1 => Ok(commits.remove(0)),
            0 => {
                let (revision, there) = (wanted.to_owned(), revisions(model));
                Err(HubError::RevisionAbsent { id: self.name.to_owned(), revision, looked: model.to_owned(), there })
            }
            _ => {
                let (id, revision) = (self.name.to_owned(), wanted.to_owned());
                Err(HubError::RevisionAmbiguous { id, revision, commits })
            }
        }
    }
}

/// What is not there of a snapshot: shards that its index names, or all weights. An index that cannot be read is left to
/// the reader of checkpoints, who says why.
fn missing(snapshot: &Path) -> Option<String> {
    let index = snapshot.join(INDEX_NAME);
    if index.exists() {
        let index = Index::read(&index).ok()?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let absent: Vec<_> = files.iter().filter(|file| !snapshot.join(file).exists()).collect();
        let first = absent.first()?;
        return Some(format!("{} of {} shards are missing, the first is `{first}`", absent.len(), files.len()));
    }
    let names = file_names(snapshot).ok()?;
    let dangling = names.iter().find(|name| name.ends_with(".safetensors") && !snapshot.join(name).exists());
    match dangling {
        Some(name) => Some(format!("`{name}` links to nothing")),
        None if names.iter().all(|name| matches!(name.rsplit_once('.'), Some((_, "json" | "md" | "txt")) | None)) => {
            Some("there are no weights".into())
        }
        None => None,
    }
}

/// Files that a download has begun.
fn unfinished(model: &Path) -> usize {
    let names = file_names(&model.join("blobs")).unwrap_or_default();
    names.iter().filter(|name| name.ends_with(".incomplete")).count()
}

/// The references and commits that are there, sorted.
fn revisions(model: &Path) -> Vec<String> {
    let mut found = file_names(&model.join("refs")).unwrap_or_default();
    found.extend(folders(&model.join("snapshots")));
    found.truncate(2 * MOST_NAMED);
    found
}

/// Names of the folders of a folder, sorted; none where it cannot be read.
fn folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Ids of the cache that are like `id`, the likest first.
fn similar(cache: &Path, id: &str) -> Vec<String> {
    let name = |id: &str| id.rsplit('/').next().unwrap_or_default().to_lowercase();
    let likeness = |other: &String| {
        let whole = strsim::jaro_winkler(&other.to_lowercase(), &id.to_lowercase());
        whole.max(strsim::jaro_winkler(&name(other), &name(id)))
    };
    let ids = folders(cache).into_iter().filter_map(|folder| Some(folder.strip_prefix("models--")?.replace("--", "/")));
    let mut ids: Vec<(f64, String)> = ids.map(|other| (likeness(&other), other)).collect();
    ids.retain(|(likeness, _)| *likeness >= SIMILARITY);
    ids.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    ids.into_iter().take(MOST_NAMED).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Id, cache_folder};

    #[test]
    fn hostile_and_malformed_ids_are_refused() {
        for id in [
            "",
            "/",
            "org/",
            "/name",
            "../name",
            "org/..",
            "org/../x",
            "a/b/c",
            "org/na me",
            "org/name@",
            "org/name@../x",
            "org/name@a//b",
            "org/name@/etc",
            "org--x/name",
            ".org/name",
            "org/name.",
            "org\\name",
            "org/name@a\\b",
            "org/name@-x",
            "org/n\u{e4}me",
            "org/name@a b",
            "org/name@..",
        ] {
            assert!(Id::parse(id).is_none(), "{id}");
        }
        for (id, name, revision) in [
            ("gpt2", "gpt2", None),
            ("org/name-1.5_b", "org/name-1.5_b", None),
            ("org/name@main", "org/name", Some("main")),
            ("org/name@refs/pr/1", "org/name", Some("refs/pr/1")),
        ] {
            let id = Id::parse(id).unwrap();
            assert_eq!((id.name, id.revision), (name, revision));
        }
    }

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let all = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"];
        let expected = ["/0", "/1", "/2/hub", "/3/huggingface/hub", "/4/.cache/huggingface/hub"];
        for (from, expected) in expected.into_iter().enumerate() {
            let set = |name: &str| {
                let at = all.iter().position(|other| *other == name)?;
                (at >= from).then(|| PathBuf::from(format!("/{at}")))
            };
            assert_eq!(cache_folder(set).unwrap(), Path::new(expected));
        }
        assert_eq!(cache_folder(|_| None), None);
    }
}
