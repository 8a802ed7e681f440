// A matrix with signs times scales added: what a one-bit difference makes of its base.
//
// Formula: out[r, c] = B[r, c] + s · scales[r], s = 1 where bit (r, c) is set, else −1.
// Layout: binding 0 {rows, columns, words}; 1 B as in parts/source.wgsl, [rows, columns]; 2 signs, [rows, words], words =
// ⌈columns / 32⌉, bit b of word k is column 32 k + b; 3 scales, F32 [rows]; 4 out, F32 [rows, columns].
// Threads: one a weight.
// needs: parts/source.wgsl parts/linear.wgsl

struct Shape {
    rows: u32,
    columns: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> base: array<u32>;
@group(0) @binding(2) var<storage, read> signs: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn sign_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.rows * shape.columns {
        return;
    }
    let row = index / shape.columns;
    let column = index - row * shape.columns;
    let word = signs[row * shape.words + column / 32u];
    let before = bitcast<f32>(source_bits(base[source_word(index)], index));
    let scale = scales[row];
    out[index] = before + select(-scale, scale, ((word >> (column % 32u)) & 1u) == 1u);
}
