//! A matrix in memory, for tests.

use crate::codec::{CodecError, RowSource};

pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    pub fn new(rows: usize, columns: usize, value: impl Fn(usize) -> f32) -> Self {
        Self { rows, columns, values: (0..rows * columns).map(value).collect() }
    }
}

impl RowSource for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let start = first_row * self.columns;
        out.copy_from_slice(&self.values[start..start + out.len()]);
        Ok(())
    }
}
