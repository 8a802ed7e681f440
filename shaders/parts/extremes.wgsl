// Extremes over runs of LANES invocations of a workgroup of THREADS, by workgroup memory alone. The first invocation of a
// run gets the result.

struct Lane {
    @builtin(local_invocation_index) index: u32,
}

var<workgroup> lows: array<i32, THREADS>;
var<workgroup> highs: array<i32, THREADS>;

// Which invocation of the workgroup this is for runs.
fn place_of(lane: Lane) -> u32 {
    return lane.index;
}

fn largest(lane: Lane, value: i32) -> i32 {
    highs[lane.index] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index % LANES < half {
            highs[lane.index] = max(highs[lane.index], highs[lane.index + half]);
        }
    }
    return highs[lane.index];
}

// The smallest and the largest.
fn extremes(lane: Lane, low: i32, high: i32) -> vec2<i32> {
    lows[lane.index] = low;
    highs[lane.index] = high;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index % LANES < half {
            lows[lane.index] = min(lows[lane.index], lows[lane.index + half]);
            highs[lane.index] = max(highs[lane.index], highs[lane.index + half]);
        }
    }
    return vec2<i32>(lows[lane.index], highs[lane.index]);
}
