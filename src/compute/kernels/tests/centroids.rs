//! Nearest centroids and their sums against the processor's k-means.

use crate::{
    compute::{
        ComputeError,
        kernels::{
            DeviceMatrix, Nearest, centroid_sums,
            testing::{HOSTILE, devices, random, upload},
        },
    },
    forward::Matrix,
    passes::vptq::{
        Stored,
        bench::{LANES, Winners, nearest, with_norms},
        lloyd,
    },
};

/// Share of vectors of which the device may choose another centroid than the processor: those whose distances to two
/// centroids agree to the last bits, where a device may round each product.
const NEAR_TIES: f64 = 1e-3;
/// How much farther such a centroid may be, as a share of |x|² + |c|².
const ROUNDING: f64 = 1e-6;
/// Largest error of a mean as a share of the largest weight: sums of 64 terms in F32, two centroids apart.
const MEAN_TOLERANCE: f64 = 1e-5;
/// Vector lengths and centroids: one of each, more than a tile of workgroup memory, more than a small binding.
const CODEBOOKS: [(usize, usize); 6] = [(1, 1), (2, 3), (3, 700), (5, 37), (8, 1500), (64, 40)];

/// The vectors in the blocks of the processor's kernel, each with the weight of its column; and how many there are.
fn stored(x: &Matrix, length: usize, weights: &[f32]) -> (Stored, usize) {
    let vectors = x.rows.div_ceil(length) * x.columns;
    let blocks = vectors.div_ceil(LANES);
    let mut stored = Stored { length, x: vec![0.0; blocks * length * LANES], weights: vec![[0.0; LANES]; blocks] };
    for vector in 0..vectors {
        let (block, lane) = (vector / LANES, vector % LANES);
        let (first_row, column) = (vector / x.columns * length, vector % x.columns);
        stored.weights[block][lane] = weights[column];
        for component in 0..length.min(x.rows - first_row) {
            stored.x[(block * length + component) * LANES + lane] = x.row(first_row + component)[column];
        }
    }
    (stored, vectors)
}

fn on_processor(stored: &Stored, vectors: usize, rows: &[f32]) -> Vec<u32> {
    let mut indices = Vec::new();
    let mut winners = Winners::NONE;
    for x in stored.x.chunks_exact(stored.length * LANES) {
        nearest(stored.length, x, rows, &mut winners);
        indices.extend(winners.index);
    }
    indices.truncate(vectors);
    indices
}

#[test]
fn nearest_centroids_are_the_processors() {
    let (mut total, mut others) = (0, 0);
    for device in devices() {
        let limit = device.limits().binding_bytes as usize;
        for ((rows, columns), (length, count)) in HOSTILE.into_iter().flat_map(|shape| CODEBOOKS.map(|it| (shape, it)))
        {
            let x = random(rows, columns, 3);
            let mut centroids = random(count, length, 4).values;
            // Each centroid of the first half once more: the first of the two is the one.
            let half = count / 2 * length;
            centroids.copy_within(..half, half);
            let rows_of_codebook = with_norms(&centroids, length);
            let given = upload(&device, &x);
            let codebook = DeviceMatrix::upload(&device, "centroids", length + 1, &rows_of_codebook).unwrap();
            let mut batch = device.batch();
            let found = Nearest::add(&device, &mut batch, &given.view(), &codebook);
            if length.min(rows) * columns * 4 > limit {
                assert!(matches!(found, Err(ComputeError::TooLarge { .. })), "{rows} × {columns}, {length}");
                continue;
            }
            let found = found.unwrap();
            batch.submit().unwrap();
            let indices = found.download(&device).unwrap();
            let (stored, vectors) = stored(&x, length, &vec![1.0; columns]);
            let expected = on_processor(&stored, vectors, &rows_of_codebook);
            assert_eq!(indices.len(), expected.len());
            total += vectors;
            for (vector, (found, expected)) in indices.iter().zip(&expected).enumerate() {
                let what = format!("{rows} × {columns}, {length} of {count}: vector {vector}");
                assert!(*found < (count - count / 2) as u32 || count % 2 == 1 && *found + 1 == count as u32, "{what}");
                if found == expected {
                    continue;
                }
                others += 1;
                let (block, lane) = (vector / LANES, vector % LANES);
                let value = |component: usize| f64::from(stored.x[(block * length + component) * LANES + lane]);
                let square = |index: Option<u32>| -> f64 {
                    let centroid = |component| index.map_or(0.0, |it| centroids[it as usize * length + component]);
                    (0..length).map(|it| (value(it) - f64::from(centroid(it))).powi(2)).sum()
                };
                let (near, far) = (square(Some(*expected)), square(Some(*found)));
                let norm: f64 = centroids[*found as usize * length..][..length].iter().map(|c| f64::from(c * c)).sum();
                assert!(far <= near + ROUNDING * (square(None) + norm), "{what}: {far} against {near}");
            }
        }
    }
    assert!(others as f64 <= NEAR_TIES * total as f64, "{others} of {total} vectors have another centroid");
}

