// Extremes over runs of LANES invocations of a workgroup of THREADS: by exchange within a subgroup, through workgroup memory
// where a run is longer than one. The first invocation of a run gets the result.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) within: u32,
}

var<workgroup> lows: array<i32, THREADS>;
var<workgroup> highs: array<i32, THREADS>;

// How many neighbours a subgroup exchanges with: none where subgroups are not all full, as nothing says that they are.
fn exchanged(lane: Lane) -> u32 {
    return select(1u, min(LANES, lane.size), lane.subgroups * lane.size == THREADS);
}

// Which invocation of the workgroup this is for runs: subgroups one after the other, whatever the adapter's order.
fn place_of(lane: Lane) -> u32 {
    return select(lane.index, lane.subgroup * lane.size + lane.within, lane.subgroups * lane.size == THREADS);
}

fn largest(lane: Lane, value: i32) -> i32 {
    let width = exchanged(lane);
    let place = place_of(lane);
    var high = value;
    for (var step = 1u; step < width; step *= 2u) {
        high = max(high, subgroupShuffleXor(high, step));
    }
    highs[place] = high;
    for (var half = LANES / 2u; half >= width; half /= 2u) {
        workgroupBarrier();
        if place % LANES < half {
            highs[place] = max(highs[place], highs[place + half]);
        }
    }
    return highs[place];
}

// The smallest and the largest.
fn extremes(lane: Lane, low: i32, high: i32) -> vec2<i32> {
    let width = exchanged(lane);
    let place = place_of(lane);
    var both = vec2<i32>(low, high);
    for (var step = 1u; step < width; step *= 2u) {
        let other = subgroupShuffleXor(both, step);
        both = vec2<i32>(min(both.x, other.x), max(both.y, other.y));
    }
    lows[place] = both.x;
    highs[place] = both.y;
    for (var half = LANES / 2u; half >= width; half /= 2u) {
        workgroupBarrier();
        if place % LANES < half {
            lows[place] = min(lows[place], lows[place + half]);
            highs[place] = max(highs[place], highs[place + half]);
        }
    }
    return vec2<i32>(lows[place], highs[place]);
}
