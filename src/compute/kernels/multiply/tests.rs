//! Products on the device against those of the processor, and both against F64.

use super::*;
use crate::{
    compute::kernels::{
        DeviceMatrix,
        testing::{HOSTILE, devices, random, upload, upload_as, worst},
    },
    compute::tests::fixtures::skipped,
    forward::{Matrix, multiply_transposed},
};

/// Largest error of an element, as a share of the sum of the magnitudes of its terms: chains of at most 700 roundings.
const TOLERANCE: f64 = 2e-6;

fn transposed(matrix: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(matrix.columns, matrix.rows);
    for row in 0..matrix.rows {
        (0..matrix.columns).for_each(|column| out.row_mut(column)[row] = matrix.row(row)[column]);
    }
    out
}

/// `2 · x wᵀ + before / 2` and the sums of magnitudes, in F64.
fn exact(x: &Matrix, w: &Matrix, before: &Matrix) -> (Vec<f64>, Vec<f64>) {
    let (mut values, mut magnitudes) = (Vec::new(), Vec::new());
    for row in 0..x.rows {
        for column in 0..w.rows {
            let terms = x.row(row).iter().zip(w.row(column)).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let before = f64::from(before.row(row)[column]);
            values.push(2.0 * terms.clone().sum::<f64>() + before / 2.0);
            magnitudes.push(2.0 * terms.map(f64::abs).sum::<f64>() + before.abs() / 2.0);
        }
    }
    (values, magnitudes)
}

