// Norms of vectors.
//
// Formula: y = (x − m) / √(mean (x − m)² + epsilon) · weight + bias, with m = 0 (root mean square) or, if `centred`,
// the mean of x (layer norm). Gemma's weights come with the one already added.
// Layout: binding 0 Shape; 1 x, 2 weight [width], 3 bias [width], 4 out, all F32; first and strides count elements. A
// row of x and of out holds `heads` vectors of `width` elements, so that norms of heads need no copy; with heads = 1 it
// is the norm of the row. Without weight or bias its binding holds anything and the flag is 0.
// Threads: SIZE a vector. Each invocation adds up every SIZE-th element, then the sums of all are added.
// needs: parts/reduce.wgsl

struct Shape {
    vectors: u32,
    heads: u32,
    width: u32,
    centred: u32,
    x_first: u32,
    x_stride: u32,
    x_head_stride: u32,
    weighted: u32,
    out_first: u32,
    out_stride: u32,
    out_head_stride: u32,
    biased: u32,
    epsilon: f32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

const SIZE: u32 = 128u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(SIZE)
fn normalize_vectors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let index = lane.index;
    let vector = group.y * groups.x + group.x;
    if vector >= shape.vectors {
        return;
    }
    let row = vector / shape.heads;
    let head = vector % shape.heads;
    let first = shape.x_first + row * shape.x_stride + head * shape.x_head_stride;
    let out_first = shape.out_first + row * shape.out_stride + head * shape.out_head_stride;
    let count = f32(shape.width);

    var mean = 0.0;
    if shape.centred != 0u {
        var part = 0.0;
        for (var i = index; i < shape.width; i += SIZE) {
            part += x[first + i];
        }
        mean = total(lane, part) / count;
    }
    var part = 0.0;
    for (var i = index; i < shape.width; i += SIZE) {
        let value = x[first + i] - mean;
        part = fma(value, value, part);
    }
    let inverse = 1.0 / sqrt(total(lane, part) / count + shape.epsilon);
    for (var i = index; i < shape.width; i += SIZE) {
        var value = (x[first + i] - mean) * inverse;
        if shape.weighted != 0u {
            value *= weight[i];
        }
        if shape.biased != 0u {
            value += bias[i];
        }
        out[out_first + i] = value;
    }
}
