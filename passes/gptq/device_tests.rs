//! The sweep on a graphics processor against the one here, and both against F64.

use super::{
    chunk::Chunk,
    factor::Factor,
    options::{Linear, Moments, Order, SolveOptions},
    search::Group,
    sweep::Sweep,
    tests::{Numbers, codec, moments, weights},
};
use crate::{
    checkpoint::Dtype,
    codec::{Codec, Element, Granularity, ScaleFormat, ZeroPoint},
    compute::{
        Device,
        kernels::{DeviceMatrix, Levels, sweep},
        tests::fixtures,
    },
    passes::rtn::grid::{Grid, GroupScale},
};

/// Share of codes that may differ: sums in another order and a division that is not rounded exactly move a weight across
/// the middle between two levels now and then, and those after it that take its error. Mesa's software adapter: none here,
/// 8 of 147456 for 8 bits at 192 × 768.
const DIFFERENT_CODES: f64 = 2e-4;
/// How much larger the loss may be than that of the sweep in F64, as a share. A code that differs is no worse on average.
const LOSS_TOLERANCE: f64 = 2e-3;

/// A layer with the scales of minimum and maximum.
struct Layer {
    factor: Factor,
    grid: Grid,
    codec: Codec,
    weights: Vec<f32>,
    rows: usize,
    /// `[groups][rows]`.
    groups: Vec<Vec<GroupScale>>,
}

impl Layer {
    fn new(codec: Codec, rows: usize, columns: usize) -> Self {
        let mut numbers = Numbers((rows * 1000 + columns) as u64);
        let hessian = moments(columns, columns + 20, &mut numbers);
        let options = SolveOptions { order: Order::Activation, ..SolveOptions::default() };
        let factor = Factor::new(&Moments { columns, hessian: &hessian, drift: None }, &options).unwrap();
        let weights = weights(rows * columns, &mut numbers);
        let absmax = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        let grid = Grid::new(&codec, Dtype::BF16, 0);
        let grid =
            if codec.scale == ScaleFormat::E4M3OverGlobal { grid.with_global(grid.global_for(absmax)) } else { grid };
        let mut layer = Self { factor, grid, codec, weights, rows, groups: Vec::new() };
        layer.groups = (0..layer.codec.groups_per_row(columns)).map(|group| layer.min_max(group)).collect();
        layer
    }

    fn columns(&self) -> usize {
        self.factor.columns
    }

    fn min_max(&self, group: usize) -> Vec<GroupScale> {
        let (width, columns) = (self.codec.group_columns(self.columns()), self.columns());
        let of_group = group * width..columns.min((group + 1) * width);
        let rows = self.rows;
        let weights: Vec<f32> = of_group
            .clone()
            .flat_map(|column| (0..rows).map(move |row| (row, column)))
            .map(|(row, column)| self.weights[row * columns + column])
            .collect();
        let importance = vec![1.0; of_group.len()];
        Group { grid: &self.grid, weights: &weights, importance: &importance, rows }.min_max()
    }

    /// Codes in the original order and the sum of losses.
    fn on_processor(&self) -> (Vec<u8>, f64) {
        let linear = Linear { weights: &self.weights, rows: self.rows, codec: &self.codec, grid: &self.grid };
        let mut codes = vec![0; self.weights.len()];
        let mut total = 0.0;
        let columns = self.columns();
        let height = super::chunk::ROWS;
        for (index, (weights, codes)) in
            self.weights.chunks(height * columns).zip(codes.chunks_mut(height * columns)).enumerate()
        {
            let mut chunk = Chunk::new(&self.factor, &linear, &self.grid, index * height, weights);
            for (group, scales) in chunk.groups.iter_mut().zip(&self.groups) {
                let mut lanes: Vec<GroupScale> = scales[index * height..][..chunk.rows].to_vec();
                lanes.resize(chunk.lanes, lanes[0]);
                *group = lanes;
            }
            let losses = Sweep { block: 128, search_steps: 0 }.run(&mut chunk);
            total += losses[..chunk.rows].iter().sum::<f64>();
            chunk.codes(codes);
        }
        (codes, total)
    }

