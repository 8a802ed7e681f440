//! k-means on the device: nearest centroids, and the sums from which centroids are made.
//!
//! What `passes/vptq`'s kernels do on the processor. Vectors are `length` consecutive rows of a column; where the rows
//! of the matrix do not divide, the last ones go on with zeros.

use super::{
    DeviceMatrix, Number, View, groups_for, matrix, shader,
    vectors::{SIZE, blocks, elements, of_length, windows},
};
use crate::compute::{Batch, Buffer, ComputeError, Device, Kernel};

const NEAREST: &str = shader!("nearest_centroid.wgsl");
const UPDATE: &str = shader!("centroid_update.wgsl");
/// The longest vectors: a tile holds some centroids of this length.
const LONGEST: usize = 64;
/// Vectors of one run of sums, each of which is F32: 64 a thread.
const RUN: usize = 4096;

/// The nearest centroid to each vector.
#[derive(Debug)]
pub struct Nearest {
    /// U32, `[vectors of a column, columns]`.
    pub indices: Buffer,
    /// x·c − |c|²/2 of each, F32, likewise.
    pub scores: Buffer,
    vectors: usize,
}

impl Nearest {
    /// Adds to the batch the search for the nearest centroid to each vector of `x`, F32 `[rows, columns]`; of equally near
    /// ones the first. `centroids` are F32 `[count, length + 1]`, with minus half its squared norm behind each, as
    /// [`crate::passes::vptq::bench::with_norms`] makes them. Which of two centroids is nearer is decided in F32, so that
    /// it may be the other one where the distances are nearly equal.
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where the rows of one vector exceed a binding.
    ///
    /// # Panics
    /// For vectors of more than 64 rows or none, and matrices that are not F32.
    pub fn add(
        device: &Device,
        batch: &mut Batch<'_>,
        x: &View<'_>,
        centroids: &DeviceMatrix,
    ) -> Result<Self, ComputeError> {
        let length = centroids.columns.saturating_sub(1);
        check(x, length);
        assert_eq!(centroids.number, Number::F32, "centroids are F32");
        let columns = x.columns.len();
        let vectors = blocks(x, length) * columns;
        let bytes = vectors as u64 * 4;
        let found = Self {
            indices: device.allocate("nearest centroids", bytes)?,
            scores: device.allocate("scores of centroids", bytes)?,
            vectors,
        };
        let kernel = Kernel::new("nearest_centroid", of_length(NEAREST, length), "nearest_centroid");
        let parts: Vec<_> = matrix::windows(device, &[&centroids.view()]).collect();
        for (blocks, rows) in windows(device, x, length) {
            let out = blocks.start * columns..blocks.end * columns;
            let part = x.some_rows(rows.clone());
            let from = part.bound(device);
            let (scores, scores_first) = elements(device, &found.scores, out.clone(), 1);
            let (indices, indices_first) = elements(device, &found.indices, out.clone(), 1);
            for codes in &parts {
                let book = centroids.part(codes.clone(), 0..length + 1);
                let book = book.bound(device);
                let uniform = [
                    blocks.len() as u32,
                    columns as u32,
                    rows.len() as u32,
                    from.first,
                    x.stride(),
                    book.first,
                    codes.len() as u32,
                    codes.start as u32,
                    scores_first,
                    indices_first,
                    0,
                    0,
                ];
                let bindings = [from.binding, book.binding, scores, indices];
                batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups_for(device, out.len(), SIZE))?;
            }
        }
        Ok(found)
    }

    /// Reads the indices back; waits.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn download(&self, device: &Device) -> Result<Vec<u32>, ComputeError> {
        let bytes = device.read(&self.indices)?;
        Ok(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes)[..self.vectors].to_vec())
    }
}

fn check(x: &View<'_>, length: usize) {
    assert!((1..=LONGEST).contains(&length), "vectors have 1 to {LONGEST} rows");
    assert_eq!(x.matrix.number, Number::F32, "vectors are F32");
}

/// What belongs to each centroid, added up.
#[derive(Debug, Clone, PartialEq)]
pub struct CentroidSums {
    /// Σ w x, `[count, length]`.
    pub vectors: Vec<f64>,
    /// Σ w, `[count]`.
    pub weights: Vec<f64>,
}

