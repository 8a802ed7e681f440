// The Cholesky decomposition of one small matrix, in place.
//
// Formula: G + s I = L Lᵀ, with s = shift · trace G / order; l_kk = √g_kk, l_ik = g_ik / l_kk, and g_ij −= l_ik l_jk for
// k < j ≤ i, one k after the other. A pivot below FLOOR · trace G / order counts as that, so that rows that depend on others
// stay finite.
// Layout: binding 0 Shape; 1 G and then L, row-major F32 [order, order]; a line begins `stride` elements after the one
// before, the first one at element `first`. What stands above the diagonal is neither read nor written.
// Threads: one workgroup; each invocation has every SIZE-th row.

struct Shape {
    order: u32,
    first: u32,
    stride: u32,
    shift: f32,
}

const SIZE: u32 = 256u;
const FLOOR: f32 = 1e-9;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read_write> matrix: array<f32>;

@compute @workgroup_size(SIZE)
fn cholesky(@builtin(local_invocation_index) index: u32) {
    let first = shape.first;
    let stride = shape.stride;
    var trace = 0.0;
    for (var i = 0u; i < shape.order; i++) {
        trace += matrix[first + i * stride + i];
    }
    let mean = trace / f32(shape.order);
    storageBarrier();
    for (var i = index; i < shape.order; i += SIZE) {
        matrix[first + i * stride + i] += shape.shift * mean;
    }
    storageBarrier();
    for (var k = 0u; k < shape.order; k++) {
        let diagonal = first + k * stride + k;
        let pivot = sqrt(max(matrix[diagonal], max(FLOOR * mean, 1e-37)));
        storageBarrier();
        if index == 0u {
            matrix[diagonal] = pivot;
        }
        for (var i = k + 1u + index; i < shape.order; i += SIZE) {
            matrix[first + i * stride + k] /= pivot;
        }
        storageBarrier();
        for (var i = k + 1u + index; i < shape.order; i += SIZE) {
            let row = first + i * stride;
            let factor = matrix[row + k];
            for (var j = k + 1u; j <= i; j++) {
                matrix[row + j] = fma(-factor, matrix[first + j * stride + k], matrix[row + j]);
            }
        }
        storageBarrier();
    }
}
