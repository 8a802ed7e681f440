// Operands and result of a product as they lie in their bindings, for all kernels of products.
//
// Bindings: 0 Shape; 1 L, [rows, depth], or [depth, rows] with LEFT_TRANSPOSED; 2 R, [depth, columns], or
// [columns, depth] with RIGHT_TRANSPOSED; 3 out, [rows, columns] F32. L and R hold F32, F16 or BF16, are widened on
// load, and are read as zero past their ends.

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
