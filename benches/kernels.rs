//! Speed of one core on rows of a 64 MiB matrix, beside a plain copy of the same bytes: `cargo bench --bench kernels`.
//!
//! Rates are bytes of BF16 weights a second. The working set is larger than any cache, rows are worked on one at a time.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::{hint::black_box, time::Duration};

use bantam::{
    checkpoint::{Dtype, decode_to_f32, encode_from_f32},
    codec::{
        Codec, CodedRows, DenseRows, Granularity, MatrixParameters, RowSource, ScaleFormat, bits, float4, float8,
        integer, mx, range, sparse::select,
    },
    evaluate::{ErrorSums, measure},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BYTES: usize = 64 << 20;
const COLUMNS: usize = 2048;
const ROWS: usize = BYTES / 2 / COLUMNS;
const GROUP: usize = 128;

/// BF16 weights of a bell-like distribution, the same each time.
fn weights() -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..BYTES / 2).map(|_| (uniform() + uniform() + uniform()) * 0.05).collect();
    let mut bytes = Vec::new();
    encode_from_f32(Dtype::BF16, &values, &mut bytes);
    bytes
}

/// What round-to-nearest does with one row: 4-bit symmetric codes in groups of 128, scales in BF16.
fn quantize_row(row: &[f32], scales: &mut [f32], codes: &mut [u8]) -> bool {
    let finite = range::absmax_per_group(row, GROUP, scales);
    for scale in scales.iter_mut() {
        *scale = ScaleFormat::BF16.round(*scale / 7.5).value;
    }
    integer::quantize_symmetric_row(row, scales, GROUP, 4, codes);
    finite
}

