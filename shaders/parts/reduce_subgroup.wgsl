// Sums and maxima over the SIZE invocations of a workgroup: of each subgroup by its own operations, of the subgroups one
// after the other. What a subgroup's sum is does not change from run to run on one adapter.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) within: u32,
}

// One for each subgroup, of which there are at most SIZE.
var<workgroup> parts: array<f32, SIZE>;

// The sum of all parts; the same for every invocation.
fn total(lane: Lane, part: f32) -> f32 {
    let of_subgroup = subgroupAdd(part);
    if lane.within == 0u {
        parts[lane.subgroup] = of_subgroup;
    }
    workgroupBarrier();
    var sum = parts[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        sum += parts[i];
    }
    // All have read it before the next sum begins.
    workgroupBarrier();
    return sum;
}

// The largest of all parts.
fn largest(lane: Lane, part: f32) -> f32 {
    let of_subgroup = subgroupMax(part);
    if lane.within == 0u {
        parts[lane.subgroup] = of_subgroup;
    }
    workgroupBarrier();
    var top = parts[0];
    for (var i = 1u; i < lane.subgroups; i++) {
        top = max(top, parts[i]);
    }
    workgroupBarrier();
    return top;
}
