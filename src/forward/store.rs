//! Hidden states on disk: what is carried from block to block grows with the calibration text, memory must not.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{Matrix, State};

/// States of batches of sequences, one record each, in one file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// Bytes from one record to the next.
    stride: u64,
    length: usize,
    /// Shapes of the matrices of each record.
    shapes: Vec<Mutex<Vec<(usize, usize)>>>,
}

impl Store {
    /// A store for `batches` states of at most `values` numbers each, in a new file at `path`, or in an unnamed one in
    /// the folder for temporary files.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: Option<&Path>, batches: usize, values: usize, length: usize) -> io::Result<Self> {
        let (path, file) = match path {
            Some(path) => {
                (path.to_owned(), File::options().read(true).write(true).create(true).truncate(true).open(path)?)
            }
            None => (std::env::temp_dir(), tempfile::tempfile()?),
        };
        Ok(Self {
            path,
            file,
            stride: values as u64 * 4,
            length,
            shapes: (0..batches).map(|_| Mutex::default()).collect(),
        })
    }

    /// Opens the file of an earlier run whose records hold one matrix each.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, shapes: &[(usize, usize)], values: usize, length: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let shapes = shapes.iter().map(|shape| Mutex::new(vec![*shape])).collect();
        Ok(Self { path: path.to_owned(), file, stride: values as u64 * 4, length, shapes })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens of a sequence.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of batches.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.shapes.len()
    }

    /// Puts a state aside. Different batches may be written and read at the same time.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn write(&self, batch: usize, state: &State) -> io::Result<()> {
        let mut offset = batch as u64 * self.stride;
        for matrix in state.matrices() {
            let bytes: &[u8] = bytemuck::cast_slice(&matrix.values);
            self.file.write_all_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        if offset > (batch as u64 + 1) * self.stride {
            return Err(io::Error::other("a state is larger than its record"));
        }
        *self.shapes_of(batch) = state.matrices().map(|matrix| (matrix.rows, matrix.columns)).collect();
        Ok(())
    }

    fn shapes_of(&self, batch: usize) -> std::sync::MutexGuard<'_, Vec<(usize, usize)>> {
        self.shapes[batch].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes a state up again.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, batch: usize) -> io::Result<State> {
        let mut offset = batch as u64 * self.stride;
        let shapes = self.shapes_of(batch).clone();
        let mut matrices = Vec::with_capacity(shapes.len());
        for (rows, columns) in shapes {
            let mut matrix = Matrix::zeros(rows, columns);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut matrix.values);
            self.file.read_exact_at(bytes, offset)?;
            offset += bytes.len() as u64;
            matrices.push(matrix);
        }
        let mut matrices = matrices.into_iter();
        let hidden = matrices.next().unwrap_or_default();
        Ok(State { length: self.length, hidden, carried: matrices.collect() })
    }
}