/// Some of the vectors of one centroid.
struct Run {
    centroid: usize,
    first: u32,
    count: u32,
}

/// Adds up the vectors of `x`, F32 `[rows, columns]`, by the centroid of `indices`, `[vectors of a column, columns]`, with
/// the weights of their columns, F32 `[1, columns]`. Sums of up to 4096 vectors are F32, their sums F64; the order of all of
/// them depends on shapes and indices alone, so the same device gives the same bits every time. Waits.
///
/// # Errors
/// As for [`Batch::add`] and [`Device::read`]; [`ComputeError::TooLarge`] where the rows of one vector exceed a binding.
///
/// # Panics
/// When shapes do not fit together, or an index is beyond `count`.
pub fn centroid_sums(
    device: &Device,
    x: &View<'_>,
    weights: &DeviceMatrix,
    indices: &[u32],
    (count, length): (usize, usize),
) -> Result<CentroidSums, ComputeError> {
    check(x, length);
    let columns = x.columns.len();
    assert_eq!((weights.rows, weights.columns, weights.number), (1, columns, Number::F32), "a weight for each column");
    assert_eq!(indices.len(), blocks(x, length) * columns, "an index for each vector");
    let kernel = Kernel::new("centroid_update", of_length(UPDATE, length), "centroid_update");
    let mut sums = CentroidSums { vectors: vec![0.0; count * length], weights: vec![0.0; count] };
    for (blocks, rows) in windows(device, x, length) {
        let (order, runs) = by_centroid(&indices[blocks.start * columns..blocks.end * columns], count);
        let list: Vec<u32> = runs.iter().flat_map(|run| [run.first, run.count]).collect();
        let order_buffer = device.upload("vectors by centroid", bytemuck::cast_slice(&order))?;
        let list_buffer = device.upload("runs of vectors", bytemuck::cast_slice(&list))?;
        let partial = DeviceMatrix::zeros(device, "sums of centroids", runs.len(), length + 1)?;
        let part = x.some_rows(rows.clone());
        let (from, weights) = (part.bound(device), weights.view().bound(device));
        let mut batch = device.batch();
        for some in matrix::windows(device, &[&partial.view()]) {
            let (list, list_first) = elements(device, &list_buffer, 2 * some.start..2 * some.end, 1);
            let out = partial.part(some.clone(), 0..length + 1);
            let out = out.bound(device);
            let uniform = [
                some.len() as u32,
                columns as u32,
                rows.len() as u32,
                from.first,
                x.stride(),
                weights.first,
                0,
                list_first,
                out.first,
                0,
                0,
                0,
            ];
            let bindings = [from.binding, weights.binding, (&order_buffer).into(), list, out.binding];
            batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups_for(device, some.len(), 1))?;
        }
        batch.submit()?;
        for (run, partial) in runs.iter().zip(partial.download(device)?.chunks_exact(length + 1)) {
            let sum = &mut sums.vectors[run.centroid * length..][..length];
            sum.iter_mut().zip(partial).for_each(|(sum, more)| *sum += f64::from(*more));
            sums.weights[run.centroid] += f64::from(partial[length]);
        }
    }
    Ok(sums)
}

/// The vectors in the order of their centroids, each centroid's in their own order, and the runs of them.
fn by_centroid(indices: &[u32], count: usize) -> (Vec<u32>, Vec<Run>) {
    let mut next = vec![0_usize; count];
    for centroid in indices {
        next[*centroid as usize] += 1;
    }
    let (mut runs, mut at) = (Vec::new(), 0);
    for (centroid, next) in next.iter_mut().enumerate() {
        let (first, all) = (at, *next);
        for begin in (0..all).step_by(RUN) {
            let count = (all - begin).min(RUN) as u32;
            runs.push(Run { centroid, first: (first + begin) as u32, count });
        }
        *next = first;
        at += all;
    }
    let mut order = vec![0; indices.len()];
    for (vector, centroid) in indices.iter().enumerate() {
        let place = &mut next[*centroid as usize];
        order[*place] = vector as u32;
        *place += 1;
    }
    (order, runs)
}