#[test]
fn sums_give_the_means_of_the_processors_iteration() {
    for device in devices() {
        let limit = device.limits().binding_bytes as usize;
        // The last one has runs of more vectors than one workgroup adds up.
        let shapes = HOSTILE.into_iter().flat_map(|shape| CODEBOOKS.map(|it| (shape, it)));
        for ((rows, columns), (length, count)) in shapes.chain([((1500, 11), (1, 2))]) {
            if length.min(rows) * columns * 4 + 256 > limit {
                continue;
            }
            let x = random(rows, columns, 5);
            let weights: Vec<f32> = random(1, columns, 6).values.iter().map(|weight| weight.abs() + 0.01).collect();
            let mut centroids = random(count, length, 7).values;
            let (stored, vectors) = stored(&x, length, &weights);
            let indices = on_processor(&stored, vectors, &with_norms(&centroids, length));
            let given = upload(&device, &x);
            let weights = DeviceMatrix::upload(&device, "weights", columns, &weights).unwrap();
            let sums = || centroid_sums(&device, &given.view(), &weights, &indices, (count, length)).unwrap();
            let found = sums();
            assert_eq!(found, sums(), "the same sums every time");
            lloyd(&stored, &mut centroids, 1);
            let mut used = 0;
            for (index, mean) in centroids.chunks_exact(length).enumerate() {
                let (sum, weight) = (&found.vectors[index * length..][..length], found.weights[index]);
                assert_eq!(weight > 0.0, indices.contains(&(index as u32)));
                if weight > 0.0 {
                    used += 1;
                    let worst = sum
                        .iter()
                        .zip(mean)
                        .map(|(sum, mean)| (sum / weight - f64::from(*mean)).abs())
                        .fold(0.0, f64::max);
                    assert!(worst <= MEAN_TOLERANCE, "{rows} × {columns}, {length} of {count}, {index}: {worst:e}");
                }
            }
            assert!(used > 0);
        }
    }
}

#[test]
fn vectors_of_a_part_of_a_matrix_are_those_of_a_copy() {
    for device in devices() {
        let (x, length, count) = (random(37, 29, 8), 4, 50);
        let (rows, columns) = (5..34, 3..20);
        let values = rows.clone().flat_map(|row| x.row(row)[columns.clone()].to_vec()).collect();
        let copy = Matrix { rows: rows.len(), columns: columns.len(), values };
        let codebook = with_norms(&random(count, length, 9).values, length);
        let codebook = DeviceMatrix::upload(&device, "centroids", length + 1, &codebook).unwrap();
        let (x, copy) = (upload(&device, &x), upload(&device, &copy));
        let mut batch = device.batch();
        let found = Nearest::add(&device, &mut batch, &x.part(rows.clone(), columns.clone()), &codebook).unwrap();
        let again = Nearest::add(&device, &mut batch, &copy.view(), &codebook).unwrap();
        batch.submit().unwrap();
        let (found, again) = (found.download(&device).unwrap(), again.download(&device).unwrap());
        assert_eq!(found, again);
        let weights = upload(&device, &random(1, columns.len(), 10));
        let sums = |x: &crate::compute::kernels::View<'_>| {
            centroid_sums(&device, x, &weights, &found, (count, length)).unwrap()
        };
        assert_eq!(sums(&x.part(rows, columns)), sums(&copy.view()));
    }
}
