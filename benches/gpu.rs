//! Speed of the device's kernels beside the device's own ceilings: `cargo bench --bench gpu`.
//!
//! Prints for each kernel its time, the bytes it must move at least and the operations it must do, and the shares of
//! the rates of a copy and of a loop of multiply-adds that were measured in the same run. `BANTAM_ADAPTER` chooses
//! the adapter; shapes are those of a small model on a software adapter, those of one with 8 billion parameters else.

#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use std::time::{Duration, Instant};

use bantam::{
    codec::{Element, ZeroPoint},
    compute::{
        AdapterKind, Choice, Device, Feature, Score,
        kernels::{
            Angles, Coding, DeviceMatrix, DeviceNorm, Gate, Levels, Number, Product, QueryKeyValue, Scales, Scores,
            SecondMoments, Source, SourceFormat, add_branch, attend, attend_by_scores, convert, dequantize, error_sums,
            extents, hadamard, pack, quantize, solve_lower, sweep,
        },
        score,
    },
    forward::{Activation, Attention},
};

/// A kernel is repeated until this has passed.
const LONG_ENOUGH: Duration = Duration::from_millis(500);

/// Tokens, channels and channels of the MLP.
struct Size {
    tokens: usize,
    channels: usize,
    hidden: usize,
    heads: usize,
    length: usize,
}

/// What a kernel cannot do without.
struct Cost {
    bytes: usize,
    operations: usize,
}

struct Bench {
    device: Device,
    ceilings: Score,
}

impl Bench {
    /// Prints one line.
    fn line(&self, name: &str, cost: &Cost, mut run: impl FnMut()) {
        // Pipelines and memory are made at the first use.
        run();
        self.device.finish().unwrap();
        let (start, mut times) = (Instant::now(), 0);
        while times == 0 || start.elapsed() < LONG_ENOUGH {
            run();
            self.device.finish().unwrap();
            times += 1;
        }
        let seconds = start.elapsed().as_secs_f64() / f64::from(times);
        let (bytes, operations) = (cost.bytes as f64 / seconds, cost.operations as f64 / seconds);
        println!(
            "{name:38} {:>10.3} ms {:>9.2} GB/s {:>5.1} % {:>10.2} GFLOP/s {:>5.1} %",
            seconds * 1e3,
            bytes / 1e9,
            100.0 * bytes / self.ceilings.copy_bytes_per_second,
            operations / 1e9,
            100.0 * operations / self.ceilings.multiply_add_per_second,
        );
    }

    /// Numbers between −1 and 1.
    fn matrix(&self, rows: usize, columns: usize) -> DeviceMatrix {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        DeviceMatrix::upload(&self.device, "bench", columns, &values).unwrap()
    }

    fn zeros(&self, rows: usize, columns: usize) -> DeviceMatrix {
        DeviceMatrix::zeros(&self.device, "bench", rows, columns).unwrap()
    }

    /// What codecs do, on weights in BF16 with 4 bits in groups of 128.
    fn codecs(&self, size: &Size) {
        let device = &self.device;
        let (rows, columns) = (size.hidden as u64, size.channels as u64);
        let (elements, groups) = ((rows * columns) as usize, rows * columns.div_ceil(128));
        let words: Vec<u16> = (0..elements).map(|index| 0x3c00 + (index * 37 % 997) as u16).collect();
        let weights = device.upload("bench", bytemuck::cast_slice(&words)).unwrap();
        let source = Source { buffer: &weights, format: SourceFormat::Bf16, rows, columns };
        for (name, magnitudes) in [("largest magnitudes of groups", true), ("extremes of groups", false)] {
            let bytes = 2 * elements + if magnitudes { 4 } else { 8 } * groups as usize;
            self.line(name, &Cost { bytes, operations: elements }, || {
                drop(extents(device, &source, 128, magnitudes).unwrap());
            });
        }
        let coding =
            Coding { element: Element::Integer { bits: 4 }, zero: ZeroPoint::None, width: 128, rows_per_scale: 1 };
        let steps = device.upload("bench", bytemuck::cast_slice(&vec![0.01_f32; groups as usize])).unwrap();
        let scales = Scales { scales: &steps, zeros: None };
        let bytes = 3 * elements + 4 * groups as usize;
        self.line("quantize, 4 bits", &Cost { bytes, operations: 3 * elements }, || {
            drop(quantize(device, &source, &coding, &scales).unwrap());
        });
        let codes = quantize(device, &source, &coding, &scales).unwrap();
        let bytes = 5 * elements + 4 * groups as usize;
        self.line("dequantize, 4 bits", &Cost { bytes, operations: 2 * elements }, || {
            drop(dequantize(device, &codes, (rows, columns), &coding, &scales).unwrap());
        });
        self.line("convert, BF16", &Cost { bytes: 6 * elements, operations: elements }, || {
            drop(convert(device, &source).unwrap());
        });
        let bytes = elements + elements / 2;
        self.line("pack, 4 bits", &Cost { bytes, operations: 2 * elements }, || {
            drop(pack(device, &codes, rows, columns, 4).unwrap());
        });
        let decoded = dequantize(device, &codes, (rows, columns), &coding, &scales).unwrap();
        self.line(
            "sums of errors, and their read-back",
            &Cost { bytes: 6 * elements, operations: 7 * elements },
            || {
                error_sums(device, &source, &decoded).unwrap();
            },
        );
    }

