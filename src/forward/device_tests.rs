//! The parts of a block on a graphics processor against those here, and both against F64.

use super::{
    Activation, Attention, Matrix, NormKind,
    attention::Heads,
    kernels::{self, Norm},
    rope::Rotation,
};
use crate::compute::{
    ComputeError, Device,
    kernels::{
        Angles, DeviceMatrix, DeviceNorm, Gate, Number, QueryKeyValue, Scores, add_branch, attend, attend_by_scores,
        testing::{HOSTILE, SMALL_BINDING, plain_device, random, upload, upload_as, worst},
    },
    tests::fixtures,
};

/// Largest error of a normalised value, in units of one.
const NORM_TOLERANCE: f64 = 5e-6;
/// Largest error of a rotated channel, for channels of at most one: two products and a sum.
const ROTATION_TOLERANCE: f64 = 3e-7;
/// Largest error of an activation, as a share of the magnitude of its input.
const ACTIVATION_TOLERANCE: f64 = 1e-6;
/// Largest error of an output of attention, for values of at most one.
const ATTENTION_TOLERANCE: f64 = 3e-6;

/// With the usual bindings and with small ones.
fn devices(small: u64) -> impl Iterator<Item = Device> {
    fixtures::device(None).into_iter().chain(plain_device(Some(small)))
}

fn exact_norm(x: &Matrix, heads: usize, norm: &Norm) -> Vec<f64> {
    let width = x.columns / heads;
    let mut out = Vec::new();
    for vector in x.values.chunks_exact(width) {
        let values: Vec<f64> = vector.iter().copied().map(f64::from).collect();
        let count = width as f64;
        let mean = if norm.kind == NormKind::Layer { values.iter().sum::<f64>() / count } else { 0.0 };
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        for (i, value) in values.iter().enumerate() {
            let normal = (value - mean) / (square + f64::from(norm.epsilon)).sqrt();
            let weight = norm.weight.get(i).map_or(1.0, |weight| f64::from(*weight));
            out.push(normal * weight + norm.bias.get(i).map_or(0.0, |bias| f64::from(*bias)));
        }
    }
    out
}

