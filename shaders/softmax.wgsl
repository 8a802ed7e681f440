// Scores of attention to probabilities, in place.
//
// Formula: p_j = exp(s_j − m) / (Σ exp(s − m) + exp(sink − m)) over the keys j that a query sees, and 0 for all others;
// m is the largest of all of them. A query sees, if `causal`, itself and the keys before it, and of those only the last
// `window` (0: all of them). With a cap each score is cap · tanh(s / cap) first (0: none). A sink is one more score, if
// `sunk`, that takes its share.
// Layout: binding 0 Shape; 1 sinks, [all heads] F32; 2 scores, [layers, queries, length] F32: rows are the queries from
// first_query on, columns keys; layer l is of head first_head + l % heads.
// Threads: SIZE a row.
// needs: parts/reduce.wgsl

struct Shape {
    layers: u32,
    queries: u32,
    first_query: u32,
    length: u32,
    heads: u32,
    first_head: u32,
    causal: u32,
    window: u32,
    sunk: u32,
    cap: f32,
    unused_0: u32,
    unused_1: u32,
}

const SIZE: u32 = 128u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> sinks: array<f32>;
@group(0) @binding(2) var<storage, read_write> scores: array<f32>;

// tanh by its series near zero, where the quotient would lose digits; beyond 9 it is one in F32.
fn hyperbolic_tangent(x: f32) -> f32 {
    let square = x * x;
    if square < 0.04 {
        return x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0))));
    }
    return 1.0 - 2.0 / (exp(2.0 * clamp(x, -9.0, 9.0)) + 1.0);
}

fn capped(score: f32) -> f32 {
    if shape.cap == 0.0 {
        return score;
    }
    return shape.cap * hyperbolic_tangent(score / shape.cap);
}

@compute @workgroup_size(SIZE)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let index = lane.index;
    let row = group.y * groups.x + group.x;
    if row >= shape.layers * shape.queries {
        return;
    }
    let query = shape.first_query + row % shape.queries;
    let head = shape.first_head + row / shape.queries % shape.heads;
    let first = row * shape.length;
    let end = select(shape.length, query + 1u, shape.causal != 0u);
    let start = select(0u, query + 1u - min(query + 1u, shape.window), shape.window != 0u);

    // The smallest F32, as WGSL has no infinity.
    var part = -3.4028235e38;
    for (var key = start + index; key < end; key += SIZE) {
        part = max(part, capped(scores[first + key]));
    }
    var top = largest(lane, part);
    if shape.sunk != 0u {
        top = max(top, sinks[head]);
    }

    part = 0.0;
    for (var key = start + index; key < end; key += SIZE) {
        part += exp(capped(scores[first + key]) - top);
    }
    var all = total(lane, part);
    if shape.sunk != 0u {
        all += exp(sinks[head] - top);
    }
    let inverse = 1.0 / all;
    for (var key = index; key < shape.length; key += SIZE) {
        var share = 0.0;
        if key >= start && key < end {
            share = exp(capped(scores[first + key]) - top) * inverse;
        }
        scores[first + key] = share;
    }
}
