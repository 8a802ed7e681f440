//! A model card: `README.md` in the artifact, with the front matter that model hubs read.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{
    Artifact, Opened, Report, ReportError,
    markdown::{escaped, recipe, section, table_text},
    tables, text,
};
use crate::{
    check::runtimes::Runtime,
    layout::LayoutName,
    manifest::{ContentHash, FILE_NAME, FileEntry, Manifest},
};

/// The card's file.
pub const CARD_NAME: &str = "README.md";

/// Stands in every card that bantam writes.
const MARK: &str = "<!-- Written by bantam. -->";

/// Longest value of a front matter that is taken over.
const LONGEST_VALUE: usize = 200;

/// Keys of the source's front matter that hold for the artifact too.
const TAKEN_OVER: [&str; 4] = ["license", "license_name", "license_link", "pipeline_tag"];

/// What the card says that no manifest knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardFacts {
    /// The original model on a hub (`owner/name`).
    pub base_model: Option<String>,
    /// Keys and values from the front matter of the original's card, in its order.
    pub taken_over: Vec<(String, String)>,
}

impl CardFacts {
    /// What the front matter of the original's card says of licence and task, from the first of these folders that has some: its
    /// `README.md` is small text, and nothing but plain values on one line is taken.
    #[must_use]
    pub fn of(base_model: Option<String>, folders: &[&Path]) -> Self {
        let found = folders.iter().filter_map(|folder| std::fs::read_to_string(folder.join(CARD_NAME)).ok());
        let taken_over = found.map(|text| front_matter(&text)).find(|found| !found.is_empty()).unwrap_or_default();
        Self { base_model, taken_over }
    }
}

/// The keys that are taken over, of a card's front matter.
fn front_matter(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines();
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Vec::new();
    }
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        let value = value.trim().trim_matches(|character| character == '"' || character == '\'');
        let plain =
            !value.is_empty() && value.len() <= LONGEST_VALUE && !value.starts_with(['[', '{', '|', '>', '&', '*']);
        (TAKEN_OVER.contains(&key) && plain).then(|| (key.to_owned(), value.to_owned()))
    };
    lines.take_while(|line| line.trim_end() != "---").filter_map(value).collect()
}

/// The card's text.
#[must_use]
pub fn card(report: &Report, opened: &Opened, facts: &CardFacts) -> String {
    let artifact = &report.artifact;
    let mut page = head(artifact, &opened.manifest, facts);
    let of = artifact.model.as_deref().or(facts.base_model.as_deref()).unwrap_or("a model");
    // Writing to a String cannot fail.
    let _ = write!(page, "\n{MARK}\n\n# {}\n\n", escaped(&artifact.name));
    let _ = writeln!(
        page,
        "{} compressed with bantam {}: {} → {}, {} bits per weight where compressed.",
        escaped(of),
        artifact.tool.version,
        text::bytes(artifact.totals.source_bytes),
        text::bytes(artifact.totals.artifact_bytes),
        artifact.totals.bits_per_weight.map_or_else(|| text::NONE.to_owned(), text::bits)
    );
    let _ = write!(page, "\n## Use\n\n{}", usage(artifact.layout, &opened.manifest));
    if let Some(table) = tables::evaluations(report) {
        let _ = write!(page, "\n## Perplexity\n\n{}", table_text(&table));
    }
    section(&mut page, "Size by role", Some(tables::roles(artifact)), "");
    section(&mut page, "Furthest from their source", tables::worst(artifact), "No tensor was changed.");
    section(&mut page, "Fallbacks", tables::fallbacks(artifact), "None: everything was done as asked for.");
    let _ = write!(
        page,
        "\n## Recipe\n\n`manifest.json` has the hash of every tensor in and out; `bantam verify` checks them.\n\n{}",
        recipe(artifact)
    );
    page
}

