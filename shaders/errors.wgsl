// Sums from which error figures follow, one set for every block of elements.
//
// Formula, over the elements of a block: Σ w², Σ ŵ², Σ w·ŵ, Σ (ŵ − w)², max |ŵ − w|. In F32, in an order that is the same on
// every run: each thread adds every 256th element, then halves of the threads are added to each other. The processor
// adds the blocks up in F64.
// Layout: binding 0 {count}; 1 weights w as in parts/source.wgsl, [count]; 2 decoded weights ŵ, F32, [count]; 3 out, F32,
// [blocks, 5], the last of the five as bits. A block has BLOCK elements, the last one what is left.
// Threads: a workgroup a block.
// needs: parts/source.wgsl parts/linear.wgsl

const BLOCK: u32 = 4096u;

struct Shape {
    count: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> decoded: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

var<workgroup> sums: array<vec4<f32>, THREADS>;
var<workgroup> largest: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn errors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = linear_group(group, groups);
    let first = block * BLOCK;
    let end = min(first + BLOCK, shape.count);
    var sum = vec4<f32>(0.0);
    var worst = 0u;
    for (var at = first + lane; at < end; at += THREADS) {
        let w = bitcast<f32>(source_bits(weights[source_word(at)], at));
        let d = decoded[at];
        let difference = d - w;
        sum += vec4<f32>(w * w, d * d, w * d, difference * difference);
        // Magnitudes order like their bits, and what is not finite above all others.
        worst = max(worst, bitcast<u32>(difference) & 0x7fffffffu);
    }
    sums[lane] = sum;
    largest[lane] = worst;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    if lane == 0u && first < shape.count {
        let total = bitcast<vec4<u32>>(sums[0]);
        for (var part = 0u; part < 4u; part += 1u) {
            out[5u * block + part] = total[part];
        }
        out[5u * block + 4u] = largest[0];
    }
}
