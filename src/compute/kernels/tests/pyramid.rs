//! Points of pyramids and their indices against the processor's.

use crate::{
    codec::pyramid::{Order, search::nearest_direction},
    compute::{
        ComputeError,
        kernels::{
            PyramidTables, pyramid_search,
            testing::{HOSTILE, devices, random, upload},
        },
    },
    forward::Matrix,
};

/// Share of vectors to which the device may give another point than the processor: where two are equally good to the
/// last bits, one rounding decides, and WGSL may divide less exactly and fuse products with sums.
const NEAR_TIES: f64 = 1e-3;
/// How much smaller the cosine of such a point may be.
const COSINE_TOLERANCE: f64 = 1e-6;
/// Dimensions and pulses; all with indices of up to 64 bits.
const PYRAMIDS: [(usize, u32); 8] = [(2, 1), (2, 9), (5, 3), (8, 36), (16, 12), (16, 58), (24, 30), (33, 4)];

/// The vector of a column that begins with row `first`, zeros beyond the matrix.
fn vector(x: &Matrix, first: usize, column: usize, dimension: usize) -> Vec<f32> {
    (first..first + dimension).map(|row| if row < x.rows { x.row(row)[column] } else { 0.0 }).collect()
}

fn cosine(x: &[f32], point: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(x, point) / (product(x, x) * product(point, point)).sqrt()
}

/// Random weights with zeros among them, a column of zeros, and columns of very different lengths.
fn weights(rows: usize, columns: usize, seed: u32) -> Matrix {
    let mut x = random(rows, columns, seed);
    for (place, value) in x.values.iter_mut().enumerate() {
        let length = [1.0, 1e-30, 1e30, 1.0, 0.0][place % columns % 5];
        *value = if value.abs() < 0.1 { 0.0 } else { *value * length };
    }
    x
}

#[test]
fn points_are_the_processors() {
    let (mut total, mut others) = (0, 0);
    for device in devices() {
        let limit = device.limits().binding_bytes as usize;
        // Long vectors and many pulses beside those whose indices are short.
        let pyramids = PYRAMIDS.into_iter().chain([(128, 28), (3, 4095)]);
        for ((dimension, pulses), (rows, columns)) in pyramids.flat_map(|it| HOSTILE.map(|shape| (it, shape))) {
            if pulses > 100 && rows * columns > 200 {
                continue;
            }
            let x = weights(rows, columns, 11);
            let given = upload(&device, &x);
            let mut batch = device.batch();
            let points = pyramid_search(&device, &mut batch, &given.view(), (dimension, pulses));
            // Points are whole where the matrix ends within a vector.
            if dimension * columns * 4 > limit {
                assert!(matches!(points, Err(ComputeError::TooLarge { .. })), "{rows} × {columns}, {dimension}");
                continue;
            }
            let points = points.unwrap();
            batch.submit().unwrap();
            assert_eq!((points.rows, points.columns), (rows.next_multiple_of(dimension), columns));
            let found = Matrix { rows: points.rows, columns, values: points.download(&device).unwrap() };
            for first in (0..rows).step_by(dimension) {
                for column in 0..columns {
                    let x = vector(&x, first, column, dimension);
                    let found = vector(&found, first, column, dimension);
                    let mut expected = vec![0.0; dimension];
                    nearest_direction(&x, pulses, &mut expected);
                    total += 1;
                    let what = format!("{dimension} {pulses}: {x:?}");
                    assert_eq!(found.iter().map(|y| y.abs()).sum::<f32>(), pulses as f32, "{what}");
                    assert!(found.iter().all(|y| y.fract() == 0.0), "{what}");
                    if found != expected {
                        others += 1;
                        let (found, expected) = (cosine(&x, &found), cosine(&x, &expected));
                        assert!(found >= expected - COSINE_TOLERANCE, "{what}: {found} against {expected}");
                    }
                }
            }
        }
    }
    assert!(others as f64 <= NEAR_TIES * total as f64, "{others} of {total} vectors have another point");
}

