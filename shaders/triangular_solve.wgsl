// One diagonal block of a lower triangular system with many right-hand sides.
//
// Formula: L X = B: x_i = (b_i − Σ_{j<i} l_ij x_j) / l_ii, for at most BLOCK unknowns. Larger systems are cut in
// halves: the first half is solved, its part of the second half is taken away by multiply.wgsl, and the second half is
// solved.
// Layout: binding 0 Shape; 1 L, [order, order], its diagonal not zero; what stands above the diagonal is not read; 2 B
// and 3 X, [order, columns]. All are row-major F32; a line begins `stride` elements after the one before, the first one
// at element `first` of its binding.
// Threads: one a column of B; its unknowns lie in workgroup memory, [BLOCK, WIDTH], beside the block of L.

struct Shape {
    order: u32,
    columns: u32,
    lower_first: u32,
    lower_stride: u32,
    given_first: u32,
    given_stride: u32,
    solved_first: u32,
    solved_stride: u32,
}

const BLOCK: u32 = 32u;
const WIDTH: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> lower: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<f32>;
@group(0) @binding(3) var<storage, read_write> solved: array<f32>;

var<workgroup> block: array<f32, BLOCK * BLOCK>;
var<workgroup> unknowns: array<f32, BLOCK * WIDTH>;

@compute @workgroup_size(WIDTH)
fn triangular_solve(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    for (var i = index; i < BLOCK * BLOCK; i += WIDTH) {
        let row = i / BLOCK;
        let column = i % BLOCK;
        if row < shape.order && column <= row {
            block[i] = lower[shape.lower_first + row * shape.lower_stride + column];
        }
    }
    workgroupBarrier();
    let column = group.x * WIDTH + index;
    if column >= shape.columns {
        return;
    }
    for (var i = 0u; i < shape.order; i++) {
        var rest = given[shape.given_first + i * shape.given_stride + column];
        for (var j = 0u; j < i; j++) {
            rest = fma(-block[i * BLOCK + j], unknowns[j * WIDTH + index], rest);
        }
        let unknown = rest / block[i * BLOCK + i];
        unknowns[i * WIDTH + index] = unknown;
        solved[shape.solved_first + i * shape.solved_stride + column] = unknown;
    }
}