#[test]
fn products_of_every_layout_and_type_agree_with_f64() {
    let all = [(false, false), (false, true), (true, false), (true, true)];
    for device in devices() {
        for (index, (rows, columns)) in HOSTILE.into_iter().enumerate() {
            for (layout, (left_transposed, right_transposed)) in all.into_iter().enumerate() {
                let number = [Number::F32, Number::F16, Number::BF16][(index + layout) % 3];
                let depth = [1, 40, 129, 65][(index + layout) % 4];
                let (x, w) = (random(rows, depth, 1), random(columns, depth, 2));
                let before = random(rows, columns, 3);
                let (left, x) = upload_as(&device, &if left_transposed { transposed(&x) } else { x }, number);
                let (right, w) = upload_as(&device, &if right_transposed { w } else { transposed(&w) }, number);
                let x = if left_transposed { transposed(&x) } else { x };
                let w = if right_transposed { w } else { transposed(&w) };
                let out = upload(&device, &before);
                let product = Product { left_transposed, right_transposed, alpha: 2.0, beta: 0.5 };
                let mut batch = device.batch();
                product.add(&device, &mut batch, &left.view(), &right.view(), &out.view()).unwrap();
                batch.submit().unwrap();
                let found = out.download(&device).unwrap();
                let (exact, magnitudes) = exact(&x, &w, &before);
                let mut host = multiply_transposed(&x, &w);
                host.values.iter_mut().zip(&before.values).for_each(|(y, b)| *y = 2.0 * *y + b / 2.0);
                for (who, found) in [("device", &found), ("processor", &host.values)] {
                    let error = worst(found, &exact, |i| magnitudes[i] + 1e-30);
                    assert!(
                        error <= TOLERANCE,
                        "{who}, {rows} × {columns} × {depth}, {product:?}, {number:?}: {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn parts_of_matrices_are_multiplied_and_the_rest_is_left_alone() {
    for device in devices() {
        let (x, w, before) = (random(90, 70, 1), random(50, 83, 2), random(99, 61, 3));
        let [left, right, out] = [&x, &w, &before].map(|matrix| upload(&device, matrix));
        let mut batch = device.batch();
        let (l, r) = (left.part(5..80, 3..44), right.part(7..50, 40..81));
        Product::TRANSPOSED.add(&device, &mut batch, &l, &r, &out.part(11..86, 9..52)).unwrap();
        batch.submit().unwrap();
        let found = Matrix { values: out.download(&device).unwrap(), ..before.clone() };
        for row in 0..99 {
            for column in 0..61 {
                if (11..86).contains(&row) && (9..52).contains(&column) {
                    let (x, w) = (&x.row(row - 6)[3..44], &w.row(column - 2)[40..81]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    assert!((f64::from(found.row(row)[column]) - exact).abs() <= TOLERANCE * 41.0, "{row} {column}");
                } else {
                    assert_eq!(found.row(row)[column], before.row(row)[column], "{row} {column} was written");
                }
            }
        }
    }
}

#[test]
fn deep_products_are_made_in_parts() {
    for device in devices() {
        let (x, w) = (random(3, 70_001, 1), random(2, 70_001, 2));
        let before = Matrix::zeros(3, 2);
        let [left, right, out] = [&x, &w, &before].map(|matrix| upload(&device, matrix));
        if device.limits().binding_bytes < 4 * 70_001 {
            // One row exceeds a binding, which is refused, not computed wrongly.
            let mut batch = device.batch();
            let result = Product::TRANSPOSED.add(&device, &mut batch, &left.view(), &right.view(), &out.view());
            assert!(matches!(result, Err(ComputeError::TooLarge { .. })), "{result:?}");
            continue;
        }
        let mut batch = device.batch();
        let product = Product { alpha: 2.0, beta: 0.5, ..Product::TRANSPOSED };
        product.add(&device, &mut batch, &left.view(), &right.view(), &out.view()).unwrap();
        batch.submit().unwrap();
        let (exact, magnitudes) = exact(&x, &w, &before);
        let error = worst(&out.download(&device).unwrap(), &exact, |i| magnitudes[i]);
        assert!(error <= TOLERANCE, "{error:e}");
    }
}

#[test]
fn every_tile_gives_the_same_bytes() {
    let Some(device) = devices().into_iter().next() else { return };
    for (index, (rows, columns, depth)) in
        [(1, 1, 1), (137, 131, 70), (65, 67, 129), (260, 7, 33)].into_iter().enumerate()
    {
        // A layout for each shape: every tile is a pipeline of its own, and making them is what takes the time.
        let (left_transposed, right_transposed) = [(false, true), (false, false), (true, false), (true, true)][index];
        let number = [Number::F32, Number::BF16, Number::F16][index % 3];
        let turn = |matrix: Matrix, turned: bool| if turned { transposed(&matrix) } else { matrix };
        let (left, _) = upload_as(&device, &turn(random(rows, depth, 1), left_transposed), number);
        let (right, _) = upload_as(&device, &turn(random(depth, columns, 2), right_transposed), number);
        let product = Product { left_transposed, right_transposed, alpha: 0.3, beta: 0.7 };
        let bytes = |tile: Tile| {
            let out = upload(&device, &random(rows, columns, 3));
            let mut batch = device.batch();
            let views = [&left.view(), &right.view(), &out.view()];
            product.add_by(&device, &mut batch, views, Some(tile)).unwrap();
            batch.submit().unwrap();
            device.read(&out.buffer).unwrap()
        };
        let expected = bytes(Tile::LARGE);
        for tile in Tile::ALL {
            assert!(tile.fits(&device.limits()), "{tile:?} is not tested here");
            assert!(bytes(tile) == expected, "{tile:?}: {product:?}, {rows} × {columns} × {depth}");
        }
    }
}

#[test]
fn the_fastest_tile_is_one_that_fits() {
    let Some(device) = devices().into_iter().next() else { return };
    let tile = Tile::measure(&device, [258, 80]).unwrap();
    assert!(Tile::ALL.contains(&tile) && tile.fits(&device.limits()), "{tile:?}");
    assert_eq!(device.memory_bytes().0, 0, "the probe's memory is given back");
    let small = crate::compute::Limits { workgroup_memory_bytes: 4096, workgroup_invocations: 128, ..device.limits() };
    let fitting: Vec<Tile> = Tile::ALL.into_iter().filter(|tile| tile.fits(&small)).collect();
    assert_eq!(fitting, [Tile::SMALL]);
}

#[test]
fn cooperative_matrices_make_the_same_product_where_there_are_some() {
    let Some(device) = devices().into_iter().next() else { return };
    if device.cooperative_edge().is_none() {
        skipped(&format!("{} has no cooperative matrices", device.adapter().name));
    }
    for (rows, columns, depth) in [(64, 64, 64), (67, 129, 97), (16, 17, 300)] {
        let operands = [random(rows, depth, 1), random(columns, depth, 2)];
        let [(left, x), (right, w)] = operands.map(|matrix| upload_as(&device, &matrix, Number::F16));
        let used = Cooperative::of(&device, [rows, columns, depth], [&left.view(), &right.view()]);
        assert_eq!(
            used.is_some(),
            device.cooperative_edge().is_some(),
            "the units are wrong by more than the tolerance"
        );
        let before = random(rows, columns, 3);
        let product = Product { alpha: 2.0, beta: 0.5, ..Product::TRANSPOSED };
        let once = || {
            let out = upload(&device, &before);
            let mut batch = device.batch();
            product.add(&device, &mut batch, &left.view(), &right.view(), &out.view()).unwrap();
            batch.submit().unwrap();
            out.download(&device).unwrap()
        };
        let found = once();
        let (exact, magnitudes) = exact(&x, &w, &before);
        let error = worst(&found, &exact, |i| magnitudes[i]);
        assert!(error <= TOLERANCE, "{rows} × {columns} × {depth}: {error:e}");
        assert_eq!(found, once(), "not the same twice");
    }
    // F32 operands have digits that F16 would lose.
    let wide = upload(&device, &random(64, 64, 1));
    assert_eq!(Cooperative::of(&device, [64; 3], [&wide.view(), &wide.view()]), None);
}

#[test]
fn large_tiles_make_the_same_product() {
    let Some(device) = devices().into_iter().next() else { return };
    let (x, w) = (random(1400, 35, 1), random(1500, 35, 2));
    let tile = Tile::choose(&device, [x.rows, w.rows, 35], 1);
    assert_ne!(tile, Tile::SMALL, "the shape is meant for large tiles");
    let out = DeviceMatrix::zeros(&device, "out", x.rows, w.rows).unwrap();
    let [left, right] = [&x, &w].map(|matrix| upload(&device, matrix));
    let mut batch = device.batch();
    Product::TRANSPOSED.add(&device, &mut batch, &left.view(), &right.view(), &out.view()).unwrap();
    batch.submit().unwrap();
    let (found, host) = (out.download(&device).unwrap(), multiply_transposed(&x, &w));
    let host: Vec<f64> = host.values.iter().copied().map(f64::from).collect();
    assert!(worst(&found, &host, |_| 35.0) <= TOLERANCE);
}

#[test]
fn without_depth_only_beta_counts() {
    for device in devices() {
        let before = random(5, 7, 1);
        let (x, out) = (upload(&device, &random(9, 9, 2)), upload(&device, &before));
        let product = Product { beta: 0.5, ..Product::TRANSPOSED };
        let mut batch = device.batch();
        product.add(&device, &mut batch, &x.part(0..5, 3..3), &x.part(0..7, 4..4), &out.view()).unwrap();
        batch.submit().unwrap();
        let half: Vec<f32> = before.values.iter().map(|value| value / 2.0).collect();
        assert_eq!(out.download(&device).unwrap(), half);
    }
}
