// Attention in one pass over keys and values, without scores in memory (FlashAttention: Dao et al., 2022,
// arXiv:2205.14135, algorithm 1).
//
// Formula: out_i = Σ_j p_ij v_j with p as in softmax.wgsl, of the scores scale · q_i · k_j. The largest score m of a query
// and the sum l of its exponentials are kept as keys go by: with those of a tile of keys, m' = max(m, max s), l and out
// are multiplied by exp(m − m') and the tile's share is added. At the end out is divided by l; a sink is in l then.
// Layout: binding 0 Shape; 1 queries, [tokens, heads · key_width]; 2 keys, [tokens, key heads · key_width]; 3 values,
// [tokens, key heads · value_width], each F32, F16 or BF16 as its TYPE says (0, 1, 2) and widened on load; 4 sinks, [heads]
// F32; 5 out, [tokens, heads · value_width] F32. A row begins `stride` elements after the one before, the first one at
// element `first` of its binding, a multiple of 16 bytes long. Sequences are `length` rows each; `share` heads use the
// same keys and values. Row r of queries and of out is query first_query + r of its sequence. Values are at most 128 wide.
// Threads: 16 × 16 a tile of 64 queries of one head; y of the grid counts heads, z sequences. Tiles of 64 keys: each
// invocation has four queries, of the scores those with the keys x, x + 16, x + 32 and x + 48, of out the channels from 4x
// on and from 64 + 4x on. Sums run over keys and channels in order.

struct Shape {
    query_first: u32,
    query_stride: u32,
    key_first: u32,
    key_stride: u32,
    value_first: u32,
    value_stride: u32,
    out_first: u32,
    out_stride: u32,
    length: u32,
    first_query: u32,
    queries: u32,
    share: u32,
    key_width: u32,
    value_width: u32,
    causal: u32,
    window: u32,
    sunk: u32,
    unused: u32,
    scale: f32,
    cap: f32,
}

const F32: u32 = 0u;
const F16: u32 = 1u;

override QUERY_TYPE: u32 = 0u;
override KEY_TYPE: u32 = 0u;
override VALUE_TYPE: u32 = 0u;
// Whether first, stride and width of the matrix are multiples of 4, so that quads can be loaded whole.
override QUERY_ALIGNED: bool = false;
override KEY_ALIGNED: bool = false;
override VALUE_ALIGNED: bool = false;
// Whether values are wider than 64.
override WIDE: bool = true;

const TILE: u32 = 64u;
const STEP: u32 = 16u;
// Invocations along an edge, and quads of a tile.
const EDGE: u32 = 16u;
// Keys are one quad farther apart than they are long, so that neighbours meet in no common bank.
const PITCH: u32 = EDGE + 1u;
// The smallest F32, as WGSL has no infinity.
const LOWEST: f32 = -3.4028235e38;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> queries: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> sinks: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

// A step of queries and one of keys, [STEP, EDGE] quads each; or STEP values, [STEP, 2·EDGE]; or a part for each
// invocation.
var<workgroup> step: array<vec4<f32>, 2 * STEP * EDGE>;
// [TILE, PITCH] quads: the shares of a key in each four queries.
var<workgroup> shares: array<vec4<f32>, TILE * PITCH>;

fn word_of(index: u32, kind: u32) -> u32 {
    return index >> select(3u, 2u, kind == F32);
}

// Element `index` of a buffer, in these words of it.
fn one(words: vec4<u32>, index: u32, kind: u32) -> f32 {
    if kind == F32 {
        return bitcast<f32>(words[index & 3u]);
    }
    let shifted = words[(index >> 1u) & 3u] >> (16u * (index & 1u));
    if kind == F16 {
        return unpack2x16float(shifted).x;
    }
    return bitcast<f32>(shifted << 16u);
}

// Four elements from `index` on, a multiple of 4.
fn four(words: vec4<u32>, index: u32, kind: u32) -> vec4<f32> {
    if kind == F32 {
        return bitcast<vec4<f32>>(words);
    }
    let pair = select(words.xy, words.zw, (index & 4u) != 0u);
    if kind == F16 {
        return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u));
}

