// Rotary position embedding, in place.
//
// Formula: each pair (a, b) of a head becomes (a cos − b sin, b cos + a sin). Of a head the first 2 · half channels are
// rotated: i with i + half, or, if `interleaved`, 2i with 2i + 1.
// Layout: binding 0 Shape; 1 angles, [length, half] pairs of F32 (cosine, sine); 2 values, F32, a row is a token and
// holds `heads` heads; first and strides count elements. A token's position is its number modulo `length`, where the
// binding's first token has number first_token.
// Threads: one a pair.

struct Shape {
    tokens: u32,
    heads: u32,
    half: u32,
    length: u32,
    first: u32,
    stride: u32,
    head_stride: u32,
    interleaved: u32,
    first_token: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

const SIZE: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> values: array<f32>;

@compute @workgroup_size(SIZE)
fn rotate(
    @builtin(global_invocation_id) place: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let item = place.y * groups.x * SIZE + place.x;
    if item >= shape.tokens * shape.heads * shape.half {
        return;
    }
    let pair = item % shape.half;
    let head = item / shape.half % shape.heads;
    let token = item / shape.half / shape.heads;
    let start = shape.first + token * shape.stride + head * shape.head_stride;
    let one = start + select(pair, 2u * pair, shape.interleaved != 0u);
    let two = one + select(shape.half, 1u, shape.interleaved != 0u);
    let angle = angles[(shape.first_token + token) % shape.length * shape.half + pair];
    let a = values[one];
    let b = values[two];
    values[one] = a * angle.x - b * angle.y;
    values[two] = b * angle.x + a * angle.y;
}