/// Points with the pulses thrown at coordinates at random.
fn random_points(blocks: usize, dimension: usize, columns: usize, pulses: u32) -> Matrix {
    let mut points = Matrix { rows: blocks * dimension, columns, values: vec![0.0; blocks * dimension * columns] };
    let mut state = 13;
    for block in 0..blocks {
        for column in 0..columns {
            for _ in 0..pulses {
                let random = super::next(&mut state);
                let row = block * dimension + random as usize / 2 % dimension;
                let y = &mut points.values[row * columns + column];
                *y += if *y < 0.0 || *y == 0.0 && random.is_multiple_of(2) { -1.0 } else { 1.0 };
            }
        }
    }
    points
}

fn indices_of(bytes: &[u8], count: usize) -> Vec<u64> {
    bytes.as_chunks::<8>().0[..count].iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[test]
fn indices_are_the_processors_and_come_back_as_points() {
    let mut tried = 0;
    for device in devices() {
        let limit = device.limits().binding_bytes as usize;
        for ((dimension, pulses), (blocks, columns)) in
            PYRAMIDS.into_iter().chain([(8, 865), (2, 4095)]).flat_map(|it| HOSTILE.map(|shape| (it, shape)))
        {
            let order = Order::<u64>::new(dimension, pulses).unwrap();
            let tables = PyramidTables::new(&device, dimension, pulses).unwrap().unwrap();
            let points = random_points(blocks, dimension, columns, pulses);
            let given = upload(&device, &points);
            let mut batch = device.batch();
            let indices = tables.encode(&device, &mut batch, &given);
            let table_bytes = (dimension + 1) * (pulses as usize + 1) * 8;
            if table_bytes > limit || dimension * columns * 4 > limit {
                assert!(matches!(indices, Err(ComputeError::TooLarge { .. })), "{blocks} × {columns}, {dimension}");
                continue;
            }
            let indices = indices.unwrap();
            let back = tables.decode(&device, &mut batch, &indices, (blocks, columns)).unwrap();
            batch.submit().unwrap();
            let found = indices_of(&device.read(&indices).unwrap(), blocks * columns);
            for (place, found) in found.iter().enumerate() {
                let vector = vector(&points, place / columns * dimension, place % columns, dimension);
                let point: Vec<i16> = vector.iter().map(|y| *y as i16).collect();
                assert_eq!(*found, order.index(&point), "{point:?}");
            }
            assert!(back.download(&device).unwrap() == points.values, "{blocks} × {columns}, {dimension} {pulses}");
            tried += found.len();
        }
    }
    if !devices().is_empty() {
        assert!(tried > 50_000, "{tried} points");
    }
}

#[test]
fn every_number_is_the_point_that_the_processor_says_or_none() {
    for device in devices() {
        for (dimension, pulses) in [(2, 1), (5, 3), (16, 12), (8, 36), (16, 50)] {
            let order = Order::<u64>::new(dimension, pulses).unwrap();
            let points = order.points();
            let mut state = 17;
            let mut any = || super::next(&mut state) << 33 ^ super::next(&mut state);
            let mut numbers = vec![0, 1, points - 1, points, points + 1, u64::from(u32::MAX), 1 << 32, u64::MAX];
            numbers.extend((0..500).map(|_| any() % points));
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let indices = device.upload("numbers", &bytes).unwrap();
            let tables = PyramidTables::new(&device, dimension, pulses).unwrap().unwrap();
            let mut batch = device.batch();
            let found = tables.decode(&device, &mut batch, &indices, (numbers.len(), 1)).unwrap();
            batch.submit().unwrap();
            let found = found.download(&device).unwrap();
            for (number, found) in numbers.iter().zip(found.chunks_exact(dimension)) {
                let mut point = vec![0; dimension];
                let exists = order.point(*number, &mut point);
                assert_eq!(exists, *number < points);
                let expected: Vec<f32> = point.iter().map(|y| if exists { f32::from(*y) } else { 0.0 }).collect();
                assert_eq!(found, expected, "{number} of {dimension} {pulses}");
            }
        }
        assert!(PyramidTables::new(&device, 16, 59).unwrap().is_none(), "more than 64 bits are the processor's");
    }
}
