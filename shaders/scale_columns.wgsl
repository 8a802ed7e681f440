// A matrix with its columns scaled: one term of a polynomial, Θ_n = W diag(c_n).
//
// Formula: out[r, c] = W[r, c] · factors[c].
// Layout: binding 0 {rows, columns}; 1 W as in parts/source.wgsl, [rows, columns]; 2 factors, F32 [columns]; 3 out, F32
// [rows, columns].
// Threads: one a weight.
// needs: parts/source.wgsl parts/linear.wgsl

struct Shape {
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> factors: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn scale_columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.rows * shape.columns {
        return;
    }
    let weight = bitcast<f32>(source_bits(weights[source_word(index)], index));
    out[index] = weight * factors[index % shape.columns];
}
