// Codes, one a byte, to dense streams of 1 to 8 bits a code.
//
// Formula: code i of a stream occupies its bits i·b to (i+1)·b−1, bit k being bit k mod 32 of word k div 32; higher bits
// of a code are ignored, bits after the last code are zero. As bytes: the least significant bit first, as codec/bits.rs.
// Layout: binding 0 {streams, codes, words, bits}; 1 codes, one a byte, [streams, codes]; 2 out, [streams, words], where
// words = ⌈codes · bits / 32⌉.
// Threads: one a word of a stream.
// needs: parts/linear.wgsl

struct Shape {
    streams: u32,
    codes: u32,
    words: u32,
    bits: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(THREADS)
fn pack(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_group(group, groups) * THREADS + lane;
    if index >= shape.streams * shape.words {
        return;
    }
    let stream = index / shape.words;
    let first_bit = (index - stream * shape.words) * 32u;
    // The first code may begin in the word before, the last one end in the word after.
    let first = first_bit / shape.bits;
    let end = min((first_bit + 31u) / shape.bits + 1u, shape.codes);
    let mask = (1u << shape.bits) - 1u;
    var word = 0u;
    for (var code = first; code < end; code += 1u) {
        let byte = stream * shape.codes + code;
        let value = (codes[byte >> 2u] >> ((byte & 3u) * 8u)) & mask;
        let begin = code * shape.bits;
        if begin >= first_bit {
            word |= value << (begin - first_bit);
        } else {
            word |= value >> (first_bit - begin);
        }
    }
    out[index] = word;
}