    fn on_device(&self, device: &Device) -> (Vec<u8>, f64) {
        let (rows, columns, permutation) = (self.rows, self.columns(), &self.factor.permutation);
        let permuted: Vec<f32> =
            self.weights.chunks_exact(columns).flat_map(|row| permutation.iter().map(|column| row[*column])).collect();
        let scales: Vec<[f32; 2]> = (0..rows)
            .flat_map(|row| self.groups.iter().map(move |group| [self.grid.step(&group[row]), group[row].zero]))
            .collect();
        let width = self.codec.group_columns(columns);
        let groups: Vec<u32> = permutation.iter().map(|column| (column / width) as u32).collect();
        let levels = Levels {
            element: self.codec.element,
            zero: self.codec.zero,
            scales: device.upload("scales", bytemuck::cast_slice(&scales)).unwrap(),
            groups: device.upload("groups", bytemuck::cast_slice(&groups)).unwrap(),
            groups_per_row: self.groups.len(),
        };
        let work = DeviceMatrix::upload(device, "work", columns, &permuted).unwrap();
        let upper = DeviceMatrix::upload(device, "factor", columns, &self.factor.upper).unwrap();
        let swept = sweep(device, &work, &upper, &levels).unwrap();
        let found = device.read(&swept.codes).unwrap();
        let mut codes = vec![0; rows * columns];
        for (row, codes) in codes.chunks_exact_mut(columns).enumerate() {
            for (place, column) in permutation.iter().enumerate() {
                codes[*column] = found[row * swept.code_row_bytes + place];
            }
        }
        let losses: Vec<f32> = bytemuck::pod_collect_to_vec(&device.read(&swept.losses).unwrap());
        (codes, losses.into_iter().map(f64::from).sum())
    }

    /// The loss of the sweep in F64, written as the definition is: one column after the other, over the whole rest.
    fn exact_loss(&self) -> f64 {
        let (columns, factor) = (self.columns(), &self.factor);
        let width = self.codec.group_columns(columns);
        let mut total = 0.0;
        for (row, weights) in self.weights.chunks_exact(columns).enumerate() {
            let mut work: Vec<f64> = factor.permutation.iter().map(|column| f64::from(weights[*column])).collect();
            for place in 0..columns {
                let group = &self.groups[factor.permutation[place] / width][row];
                let mut code = [0];
                self.grid.encode(&[work[place] as f32], group, &mut code);
                let upper = &factor.upper[place * columns..][..columns];
                let error = (work[place] - f64::from(self.grid.decode(code[0], group))) / f64::from(upper[place]);
                total += error * error;
                for later in place + 1..columns {
                    work[later] -= error * f64::from(upper[later]);
                }
            }
        }
        total
    }
}

fn formats() -> Vec<Codec> {
    let integer = |bits, zero| codec(Element::Integer { bits }, Granularity::Group(32), ScaleFormat::F16, zero);
    vec![
        integer(4, ZeroPoint::None),
        integer(3, ZeroPoint::Integer),
        integer(8, ZeroPoint::Integer),
        integer(4, ZeroPoint::Float),
        codec(Element::Fp8E4M3, Granularity::Channel, ScaleFormat::BF16, ZeroPoint::None),
        codec(Element::Fp4E2M1, Granularity::Group(16), ScaleFormat::E4M3OverGlobal, ZeroPoint::None),
    ]
}

#[test]
fn a_device_sweeps_to_the_same_codes_and_no_larger_a_loss() {
    let (mut different, mut all) = (0, 0);
    // The second device binds 64 rows of the widest layer at most.
    for device in [None, Some(64 * 160 * 4)].into_iter().filter_map(fixtures::device) {
        let shapes = [(1, 1), (1, 131), (137, 1), (7, 13), (65, 67), (131, 157)];
        for (index, (rows, columns)) in shapes.into_iter().enumerate() {
            for (which, codec) in formats().into_iter().enumerate() {
                // Every format at the largest shape, and each of the others with two formats.
                if index + 1 < shapes.len() && (which + index) % 3 != 0 {
                    continue;
                }
                let layer = Layer::new(codec, rows, columns);
                let ((host, host_loss), (found, loss)) = (layer.on_processor(), layer.on_device(&device));
                let exact = layer.exact_loss();
                let context = format!("{rows} × {columns}, {:?}", layer.codec);
                for (who, loss) in [("device", loss), ("processor", host_loss)] {
                    assert!(loss <= exact * (1.0 + LOSS_TOLERANCE) + 1e-12, "{who}, {context}: {loss} of {exact}");
                }
                let count = host.iter().zip(&found).filter(|(a, b)| a != b).count();
                assert!(count as f64 <= (host.len() as f64 * 0.02).max(1.0), "{context}: {count} codes differ");
                different += count;
                all += host.len();
            }
        }
    }
    assert!(f64::from(different as u32) <= DIFFERENT_CODES * all as f64, "{different} of {all} codes differ");
}

