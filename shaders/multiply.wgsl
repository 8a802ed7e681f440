// Products of matrices, of any shape.
//
// Formula: out = alpha · L · R + beta · out, sums in F32. With beta = 0 what stood in out is not read.
// Layout: binding 0 Shape; 1 L, [rows, depth], or [depth, rows] with LEFT_TRANSPOSED; 2 R, [depth, columns], or
// [columns, depth] with RIGHT_TRANSPOSED (x wᵀ of a linear); 3 out, [rows, columns] F32. L and R hold F32, F16 or BF16
// and are widened on load; their bindings are multiples of 16 bytes long. All are row-major; a line begins `stride`
// elements after the one before, the first one at element `first` of its binding, so that any part of a larger matrix
// can be given.
// Threads: EDGE × EDGE make a tile of 8·EDGE × 8·EDGE, each of them two by two blocks of 4 × 4 in registers. Each step
// of EDGE along the depth lies in workgroup memory as quads of rows (of columns): 64·EDGE² bytes. Every invocation
// loads one block of 4 × 4 of a step; that of the next step is on its way while this one is multiplied.
//
// Layer z of the grid multiplies another set: that of sequence z / heads and head z % heads, whose matrices begin so
// many strides of a sequence and of a head later; `share` heads use the same head of R. That is what attention needs,
// where heads lie side by side. Row r of the product belongs to query r + first_query. With causal = BELOW tiles of
// later columns than any query of theirs are left as they are (scores of keys that come later); with causal = UP_TO_ROW
// only depths up to the query count, as L is zero beyond.

// Where a matrix stands in its binding, in elements.
struct Place {
    first: u32,
    stride: u32,
    sequence_stride: u32,
    head_stride: u32,
}

struct Shape {
    left: Place,
    right: Place,
    out: Place,
    rows: u32,
    columns: u32,
    depth: u32,
    heads: u32,
    alpha: f32,
    beta: f32,
    share: u32,
    causal: u32,
    first_query: u32,
    unused_0: u32,
    unused_1: u32,
    unused_2: u32,
}

const BELOW: u32 = 1u;
const UP_TO_ROW: u32 = 2u;

const F32: u32 = 0u;
const F16: u32 = 1u;

// 8 or 16: the edge of a workgroup and the depth of a step.
override EDGE: u32 = 16u;
override LEFT_TRANSPOSED: bool = false;
override RIGHT_TRANSPOSED: bool = false;
// 0 for F32, 1 for F16, 2 for BF16.
override LEFT_TYPE: u32 = 0u;
override RIGHT_TYPE: u32 = 0u;
// Whether first and all strides of the matrix are multiples of 4, so that quads can be loaded whole.
override LEFT_ALIGNED: bool = false;
override RIGHT_ALIGNED: bool = false;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> left: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> right: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

// [EDGE, 2·EDGE] quads each: at every depth the rows of the tile, and its columns.
var<workgroup> left_step: array<vec4<f32>, 2 * EDGE * EDGE>;
var<workgroup> right_step: array<vec4<f32>, 2 * EDGE * EDGE>;

fn widen_quad(pair: vec2<u32>, kind: u32) -> vec4<f32> {
    if kind == F16 {
        return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u));
}

fn widen_one(word: u32, index: u32, kind: u32) -> f32 {
    let shifted = word >> (16u * (index & 1u));
    if kind == F16 {
        return unpack2x16float(shifted).x;
    }
    return bitcast<f32>(shifted << 16u);
}

fn left_one(index: u32) -> f32 {
    if LEFT_TYPE == F32 {
        return bitcast<f32>(left[index >> 2u][index & 3u]);
    }
    return widen_one(left[index >> 3u][(index >> 1u) & 3u], index, LEFT_TYPE);
}

fn right_one(index: u32) -> f32 {
    if RIGHT_TYPE == F32 {
        return bitcast<f32>(right[index >> 2u][index & 3u]);
    }
    return widen_one(right[index >> 3u][(index >> 1u) & 3u], index, RIGHT_TYPE);
}

// Zeros in the place of what lies past the end: anything may stand there, NaN too.
fn within(quad: vec4<f32>, at: u32, width: u32) -> vec4<f32> {
    return select(vec4<f32>(), quad, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width));
}