    fn products(&self, size: &Size) {
        let device = &self.device;
        let (tokens, channels, hidden) = (size.tokens, size.channels, size.hidden);
        let operations = 2 * tokens * channels * hidden;
        let (x, out) = (self.matrix(tokens, channels), self.zeros(tokens, hidden));
        let short = vec![0x3c_u8; 2 * channels * hidden];
        for (name, right_transposed, number) in [
            ("multiply x wᵀ, F32", true, Number::F32),
            ("multiply x w, F32", false, Number::F32),
            ("multiply x wᵀ, BF16 weights", true, Number::BF16),
            ("multiply x wᵀ, F16 weights", true, Number::F16),
        ] {
            let (rows, columns) = if right_transposed { (hidden, channels) } else { (channels, hidden) };
            let w = match number {
                Number::F32 => self.matrix(rows, columns),
                _ => DeviceMatrix::stored(device, "bench", columns, number, &short).unwrap(),
            };
            let weight_bytes = number.bytes() as usize * channels * hidden;
            let bytes = 4 * (tokens * channels + tokens * hidden) + weight_bytes;
            let product = Product { right_transposed, ..Product::TRANSPOSED };
            self.line(name, &Cost { bytes, operations }, || {
                let mut batch = device.batch();
                product.add(device, &mut batch, &x.view(), &w.view(), &out.view()).unwrap();
                batch.submit().unwrap();
            });
        }

        let halves = vec![0x3c_u8; 2 * tokens * channels];
        let short_x = DeviceMatrix::stored(device, "bench", channels, Number::F16, &halves).unwrap();
        let w = DeviceMatrix::stored(device, "bench", channels, Number::F16, &short).unwrap();
        let units = if device.has(Feature::CooperativeMatrix) { "cooperative matrices" } else { "tiles" };
        let bytes = 2 * (tokens * channels + channels * hidden) + 4 * tokens * hidden;
        self.line(&format!("multiply x wᵀ, both F16, {units}"), &Cost { bytes, operations }, || {
            let mut batch = device.batch();
            Product::TRANSPOSED.add(device, &mut batch, &short_x.view(), &w.view(), &out.view()).unwrap();
            batch.submit().unwrap();
        });

        let sums = SecondMoments::new(device, channels).unwrap();
        let square = channels * (channels + 1) / 2;
        let cost = Cost { bytes: 4 * tokens * channels + 16 * square, operations: 2 * tokens * square };
        self.line("second moments", &cost, || {
            let mut batch = device.batch();
            sums.add(device, &mut batch, &x.view()).unwrap();
            batch.submit().unwrap();
        });
    }

    fn solvers(&self, size: &Size) {
        let device = &self.device;
        let (order, columns) = (size.channels, size.hidden);
        let mut values = vec![0.0_f32; order * order];
        values.iter_mut().step_by(order + 1).for_each(|value| *value = 1.0);
        let unit = DeviceMatrix::upload(device, "bench", order, &values).unwrap();
        let (given, solved) = (self.matrix(order, columns), self.zeros(order, columns));
        let triangle = order * (order + 1) / 2;
        let cost = Cost { bytes: 4 * (triangle + 2 * order * columns), operations: 2 * triangle * columns };
        self.line("triangular solve", &cost, || {
            let mut batch = device.batch();
            solve_lower(device, &mut batch, &unit.view(), &given.view(), &solved.view()).unwrap();
            batch.submit().unwrap();
        });

        let (rows, groups_per_row) = (columns, order.div_ceil(128));
        let work = self.matrix(rows, order);
        let scales = vec![[0.1_f32, 8.0]; rows * groups_per_row];
        let groups: Vec<u32> = (0..order).map(|column| column as u32 / 128).collect();
        let levels = Levels {
            element: Element::Integer { bits: 4 },
            zero: ZeroPoint::None,
            scales: device.upload("bench", bytemuck::cast_slice(&scales)).unwrap(),
            groups: device.upload("bench", bytemuck::cast_slice(&groups)).unwrap(),
            groups_per_row,
        };
        let cost = Cost { bytes: 4 * (triangle + rows * order) + rows * order, operations: 2 * triangle * rows };
        self.line("GPTQ sweep, 4 bits", &cost, || drop(sweep(device, &work, &unit, &levels).unwrap()));
    }

