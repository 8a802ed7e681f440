// Adds a branch to the residual stream.
//
// Formula: sum = sum + branch.
// Layout: binding 0 Shape; 1 branch, 2 sum, both [rows, width] F32; first and strides count elements.
// Threads: one an element.

struct Shape {
    rows: u32,
    width: u32,
    branch_first: u32,
    branch_stride: u32,
    sum_first: u32,
    sum_stride: u32,
    unused_0: u32,
    unused_1: u32,
}

const SIZE: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> branch: array<f32>;
@group(0) @binding(2) var<storage, read_write> sum: array<f32>;

@compute @workgroup_size(SIZE)
fn add(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    let row = i / shape.width;
    let column = i % shape.width;
    if row < shape.rows {
        sum[shape.sum_first + row * shape.sum_stride + column] +=
            branch[shape.branch_first + row * shape.branch_stride + column];
    }
}
