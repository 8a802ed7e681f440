// Signs of the difference of two matrices, one bit a weight, and sums of its magnitudes.
//
// Formula: bit (r, c) = W[r, c] ≥ B[r, c], zeros of either sign being equal; sums[r, k] = Σ |W[r, c] − B[r, c]| over columns
// 32 k to 32 k + 31, added in F32 by halves: c and c + 16, then c and c + 8, …. A scale of row r is Σ_k sums[r, k] / columns.
// Layout: binding 0 {rows, columns, words}; 1 W and 2 B as in parts/source.wgsl, both of one type, [rows, columns]; 3 signs,
// [rows, words], words = ⌈columns / 32⌉, bit b of word k is column 32 k + b, the rest of a row's last word zero; 4 sums, F32
// [rows, words].
// Signs are compared as integers, in which weights order like the floats, so those are the processor's bits; so are sums but
// where a device takes subnormal differences for zero.
// Threads: one a word, 32 columns.
// needs: parts/source.wgsl parts/linear.wgsl

struct Shape {
    rows: u32,
    columns: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> base: array<u32>;
@group(0) @binding(3) var<storage, read_write> signs: array<u32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

// Orders like the float of these bits; both zeros are 0.
fn sort_key(bits: u32) -> i32 {
    if (bits & 0x7fffffffu) == 0u {
        return 0;
    }
    let number = bitcast<i32>(bits);
    return number ^ ((number >> 31u) & 0x7fffffff);
}

@compute @workgroup_size(THREADS)
fn sign_pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.rows * shape.words {
        return;
    }
    let row = index / shape.words;
    let first = (index - row * shape.words) * 32u;
    let count = min(32u, shape.columns - first);
    var word = 0u;
    var magnitudes: array<f32, 32>;
    for (var i = 0u; i < count; i += 1u) {
        let at = row * shape.columns + first + i;
        let weight = source_bits(weights[source_word(at)], at);
        let before = source_bits(base[source_word(at)], at);
        word |= u32(sort_key(weight) >= sort_key(before)) << i;
        magnitudes[i] = abs(bitcast<f32>(weight) - bitcast<f32>(before));
    }
    for (var width = 16u; width > 0u; width >>= 1u) {
        for (var i = 0u; i < width; i += 1u) {
            magnitudes[i] += magnitudes[i + width];
        }
    }
    signs[index] = word;
    sums[index] = magnitudes[0];
}
