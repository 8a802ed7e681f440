//! Bytes of tensors by range: views of mapped files, or what was fetched for the range alone.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::Arc,
};

use super::{Checkpoint, CheckpointError, Data, TensorEntry, lost::lost};

/// The longest piece that [`Checkpoint::pieces`] hands out.
pub const PIECE_BYTES: usize = 4 << 20;

/// Some bytes of a tensor. Little-endian, at any alignment.
#[derive(Clone)]
pub enum TensorBytes<'a> {
    /// A view of a mapped file, or of memory.
    Mapped(&'a [u8]),
    /// A part of a block that was fetched and is kept while this lives.
    Block(Arc<Vec<u8>>, Range<usize>),
    /// Put together from several blocks.
    Owned(Vec<u8>),
}

impl Deref for TensorBytes<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Block(block, range) => &block[range.clone()],
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Default for TensorBytes<'_> {
    fn default() -> Self {
        Self::Mapped(&[])
    }
}

impl<'a> From<&'a [u8]> for TensorBytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Mapped(bytes)
    }
}

impl AsRef<[u8]> for TensorBytes<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for TensorBytes<'_> {
    fn eq(&self, other: &T) -> bool {
        self[..] == *other.as_ref()
    }
}

impl fmt::Debug for TensorBytes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(formatter)
    }
}

/// Bytes that are asked for by range, so that a reader holds no more of them than it works on.
#[derive(Clone, Copy)]
pub enum Ranged<'a> {
    /// All of them are in memory.
    Slice(&'a [u8]),
    /// A tensor of a checkpoint, wherever that lies.
    Tensor(&'a Checkpoint, &'a TensorEntry),
}

impl<'a> Ranged<'a> {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Slice(bytes) => bytes.len(),
            Self::Tensor(_, entry) => entry.bytes as usize,
        }
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a range.
    ///
    /// # Panics
    /// When the range is not within [`Ranged::len`].
    #[must_use]
    #[inline]
    pub fn range(&self, range: Range<usize>) -> TensorBytes<'a> {
        match self {
            Self::Slice(bytes) => TensorBytes::Mapped(&bytes[range]),
            Self::Tensor(checkpoint, entry) => checkpoint.range(entry, range),
        }
    }
}

impl<'a> From<&'a [u8]> for Ranged<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Slice(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Ranged<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Slice(bytes)
    }
}

impl<'a, const BYTES: usize> From<&'a [u8; BYTES]> for Ranged<'a> {
    fn from(bytes: &'a [u8; BYTES]) -> Self {
        Self::Slice(bytes)
    }
}

impl Checkpoint {
    /// All bytes of a tensor at once: for small ones, and for what is decoded as a whole.
    #[must_use]
    pub fn bytes(&self, entry: &TensorEntry) -> TensorBytes<'_> {
        self.range(entry, 0..entry.bytes as usize)
    }

    /// Some bytes of a tensor of this checkpoint.
    ///
    /// # Panics
    /// When the range is not within the tensor. What cannot be fetched any more ends the work in hand: see
    /// [`super::until_lost`].
    #[must_use]
    #[inline]
    pub fn range(&self, entry: &TensorEntry, range: Range<usize>) -> TensorBytes<'_> {
        assert!(range.start <= range.end && range.end as u64 <= entry.bytes, "bytes {range:?} of `{}`", entry.name);
        match (&self.files[entry.file].data, &self.mounted) {
            (Data::Mapped(map), _) => TensorBytes::Mapped(&map.bytes()[within_file(entry, range)]),
            (Data::Object(object), Some(mounted)) => {
                let within = within_file(entry, range);
                let read = mounted.range(*object, within.start as u64..within.end as u64);
                read.unwrap_or_else(|error| lost(error.into()))
            }
            (Data::Object(_), None) => unreachable!("objects are of a store"),
        }
    }

    /// Gives the mapped pages that `range` touches (bytes of this tensor) back to the system, or what was fetched of
    /// it; reading them again is allowed and costs a page fault or a request.
    pub fn release(&self, entry: &TensorEntry, range: Range<usize>) {
        let within = within_file(entry, range);
        match (&self.files[entry.file].data, &self.mounted) {
            (Data::Mapped(map), _) => map.release(within),
            (Data::Object(object), Some(mounted)) => mounted.release(*object, within.start as u64..within.end as u64),
            (Data::Object(_), None) => {}
        }
    }

    /// Says that bytes of this tensor will be read soon: the disk or the store can begin.
    pub fn announce(&self, entry: &TensorEntry, range: Range<usize>) {
        let within = within_file(entry, range);
        match (&self.files[entry.file].data, &self.mounted) {
            (Data::Mapped(map), _) => map.announce(within),
            (Data::Object(object), Some(mounted)) => mounted.announce(*object, within.start as u64..within.end as u64),
            (Data::Object(_), None) => {}
        }
    }

    /// Says that bytes of this tensor are read now, all of them: their pages are mapped in one go.
    pub fn populate(&self, entry: &TensorEntry, range: Range<usize>) {
        if let Data::Mapped(map) = &self.files[entry.file].data {
            map.populate(within_file(entry, range));
        }
    }

    /// All bytes of a tensor of a mapped file, as long as the checkpoint lives.
    ///
    /// # Errors
    /// [`CheckpointError::NotMapped`] where they would have to be fetched.
    pub fn mapped_bytes(&self, entry: &TensorEntry) -> Result<&[u8], CheckpointError> {
        match self.range(entry, 0..entry.bytes as usize) {
            TensorBytes::Mapped(bytes) => Ok(bytes),
            _ => Err(CheckpointError::NotMapped { path: self.files[entry.file].path.clone() }),
        }
    }

    /// A range of a tensor's bytes in pieces of at most [`PIECE_BYTES`], each with where it starts in the tensor; a
    /// piece never cuts a number.
    pub fn pieces(&self, entry: &TensorEntry, range: Range<usize>) -> impl Iterator<Item = (usize, TensorBytes<'_>)> {
        let end = range.end.min(entry.bytes as usize);
        let entry = entry.clone();
        range
            .step_by(PIECE_BYTES)
            .take_while(move |start| *start < end)
            .map(move |start| (start, self.range(&entry, start..end.min(start + PIECE_BYTES))))
    }
}

/// A range of a tensor's bytes, cut to the tensor, as a range of its file.
fn within_file(entry: &TensorEntry, range: Range<usize>) -> Range<usize> {
    let start = usize::try_from(entry.offset).expect("validated against the file's length");
    let length = usize::try_from(entry.bytes).expect("validated against the file's length");
    start + range.start.min(length)..start + range.end.min(length)
}
