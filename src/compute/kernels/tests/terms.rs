//! Terms of polynomials are products rounded once, and their sums those of the processor but for rounding.

use super::{FORMATS, SHAPES, device, floats, source, weights};
use crate::{
    compute::kernels::{
        DeviceMatrix, DeviceTerms, term,
        testing::{devices, upload},
    },
    forward::{
        Matrix, add_terms,
        terms_testing::{Example, exact},
    },
};

/// Rounding of sums of some hundred terms in F32, over the sum of their magnitudes.
const TOLERANCE: f64 = 2e-6;

#[test]
fn terms_are_rounded_once() {
    let Some(device) = device() else { return };
    for (rows, columns, _) in SHAPES {
        for format in FORMATS {
            let (bytes, values) = weights(format, rows * columns, 41);
            let coefficients: Vec<f32> = (0..columns).map(|column| 0.7 - column as f32 * 0.013).collect();
            let stored = device.upload("weights", &bytes).unwrap();
            let factors = device.upload("coefficients", bytemuck::cast_slice(&coefficients)).unwrap();
            let found = term(&device, &source(&stored, format, rows, columns), &factors).unwrap();
            let found = floats(&device.read(&found).unwrap());
            for (index, (got, weight)) in found.iter().zip(&values).enumerate() {
                let expected = weight * coefficients[index % columns];
                // Subnormals may be zero.
                let same = *got == expected || (got - expected).abs() <= 2.0 * f32::MIN_POSITIVE;
                assert!(same, "{format:?} {rows} × {columns}, {index}: {got}, not {expected}");
            }
        }
    }
}

#[test]
fn sums_of_terms_are_those_of_the_definition_on_every_device_and_on_the_processor() {
    for (tokens, outputs, units, powers) in [(1, 1, 1, 1), (1, 131, 67, 9), (70, 33, 130, 5), (137, 65, 13, 3)] {
        let example = Example::new(tokens, outputs, units, powers);
        for (u, lowest_power) in [(Some(&example.u), 0), (None, 0), (Some(&example.u), 1)] {
            let before = Matrix { rows: tokens, columns: outputs, values: vec![0.5; tokens * outputs] };
            let exact = exact(&example, lowest_power, u);
            let check = |who: &str, found: &[f32]| {
                assert_eq!(found.len(), exact.len());
                for (found, [sum, magnitude]) in found.iter().zip(&exact) {
                    let error = (f64::from(*found) - 0.5 - sum).abs();
                    let shape = format!("{tokens} × {outputs} of {units}, {powers} powers from {lowest_power}");
                    assert!(error <= TOLERANCE * (magnitude + 0.5), "{who}, {shape}: {found}, not {}", sum + 0.5);
                }
            };
            let terms: Vec<_> = example.terms.iter().map(Matrix::view).collect();
            let mut on_processor = before.clone();
            let factors = u.cloned().unwrap_or_else(|| example.ones());
            add_terms(&terms, lowest_power, &example.arguments(), &factors, &mut on_processor);
            check("processor", &on_processor.values);
            for device in devices() {
                let points = Matrix { rows: 4, columns: units, values: example.points.concat() };
                let terms = example.terms.iter().map(|term| upload(&device, term)).collect();
                let terms = DeviceTerms { terms, lowest_power, points: upload(&device, &points) };
                let (z, out) = (upload(&device, &example.z), upload(&device, &before));
                let u = u.map(|u| upload(&device, u));
                let power = DeviceMatrix::zeros(&device, "power", tokens, units).unwrap();
                let mut batch = device.batch();
                let u = u.as_ref().map(DeviceMatrix::view);
                terms.add(&device, &mut batch, [&z.view(), &power.view()], u.as_ref(), &out.view()).unwrap();
                batch.submit().unwrap();
                check("device", &out.download(&device).unwrap());
            }
        }
    }
}