fn kernels(criterion: &mut Criterion) {
    let source = weights();
    let matrix = DenseRows::new(Dtype::BF16, &source, ROWS, COLUMNS).unwrap();
    let mut group = criterion.benchmark_group("rows");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));

    let mut copy = vec![0u8; BYTES];
    group.bench_function("copy", |bench| bench.iter(|| copy.copy_from_slice(black_box(&source))));
    drop(copy);

    let mut row = vec![0f32; COLUMNS];
    let mut scales = vec![0f32; COLUMNS / GROUP];
    let mut codes = vec![0u8; COLUMNS];
    let mut packed = vec![0u8; BYTES / 4];
    group.bench_function("read", |bench| {
        bench.iter(|| {
            for index in 0..ROWS {
                matrix.read_rows(index, &mut row).unwrap();
                black_box(&row);
            }
        });
    });
    group.bench_function("int4-g128 packed", |bench| {
        bench.iter(|| {
            for (index, packed) in packed.chunks_exact_mut(COLUMNS / 2).enumerate() {
                matrix.read_rows(index, &mut row).unwrap();
                black_box(quantize_row(&row, &mut scales, &mut codes));
                bits::pack(&codes, 4, packed);
            }
        });
    });
    group.bench_function("int4-g128-asym packed", |bench| {
        let mut low = scales.clone();
        let mut zeros = scales.clone();
        bench.iter(|| {
            for (index, packed) in packed.chunks_exact_mut(COLUMNS / 2).enumerate() {
                matrix.read_rows(index, &mut row).unwrap();
                black_box(range::minmax_per_group(&row, GROUP, &mut low, &mut scales));
                for ((scale, zero), low) in scales.iter_mut().zip(&mut zeros).zip(&low) {
                    *scale = ScaleFormat::BF16.round((*scale - low) / 15.0).value;
                    *zero = (-low / *scale).round_ties_even().clamp(0.0, 15.0);
                }
                integer::quantize_asymmetric_row(&row, &scales, &zeros, GROUP, 4, &mut codes);
                bits::pack(&codes, 4, packed);
            }
        });
    });
    group.bench_function("int3-g128 packed", |bench| {
        bench.iter(|| {
            for (index, packed) in packed.chunks_exact_mut(COLUMNS / 2).enumerate() {
                matrix.read_rows(index, &mut row).unwrap();
                black_box(quantize_row(&row, &mut scales, &mut codes));
                bits::pack(&codes, 3, packed);
            }
        });
    });
    group.bench_function("fp8-channel", |bench| {
        let mut packed = vec![0u8; BYTES / 2];
        let mut scale = [0.0];
        bench.iter(|| {
            for (index, packed) in packed.chunks_exact_mut(COLUMNS).enumerate() {
                matrix.read_rows(index, &mut row).unwrap();
                range::absmax_per_group(&row, COLUMNS, &mut scale);
                scale[0] = ScaleFormat::BF16.round(scale[0] / 448.0).value;
                float8::quantize_fp8_row(&row, &scale, COLUMNS, packed);
            }
        });
    });
    group.bench_function("mxfp4 packed", |bench| {
        let mut scales = vec![0f32; COLUMNS / 32];
        bench.iter(|| {
            for (index, packed) in packed.chunks_exact_mut(COLUMNS / 2).enumerate() {
                matrix.read_rows(index, &mut row).unwrap();
                range::absmax_per_group(&row, 32, &mut scales);
                for scale in &mut scales {
                    *scale = mx::e8m0_to_f32(mx::shared_exponent(*scale, bantam::codec::Element::Fp4E2M1));
                }
                float4::quantize_fp4_row(&row, &scales, 32, &mut codes);
                bits::pack(&codes, 4, packed);
            }
        });
    });
    drop(packed);

    // What reading the weights and writing as much of them back costs is the copy above; compacted, a bit more than half
    // is written.
    let mut pruned = vec![0u8; BYTES];
    let mut masks = vec![0u8; BYTES / 16];
    group.bench_function("2:4 pruned, mask", |bench| {
        bench.iter(|| {
            let rows = source.chunks_exact(2 * COLUMNS).zip(pruned.chunks_exact_mut(2 * COLUMNS));
            for ((row, out), mask) in rows.zip(masks.chunks_exact_mut(COLUMNS / 8)) {
                black_box(select::prune_row(Dtype::BF16, row, out, mask));
            }
        });
    });
    group.bench_function("2:4 compacted", |bench| {
        bench.iter(|| {
            let rows = source.chunks_exact(2 * COLUMNS).zip(pruned.chunks_exact_mut(COLUMNS));
            for ((row, values), indices) in rows.zip(masks.chunks_exact_mut(COLUMNS / 8)) {
                black_box(select::compact_row(Dtype::BF16, row, values, indices));
            }
        });
    });
    group.bench_function("copy of half", |bench| {
        bench.iter(|| pruned[..BYTES / 2].copy_from_slice(black_box(&source[..BYTES / 2])));
    });
    drop((pruned, masks));

    let codec = Codec::parse_name("int4-g128", ScaleFormat::BF16).unwrap();
    assert_eq!(codec.granularity, Granularity::Group(GROUP));
    let mut coded = CodedRows { first_row: 0, rows: ROWS, columns: COLUMNS, ..CodedRows::default() };
    for index in 0..ROWS {
        matrix.read_rows(index, &mut row).unwrap();
        quantize_row(&row, &mut scales, &mut codes);
        coded.codes.extend_from_slice(&codes);
        coded.scales.extend_from_slice(&scales);
    }
    let parameters = MatrixParameters::default();
    group.bench_function("int4-g128 dequantize", |bench| {
        bench.iter(|| {
            for index in 0..ROWS {
                codec.dequantize_row(&coded, index, &parameters, &mut row).unwrap();
                black_box(&row);
            }
        });
    });
    group.bench_function("int4-g128 measure", |bench| {
        bench.iter(|| black_box(measure(&matrix, &coded, &codec, &parameters).unwrap()));
    });
    group.bench_function("error sums", |bench| {
        let decoded = row.clone();
        bench.iter(|| {
            let mut sums = ErrorSums::default();
            for _ in 0..ROWS {
                sums.accumulate_row(black_box(&row), black_box(&decoded));
            }
            black_box(sums)
        });
    });
    group.finish();

    // Single steps on one row in the nearest cache.
    let mut group = criterion.benchmark_group("row in cache");
    group.throughput(Throughput::Bytes(2 * COLUMNS as u64));
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(700));
    let bytes = &source[..2 * COLUMNS];
    let mut stream = vec![0u8; COLUMNS];
    decode_to_f32(Dtype::BF16, bytes, &mut row);
    group.bench_function("decode bf16", |b| b.iter(|| decode_to_f32(Dtype::BF16, black_box(bytes), &mut row)));
    group.bench_function("decode f16", |b| b.iter(|| decode_to_f32(Dtype::F16, black_box(bytes), &mut row)));
    decode_to_f32(Dtype::BF16, bytes, &mut row);
    group.bench_function("absmax", |b| b.iter(|| range::absmax_per_group(black_box(&row), GROUP, &mut scales)));
    quantize_row(&row, &mut scales, &mut codes);
    group.bench_function("quantize", |b| {
        b.iter(|| integer::quantize_symmetric_row(black_box(&row), &scales, GROUP, 4, &mut codes));
    });
    for width in [2, 3, 4, 5, 6, 7] {
        group.bench_function(format!("pack {width}"), |b| b.iter(|| bits::pack(black_box(&codes), width, &mut stream)));
        group.bench_function(format!("unpack {width}"), |b| {
            b.iter(|| bits::unpack(black_box(&stream), width, &mut codes));
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