// Zeros in the place of what lies past the end: anything may stand there, NaN too.
fn within(quad: vec4<f32>, at: u32, width: u32) -> vec4<f32> {
    return select(vec4<f32>(), quad, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width));
}

// Channels from `at` on of row `row` of this workgroup's sequence, which begins at element `first`.
fn query_quad(first: u32, row: u32, at: u32) -> vec4<f32> {
    if row >= shape.queries || at >= shape.key_width {
        return vec4<f32>();
    }
    let index = first + row * shape.query_stride + at;
    var quad: vec4<f32>;
    if QUERY_ALIGNED {
        quad = four(queries[word_of(index, QUERY_TYPE)], index, QUERY_TYPE);
    } else {
        quad = vec4<f32>(
            one(queries[word_of(index, QUERY_TYPE)], index, QUERY_TYPE),
            one(queries[word_of(index + 1u, QUERY_TYPE)], index + 1u, QUERY_TYPE),
            one(queries[word_of(index + 2u, QUERY_TYPE)], index + 2u, QUERY_TYPE),
            one(queries[word_of(index + 3u, QUERY_TYPE)], index + 3u, QUERY_TYPE));
    }
    return within(quad, at, shape.key_width);
}

fn key_quad(first: u32, row: u32, at: u32) -> vec4<f32> {
    if row >= shape.length || at >= shape.key_width {
        return vec4<f32>();
    }
    let index = first + row * shape.key_stride + at;
    var quad: vec4<f32>;
    if KEY_ALIGNED {
        quad = four(keys[word_of(index, KEY_TYPE)], index, KEY_TYPE);
    } else {
        quad = vec4<f32>(
            one(keys[word_of(index, KEY_TYPE)], index, KEY_TYPE),
            one(keys[word_of(index + 1u, KEY_TYPE)], index + 1u, KEY_TYPE),
            one(keys[word_of(index + 2u, KEY_TYPE)], index + 2u, KEY_TYPE),
            one(keys[word_of(index + 3u, KEY_TYPE)], index + 3u, KEY_TYPE));
    }
    return within(quad, at, shape.key_width);
}

fn value_quad(first: u32, row: u32, at: u32) -> vec4<f32> {
    if row >= shape.length || at >= shape.value_width {
        return vec4<f32>();
    }
    let index = first + row * shape.value_stride + at;
    var quad: vec4<f32>;
    if VALUE_ALIGNED {
        quad = four(values[word_of(index, VALUE_TYPE)], index, VALUE_TYPE);
    } else {
        quad = vec4<f32>(
            one(values[word_of(index, VALUE_TYPE)], index, VALUE_TYPE),
            one(values[word_of(index + 1u, VALUE_TYPE)], index + 1u, VALUE_TYPE),
            one(values[word_of(index + 2u, VALUE_TYPE)], index + 2u, VALUE_TYPE),
            one(values[word_of(index + 3u, VALUE_TYPE)], index + 3u, VALUE_TYPE));
    }
    return within(quad, at, shape.value_width);
}

// tanh by its series near zero, where the quotient would lose digits; beyond 9 it is one in F32.
fn hyperbolic_tangent(x: f32) -> f32 {
    let square = x * x;
    if square < 0.04 {
        return x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0))));
    }
    return 1.0 - 2.0 / (exp(2.0 * clamp(x, -9.0, 9.0)) + 1.0);
}

fn scored(sum: f32) -> f32 {
    let score = sum * shape.scale;
    if shape.cap == 0.0 {
        return score;
    }
    return shape.cap * hyperbolic_tangent(score / shape.cap);
}

// The first key that a query sees, and the one after the last.
fn sight(query: u32) -> vec2<u32> {
    let end = select(shape.length, min(query + 1u, shape.length), shape.causal != 0u);
    return vec2<u32>(select(0u, query + 1u - min(query + 1u, shape.window), shape.window != 0u), end);
}

