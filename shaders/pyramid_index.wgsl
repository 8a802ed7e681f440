// Points of a pyramid as numbers of up to 64 bits, and back: enumeration in Fischer's order (scheme F).
//
// Formula: with r coordinates to come after it and k pulses left, a coordinate of magnitude a > 0 adds
// V(r + 1, k) − 2 P(r, k − a), and V(r, k − a) more where it is negative; P(r, k) = Σ V(r, j) for j ≤ k. Back: the magnitude
// is the one whose run of indices holds the index. As codec/pyramid/index.rs has it.
// Layout: binding 0 Shape; 1 counts, V(r, k), [dimension + 1, pulses + 1]; 2 below, 2 P(r, k), [dimension, pulses + 1];
// encode: 3 points, [vectors of a column · dimension, columns] F32; 4 indices, [vectors of a column, columns]; decode: 3
// indices, 4 points. Counts and indices are 64 bits, the lower half first. first counts elements. An index of no
// point gives zeros, which are no point; points whose magnitudes do not add up have no index that means anything.
// Threads: one a vector.

struct Shape {
    vectors: u32,
    columns: u32,
    dimension: u32,
    pulses: u32,
    points_first: u32,
    indices_first: u32,
    unused_0: u32,
    unused_1: u32,
}

const SIZE: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> counts: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> below: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> given_points: array<f32>;
@group(0) @binding(4) var<storage, read_write> indices: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> given_indices: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> points: array<f32>;

fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn minus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

@compute @workgroup_size(SIZE)
fn encode(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    if i >= shape.vectors * shape.columns {
        return;
    }
    let width = shape.pulses + 1u;
    let first = shape.points_first + i / shape.columns * shape.dimension * shape.columns + i % shape.columns;
    var left = shape.pulses;
    var index = vec2<u32>(0u, 0u);
    for (var j = 0u; j < shape.dimension && left > 0u; j++) {
        let y = given_points[first + j * shape.columns];
        if y != 0.0 {
            let after = shape.dimension - 1u - j;
            let rest = left - min(u32(abs(y)), left);
            index = plus(index, minus(counts[(after + 1u) * width + left], below[after * width + rest]));
            if y < 0.0 {
                index = plus(index, counts[after * width + rest]);
            }
            left = rest;
        }
    }
    indices[shape.indices_first + i] = index;
}

@compute @workgroup_size(SIZE)
fn decode(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    if i >= shape.vectors * shape.columns {
        return;
    }
    let width = shape.pulses + 1u;
    let first = shape.points_first + i / shape.columns * shape.dimension * shape.columns + i % shape.columns;
    var index = given_indices[shape.indices_first + i];
    let exists = less(index, counts[shape.dimension * width + shape.pulses]);
    var left = shape.pulses;
    for (var j = 0u; j < shape.dimension; j++) {
        var y = 0.0;
        let after = shape.dimension - 1u - j;
        if exists && !less(index, counts[after * width + left]) {
            let from_end = minus(counts[(after + 1u) * width + left], index);
            // Entries ascend; small magnitudes are most frequent.
            var rest = left - 1u;
            while rest > 0u && !less(below[after * width + rest - 1u], from_end) {
                rest -= 1u;
            }
            index = minus(below[after * width + rest], from_end);
            y = f32(left - rest);
            let half = counts[after * width + rest];
            if !less(index, half) {
                index = minus(index, half);
                y = -y;
            }
            left = rest;
        }
        points[first + j * shape.columns] = y;
    }
}
