// Extremes of each group of columns.
//
// Formula: absmax: out[g] = max |w| over the group; minmax: out[2g] = min w, out[2g + 1] = max w, −0 below 0. A group
// with a weight that is not finite gets an infinity or not-a-number. Comparisons are of integers that order like the
// floats, so the result does not depend on the order and is the same bits as the processor's.
// Layout: binding 0 {rows, columns, width, groups}; 1 weights as in parts/source.wgsl, [rows, columns]; 2 out, bits of
// F32, [rows, groups] or [rows, groups, 2]. Groups have `width` columns, the last one of a row what is left.
// Threads: LANES a group, a power of two up to 256.
// needs: parts/source.wgsl parts/linear.wgsl

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

var<workgroup> lows: array<i32, THREADS>;
var<workgroup> highs: array<i32, THREADS>;

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
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * (THREADS / LANES) + lane / LANES;
    let elements = span(index);
    var largest = 0;
    for (var at = elements.first + lane % LANES; at < elements.end; at += LANES) {
        largest = max(largest, i32(source_bits(weights[source_word(at)], at) & 0x7fffffffu));
    }
    highs[lane] = largest;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % LANES < half {
            highs[lane] = max(highs[lane], highs[lane + half]);
        }
    }
    if lane % LANES == 0u && elements.end > elements.first {
        out[index] = u32(highs[lane]);
    }
}

@compute @workgroup_size(THREADS)
fn minmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * (THREADS / LANES) + lane / LANES;
    let elements = span(index);
    var low = 0x7fffffff;
    var high = -0x7fffffff - 1;
    for (var at = elements.first + lane % LANES; at < elements.end; at += LANES) {
        let key = sort_key(bitcast<i32>(source_bits(weights[source_word(at)], at)));
        low = min(low, key);
        high = max(high, key);
    }
    lows[lane] = low;
    highs[lane] = high;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % LANES < half {
            lows[lane] = min(lows[lane], lows[lane + half]);
            highs[lane] = max(highs[lane], highs[lane + half]);
        }
    }
    if lane % LANES == 0u && elements.end > elements.first {
        out[2u * index] = bitcast<u32>(sort_key(lows[lane]));
        out[2u * index + 1u] = bitcast<u32>(sort_key(highs[lane]));
    }
}