// Scores of the keys that are seen, LOWEST for the others.
fn seen(sums: vec4<f32>, key: vec4<u32>, sight: vec2<u32>) -> vec4<f32> {
    let scores = vec4<f32>(scored(sums.x), scored(sums.y), scored(sums.z), scored(sums.w));
    return select(vec4<f32>(LOWEST), scores, key >= vec4<u32>(sight.x) & key < vec4<u32>(sight.y));
}

// Exponentials of the keys that are seen, zero for the others.
fn shared_out(scores: vec4<f32>, top: f32, key: vec4<u32>, sight: vec2<u32>) -> vec4<f32> {
    return select(vec4<f32>(), exp(scores - top), key >= vec4<u32>(sight.x) & key < vec4<u32>(sight.y));
}

fn store(first: u32, row: u32, channel: u32, quad: vec4<f32>) {
    if row >= shape.queries {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if channel + i < shape.value_width {
            out[first + row * shape.out_stride + channel + i] = quad[i];
        }
    }
}

@compute @workgroup_size(EDGE, EDGE)
fn attend(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) place: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let head = tile.y;
    let sequence = tile.z * shape.length;
    let query_first = shape.query_first + sequence * shape.query_stride + head * shape.key_width;
    let key_first = shape.key_first + sequence * shape.key_stride + head / shape.share * shape.key_width;
    let value_first = shape.value_first + sequence * shape.value_stride + head / shape.share * shape.value_width;
    let out_first = shape.out_first + sequence * shape.out_stride + head * shape.value_width;

    let first_row = tile.x * TILE;
    let row = first_row + 4u * place.y;
    let sight_0 = sight(shape.first_query + row);
    let sight_1 = sight(shape.first_query + row + 1u);
    let sight_2 = sight(shape.first_query + row + 2u);
    let sight_3 = sight(shape.first_query + row + 3u);
    let first_tile = sight(shape.first_query + first_row).x / TILE * TILE;
    let end = sight(shape.first_query + min(first_row + TILE, shape.queries) - 1u).y;

    // A quarter of the invocations loads queries, a quarter keys: a block of four rows and four channels each.
    let loads_queries = index < STEP * EDGE / 4u;
    let loads_keys = !loads_queries && index < STEP * EDGE / 2u;
    let quad = index % EDGE;
    let depth = 4u * (index / EDGE % (STEP / 4u));
    let cell = depth * EDGE + quad + select(STEP * EDGE, 0u, loads_queries);

    var top = vec4<f32>(LOWEST);
    var sum = vec4<f32>();
    var o00 = vec4<f32>(); var o01 = vec4<f32>();
    var o10 = vec4<f32>(); var o11 = vec4<f32>();
    var o20 = vec4<f32>(); var o21 = vec4<f32>();
    var o30 = vec4<f32>(); var o31 = vec4<f32>();
    for (var first_key = first_tile; first_key < end; first_key += TILE) {
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        var s2 = vec4<f32>();
        var s3 = vec4<f32>();
        for (var start = 0u; start < shape.key_width; start += STEP) {
            var block: mat4x4<f32>;
            if loads_queries {
                let at = first_row + 4u * quad;
                block = transpose(mat4x4<f32>(
                    query_quad(query_first, at, start + depth), query_quad(query_first, at + 1u, start + depth),
                    query_quad(query_first, at + 2u, start + depth), query_quad(query_first, at + 3u, start + depth)));
            } else if loads_keys {
                let at = first_key + quad;
                block = transpose(mat4x4<f32>(
                    key_quad(key_first, at, start + depth), key_quad(key_first, at + EDGE, start + depth),
                    key_quad(key_first, at + 2u * EDGE, start + depth), key_quad(key_first, at + 3u * EDGE, start + depth)));
            }
            if loads_queries || loads_keys {
                step[cell] = block[0];
                step[cell + EDGE] = block[1];
                step[cell + 2u * EDGE] = block[2];
                step[cell + 3u * EDGE] = block[3];
            }
            workgroupBarrier();
            for (var k = 0u; k < STEP; k++) {
                let a = step[k * EDGE + place.y];
                let b = step[(STEP + k) * EDGE + place.x];
                s0 = fma(a.xxxx, b, s0);
                s1 = fma(a.yyyy, b, s1);
                s2 = fma(a.zzzz, b, s2);
                s3 = fma(a.wwww, b, s3);
            }
            workgroupBarrier();
        }

        let key = vec4<u32>(first_key + place.x) + vec4<u32>(0u, EDGE, 2u * EDGE, 3u * EDGE);
        s0 = seen(s0, key, sight_0);
        s1 = seen(s1, key, sight_1);
        s2 = seen(s2, key, sight_2);
        s3 = seen(s3, key, sight_3);
        // Of each query the largest of this invocation's scores, then that of the whole tile.
        let scores = transpose(mat4x4<f32>(s0, s1, s2, s3));
        step[place.y * EDGE + place.x] = max(max(scores[0], scores[1]), max(scores[2], scores[3]));
        workgroupBarrier();
        var next = top;
        for (var i = 0u; i < EDGE; i++) {
            next = max(next, step[place.y * EDGE + i]);
        }
        let factor = exp(top - next);
        top = next;
        let part = transpose(mat4x4<f32>(
            shared_out(s0, top.x, key, sight_0), shared_out(s1, top.y, key, sight_1),
            shared_out(s2, top.z, key, sight_2), shared_out(s3, top.w, key, sight_3)));
        sum = sum * factor + (part[0] + part[1]) + (part[2] + part[3]);
        o00 *= factor.x; o01 *= factor.x;
        o10 *= factor.y; o11 *= factor.y;
        o20 *= factor.z; o21 *= factor.z;
        o30 *= factor.w; o31 *= factor.w;
        shares[place.x * PITCH + place.y] = part[0];
        shares[(place.x + EDGE) * PITCH + place.y] = part[1];
        shares[(place.x + 2u * EDGE) * PITCH + place.y] = part[2];
        shares[(place.x + 3u * EDGE) * PITCH + place.y] = part[3];
        workgroupBarrier();

        for (var start = 0u; start < TILE && first_key + start < end; start += STEP) {
            let at = first_key + start + index / EDGE;
            step[index / EDGE * 2u * EDGE + quad] = value_quad(value_first, at, 4u * quad);
            if WIDE {
                step[(index / EDGE * 2u + 1u) * EDGE + quad] = value_quad(value_first, at, TILE + 4u * quad);
            }
            workgroupBarrier();
            for (var k = 0u; k < STEP; k++) {
                let a = shares[(start + k) * PITCH + place.y];
                let c = step[2u * k * EDGE + place.x];
                o00 = fma(a.xxxx, c, o00);
                o10 = fma(a.yyyy, c, o10);
                o20 = fma(a.zzzz, c, o20);
                o30 = fma(a.wwww, c, o30);
                if WIDE {
                    let d = step[(2u * k + 1u) * EDGE + place.x];
                    o01 = fma(a.xxxx, d, o01);
                    o11 = fma(a.yyyy, d, o11);
                    o21 = fma(a.zzzz, d, o21);
                    o31 = fma(a.wwww, d, o31);
                }
            }
            workgroupBarrier();
        }
    }

    step[place.y * EDGE + place.x] = sum;
    workgroupBarrier();
    var all = vec4<f32>();
    for (var i = 0u; i < EDGE; i++) {
        all += step[place.y * EDGE + i];
    }
    var factor = vec4<f32>(1.0);
    if shape.sunk != 0u {
        let sink = vec4<f32>(sinks[head]);
        let highest = max(top, sink);
        factor = exp(top - highest);
        all = all * factor + exp(sink - highest);
    }
    factor /= all;
    let channel = 4u * place.x;
    store(out_first, row, channel, o00 * factor.x);
    store(out_first, row + 1u, channel, o10 * factor.y);
    store(out_first, row + 2u, channel, o20 * factor.z);
    store(out_first, row + 3u, channel, o30 * factor.w);
    if WIDE {
        store(out_first, row, TILE + channel, o01 * factor.x);
        store(out_first, row + 1u, TILE + channel, o11 * factor.y);
        store(out_first, row + 2u, TILE + channel, o21 * factor.z);
        store(out_first, row + 3u, TILE + channel, o31 * factor.w);
    }
}
