// Extremes of each group of columns.
//
// Formula: absmax: out[g] = max |w| over the group; minmax: out[2g] = min w, out[2g + 1] = max w, −0 below 0. A group
// with a weight that is not finite gets an infinity or not-a-number. Comparisons are of integers that order like the
// floats, so the result does not depend on the order and is the same bits as the processor's.
// Layout: binding 0 {rows, columns, width, groups}; 1 weights as in parts/source.wgsl, [rows, columns]; 2 out, bits of
// F32, [rows, groups] or [rows, groups, 2]. Groups have `width` columns, the last one of a row what is left.
// Threads: LANES a group, a power of two up to 256.
// needs: parts/extremes.wgsl parts/source.wgsl parts/linear.wgsl

override LANES: u32 = 32u;

struct Shape {
    rows: u32,
    columns: u32,
    width: u32,
    groups: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

// Elements of a group: the first one and the one after the last.
struct Span {
    first: u32,
    end: u32,
}

fn span(index: u32) -> Span {
    if index >= shape.rows * shape.groups {
        return Span(0u, 0u);
    }
    let row = index / shape.groups;
    let column = (index % shape.groups) * shape.width;
    let first = row * shape.columns + column;
    return Span(first, first + min(shape.width, shape.columns - column));
}

// Orders like the float of these bits, and is its own inverse.
fn sort_key(bits: i32) -> i32 {
    return bits ^ ((bits >> 31u) & 0x7fffffff);
}

@compute @workgroup_size(THREADS)
fn absmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let place = place_of(lane);
    let index = linear_group(group, groups) * (THREADS / LANES) + place / LANES;
    let elements = span(index);
    var top = 0;
    for (var at = elements.first + place % LANES; at < elements.end; at += LANES) {
        top = max(top, i32(source_bits(weights[source_word(at)], at) & 0x7fffffffu));
    }
    let found = largest(lane, top);
    if place % LANES == 0u && elements.end > elements.first {
        out[index] = u32(found);
    }
}

@compute @workgroup_size(THREADS)
fn minmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    lane: Lane,
) {
    let place = place_of(lane);
    let index = linear_group(group, groups) * (THREADS / LANES) + place / LANES;
    let elements = span(index);
    var low = 0x7fffffff;
    var high = -0x7fffffff - 1;
    for (var at = elements.first + place % LANES; at < elements.end; at += LANES) {
        let key = sort_key(bitcast<i32>(source_bits(weights[source_word(at)], at)));
        low = min(low, key);
        high = max(high, key);
    }
    let found = extremes(lane, low, high);
    if place % LANES == 0u && elements.end > elements.first {
        out[2u * index] = bitcast<u32>(sort_key(found.x));
        out[2u * index + 1u] = bitcast<u32>(sort_key(found.y));
    }
}
