// Sums and maxima over the SIZE invocations of a workgroup, a power of two, by workgroup memory alone.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> parts: array<f32, SIZE>;

// The sum of all parts, added in pairs; the same for every invocation.
fn total(lane: Lane, part: f32) -> f32 {
    parts[lane.index] = part;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if lane.index < half {
            parts[lane.index] += parts[lane.index + half];
        }
        workgroupBarrier();
    }
    let sum = parts[0];
    // All have read it before the next sum begins.
    workgroupBarrier();
    return sum;
}

// The largest of all parts.
fn largest(lane: Lane, part: f32) -> f32 {
    parts[lane.index] = part;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if lane.index < half {
            parts[lane.index] = max(parts[lane.index], parts[lane.index + half]);
        }
        workgroupBarrier();
    }
    let top = parts[0];
    workgroupBarrier();
    return top;
}