    fn block(&self, size: &Size) {
        let device = &self.device;
        let (tokens, channels, hidden) = (size.tokens, size.channels, size.hidden);
        let (x, out) = (self.matrix(tokens, channels), self.zeros(tokens, channels));
        let elements = tokens * channels;
        let norm = DeviceNorm { centred: false, weight: Some(self.matrix(1, channels)), bias: None, epsilon: 1e-5 };
        self.line("norm", &Cost { bytes: 8 * elements, operations: 4 * elements }, || {
            let mut batch = device.batch();
            norm.add(device, &mut batch, &x.view(), 1, &out.view()).unwrap();
            batch.submit().unwrap();
        });

        let half = channels / size.heads / 2;
        let table = vec![0.5; size.length * half];
        let angles = Angles::upload(device, half, false, &table, &table).unwrap();
        self.line("rotation", &Cost { bytes: 8 * elements, operations: 3 * elements }, || {
            let mut batch = device.batch();
            angles.rotate(device, &mut batch, &out.view(), size.heads).unwrap();
            batch.submit().unwrap();
        });

        let attention = Attention {
            heads: size.heads,
            key_value_heads: size.heads / 4,
            key_width: channels / size.heads,
            value_width: channels / size.heads,
            scale: 0.1,
            causal: true,
            window: None,
            soft_cap: None,
        };
        let (key, value) = (self.matrix(tokens, channels / 4), self.matrix(tokens, channels / 4));
        let mut scores = Scores::default();
        let inputs = QueryKeyValue { query: x.view(), key: key.view(), value: value.view() };
        // Two products, of which causality leaves half.
        let cost = Cost { bytes: 10 * elements, operations: 2 * elements * size.length };
        self.line("attention, causal, 4 heads a key head", &cost, || {
            attend(device, &attention, &inputs, size.length, None, &mut scores, &out.view()).unwrap();
        });
        self.line("the same by scores in memory", &cost, || {
            attend_by_scores(device, &attention, &inputs, size.length, None, &mut scores, &out.view()).unwrap();
        });

        self.line("residual sum", &Cost { bytes: 12 * elements, operations: elements }, || {
            let mut batch = device.batch();
            add_branch(device, &mut batch, &x.view(), &out.view()).unwrap();
            batch.submit().unwrap();
        });

        let (gate_up, gated) = (self.matrix(tokens, 2 * hidden), self.zeros(tokens, hidden));
        let cost = Cost { bytes: 12 * tokens * hidden, operations: 5 * tokens * hidden };
        self.line("gate, SiLU", &cost, || {
            let mut batch = device.batch();
            Gate::Halves(Activation::Silu).add(device, &mut batch, &gate_up.view(), &gated.view()).unwrap();
            batch.submit().unwrap();
        });

        let cost = Cost { bytes: 8 * elements, operations: elements * channels.ilog2() as usize };
        self.line("Hadamard transform", &cost, || {
            let mut batch = device.batch();
            hadamard(device, &mut batch, &x, channels).unwrap();
            batch.submit().unwrap();
        });
    }
}

fn main() {
    let device = match Choice::from_environment().and_then(|choice| Device::open(&choice)) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIPPED: {error}");
            return;
        }
    };
    let software = device.adapter().kind == AdapterKind::Software;
    let size = if software {
        Size { tokens: 512, channels: 512, hidden: 1024, heads: 8, length: 256 }
    } else {
        Size { tokens: 8192, channels: 4096, hidden: 14336, heads: 32, length: 2048 }
    };
    let ceilings = score(&device).unwrap();
    println!("{}, {}", device.adapter().name, device.adapter().driver);
    println!(
        "ceilings: copy {:.2} GB/s, multiply-add {:.2} GFLOP/s; {} tokens, {} channels, {} in the MLP, sequences of {}",
        ceilings.copy_bytes_per_second / 1e9,
        ceilings.multiply_add_per_second / 1e9,
        size.tokens,
        size.channels,
        size.hidden,
        size.length,
    );
    println!("{:38} {:>13} {:>14} {:>7} {:>18} {:>7}", "kernel", "time", "bytes", "of copy", "operations", "of loop");
    let bench = Bench { device, ceilings };
    bench.codecs(&size);
    bench.products(&size);
    bench.solvers(&size);
    bench.block(&size);
}
