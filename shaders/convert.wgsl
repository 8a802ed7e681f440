// Weights to F32.
//
// Formula: out[i] = F32(weights[i]), exact for every BF16 and F16, subnormals included.
// Layout: binding 0 {count}; 1 weights as in parts/source.wgsl, [count]; 2 out, bits of F32, [count].
// Threads: one an element.
// needs: parts/source.wgsl parts/linear.wgsl

struct Shape {
    count: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(THREADS)
fn convert(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index < shape.count {
        out[index] = source_bits(weights[source_word(index)], index);
    }
}