/// The front matter: YAML whose strings are written as JSON, which YAML reads.
fn head(artifact: &Artifact, manifest: &Manifest, facts: &CardFacts) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let codecs: BTreeSet<&str> =
        manifest.tensors.iter().filter(|tensor| tensor.matrix.is_some()).map(|tensor| tensor.codec.as_str()).collect();
    let passes: BTreeSet<&str> =
        manifest.tensors.iter().flat_map(|tensor| &tensor.passes).map(String::as_str).collect();
    let mut head = "---\n".to_owned();
    if let Some(base_model) = facts.base_model.as_ref().or(artifact.model.as_ref()) {
        let _ = writeln!(head, "base_model: {}", quoted(base_model));
        head.push_str("base_model_relation: quantized\n");
    }
    let _ = writeln!(head, "library_name: {}", library(manifest));
    for (key, value) in &facts.taken_over {
        let _ = writeln!(head, "{key}: {}", quoted(value));
    }
    head.push_str("tags:\n- bantam\n");
    for tag in std::iter::once(artifact.layout.as_str()).chain(passes) {
        let _ = writeln!(head, "- {}", quoted(tag));
    }
    let _ = write!(
        head,
        "quantization:\n  tool: {}\n  layout: {}\n  bits_per_weight: {}\n",
        quoted(&format!("{} {}", artifact.tool.name, artifact.tool.version)),
        artifact.layout.as_str(),
        artifact.totals.bits_per_weight.map_or_else(|| "null".to_owned(), |bits| format!("{bits:.4}"))
    );
    let codecs: Vec<String> = codecs.into_iter().map(quoted).collect();
    let _ = write!(head, "  formats: [{}]\n---\n", codecs.join(", "));
    head
}

/// The library that loads the artifact.
fn library(manifest: &Manifest) -> &'static str {
    if Runtime::Transformers.findings(manifest, None).is_empty() { "transformers" } else { "bantam" }
}

fn usage(layout: LayoutName, manifest: &Manifest) -> String {
    if library(manifest) != "transformers" {
        return "No runtime loads this layout. Make dense weights of it, which any runtime loads:\n\n\
                ```sh\nbantam decode ARTIFACT --out DENSE\n```\n"
            .to_owned();
    }
    let option = match layout {
        LayoutName::RemoteCode => ", trust_remote_code=True",
        LayoutName::Gguf => ", gguf_file=\"model.gguf\"",
        _ => "",
    };
    format!(
        "```python\nfrom transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained(\"PATH\"{option}, device_map=\"auto\")\n```\n"
    )
}

/// Writes the card into the artifact and lists it in the manifest, so that `verify` knows it. A `README.md` that bantam did not
/// write, or that was changed since, is replaced only with `force`; the copy of the source's card is such a one.
///
/// # Errors
/// [`ReportError::CardStands`], or when a file cannot be written.
pub fn write_card(opened: &Opened, text: &str, force: bool) -> Result<PathBuf, ReportError> {
    let path = opened.folder.join(CARD_NAME);
    if !force && stands(&path, &opened.manifest)? {
        return Err(ReportError::CardStands { path });
    }
    let mut manifest = opened.manifest.clone();
    manifest.files.retain(|file| file.name != CARD_NAME);
    let hash = ContentHash::of(text.as_bytes());
    manifest.files.push(FileEntry { name: CARD_NAME.to_owned(), bytes: text.len() as u64, hash });
    replace(&path, text)?;
    replace(&opened.folder.join(FILE_NAME), &manifest.to_json()?)?;
    Ok(path)
}

/// Whether something stands there that must not be replaced.
fn stands(path: &Path, manifest: &Manifest) -> Result<bool, ReportError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(ReportError::Io { doing: "read", path: path.to_owned(), source }),
    };
    let ours = String::from_utf8_lossy(&bytes).contains(MARK);
    // A card that is not listed was written right before a crash.
    let listed = manifest.files.iter().find(|file| file.name == CARD_NAME);
    Ok(!ours || listed.is_some_and(|file| file.hash != ContentHash::of(&bytes)))
}

/// Writes a file under another name and gives it its own when it is whole and on the disk.
///
/// # Errors
/// [`ReportError::Io`].
pub fn replace(path: &Path, text: &str) -> Result<(), ReportError> {
    let io = |source| ReportError::Io { doing: "write", path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".bantam-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any file that is created; what the process may not give is masked out.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut temporary = builder.tempfile_in(folder).map_err(io)?;
    temporary.write_all(text.as_bytes()).and_then(|()| temporary.as_file().sync_all()).map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::front_matter;

    #[test]
    fn plain_values_are_taken_over() {
        let text = "---\nlicense: \"apache-2.0\"\nlanguage:\n- en\ntags: [a]\npipeline_tag: text-generation\nlicense_link: [x]\n---\nlicense: mit\n";
        let expected = [("license", "apache-2.0"), ("pipeline_tag", "text-generation")];
        assert_eq!(front_matter(text), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(front_matter("license: mit\n").is_empty());
    }
}
