// One block of the GPTQ sweep: quantizes up to BLOCK columns of every row, one after the other; those of the block that
// are still to come take the error.
//
// Formula: q_j = nearest level of w_j / step; e_j = (w_j − q_j · step) / u_jj; w_l −= e_j · u_jl for l > j in the
// block. Columns after the block take −e · u by multiply.wgsl. U is the upper factor of H⁻¹.
// Layout: binding 0 Shape, then row-major matrices whose columns are in the order of the sweep:
// 1 work    [rows, columns] F32     the weights as they stand; not written, because the block's are not needed again
// 2 upper   [columns, columns] F32  U; the block's part of it begins at element upper_first of the binding
// 3 scales  [rows, groups]          pairs of F32: step and zero point
// 4 groups  [columns] U32           the group of each column
// 5 errors  [rows, columns] F32     e
// 6 codes   [rows, code_words] U32  four codes of 8 bits in a word, the first in the lowest bits
// 7 losses  [rows] F32              Σ e², added to
// Threads: one a row; its weights lie in workgroup memory, [HEIGHT, BLOCK + 1] so that rows meet no common bank.

struct Shape {
    rows: u32,
    columns: u32,
    first_column: u32,
    block_columns: u32,
    groups: u32,
    // Words of a row of codes: columns / 4, rounded up. The block begins at a multiple of 4.
    code_words: u32,
    largest_code: f32,
    upper_first: u32,
}

const BLOCK: u32 = 32u;
const HEIGHT: u32 = 64u;
const PITCH: u32 = BLOCK + 1u;

const INTEGER: u32 = 0u;
const E4M3: u32 = 1u;

// 0 for integers, 1 for FP8 E4M3, 2 for FP4 E2M1.
override ELEMENT: u32 = 0u;
// Integers: whether zero points are whole, so that a level is a code less the zero point; else they are added before
// rounding.
override WHOLE_ZERO: bool = true;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> work: array<f32>;
@group(0) @binding(2) var<storage, read> upper: array<f32>;
@group(0) @binding(3) var<storage, read> scales: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> groups: array<u32>;
@group(0) @binding(5) var<storage, read_write> errors: array<f32>;
@group(0) @binding(6) var<storage, read_write> codes: array<u32>;
@group(0) @binding(7) var<storage, read_write> losses: array<f32>;

var<workgroup> factor: array<f32, BLOCK * BLOCK>;
var<workgroup> weights: array<f32, HEIGHT * PITCH>;

struct Level {
    value: f32,
    code: u32,
}

// The magnitude rounded to `kept` bits of mantissa, ties to even; exact where the result is a normal number.
fn to_mantissa(magnitude: f32, kept: u32) -> f32 {
    let dropped = 23u - kept;
    let bits = bitcast<u32>(magnitude);
    let half = (1u << (dropped - 1u)) - 1u + ((bits >> dropped) & 1u);
    return bitcast<f32>((bits + half) & ~((1u << dropped) - 1u));
}

// A float of `kept` bits of mantissa: the largest one, the smallest normal one, and how many subnormals make 1.
fn float_level(x: f32, kept: u32, largest: f32, smallest: f32, subnormals: f32) -> Level {
    let magnitude = min(abs(x), largest);
    if magnitude < smallest {
        let steps = round(magnitude * subnormals);
        return Level(steps / subnormals, u32(steps));
    }
    let value = to_mantissa(magnitude, kept);
    let below = (bitcast<u32>(smallest) >> 23u) - 1u;
    return Level(value, (bitcast<u32>(value) >> (23u - kept)) - (below << kept));
}

fn with_sign(level: Level, negative: bool, sign: u32) -> Level {
    return Level(select(level.value, -level.value, negative), select(level.code, level.code | sign, negative));
}

fn nearest(x: f32, zero: f32) -> Level {
    if ELEMENT == E4M3 {
        return with_sign(float_level(x, 3u, 448.0, 0.015625, 512.0), bitcast<u32>(x) >= 0x80000000u, 128u);
    }
    if ELEMENT != INTEGER {
        // Unlike E4M3, −0 has the code of 0 here.
        return with_sign(float_level(x, 1u, 6.0, 1.0, 2.0), x < 0.0, 8u);
    }
    if WHOLE_ZERO {
        let level = round(clamp(x, -zero, shape.largest_code - zero));
        return Level(level, u32(level + zero));
    }
    let code = round(clamp(x + zero, 0.0, shape.largest_code));
    return Level(code - zero, u32(code));
}

@compute @workgroup_size(HEIGHT)
fn gptq_sweep(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first_row = group.x * HEIGHT;
    for (var i = index; i < BLOCK * BLOCK; i += HEIGHT) {
        let line = i / BLOCK;
        let column = i % BLOCK;
        if line < shape.block_columns && column < shape.block_columns {
            factor[i] = upper[shape.upper_first + line * shape.columns + column];
        }
    }
    for (var i = index; i < HEIGHT * BLOCK; i += HEIGHT) {
        let row = i / BLOCK;
        let column = i % BLOCK;
        if first_row + row < shape.rows && column < shape.block_columns {
            weights[row * PITCH + column] = work[(first_row + row) * shape.columns + shape.first_column + column];
        }
    }
    workgroupBarrier();

    let row = first_row + index;
    let mine = index * PITCH;
    if row < shape.rows {
        var loss = 0.0;
        var word = 0u;
        for (var j = 0u; j < shape.block_columns; j++) {
            let scale = scales[row * shape.groups + groups[shape.first_column + j]];
            let weight = weights[mine + j];
            let level = nearest(weight / scale.x, scale.y);
            let error = (weight - level.value * scale.x) / factor[j * BLOCK + j];
            loss = fma(error, error, loss);
            // Its place is free now.
            weights[mine + j] = error;
            for (var l = j + 1u; l < shape.block_columns; l++) {
                weights[mine + l] = fma(-error, factor[j * BLOCK + l], weights[mine + l]);
            }
            word |= level.code << (8u * (j & 3u));
            if (j & 3u) == 3u || j + 1u == shape.block_columns {
                codes[row * shape.code_words + (shape.first_column + j) / 4u] = word;
                word = 0u;
            }
        }
        losses[row] += loss;
    }
    workgroupBarrier();
    for (var i = index; i < HEIGHT * BLOCK; i += HEIGHT) {
        let line = i / BLOCK;
        let column = i % BLOCK;
        if first_row + line < shape.rows && column < shape.block_columns {
            errors[(first_row + line) * shape.columns + shape.first_column + column] = weights[line * PITCH + column];
        }
    }
}
