// The two larger magnitudes of each four neighbouring weights, compacted, with their places.
//
// Formula: of a quad w₀…w₃ those are kept that are larger than at least two of the others; of equal magnitudes the higher
// column's is larger. values: the two kept, in the order of their columns, in the bits they came in. indices: place of the
// first | place of the second << 2, four bits a quad, the first quad in the lowest bits.
// Layout: binding 0 {rows, quads, words}; 1 weights as in parts/source.wgsl, [rows, 4 · quads]; 2 values, typed like the
// weights, [rows, 2 · quads]; 3 indices, [rows, words], words = ⌈quads / 8⌉, the rest of the last word of a row zero.
// Magnitudes are compared as integers, in which they order like the floats: the same bits as the processor's.
// Threads: one a word of indices, eight quads.
// needs: parts/source.wgsl parts/linear.wgsl

struct Shape {
    rows: u32,
    quads: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> indices: array<u32>;

// The four weights of a quad as stored, two or one a word.
fn load(quad: u32) -> vec4<u32> {
    if SOURCE == 0u {
        return vec4(weights[4u * quad], weights[4u * quad + 1u], weights[4u * quad + 2u], weights[4u * quad + 3u]);
    }
    let low = weights[2u * quad];
    let high = weights[2u * quad + 1u];
    return vec4(low & 0xffffu, low >> 16u, high & 0xffffu, high >> 16u);
}

@compute @workgroup_size(THREADS)
fn select_2_4(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.rows * shape.words {
        return;
    }
    let row = index / shape.words;
    let first = (index - row * shape.words) * 8u;
    let end = min(first + 8u, shape.quads);
    let sign_free = select(0x7fffu, 0x7fffffffu, SOURCE == 0u);
    var word = 0u;
    for (var in_row = first; in_row < end; in_row += 1u) {
        let quad = row * shape.quads + in_row;
        var w = load(quad);
        let m = w & vec4(sign_free);
        // 1 where the lower column's magnitude is larger.
        let ab = u32(m.x > m.y);
        let ac = u32(m.x > m.z);
        let ad = u32(m.x > m.w);
        let bc = u32(m.y > m.z);
        let bd = u32(m.y > m.w);
        let cd = u32(m.z > m.w);
        let kept = vec4(ab + ac + ad, 1u - ab + bc + bd, 2u - ac - bc + cd, 3u - ad - bd - cd) >= vec4(2u);
        let place = select(select(2u, 1u, kept.y), 0u, kept.x);
        let second_place = select(select(1u, 2u, kept.z), 3u, kept.w);
        let one = w[place];
        let other = w[second_place];
        if SOURCE == 0u {
            values[2u * quad] = one;
            values[2u * quad + 1u] = other;
        } else {
            values[quad] = one | (other << 16u);
        }
        word |= (place | (second_place << 2u)) << (4u * (in_row - first));
    }
    indices[index] = word;
}
