//! Stands in for the client where the feature `object-store` is off: it cannot be made.

use std::{ops::Range, path::Path, sync::Arc};

use super::{Location, Object, RemoteError};

/// There is none.
#[derive(Debug)]
pub(super) enum Store {}

impl Store {
    pub(super) fn open(location: &Location) -> Result<Arc<Self>, RemoteError> {
        Err(RemoteError::NotBuilt { url: location.to_string() })
    }

    pub(super) fn list(&self) -> Result<Vec<Object>, RemoteError> {
        match *self {}
    }

    pub(super) fn read(&self, _object: &Object, _range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        match *self {}
    }

    pub(super) fn read_later(
        self: &Arc<Self>,
        _object: &Object,
        _range: Range<u64>,
        _then: impl FnOnce(Result<Vec<u8>, RemoteError>) + Send + 'static,
    ) {
        match **self {}
    }

    pub(super) fn write_file(&self, _name: &str, _path: &Path) -> Result<Option<String>, RemoteError> {
        match *self {}
    }

    pub(super) fn delete(&self, _name: &str) -> Result<(), RemoteError> {
        match *self {}
    }
}