fn first_of(place: Place, layer: u32, share: u32) -> u32 {
    return place.first + layer / shape.heads * place.sequence_stride + layer % shape.heads / share * place.head_stride;
}

fn left_quad(first: u32, line: u32, at: u32) -> vec4<f32> {
    let lines = select(shape.rows, shape.depth, LEFT_TRANSPOSED);
    let width = select(shape.depth, shape.rows, LEFT_TRANSPOSED);
    if line >= lines || at >= width {
        return vec4<f32>();
    }
    let index = first + line * shape.left.stride + at;
    var quad: vec4<f32>;
    if !LEFT_ALIGNED {
        quad = vec4<f32>(left_one(index), left_one(index + 1u), left_one(index + 2u), left_one(index + 3u));
    } else if LEFT_TYPE == F32 {
        quad = bitcast<vec4<f32>>(left[index >> 2u]);
    } else {
        let words = left[index >> 3u];
        quad = widen_quad(select(words.xy, words.zw, (index & 4u) != 0u), LEFT_TYPE);
    }
    return within(quad, at, width);
}

fn right_quad(first: u32, line: u32, at: u32) -> vec4<f32> {
    let lines = select(shape.depth, shape.columns, RIGHT_TRANSPOSED);
    let width = select(shape.columns, shape.depth, RIGHT_TRANSPOSED);
    if line >= lines || at >= width {
        return vec4<f32>();
    }
    let index = first + line * shape.right.stride + at;
    var quad: vec4<f32>;
    if !RIGHT_ALIGNED {
        quad = vec4<f32>(right_one(index), right_one(index + 1u), right_one(index + 2u), right_one(index + 3u));
    } else if RIGHT_TYPE == F32 {
        quad = bitcast<vec4<f32>>(right[index >> 2u]);
    } else {
        let words = right[index >> 3u];
        quad = widen_quad(select(words.xy, words.zw, (index & 4u) != 0u), RIGHT_TYPE);
    }
    return within(quad, at, width);
}

// Four depths from `depth`, each with the four rows from `row`.
fn left_block(first: u32, row: u32, depth: u32) -> mat4x4<f32> {
    if LEFT_TRANSPOSED {
        return mat4x4<f32>(
            left_quad(first, depth, row), left_quad(first, depth + 1u, row), left_quad(first, depth + 2u, row), left_quad(first, depth + 3u, row));
    }
    return transpose(mat4x4<f32>(
        left_quad(first, row, depth), left_quad(first, row + 1u, depth), left_quad(first, row + 2u, depth), left_quad(first, row + 3u, depth)));
}

// Four depths from `depth`, each with the four columns from `column`.
fn right_block(first: u32, column: u32, depth: u32) -> mat4x4<f32> {
    if RIGHT_TRANSPOSED {
        return transpose(mat4x4<f32>(
            right_quad(first, column, depth), right_quad(first, column + 1u, depth),
            right_quad(first, column + 2u, depth), right_quad(first, column + 3u, depth)));
    }
    return mat4x4<f32>(
        right_quad(first, depth, column), right_quad(first, depth + 1u, column),
        right_quad(first, depth + 2u, column), right_quad(first, depth + 3u, column));
}

fn store(first: u32, row: u32, column: u32, sums: vec4<f32>) {
    if row >= shape.rows {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if column + i < shape.columns {
            let index = first + row * shape.out.stride + column + i;
            var value = shape.alpha * sums[i];
            if shape.beta != 0.0 {
                value += shape.beta * out[index];
            }
            out[index] = value;
        }
    }
}