/// Share of the codes that may differ between the solver with a device and the one without: refinement follows roundings from
/// group to group.
const DIFFERENT_SOLUTIONS: f64 = 2e-2;
/// How much their losses may differ, as a share.
const SOLUTION_TOLERANCE: f64 = 5e-3;

#[test]
fn the_solver_with_a_device_finds_what_it_finds_without() {
    let Some(device) = fixtures::device(None) else { return };
    // More rows than a chunk has, the last ones few; more columns than a block and a panel.
    let (rows, columns) = (150, 280);
    let mut numbers = Numbers(11);
    let (hessian, weights) = (moments(columns, columns + 40, &mut numbers), weights(rows * columns, &mut numbers));
    let mut random = |count: usize, scale: f64| -> Vec<f32> {
        super::tests::weights(count, &mut numbers).into_iter().map(|value| (f64::from(value) * scale) as f32).collect()
    };
    let (drift, residual) = (random(columns * columns, 30.0), random(rows * columns, 20.0));
    let wide = codec(Element::Integer { bits: 4 }, Granularity::Group(20), ScaleFormat::F16, ZeroPoint::Integer);
    for (index, codec) in super::tests::formats().into_iter().chain([wide]).enumerate() {
        let grid = Grid::new(&codec, Dtype::BF16, 0);
        let linear = Linear { weights: &weights, rows, codec: &codec, grid: &grid };
        let corrects = index % 2 == 0;
        let moments = Moments { columns, hessian: &hessian, drift: corrects.then_some(&drift[..]) };
        let residual = corrects.then_some(&residual[..]);
        let order = [Order::None, Order::Activation, Order::Conditional][index % 3];
        let options = SolveOptions { order, sweeps: 1 + index % 2, ..SolveOptions::default() };
        let factor = Factor::new(&moments, &options).unwrap();
        let here = super::solve_towards(&factor, &moments, &linear, residual, &options).unwrap();
        let solve =
            || super::solve_on(&device, &factor, &moments, &linear, residual, &options).unwrap().unwrap().unwrap();
        let there = solve();
        assert!(there == solve(), "{codec:?}: other codes the second time");
        let different = here.coded.codes.iter().zip(&there.coded.codes).filter(|(a, b)| a != b).count();
        let share = different as f64 / here.coded.codes.len() as f64;
        assert!(share <= DIFFERENT_SOLUTIONS, "{codec:?}: {share:e} of the codes differ");
        for (what, a, b) in [
            ("nearest", here.report.loss_nearest, there.report.loss_nearest),
            ("sweep", here.report.target_loss_sweep, there.report.target_loss_sweep),
            ("refined", here.report.loss_refined, there.report.loss_refined),
            ("towards the target", here.report.target_loss_refined, there.report.target_loss_refined),
        ] {
            assert!((a / b - 1.0).abs() <= SOLUTION_TOLERANCE, "{codec:?}, {what}: {a} and {b}");
        }
        assert_eq!(here.report.loss_sweep.is_some(), there.report.loss_sweep.is_some());
        assert_eq!(here.report.deviations, there.report.deviations);
    }
}

#[test]
fn a_layer_that_does_not_fit_is_left_to_the_processor() {
    let choice = crate::compute::Choice { memory_bytes: 300_000, ..fixtures::choice() };
    let Some(device) = fixtures::device_with(&choice) else { return };
    let codec = codec(Element::Integer { bits: 4 }, Granularity::Group(32), ScaleFormat::F16, ZeroPoint::Integer);
    for (columns, fits) in [(64, true), (160, false)] {
        let layer = Layer::new(codec.clone(), 70, columns);
        let hessian = moments(columns, columns + 20, &mut Numbers(1));
        let moments = Moments { columns, hessian: &hessian, drift: None };
        let linear = Linear { weights: &layer.weights, rows: 70, codec: &layer.codec, grid: &layer.grid };
        let options = SolveOptions::default();
        let solved = super::solve_on(&device, &layer.factor, &moments, &linear, None, &options).unwrap();
        assert_eq!(solved.is_some(), fits, "{columns} columns");
    }
}
