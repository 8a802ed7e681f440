//! Points of pyramids on the device: the search, and indices of up to 64 bits. Longer indices are the processor's: WGSL has
//! integers of 32 bits, and two of them in a word is what the shader computes with.

use super::{
    DeviceMatrix, Number, View, groups_for, shader,
    vectors::{SIZE, blocks, elements, of_length, windows},
};
use crate::{
    codec::pyramid::{MAX_DIMENSION, MAX_PULSES, Order, search::ROUNDS},
    compute::{Batch, Buffer, ComputeError, Device, Kernel},
};

const SEARCH: &str = shader!("pyramid_search.wgsl");
const INDEX: &str = shader!("pyramid_index.wgsl");
/// Words of an index.
const WORDS: usize = 2;

/// Adds to the batch the search for the point with `pulses` pulses that is nearest in direction to each vector of `x`, F32
/// `[rows, columns]`; a vector is `dimension` consecutive rows of a column, zeros where there are no more. Gives the points,
/// F32 `[vectors of a column · dimension, columns]`.
///
/// This is [`crate::codec::pyramid::search::nearest_direction`]. Where two points are nearly as good it may give the other.
///
/// # Errors
/// As for [`Batch::add`]; [`ComputeError::TooLarge`] where the rows of one vector exceed a binding.
///
/// # Panics
/// For dimensions or pulses that no format has, and matrices that are not F32.
pub fn pyramid_search(
    device: &Device,
    batch: &mut Batch<'_>,
    x: &View<'_>,
    (dimension, pulses): (usize, u32),
) -> Result<DeviceMatrix, ComputeError> {
    assert!((2..=MAX_DIMENSION).contains(&dimension), "vectors have 2 to {MAX_DIMENSION} rows");
    assert!((1..=MAX_PULSES).contains(&pulses), "points have 1 to {MAX_PULSES} pulses");
    assert_eq!(x.matrix.number, Number::F32, "vectors are F32");
    let columns = x.columns.len();
    let points = DeviceMatrix::zeros(device, "points", blocks(x, dimension) * dimension, columns)?;
    let kernel = Kernel::new("pyramid_search", of_length(SEARCH, dimension), "pyramid_search");
    for (blocks, rows) in windows(device, x, dimension) {
        let part = x.some_rows(rows.clone());
        let out = points.part(blocks.start * dimension..blocks.end * dimension, 0..columns);
        let (from, to) = (part.bound(device), out.bound(device));
        let counts = [blocks.len(), columns, rows.len()].map(|count| count as u32);
        let [vectors, columns, rows] = counts;
        let uniform = [vectors, columns, rows, pulses, from.first, x.stride(), to.first, ROUNDS as u32];
        let groups = groups_for(device, blocks.len() * points.columns, SIZE);
        batch.add(&kernel, &[from.binding, to.binding], bytemuck::cast_slice(&uniform), groups)?;
    }
    Ok(points)
}

/// The tables of a pyramid whose indices fit 64 bits, on the device.
#[derive(Debug)]
pub struct PyramidTables {
    dimension: usize,
    pulses: u32,
    counts: Buffer,
    below: Buffer,
}

impl PyramidTables {
    /// Makes and uploads them; none where the indices do not fit 64 bits.
    ///
    /// # Errors
    /// As for [`Device::upload`].
    ///
    /// # Panics
    /// For dimensions or pulses that no format has.
    pub fn new(device: &Device, dimension: usize, pulses: u32) -> Result<Option<Self>, ComputeError> {
        assert!((2..=MAX_DIMENSION).contains(&dimension), "vectors have 2 to {MAX_DIMENSION} rows");
        assert!((1..=MAX_PULSES).contains(&pulses), "points have 1 to {MAX_PULSES} pulses");
        let Some(order) = Order::<u64>::new(dimension, pulses) else { return Ok(None) };
        let (counts, below) = order.tables();
        Ok(Some(Self {
            dimension,
            pulses,
            counts: device.upload("counts of points", &words(counts))?,
            below: device.upload("sums of counts", &words(below))?,
        }))
    }

    /// Adds to the batch the index of each point of `points`, F32 `[vectors of a column · dimension, columns]`: 64 bits,
    /// the lower half first, `[vectors of a column, columns]`, those of [`Order::index`].
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where the tables or one row of points exceed a binding.
    ///
    /// # Panics
    /// When the rows are no whole number of points, or not F32.
    pub fn encode(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        points: &DeviceMatrix,
    ) -> Result<Buffer, ComputeError> {
        assert!(points.rows.is_multiple_of(self.dimension), "points are whole");
        let vectors = points.rows / self.dimension * points.columns;
        let indices = device.allocate("indices of points", (vectors * WORDS) as u64 * 4)?;
        self.add(device, batch, points, &indices, "encode")?;
        Ok(indices)
    }

    /// Adds to the batch the points, F32 `[blocks · dimension, columns]`, of indices `[blocks, columns]` as
    /// [`PyramidTables::encode`] has them. What is the index of no point becomes zeros.
    ///
    /// # Errors
    /// As for [`PyramidTables::encode`].
    ///
    /// # Panics
    /// When there are fewer indices.
    pub fn decode(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        indices: &Buffer,
        (blocks, columns): (usize, usize),
    ) -> Result<DeviceMatrix, ComputeError> {
        assert!((blocks * columns * WORDS) as u64 * 4 <= indices.bytes(), "an index for each vector");
        let points = DeviceMatrix::zeros(device, "points", blocks * self.dimension, columns)?;
        self.add(device, batch, &points, indices, "decode")?;
        Ok(points)
    }

    fn add(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        points: &DeviceMatrix,
        indices: &Buffer,
        entry: &'static str,
    ) -> Result<(), ComputeError> {
        assert_eq!(points.number, Number::F32, "points are F32");
        let kernel = Kernel::new("pyramid_index", INDEX, entry);
        let columns = points.columns;
        for (blocks, rows) in windows(device, &points.view(), self.dimension) {
            let part = points.part(rows, 0..columns);
            let part = part.bound(device);
            let range = blocks.start * columns..blocks.end * columns;
            let (list, first) = elements(device, indices, range.clone(), WORDS);
            let (dimension, vectors) = (self.dimension as u32, blocks.len() as u32);
            let uniform = [vectors, columns as u32, dimension, self.pulses, part.first, first, 0, 0];
            let (from, to) = if entry == "encode" { (part.binding, list) } else { (list, part.binding) };
            let bindings = [(&self.counts).into(), (&self.below).into(), from, to];
            batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups_for(device, range.len(), SIZE))?;
        }
        Ok(())
    }
}

/// Numbers of 64 bits as the shader has them, whatever the processor's order of bytes.
fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
