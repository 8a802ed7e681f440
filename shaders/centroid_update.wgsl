// Weighted sums of the vectors that belong to centroids, from which their means are made.
//
// Formula: for each run of vectors of one centroid: Σ w x of each component, and Σ w.
// Layout: binding 0 Shape; 1 x, [rows, columns] F32, of which LENGTH consecutive rows of a column are a vector, rows beyond
// the last being zero; 2 weights, [columns] F32; 3 order, U32: vectors, block · columns + column each, those of a
// centroid one after the other; 4 runs, pairs of U32: where in the order a run begins, and how many vectors it has; 5
// sums, [runs, LENGTH + 1] F32, Σ w behind the components. first and stride count elements.
// Threads: a workgroup of SIZE a run. Thread t adds up the vectors t, t + SIZE, … of the run; then threads are added up in
// pairs. So the order of a sum depends on nothing but the order of the vectors, and no memory is shared by runs.

struct Shape {
    runs: u32,
    columns: u32,
    rows: u32,
    x_first: u32,
    x_stride: u32,
    weights_first: u32,
    order_first: u32,
    runs_first: u32,
    sums_first: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

// Set for each length: registers cannot be counted at run time.
const LENGTH: u32 = 8u;
const SIZE: u32 = 64u;
const PITCH: u32 = LENGTH + 1u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> order: array<u32>;
@group(0) @binding(4) var<storage, read> runs: array<u32>;
@group(0) @binding(5) var<storage, read_write> sums: array<f32>;

var<workgroup> partial: array<f32, SIZE>;

@compute @workgroup_size(SIZE)
fn centroid_update(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let run = group.y * groups.x + group.x;
    var first = 0u;
    var count = 0u;
    if run < shape.runs {
        first = runs[shape.runs_first + 2u * run];
        count = runs[shape.runs_first + 2u * run + 1u];
    }
    var own: array<f32, PITCH>;
    for (var component = 0u; component < PITCH; component++) {
        own[component] = 0.0;
    }
    for (var i = lane; i < count; i += SIZE) {
        let vector = order[shape.order_first + first + i];
        let row = vector / shape.columns * LENGTH;
        let column = vector % shape.columns;
        let weight = weights[shape.weights_first + column];
        for (var component = 0u; component < LENGTH; component++) {
            if row + component < shape.rows {
                let value = x[shape.x_first + (row + component) * shape.x_stride + column];
                own[component] = fma(weight, value, own[component]);
            }
        }
        own[LENGTH] += weight;
    }
    for (var component = 0u; component < PITCH; component++) {
        partial[lane] = own[component];
        workgroupBarrier();
        for (var distance = SIZE / 2u; distance > 0u; distance /= 2u) {
            if lane < distance {
                partial[lane] += partial[lane + distance];
            }
            workgroupBarrier();
        }
        if lane == 0u && run < shape.runs {
            sums[shape.sums_first + run * PITCH + component] = partial[0];
        }
        workgroupBarrier();
    }
}
