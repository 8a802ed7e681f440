// How fast a device is at the two things that bound every kernel: moving words, and multiplying and adding.
//
// Formula: copy: out[i] = values[i]. multiply_add: each thread iterates x ← x·m + b on 16 independent floats, `rounds`
// times; the sum of them goes to out, so that nothing of it can be left out.
// Layout: binding 0 {count, rounds}; 1 values, vectors of four words, [count]; 2 out, likewise.
// Threads: copy one a vector; multiply_add `count` of them.
// needs: parts/linear.wgsl

struct Shape {
    count: u32,
    rounds: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> values: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index < shape.count {
        out[index] = values[index];
    }
}

@compute @workgroup_size(THREADS)
fn multiply_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.count {
        return;
    }
    let m = values[index];
    let b = values[0];
    var x0 = m;
    var x1 = m + 0.25;
    var x2 = m + 0.5;
    var x3 = m + 0.75;
    for (var round = 0u; round < shape.rounds; round += 1u) {
        x0 = fma(x0, m, b);
        x1 = fma(x1, m, b);
        x2 = fma(x2, m, b);
        x3 = fma(x3, m, b);
    }
    out[index] = x0 + x1 + x2 + x3;
}
