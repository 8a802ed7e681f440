// Difference of two matrices, one of them scaled by channels.
//
// Formula: out = left · factor − right, with the factor of the column where there are factors, else one.
// Layout: binding 0 Shape; 1 left, 2 right, both [rows, width] F32; 3 factors, [width] F32; 4 out, [rows, width] F32;
// first and strides count elements.
// Threads: one an element of out.

struct Shape {
    rows: u32,
    width: u32,
    has_factors: u32,
    left_first: u32,
    left_stride: u32,
    right_first: u32,
    right_stride: u32,
    factors_first: u32,
    out_first: u32,
    out_stride: u32,
    unused_0: u32,
    unused_1: u32,
}

const SIZE: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> left: array<f32>;
@group(0) @binding(2) var<storage, read> right: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(SIZE)
fn difference(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    let row = i / shape.width;
    let column = i % shape.width;
    if row < shape.rows {
        var value = left[shape.left_first + row * shape.left_stride + column];
        if shape.has_factors != 0u {
            value *= factors[shape.factors_first + column];
        }
        out[shape.out_first + row * shape.out_stride + column] =
            value - right[shape.right_first + row * shape.right_stride + column];
    }
}