#[test]
fn norms_of_rows_and_heads_agree_with_f64() {
    for device in devices(SMALL_BINDING) {
        for (index, (rows, width)) in HOSTILE.into_iter().enumerate() {
            for heads in [1, 3] {
                let mut x = random(rows, width * heads, 1);
                // A mean that is not small beside the deviation.
                x.values.iter_mut().for_each(|value| *value += 0.7);
                let parameter = |seed: u32| random(1, width, seed).values;
                let (kind, weight, bias) = match index % 3 {
                    0 => (NormKind::RootMeanSquare, parameter(2), Vec::new()),
                    1 => (NormKind::Layer, parameter(2), parameter(3)),
                    _ => (NormKind::Layer, Vec::new(), Vec::new()),
                };
                let norm = Norm { kind, weight, bias, epsilon: 1e-5 };
                let mut host = Matrix { rows: rows * heads, columns: width, values: x.values.clone() };
                norm.apply(&mut host);

                let stored = |values: &[f32]| DeviceMatrix::upload(&device, "norm", width, values).unwrap();
                let on_device = DeviceNorm {
                    centred: kind == NormKind::Layer,
                    weight: (!norm.weight.is_empty()).then(|| stored(&norm.weight)),
                    bias: (!norm.bias.is_empty()).then(|| stored(&norm.bias)),
                    epsilon: norm.epsilon,
                };
                let (from, out) = (upload(&device, &x), upload(&device, &Matrix::zeros(rows, width * heads)));
                let mut batch = device.batch();
                on_device.add(&device, &mut batch, &from.view(), heads, &out.view()).unwrap();
                batch.submit().unwrap();
                let found = out.download(&device).unwrap();
                let mut batch = device.batch();
                on_device.add(&device, &mut batch, &from.view(), heads, &out.view()).unwrap();
                batch.submit().unwrap();
                assert_eq!(out.download(&device).unwrap(), found, "not the same twice");
                let exact = exact_norm(&x, heads, &norm);
                for (who, found) in [("device", &found), ("processor", &host.values)] {
                    let error = worst(found, &exact, |_| 1.0);
                    assert!(error <= NORM_TOLERANCE, "{who}, {rows} × {heads} · {width} {kind:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn heads_are_rotated_as_on_the_processor_and_the_rest_is_left_alone() {
    // 20 rows of the widest matrix at most: windows begin within a sequence.
    for device in devices(20 * 4 * 131) {
        for (sequences, length, heads, half, width) in
            [(1, 1, 1, 1, 2), (3, 7, 2, 3, 11), (2, 37, 5, 13, 26), (2, 13, 1, 1, 131)]
        {
            for interleaved in [false, true] {
                let rows = sequences * length;
                let (cosines, sines) = (random(length, half, 1).values, random(length, half, 2).values);
                let rotation = Rotation { half, interleaved, cosines, sines };
                let before = random(rows, heads * width, 3);
                let mut host = before.clone();
                let mut exact: Vec<f64> = before.values.iter().copied().map(f64::from).collect();
                for row in 0..rows {
                    for head in 0..heads {
                        rotation.apply(row % length, &mut host.row_mut(row)[head * width..][..width]);
                        let values = &mut exact[(row * heads + head) * width..][..width];
                        for pair in 0..half {
                            let (one, two) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
                            let index = row % length * half + pair;
                            let (cosine, sine) = (f64::from(rotation.cosines[index]), f64::from(rotation.sines[index]));
                            let (a, b) = (values[one], values[two]);
                            (values[one], values[two]) = (a * cosine - b * sine, b * cosine + a * sine);
                        }
                    }
                }
                let values = upload(&device, &before);
                let angles = Angles::upload(&device, half, interleaved, &rotation.cosines, &rotation.sines).unwrap();
                let mut batch = device.batch();
                angles.rotate(&device, &mut batch, &values.view(), heads).unwrap();
                batch.submit().unwrap();
                let found = values.download(&device).unwrap();
                for (who, found) in [("device", &found), ("processor", &host.values)] {
                    let error = worst(found, &exact, |_| 1.0);
                    assert!(error <= ROTATION_TOLERANCE, "{who}, {rows} × {heads} · {width}: {error:e}");
                }
            }
        }
    }
}

fn exact_activation(activation: Activation, x: f64) -> f64 {
    let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigma(x),
        Activation::Gelu => x * 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::GeluQuick => x * sigma(1.702 * x),
        Activation::Relu => x.max(0.0),
    }
}

fn on_device(device: &Device, gate: Gate, x: &Matrix, width: usize) -> Vec<f32> {
    let (from, out) = (upload(device, x), upload(device, &Matrix::zeros(x.rows, width)));
    let mut batch = device.batch();
    gate.add(device, &mut batch, &from.view(), &out.view()).unwrap();
    batch.submit().unwrap();
    out.download(device).unwrap()
}

#[test]
fn activations_and_gates_agree_with_f64() {
    let all = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::GeluQuick, Activation::Relu];
    for device in devices(SMALL_BINDING) {
        // From far in the one tail to far in the other, beyond where exponentials overflow.
        let mut wide = Matrix::zeros(3, 801);
        wide.values.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 - 1200.0) * 0.0101);
        wide.values.extend([-1e30, -200.0, 200.0]);
        wide.values.extend(vec![0.0; 798]);
        wide.rows += 1;
        for activation in all {
            let exact: Vec<f64> = wide.values.iter().map(|x| exact_activation(activation, f64::from(*x))).collect();
            let mut host = wide.clone();
            kernels::activate(&mut host, activation);
            let found = on_device(&device, Gate::Plain(activation), &wide, 801);
            for (who, found) in [("device", &found), ("processor", &host.values)] {
                let error = worst(found, &exact, |i| f64::from(wide.values[i].abs().max(1e-3)));
                assert!(error <= ACTIVATION_TOLERANCE, "{who}, {activation:?}: {error:e}");
            }
            for (rows, width) in HOSTILE {
                let mut x = random(rows, 2 * width, 4);
                x.values.iter_mut().for_each(|value| *value *= 6.0);
                let pairs = (0..rows).flat_map(|row| (0..width).map(move |i| (row, i)));
                let terms: Vec<(f64, f64)> =
                    pairs.map(|(row, i)| (f64::from(x.row(row)[i]), f64::from(x.row(row)[i + width]))).collect();
                let exact: Vec<f64> = terms.iter().map(|(gate, up)| exact_activation(activation, *gate) * up).collect();
                let host = kernels::gated(&x, activation);
                let found = on_device(&device, Gate::Halves(activation), &x, width);
                for (who, found) in [("device", &found), ("processor", &host.values)] {
                    let error = worst(found, &exact, |i| (terms[i].0 * terms[i].1).abs().max(1e-2));
                    assert!(error <= ACTIVATION_TOLERANCE, "{who}, {activation:?} {rows} × {width}: {error:e}");
                }
            }
        }
        for (rows, width) in HOSTILE {
            let mut x = random(rows, 2 * width, 5);
            x.values.iter_mut().for_each(|value| *value *= 12.0);
            let (alpha, limit) = (1.702, 7.0);
            let exact: Vec<f64> = (x.values.chunks_exact(2))
                .map(|pair| {
                    let (gate, up) = (f64::from(pair[0]).min(7.0), f64::from(pair[1]).clamp(-7.0, 7.0));
                    gate / (1.0 + (-gate * f64::from(alpha)).exp()) * (up + 1.0)
                })
                .collect();
            let mut host = vec![0.0; rows * width];
            kernels::clamped_gate(&x.values, alpha, limit, &mut host);
            let found = on_device(&device, Gate::Alternating { alpha, limit }, &x, width);
            for (who, found) in [("device", &found), ("processor", &host)] {
                let error = worst(found, &exact, |_| 56.0);
                assert!(error <= ACTIVATION_TOLERANCE, "{who}, alternating, {rows} × {width}: {error:e}");
            }
        }
    }
}

#[test]
fn branches_are_added_exactly() {
    for device in devices(SMALL_BINDING) {
        for (rows, columns) in HOSTILE {
            let (branch, mut sum) = (random(rows, columns, 1), random(rows, columns, 2));
            let [from, to] = [&branch, &sum].map(|matrix| upload(&device, matrix));
            let mut batch = device.batch();
            add_branch(&device, &mut batch, &from.view(), &to.view()).unwrap();
            batch.submit().unwrap();
            sum.add(&branch);
            // One addition is rounded correctly everywhere.
            assert_eq!(to.download(&device).unwrap(), sum.values, "{rows} × {columns}");
        }
    }
}

/// By the definition, one query after the other.
fn exact_attention(attention: &Attention, [q, k, v]: [&Matrix; 3], length: usize, sinks: &[f32]) -> Vec<f64> {
    let sharing = attention.heads / attention.key_value_heads;
    let mut out = Vec::new();
    for token in 0..q.rows {
        let (start, query) = (token / length * length, token % length);
        for head in 0..attention.heads {
            let vector = &q.row(token)[head * attention.key_width..][..attention.key_width];
            let seen: Vec<usize> = (0..length)
                .filter(|key| !attention.causal || *key <= query)
                .filter(|key| attention.window.is_none_or(|window| key + window > query))
                .collect();
            let score = |key: &usize| {
                let other = &k.row(start + key)[head / sharing * attention.key_width..][..attention.key_width];
                let product: f64 = vector.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let score = product * f64::from(attention.scale);
                attention.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let weights: Vec<f64> = seen.iter().map(|key| score(key).exp()).collect();
            let total = weights.iter().sum::<f64>() + sinks.get(head).map_or(0.0, |sink| f64::from(*sink).exp());
            for channel in 0..attention.value_width {
                let column = head / sharing * attention.value_width + channel;
                let mean = seen.iter().zip(&weights).map(|(key, w)| w * f64::from(v.row(start + key)[column]));
                out.push(mean.sum::<f64>() / total);
            }
        }
    }
    out
}

#[test]
fn attention_of_every_kind_agrees_with_f64() {
    let plain = Attention {
        heads: 1,
        key_value_heads: 1,
        key_width: 1,
        value_width: 1,
        scale: 1.3,
        causal: true,
        window: None,
        soft_cap: None,
    };
    let grouped = Attention { heads: 6, key_value_heads: 2, key_width: 12, value_width: 7, ..plain.clone() };
    let cases = [
        (1, 1, false, plain.clone()),
        (3, 5, true, Attention { causal: false, ..plain.clone() }),
        (2, 67, false, Attention { causal: false, soft_cap: Some(1.5), ..grouped.clone() }),
        (3, 31, true, Attention { window: Some(7), ..grouped.clone() }),
        (1, 130, true, Attention { soft_cap: Some(2.0), ..grouped.clone() }),
        (2, 37, false, Attention { heads: 3, key_value_heads: 3, ..grouped.clone() }),
        // With the small bindings its scores fit, its queries do not.
        (1, 80, false, Attention { key_width: 24, value_width: 25, ..grouped.clone() }),
        // More than one tile of queries, keys and channels; the widest values, and too wide ones.
        (2, 193, true, Attention { key_width: 80, value_width: 128, ..plain.clone() }),
        (
            1,
            257,
            false,
            Attention { key_width: 17, value_width: 65, window: Some(70), soft_cap: Some(3.0), ..plain.clone() },
        ),
        (1, 71, false, Attention { key_width: 8, value_width: 131, ..plain }),
    ];
    // With the small bindings not even all queries of one head fit at the longest sequence, which takes blocks of them.
    for device in devices(32768) {
        // Kept from case to case, so that what is left over of one would show in the next.
        let mut scores = Scores::default();
        for (index, (sequences, length, sunk, attention)) in cases.iter().enumerate() {
            let tokens = sequences * length;
            let number = [Number::F32, Number::BF16][index % 2];
            let keys = attention.key_value_heads;
            let (q, q_host) = upload_as(&device, &random(tokens, attention.heads * attention.key_width, 1), number);
            let (k, k_host) = upload_as(&device, &random(tokens, keys * attention.key_width, 2), number);
            let (v, v_host) = upload_as(&device, &random(tokens, keys * attention.value_width, 3), number);
            let sinks = if *sunk { random(1, attention.heads, 4).values } else { Vec::new() };
            let stored = sunk.then(|| DeviceMatrix::upload(&device, "sinks", attention.heads, &sinks).unwrap());
            let out = upload(&device, &Matrix::zeros(tokens, attention.heads * attention.value_width));
            let inputs = QueryKeyValue { query: q.view(), key: k.view(), value: v.view() };
            let widest = keys * attention.key_width.max(attention.value_width);
            if (length * widest) as u64 * number.bytes() > device.limits().binding_bytes {
                // The keys or values of one sequence have to fit.
                let refused = attend(&device, attention, &inputs, *length, stored.as_ref(), &mut scores, &out.view());
                assert!(matches!(refused, Err(ComputeError::TooLarge { .. })), "{attention:?}: {refused:?}");
                continue;
            }
            attend(&device, attention, &inputs, *length, stored.as_ref(), &mut scores, &out.view()).unwrap();
            let found = out.download(&device).unwrap();
            attend(&device, attention, &inputs, *length, stored.as_ref(), &mut scores, &out.view()).unwrap();
            assert_eq!(out.download(&device).unwrap(), found, "not the same twice: {attention:?}");
            attend_by_scores(&device, attention, &inputs, *length, stored.as_ref(), &mut scores, &out.view()).unwrap();
            let by_scores = out.download(&device).unwrap();

            let of = |matrix, stride| Heads { matrix, first: 0, stride };
            let (key, value) = (attention.key_width, attention.value_width);
            let host = attention.compute(of(&q_host, key), of(&k_host, key), of(&v_host, value), *length, &sinks);
            let exact = exact_attention(attention, [&q_host, &k_host, &v_host], *length, &sinks);
            for (who, found) in [("device", &found), ("by scores", &by_scores), ("processor", &host.values)] {
                let error = worst(found, &exact, |_| 1.0);
                assert!(error <= ATTENTION_TOLERANCE, "{who}, {sequences} × {length}, {attention:?}: {error:e}");
            }
        }
    }
}
