// Figures of channels, over short runs of rows.
//
// Formula: for each run of RUN rows and each channel: the sum, the sum of magnitudes, the sum of squares, the largest
// magnitude.
// Layout: binding 0 Shape; 1 x, [rows, width] F32; 2 figures, [runs · 4, width] F32, the four figures of a run one row
// after the other; first and strides count elements.
// Threads: one a channel of a run.

struct Shape {
    rows: u32,
    width: u32,
    x_first: u32,
    x_stride: u32,
    figures_first: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

const SIZE: u32 = 64u;
const RUN: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> figures: array<f32>;

@compute @workgroup_size(SIZE)
fn channel_figures(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    let run = i / shape.width;
    let column = i % shape.width;
    let first = run * RUN;
    if first >= shape.rows {
        return;
    }
    let last = min(first + RUN, shape.rows);
    var sum = 0.0;
    var magnitudes = 0.0;
    var squares = 0.0;
    var largest = 0.0;
    for (var row = first; row < last; row++) {
        let value = x[shape.x_first + row * shape.x_stride + column];
        sum += value;
        magnitudes += abs(value);
        squares += value * value;
        largest = max(largest, abs(value));
    }
    let out = shape.figures_first + run * 4u * shape.width + column;
    figures[out] = sum;
    figures[out + shape.width] = magnitudes;
    figures[out + 2u * shape.width] = squares;
    figures[out + 3u * shape.width] = largest;
}
