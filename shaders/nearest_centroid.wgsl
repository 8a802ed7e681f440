// The nearest centroid to each vector.
//
// Formula: index = the c for which x·c − |c|²/2 is largest, which is where |x − c|² is least; of equal ones the lowest.
// The sum begins with −|c|²/2 and goes on component after component.
// Layout: binding 0 Shape; 1 x, [rows, columns] F32, of which LENGTH consecutive rows of a column are a vector, rows beyond
// the last being zero; 2 centroids, [count, LENGTH + 1] F32, with −|c|²/2 behind each; 3 scores, [vectors of a column,
// columns] F32; 4 indices, likewise U32; first and stride count elements. A part of the codebook that does not begin
// with centroid 0 goes on from the scores and indices of the parts before it.
// Threads: one a vector; TILE centroids at a time lie in workgroup memory.

struct Shape {
    vectors: u32,
    columns: u32,
    rows: u32,
    x_first: u32,
    x_stride: u32,
    centroids_first: u32,
    // Of this part of the codebook.
    count: u32,
    first_centroid: u32,
    scores_first: u32,
    indices_first: u32,
    unused_0: u32,
    unused_1: u32,
}

// Set for each length: registers cannot be counted at run time.
const LENGTH: u32 = 8u;
const SIZE: u32 = 64u;
const PITCH: u32 = LENGTH + 1u;
const TILE: u32 = 2048u / PITCH;
const LOWEST: f32 = -3.4028234e38;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> centroids: array<f32>;
@group(0) @binding(3) var<storage, read_write> scores: array<f32>;
@group(0) @binding(4) var<storage, read_write> indices: array<u32>;

var<workgroup> tile: array<f32, TILE * PITCH>;

@compute @workgroup_size(SIZE)
fn nearest_centroid(
    @builtin(global_invocation_id) place: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Threads beyond the last vector help to load tiles.
    let i = place.y * groups.x * SIZE + place.x;
    let exists = i < shape.vectors * shape.columns;
    let block = i / shape.columns;
    let column = i % shape.columns;
    var vector: array<f32, LENGTH>;
    for (var component = 0u; component < LENGTH; component++) {
        let row = block * LENGTH + component;
        var value = 0.0;
        if exists && row < shape.rows {
            value = x[shape.x_first + row * shape.x_stride + column];
        }
        vector[component] = value;
    }
    var best = LOWEST;
    var index = 0u;
    if exists && shape.first_centroid > 0u {
        best = scores[shape.scores_first + i];
        index = indices[shape.indices_first + i];
    }
    for (var first = 0u; first < shape.count; first += TILE) {
        let held = min(TILE, shape.count - first);
        for (var element = lane; element < held * PITCH; element += SIZE) {
            tile[element] = centroids[shape.centroids_first + first * PITCH + element];
        }
        workgroupBarrier();
        for (var centroid = 0u; centroid < held; centroid++) {
            let begin = centroid * PITCH;
            var score = tile[begin + LENGTH];
            for (var component = 0u; component < LENGTH; component++) {
                score = fma(vector[component], tile[begin + component], score);
            }
            if score > best {
                best = score;
                index = shape.first_centroid + first + centroid;
            }
        }
        workgroupBarrier();
    }
    if exists {
        scores[shape.scores_first + i] = best;
        indices[shape.indices_first + i] = index;
    }
}
