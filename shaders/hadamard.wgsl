// Hadamard transform of vectors, in place.
//
// Formula: y = scale · H x, where H_ij = (−1)^(number of ones that i and j share in binary). With scale = 1/√size the
// transform is orthogonal and its own inverse. H is a product of log₂ size steps, each of which makes (a + b, a − b) of
// all pairs at one distance: `near` takes the distances below near_size, a power of two of at most CAPACITY; `far`
// takes `distance` and 2 · distance for a set_size of 4, or only `distance` for 2. A vector of more than CAPACITY
// elements takes `near`, then `far` until all distances are done. Each multiplies by its own scale.
// Layout: binding 0 Shape; 1 values, [vectors, size] F32, size a power of two; a matrix whose rows are a multiple of
// size has that many vectors more.
// Threads: near: a workgroup has CAPACITY elements side by side in its memory; far: one a set, in registers.

struct Shape {
    elements: u32,
    near_size: u32,
    distance: u32,
    // Elements of a set of `far`: 2 or 4.
    set_size: u32,
    scale: f32,
    // Element of the binding at which the first vector begins.
    first: u32,
    unused_0: u32,
    unused_1: u32,
}

const CAPACITY: u32 = 4096u;
const SIZE: u32 = 256u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read_write> values: array<f32>;

var<workgroup> near_values: array<f32, CAPACITY>;

@compute @workgroup_size(SIZE)
fn near(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    // Small vectors share a workgroup.
    let first = (group.y * groups.x + group.x) * CAPACITY;
    if first >= shape.elements {
        return;
    }
    let count = min(CAPACITY, shape.elements - first);
    for (var i = index; i < count; i += SIZE) {
        near_values[i] = values[shape.first + first + i];
    }
    workgroupBarrier();
    for (var distance = 1u; distance < shape.near_size; distance *= 2u) {
        for (var i = index; i < count / 2u; i += SIZE) {
            let one = i / distance * 2u * distance + i % distance;
            let a = near_values[one];
            let b = near_values[one + distance];
            near_values[one] = a + b;
            near_values[one + distance] = a - b;
        }
        workgroupBarrier();
    }
    for (var i = index; i < count; i += SIZE) {
        values[shape.first + first + i] = near_values[i] * shape.scale;
    }
}

@compute @workgroup_size(SIZE)
fn far(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let item = place.y * groups.x * SIZE + place.x;
    if item >= shape.elements / shape.set_size {
        return;
    }
    let d = shape.distance;
    let first = shape.first + item / d * shape.set_size * d + item % d;
    let a = values[first];
    let b = values[first + d];
    if shape.set_size == 2u {
        values[first] = (a + b) * shape.scale;
        values[first + d] = (a - b) * shape.scale;
        return;
    }
    let e = values[first + 2u * d];
    let f = values[first + 3u * d];
    values[first] = ((a + b) + (e + f)) * shape.scale;
    values[first + d] = ((a - b) + (e - f)) * shape.scale;
    values[first + 2u * d] = ((a + b) - (e + f)) * shape.scale;
    values[first + 3u * d] = ((a - b) - (e - f)) * shape.scale;
}