@compute @workgroup_size(EDGE, EDGE)
fn multiply(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) place: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_row = tile.y * 8u * EDGE;
    let first_column = tile.x * 8u * EDGE;
    let past_queries = shape.first_query + first_row + 8u * EDGE;
    if shape.causal == BELOW && first_column >= past_queries {
        return;
    }
    let depths = select(shape.depth, min(shape.depth, past_queries), shape.causal == UP_TO_ROW);
    let out_first = first_of(shape.out, tile.z, 1u);

    // The first half of the invocations loads L, the second R. Where lines run along the depth, eight neighbours take
    // eight different quads, so that their stores do not meet in one bank.
    let half = EDGE * EDGE / 2u;
    let loads_left = index < half;
    let slot = index % half;
    let transposes = select(RIGHT_TRANSPOSED, !LEFT_TRANSPOSED, loads_left);
    let quad = select(slot % (2u * EDGE), slot % 8u + slot / (2u * EDGE) * 8u, transposes);
    let depth = 4u * select(slot / (2u * EDGE), slot / 8u % (EDGE / 4u), transposes);
    let cell = depth * 2u * EDGE + quad;

    var s00 = vec4<f32>(); var s01 = vec4<f32>();
    var s10 = vec4<f32>(); var s11 = vec4<f32>();
    var s20 = vec4<f32>(); var s21 = vec4<f32>();
    var s30 = vec4<f32>(); var s31 = vec4<f32>();
    var s40 = vec4<f32>(); var s41 = vec4<f32>();
    var s50 = vec4<f32>(); var s51 = vec4<f32>();
    var s60 = vec4<f32>(); var s61 = vec4<f32>();
    var s70 = vec4<f32>(); var s71 = vec4<f32>();

    var first = first_of(shape.left, tile.z, 1u);
    if !loads_left {
        first = first_of(shape.right, tile.z, shape.share);
    }
    var block: mat4x4<f32>;
    if loads_left {
        block = left_block(first, first_row + 4u * quad, depth);
    } else {
        block = right_block(first, first_column + 4u * quad, depth);
    }
    for (var start = 0u; start < depths; start += EDGE) {
        if loads_left {
            left_step[cell] = block[0];
            left_step[cell + 2u * EDGE] = block[1];
            left_step[cell + 4u * EDGE] = block[2];
            left_step[cell + 6u * EDGE] = block[3];
        } else {
            right_step[cell] = block[0];
            right_step[cell + 2u * EDGE] = block[1];
            right_step[cell + 4u * EDGE] = block[2];
            right_step[cell + 6u * EDGE] = block[3];
        }
        workgroupBarrier();
        let next = start + EDGE + depth;
        if loads_left {
            block = left_block(first, first_row + 4u * quad, next);
        } else {
            block = right_block(first, first_column + 4u * quad, next);
        }
        for (var k = 0u; k < EDGE; k++) {
            let line = 2u * EDGE * k;
            let a = left_step[line + place.y];
            let b = left_step[line + place.y + EDGE];
            let c = right_step[line + place.x];
            let d = right_step[line + place.x + EDGE];
            s00 = fma(a.xxxx, c, s00); s01 = fma(a.xxxx, d, s01);
            s10 = fma(a.yyyy, c, s10); s11 = fma(a.yyyy, d, s11);
            s20 = fma(a.zzzz, c, s20); s21 = fma(a.zzzz, d, s21);
            s30 = fma(a.wwww, c, s30); s31 = fma(a.wwww, d, s31);
            s40 = fma(b.xxxx, c, s40); s41 = fma(b.xxxx, d, s41);
            s50 = fma(b.yyyy, c, s50); s51 = fma(b.yyyy, d, s51);
            s60 = fma(b.zzzz, c, s60); s61 = fma(b.zzzz, d, s61);
            s70 = fma(b.wwww, c, s70); s71 = fma(b.wwww, d, s71);
        }
        workgroupBarrier();
    }

    let row = first_row + 4u * place.y;
    let lower = row + 4u * EDGE;
    let column = first_column + 4u * place.x;
    let farther = column + 4u * EDGE;
    store(out_first, row, column, s00); store(out_first, row, farther, s01);
    store(out_first, row + 1u, column, s10); store(out_first, row + 1u, farther, s11);
    store(out_first, row + 2u, column, s20); store(out_first, row + 2u, farther, s21);
    store(out_first, row + 3u, column, s30); store(out_first, row + 3u, farther, s31);
    store(out_first, lower, column, s40); store(out_first, lower, farther, s41);
    store(out_first, lower + 1u, column, s50); store(out_first, lower + 1u, farther, s51);
    store(out_first, lower + 2u, column, s60); store(out_first, lower + 2u, farther, s61);
    store(out_first, lower + 3u, column, s70); store(out_first, lower + 3u, farther, s71);
}
