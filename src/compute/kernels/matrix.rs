//! Matrices in device memory, and parts of them.

use std::ops::Range;

use crate::compute::{Binding, Buffer, ComputeError, Device};

/// How a matrix on the device stores its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an F32.
    BF16,
}

impl Number {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// As the shaders number it.
    pub(super) fn constant(self) -> f64 {
        match self {
            Self::F32 => 0.0,
            Self::F16 => 1.0,
            Self::BF16 => 2.0,
        }
    }
}

/// A row-major matrix in device memory.
#[derive(Debug)]
pub struct DeviceMatrix {
    /// The elements, `[rows, columns]`.
    pub buffer: Buffer,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// How elements are stored.
    pub number: Number,
}

impl DeviceMatrix {
    /// All zeros, F32.
    ///
    /// # Errors
    /// As for [`Device::allocate`].
    pub fn zeros(device: &Device, label: &str, rows: usize, columns: usize) -> Result<Self, ComputeError> {
        let buffer = device.allocate(label, (rows * columns) as u64 * 4)?;
        Ok(Self { buffer, rows, columns, number: Number::F32 })
    }

    /// With F32 values, `[rows, columns]` row-major.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn upload(device: &Device, label: &str, columns: usize, values: &[f32]) -> Result<Self, ComputeError> {
        let rows = values.len() / columns.max(1);
        Self::stored(device, label, columns, Number::F32, bytemuck::cast_slice(values)).map(|it| Self { rows, ..it })
    }

    /// With the bytes of a tensor as a checkpoint stores it.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    pub fn stored(
        device: &Device,
        label: &str,
        columns: usize,
        number: Number,
        bytes: &[u8],
    ) -> Result<Self, ComputeError> {
        let rows = bytes.len() / number.bytes() as usize / columns.max(1);
        Ok(Self { buffer: device.upload(label, bytes)?, rows, columns, number })
    }

    /// Reads F32 values back; waits.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn download(&self, device: &Device) -> Result<Vec<f32>, ComputeError> {
        Ok(bytemuck::pod_collect_to_vec(&device.read(&self.buffer)?))
    }

    /// All of it.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.part(0..self.rows, 0..self.columns)
    }

    /// Some rows and columns.
    ///
    /// # Panics
    /// Beyond the matrix.
    #[must_use]
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> View<'_> {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "a part lies within its matrix");
        View { matrix: self, rows, columns }
    }
}

/// A rectangle of a matrix on the device.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The matrix.
    pub matrix: &'a DeviceMatrix,
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub columns: Range<usize>,
}

/// A part of a buffer that holds a view.
pub(super) struct Bound<'a> {
    pub(super) binding: Binding<'a>,
    pub(super) bytes: u64,
    /// Element of the binding at which the view begins.
    pub(super) first: u32,
}

impl<'a> View<'a> {
    /// The rows `rows` of this view.
    #[must_use]
    pub fn some_rows(&self, rows: Range<usize>) -> Self {
        Self { rows: self.rows.start + rows.start..self.rows.start + rows.end, ..self.clone() }
    }

    /// The columns `columns` of this view.
    #[must_use]
    pub fn some_columns(&self, columns: Range<usize>) -> Self {
        Self { columns: self.columns.start + columns.start..self.columns.start + columns.end, ..self.clone() }
    }

    /// With so many more rows, to the end of the last of them.
    pub(super) fn with_rows_after(&self, count: usize) -> Self {
        let (rows, columns) = (self.rows.start..self.rows.end + count, self.columns.start..self.matrix.columns);
        Self { matrix: self.matrix, rows, columns }
    }

    /// The smallest part of the buffer that can be bound and holds the view.
    pub(super) fn bound(&self, device: &Device) -> Bound<'a> {
        let (matrix, size) = (self.matrix, self.matrix.number.bytes());
        let element = |row: usize, column: usize| (row * matrix.columns + column) as u64 * size;
        let start = element(self.rows.start, self.columns.start);
        let end = if self.rows.is_empty() { start } else { element(self.rows.end - 1, self.columns.end) };
        let offset = start / device.limits().alignment_bytes * device.limits().alignment_bytes;
        // Kernels see whole vectors of four words; buffers end with one.
        let bytes = (end - offset).next_multiple_of(16).max(16);
        let binding = Binding::Part { buffer: &matrix.buffer, offset, bytes };
        Bound { binding, bytes, first: ((start - offset) / size) as u32 }
    }

    /// The number of elements between two rows.
    pub(super) fn stride(&self) -> u32 {
        self.matrix.columns as u32
    }
}

/// The rows of some views with equally many, in runs of which each can be bound.
pub(super) fn windows(device: &Device, views: &[&View<'_>]) -> impl Iterator<Item = Range<usize>> + use<> {
    let limits = device.limits();
    // A binding begins up to one alignment before its first row, and ends up to one vector after its last.
    let room = limits.binding_bytes.saturating_sub(limits.alignment_bytes.max(16));
    let fits = |view: &&View<'_>| room / (view.matrix.columns as u64 * view.matrix.number.bytes()).max(1);
    let most = views.iter().map(fits).min().unwrap_or(1).max(1) as usize;
    let rows = views.first().map_or(0, |view| view.rows.len());
    (0..rows).step_by(most).map(move |first| first..rows.min(first + most))
}
