//! Hostile and odd checkpoints through the library: each is refused with its own message, or read as it stands.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

/// Asserts that the error is of that variant.
macro_rules! assert_variant {
    ($error:expr, $variant:ident) => {{
        let error = $error;
        assert!(matches!(error, bantam::checkpoint::CheckpointError::$variant { .. }), "{error:?}");
    }};
}

mod files;
mod folders;
mod headers;
mod properties;
mod shrink;

use std::{fs, path::Path};

use bantam::checkpoint::{Checkpoint, CheckpointError, Dtype, write_file};

/// A safetensors file of this header and so many bytes of data.
fn file_of(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

/// One tensor's entry.
fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
}

/// Writes a file with one U8 tensor.
fn write_tensor(path: &Path, name: &str) {
    write_file(path, &[(name, Dtype::U8, vec![2], vec![1, 2])]).unwrap();
}

/// Opens what must be refused and checks that the message names all of `parts`.
#[track_caller]
fn refusal(path: &Path, parts: &[&str]) -> CheckpointError {
    let Err(error) = Checkpoint::open(path) else { panic!("{} was accepted", path.display()) };
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{message}` does not name `{part}`");
    }
    assert!(message.chars().next().is_some_and(|first| !first.is_uppercase()), "{message}");
    error
}

/// The same for one file in an otherwise empty folder.
#[track_caller]
fn file_refusal(bytes: &[u8], parts: &[&str]) -> CheckpointError {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = refusal(folder.path(), parts);
    assert!(error.to_string().contains("model.safetensors"), "the message names the file: {error}");
    error
}
