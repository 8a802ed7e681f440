//! Blocks against ggml's own decoder, packing against bit by bit definitions, searches against exhaustive ones in F64.

use half::f16;
use proptest::prelude::*;

use super::{
    BLOCK, KQuant,
    lines::{self, Q4_K, Q6_K, Shape},
    q4_k, search,
};
use crate::codec::{CodecError, Whole};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn gaussian(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }

    fn gaussians(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        (0..count).map(|_| (deviation * self.gaussian()) as f32).collect()
    }
}

/// Blocks of random bytes, with common scales that are finite.
fn random_blocks(format: KQuant, count: usize) -> Vec<u8> {
    let size = format.block_bytes();
    let mut random = Random((format.name().len() + size) as u64);
    let mut bytes: Vec<u8> = (0..(count * size).div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(count * size);
    let high: &[usize] = if format == KQuant::Q4K { &[1, 3] } else { &[209] };
    for block in bytes.chunks_exact_mut(size) {
        for &at in high {
            block[at] &= 0xBF;
        }
    }
    bytes
}

fn decode(format: KQuant, rows: usize, columns: usize, bytes: &[u8]) -> Vec<f32> {
    format.decode(rows, columns, &[bytes]).unwrap()
}

fn squared_error(weights: &[f32], decoded: &[f32]) -> f64 {
    weights.iter().zip(decoded).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Encodes as one row, and gives the squared error of what is read back.
fn error_of(format: KQuant, weights: &[f32]) -> f64 {
    let (stored, _) = format.encode(1, weights.len(), weights).unwrap();
    squared_error(weights, &decode(format, 1, weights.len(), &stored[0]))
}

/// The hashes and values are those of `gguf.quants.dequantize` of the package `gguf` 0.19.0 for the same bytes, hashed as
/// FNV-1a does with 32-bit words.
#[test]
fn blocks_decode_to_the_bits_of_the_gguf_package() {
    for (format, hash, first, other) in [
        (KQuant::Q4K, 0x022e_9cd7_04cf_0ea1_u64, -10.438_782_f32, -14.207_123_f32),
        (KQuant::Q6K, 0x4569_4e64_fa4a_d85d, 16.167_847, 173.593_75),
    ] {
        let values = decode(format, 16, 4 * BLOCK, &random_blocks(format, 64));
        assert_eq!((values[0], values[5 * 4 * BLOCK + 1000]), (first, other), "{format:?}");
        let step = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01b3);
        assert_eq!(values.iter().fold(0xcbf2_9ce4_8422_2325, step), hash, "{format:?}");
    }
}

#[test]
fn names_and_sizes() {
    for (format, name, bits) in [(KQuant::Q4K, "q4_k", 4.5), (KQuant::Q6K, "q6_k", 6.5625)] {
        assert_eq!(format.name(), name);
        let whole = Whole::parse_name(name, crate::codec::ScaleFormat::BF16).unwrap();
        assert_eq!(whole, Whole::KQuant(format));
        let written = serde_json::to_string(&whole).unwrap();
        assert_eq!(written, format!("{{\"k-quant\":\"{name}\"}}"));
        assert_eq!(serde_json::from_str::<Whole>(&written).unwrap(), whole);
        let tensors = whole.tensors(3, 512);
        assert_eq!((tensors.len(), tensors[0].suffix), (1, "blocks"));
        assert_eq!(tensors[0].bytes() as f64 * 8.0, bits * 3.0 * 512.0);
        let error = whole.validate(3, 300).unwrap_err();
        assert_eq!(error.to_string(), format!("300 columns are not whole `{name}` blocks of 256 weights"));
        assert!(whole.tensors(3, 300).is_empty());
        assert!(matches!(whole.validate(usize::MAX / 256, 512), Err(CodecError::TooLarge { .. })));
    }
    assert_eq!(KQuant::parse_name("q5_k"), None);
}

/// Scales and codes as they are written come back from the bytes, and what is decoded follows the formula.
fn check_round_trip(weights: &[f32; BLOCK], shape: &Shape, format: KQuant) {
    let found = search::search(weights, shape);
    let (stored, _) = format.encode(1, BLOCK, weights).unwrap();
    let decoded = decode(format, 1, BLOCK, &stored[0]);
    for (index, value) in decoded.iter().enumerate() {
        let part = index / shape.width;
        let step = found.scale.to_f32() * f32::from(found.scales[part]);
        let least = found.minimum.to_f32() * f32::from(found.minima[part]);
        let expected = step * (f32::from(found.codes[index]) + shape.levels.0) - least;
        assert_eq!(*value, expected, "{format:?}: weight {index}");
    }
    let exact = squared_error(weights, &decoded);
    let largest = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let unit = 2f64.powi((largest.to_bits() >> 23) as i32 - 127);
    assert!((found.error * unit * unit - exact).abs() <= 1e-4 * exact + 1e-9 * f64::from(largest).powi(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn packed_scales_come_back(
        scales in prop::array::uniform8(0_u8..64),
        minima in prop::array::uniform8(0_u8..64),
    ) {
        let bytes = q4_k::pack(scales, minima);
        prop_assert_eq!(q4_k::unpack(&bytes), (scales, minima));
        // As ggml's header draws them, bit by bit.
        for i in 0..4 {
            prop_assert_eq!(bytes[i], scales[4 + i] / 16 * 64 + scales[i]);
            prop_assert_eq!(bytes[4 + i], minima[4 + i] / 16 * 64 + minima[i]);
            prop_assert_eq!(bytes[8 + i], minima[4 + i] % 16 * 16 + scales[4 + i] % 16);
        }
    }

    #[test]
    fn what_is_stored_is_what_was_found(seed in any::<u64>(), exponent in -30_i32..14, shift in -1_i32..2) {
        let mut random = Random(seed);
        let deviation = 2f64.powi(exponent);
        let weights: Vec<f32> =
            random.gaussians(BLOCK, deviation).iter().map(|weight| weight + (3.0 * deviation) as f32 * shift as f32).collect();
        let weights: &[f32; BLOCK] = weights.as_slice().try_into().unwrap();
        // Blocks above zero may be turned round.
        if shift < 1 {
            check_round_trip(weights, &Q4_K, KQuant::Q4K);
        }
        check_round_trip(weights, &Q6_K, KQuant::Q6K);
    }

    #[test]
    fn hostile_blocks_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 210), columns in 0_usize..600) {
        for format in KQuant::ALL {
            let block = &bytes[..format.block_bytes()];
            match format.decode(1, BLOCK, &[block]) {
                Ok(values) => prop_assert!(values.iter().all(|value| value.is_finite())),
                Err(error) => prop_assert!(error.to_string().contains("a scale of row 0, block 0 is not finite")),
            }
            prop_assert_eq!(format.decode(1, columns, &[block]).is_ok(), columns == BLOCK && format.decode(1, BLOCK, &[block]).is_ok());
        }
    }

    #[test]
    fn any_finite_weights_are_encoded(weights in prop::collection::vec(any::<f32>(), BLOCK)) {
        let weights: Vec<f32> = weights.into_iter().map(|weight| if weight.is_finite() { weight } else { 1.0 }).collect();
        for format in KQuant::ALL {
            let (stored, _) = format.encode(1, BLOCK, &weights).unwrap();
            prop_assert!(decode(format, 1, BLOCK, &stored[0]).iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn weights_that_are_no_numbers_and_wrong_lengths_are_named() {
    let mut weights = vec![0.5; 3 * 512];
    weights[2 * 512 + 300] = f32::NAN;
    weights[2 * 512 + 301] = f32::INFINITY;
    for format in KQuant::ALL {
        let error = format.encode(3, 512, &weights).unwrap_err();
        assert!(error.to_string().contains("row 2, column 300 is NaN"), "{error}");
        assert!(format.encode(2, 512, &weights).is_err() && format.encode(3, 500, &weights).is_err());
        assert_eq!(format.encode(0, 512, &[]).unwrap(), (vec![Vec::new()], 0));
        assert_eq!(format.encode(5, 0, &[]).unwrap(), (vec![Vec::new()], 0));
        let mut blocks = random_blocks(format, 6);
        let at = 5 * format.block_bytes() + if format == KQuant::Q4K { 2 } else { 208 };
        blocks[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
        let error = format.decode(3, 512, &[&blocks]).unwrap_err();
        assert!(error.to_string().contains("row 2, block 1"), "{error}");
        assert!(format.decode(3, 512, &[&blocks[1..]]).is_err() && format.decode(3, 512, &[]).is_err());
    }
}

#[test]
fn zeros_stay_zeros_and_what_is_exact_stays_exact() {
    for format in KQuant::ALL {
        let (stored, clamped) = format.encode(1, BLOCK, &[0.0; BLOCK]).unwrap();
        assert_eq!(clamped, 0);
        assert!(decode(format, 1, BLOCK, &stored[0]).iter().all(|value| value.to_bits() == 0), "{format:?}");
        // A part of zeros beside others.
        let mut weights = Random(7).gaussians(BLOCK, 0.02);
        weights[32..64].fill(0.0);
        let (stored, _) = format.encode(1, BLOCK, &weights).unwrap();
        assert!(decode(format, 1, BLOCK, &stored[0])[32..64].iter().all(|value| *value == 0.0), "{format:?}");
    }
    // Blocks that the format holds exactly: the search finds them again, though not always by the same numbers.
    let mut random = Random(3);
    let mut weights = [0.0; BLOCK];
    for part in weights.chunks_exact_mut(32) {
        let (scale, minimum) = (20 + random.next() % 44, 20 + random.next() % 44);
        for (index, weight) in part.iter_mut().enumerate() {
            let code = if index < 2 { index as u64 * 15 } else { random.next() % 16 };
            *weight = 2f32.powi(-10) * (scale * code) as f32 - 2f32.powi(-8) * minimum as f32;
        }
    }
    let energy: f64 = weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
    assert!(error_of(KQuant::Q4K, &weights) < 1e-4 * energy);
}

#[test]
fn scales_beyond_f16_are_counted() {
    for format in KQuant::ALL {
        for (size, clamped) in [(1e30_f32, 1), (1e9, 1), (1.0, 0), (1e-12, 1), (f32::MAX, 1), (f32::from_bits(1), 1)] {
            let weights: Vec<f32> = (0..BLOCK).map(|i| if i % 2 == 0 { size } else { -size }).collect();
            assert_eq!(format.encode(1, BLOCK, &weights).unwrap().1, clamped, "{format:?} {size}");
        }
        // Where F16 has few digits, whole scales make up for them.
        let weights = Random(5).gaussians(BLOCK, 2e-5);
        let energy: f64 = weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
        assert!(error_of(format, &weights) < 0.01 * energy, "{format:?}");
    }
}

/// The plain k-quant, in F64: parts from their extremes, whole scales by rounding.
fn plain_error(format: KQuant, weights: &[f32]) -> f64 {
    let stored = |value: f64| f64::from(f16::from_f32(value as f32).to_f32());
    let of_block = |block: &[f32]| -> f64 {
        let parts: Vec<(f64, f64, &[f32])> = block
            .chunks(format.part())
            .map(|part| {
                let min = part.iter().fold(0.0_f64, |min, weight| min.min(f64::from(*weight)));
                let max = part.iter().fold(f64::MIN, |max, weight| max.max(f64::from(*weight)));
                match format {
                    KQuant::Q4K => ((max - min) / 15.0, -min, part),
                    KQuant::Q6K if max > -min => (-max / 32.0, 0.0, part),
                    KQuant::Q6K => (-min / 32.0, 0.0, part),
                }
            })
            .collect();
        let largest = parts.iter().fold(0.0_f64, |best, part| if part.0.abs() > best.abs() { part.0 } else { best });
        let scale = stored(largest / if format == KQuant::Q4K { 63.0 } else { -128.0 });
        let minimum = stored(parts.iter().fold(0.0_f64, |best, part| best.max(part.1)) / 63.0);
        let of_part = |(step, least, part): &(f64, f64, &[f32])| -> f64 {
            let step = scale * (step / scale).round_ties_even();
            let least = if minimum > 0.0 { minimum * (least / minimum).round_ties_even() } else { 0.0 };
            let (low, high) = if format == KQuant::Q4K { (0.0, 15.0) } else { (-32.0, 31.0) };
            let error = |weight: &f32| {
                let weight = f64::from(*weight);
                let code = if step == 0.0 { 0.0 } else { ((weight + least) / step).round_ties_even().clamp(low, high) };
                (step * code - least - weight).powi(2)
            };
            part.iter().map(error).sum()
        };
        parts.iter().map(of_part).sum()
    };
    weights.chunks(BLOCK).map(of_block).sum()
}

#[test]
fn the_search_beats_plain_ranges_on_every_kind_of_weights() {
    let mut random = Random(11);
    let heavy: Vec<f32> = (0..24 * BLOCK).map(|_| (0.02 * random.gaussian() / (0.2 + random.share())) as f32).collect();
    let shifted: Vec<f32> = random.gaussians(24 * BLOCK, 0.01).iter().map(|weight| weight + 0.05).collect();
    let kinds = [("Gaussian", random.gaussians(24 * BLOCK, 0.02)), ("heavy", heavy), ("shifted", shifted)];
    for (kind, weights) in &kinds {
        for (format, most) in [(KQuant::Q4K, 0.86), (KQuant::Q6K, 0.95)] {
            let (ours, plain) = (error_of(format, weights), plain_error(format, weights));
            assert!(ours <= most * plain, "{kind}, {format:?}: {ours} of {plain}, {}", ours / plain);
            // And in no block is it worse.
            for block in weights.chunks(BLOCK) {
                assert!(error_of(format, block) <= plain_error(format, block) * (1.0 + 1e-5), "{kind}, {format:?}");
            }
        }
    }
}

#[test]
fn the_search_beats_plain_ranges_on_trained_weights() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let checkpoint = crate::checkpoint::Checkpoint::open(&folder).unwrap();
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"] {
        let entry = checkpoint.tensor(name).unwrap();
        let mut weights = vec![0.0; entry.shape.iter().product()];
        crate::checkpoint::decode_to_f32(entry.dtype, &checkpoint.bytes(entry), &mut weights);
        weights.truncate(48 * BLOCK);
        for (format, most) in [(KQuant::Q4K, 0.86), (KQuant::Q6K, 0.95)] {
            let (ours, plain) = (error_of(format, &weights), plain_error(format, &weights));
            assert!(ours <= most * plain, "{name}, {format:?}: {ours} of {plain}, {}", ours / plain);
        }
    }
}

/// The least squared error of a part of some weights and few levels, by trying all levels of all weights: for each the
/// exact best line, in F64, with an offset that is not above zero.
fn exhaustive(weights: &[f32], levels: usize, with_minimum: bool) -> f64 {
    let (count, mut best) = (weights.len(), f64::INFINITY);
    for mut index in 0..levels.pow(count as u32) {
        let mut codes = Vec::new();
        for _ in 0..count {
            codes.push((index % levels) as f64);
            index /= levels;
        }
        let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            codes.iter().zip(weights).map(|(code, weight)| of(*code, f64::from(*weight))).sum()
        };
        let (n, q, qq) = (count as f64, sum(&|q, _| q), sum(&|q, _| q * q));
        let (w, qw) = (sum(&|_, w| w), sum(&|q, w| q * w));
        let mut tried = vec![(if qq > 0.0 { qw / qq } else { 0.0 }, 0.0)];
        if with_minimum && n * qq > q * q {
            let step = (n * qw - q * w) / (n * qq - q * q);
            tried.push((step, ((w - step * q) / n).min(0.0)));
        }
        for (step, offset) in tried.into_iter().filter(|(step, _)| *step >= 0.0) {
            best = best.min(sum(&|q, w| (step * q + offset - w).powi(2)));
        }
    }
    best
}

#[test]
fn lines_of_parts_are_near_the_best_of_all() {
    // Eight weights and three levels: 6561 ways.
    let shape = Shape { width: 8, levels: (0.0, 2.0), scales: (0.0, 63.0), largest_minimum: 63.0 };
    let mut random = Random(19);
    let (mut found, mut best) = (0.0, 0.0);
    for case in 0..12 {
        let weights = random.gaussians(8, 1.0);
        let least = exhaustive(&weights, 3, true);
        let error = f64::from(lines::line_of_part(&weights, &shape).1);
        assert!(error >= least * (1.0 - 1e-4), "case {case}: {error} is below the least, {least}");
        (found, best) = (found + error, best + least);
    }
    assert!(found <= 1.25 * best, "{found}, the best of all has {best}: {}", found / best);
}

/// The least squared error of a part over a fine grid of lines, in F64.
fn by_grid(weights: &[f32], shape: &Shape) -> f64 {
    let (min, max) = weights
        .iter()
        .fold((0.0_f64, 0.0_f64), |(min, max), weight| (min.min(f64::from(*weight)), max.max(f64::from(*weight))));
    let (low, high) = (f64::from(shape.levels.0), f64::from(shape.levels.1));
    let error = |step: f64, offset: f64| -> f64 {
        let of = |weight: &f32| {
            let weight = f64::from(*weight);
            (step * ((weight - offset) / step).round().clamp(low, high) + offset - weight).powi(2)
        };
        weights.iter().map(of).sum()
    };
    let mut best = f64::INFINITY;
    for i in 0..200 {
        if shape.largest_minimum > 0.0 {
            let step = (max - min) / 15.0 * (0.6 + 0.003 * f64::from(i));
            for j in 0..100 {
                let offset = min + (max - min) * 0.004 * (f64::from(j) - 25.0);
                best = best.min(error(step, offset.min(0.0)));
            }
        } else {
            let step = max.max(-min) / 32.0 * (0.8 + 0.002 * f64::from(i));
            best = best.min(error(step, 0.0)).min(error(-step, 0.0));
        }
    }
    best
}

#[test]
fn lines_of_parts_are_as_good_as_those_of_a_fine_grid() {
    for (shape, cases) in [(&Q4_K, 12), (&Q6_K, 40)] {
        let mut random = Random(23);
        let (mut found, mut best) = (0.0, 0.0);
        for _ in 0..cases {
            let weights = random.gaussians(shape.width, 0.02);
            found += f64::from(lines::line_of_part(&weights, shape).1);
            best += by_grid(&weights, shape);
        }
        assert!(found <= 1.05 * best, "{shape:?}: {found}, the grid's best has {best}: {}", found / best);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let weights = Random(29).gaussians(9 * 512, 0.02);
    for format in KQuant::ALL {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| format.encode(9, 512, &weights).unwrap())
        };
        assert_eq!(with(1), with(3));
    }
}
