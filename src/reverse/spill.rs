//! Hidden states between blocks on disk: they grow with batch and depth, memory must not.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{Matrix, Real};

/// Matrices of one width in one file.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    columns: usize,
    /// Bytes from one record to the next.
    stride: u64,
}

impl Spill {
    /// For matrices of at most `rows` rows and exactly `columns` columns, in an unnamed file in `folder`, or in the folder
    /// for temporary files.
    pub(super) fn create<T: Real>(folder: Option<&Path>, rows: usize, columns: usize) -> io::Result<Self> {
        let file = match folder {
            Some(folder) => tempfile::tempfile_in(folder)?,
            None => tempfile::tempfile()?,
        };
        Ok(Self { file, columns, stride: (rows * columns * size_of::<T>()) as u64 })
    }

    pub(super) fn write<T: Real>(&self, record: usize, matrix: &Matrix<T>) -> io::Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(&matrix.values);
        if matrix.columns != self.columns || bytes.len() as u64 > self.stride {
            return Err(io::Error::other("a state is larger than its record"));
        }
        self.file.write_all_at(bytes, record as u64 * self.stride)
    }

    pub(super) fn read<T: Real>(&self, record: usize, rows: usize) -> io::Result<Matrix<T>> {
        let mut matrix = Matrix::zeros(rows, self.columns);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut matrix.values);
        self.file.read_exact_at(bytes, record as u64 * self.stride)?;
        Ok(matrix)
    }
}
