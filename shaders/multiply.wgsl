// Products of matrices, of any shape.
//
// Formula: out = alpha · L · R + beta · out, sums in F32. With beta = 0 what stood in out is not read.
// Layout: binding 0 Shape; 1 L, [rows, depth], or [depth, rows] with LEFT_TRANSPOSED; 2 R, [depth, columns], or
// [columns, depth] with RIGHT_TRANSPOSED (x wᵀ of a linear); 3 out, [rows, columns] F32. L and R hold F32, F16 or BF16
// and are widened on load; their bindings are multiples of 16 bytes long. All are row-major; a line begins `stride`
// elements after the one before, the first one at element `first` of its binding, so that any part of a larger matrix
// can be given.
// Threads: WIDE × TALL make a tile of 8·TALL × 8·WIDE, each of them two by two blocks of 4 × 4 in registers. Each step
// of STEP along the depth lies in workgroup memory as quads of rows (of columns): 32·STEP·(TALL + WIDE) bytes. The first
// (TALL + WIDE)·STEP / 2 invocations, at most all of them, load one block of 4 × 4 of a step each; that of the next step
// is on its way while this one is multiplied. Each sum runs over the depth from its beginning to its end, whatever the
// tile: so the choice of a tile changes no bit of the product.
//
// Layer z of the grid multiplies another set: that of sequence z / heads and head z % heads, whose matrices begin so
// many strides of a sequence and of a head later; `share` heads use the same head of R. That is what attention needs,
// where heads lie side by side. Row r of the product belongs to query r + first_query. With causal = BELOW tiles of
// later columns than any query of theirs are left as they are (scores of keys that come later); with causal = UP_TO_ROW
// only depths up to the query count, as L is zero beyond.
// needs: parts/product.wgsl

// Invocations along the columns and along the rows of a tile, multiples of 4; the depth of a step, 8 or 16.
override WIDE: u32 = 16u;
override TALL: u32 = 16u;
override STEP: u32 = 16u;

// With names: naga 30 fails where a length without one stands before other overrides.
override LEFT_QUADS: u32 = 2u * TALL * STEP;
override RIGHT_QUADS: u32 = 2u * WIDE * STEP;

// [STEP, 2·TALL] and [STEP, 2·WIDE] quads: at every depth the rows of the tile, and its columns.
var<workgroup> left_step: array<vec4<f32>, LEFT_QUADS>;
var<workgroup> right_step: array<vec4<f32>, RIGHT_QUADS>;

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

@compute @workgroup_size(WIDE, TALL)
fn multiply(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) place: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first_row = tile.y * 8u * TALL;
    let first_column = tile.x * 8u * WIDE;
    let past_queries = shape.first_query + first_row + 8u * TALL;
    if shape.causal == BELOW && first_column >= past_queries {
        return;
    }
    let depths = select(shape.depth, min(shape.depth, past_queries), shape.causal == UP_TO_ROW);
    let out_first = first_of(shape.out, tile.z, 1u);

    // The first invocations load L, the ones after them R. Where lines run along the depth, eight neighbours take eight
    // different quads, so that their stores do not meet in one bank.
    let of_left = TALL * STEP / 2u;
    let loads_left = index < of_left;
    let loads_right = !loads_left && index < of_left + WIDE * STEP / 2u;
    let quads = 2u * select(WIDE, TALL, loads_left);
    let slot = select(index - of_left, index, loads_left);
    let transposes = select(RIGHT_TRANSPOSED, !LEFT_TRANSPOSED, loads_left);
    let quad = select(slot % quads, slot % 8u + slot / (2u * STEP) * 8u, transposes);
    let depth = 4u * select(slot / quads, slot / 8u % (STEP / 4u), transposes);
    let cell = depth * quads + quad;

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
    } else if loads_right {
        block = right_block(first, first_column + 4u * quad, depth);
    }
    for (var start = 0u; start < depths; start += STEP) {
        if loads_left {
            left_step[cell] = block[0];
            left_step[cell + quads] = block[1];
            left_step[cell + 2u * quads] = block[2];
            left_step[cell + 3u * quads] = block[3];
        } else if loads_right {
            right_step[cell] = block[0];
            right_step[cell + quads] = block[1];
            right_step[cell + 2u * quads] = block[2];
            right_step[cell + 3u * quads] = block[3];
        }
        workgroupBarrier();
        let next = start + STEP + depth;
        if loads_left {
            block = left_block(first, first_row + 4u * quad, next);
        } else if loads_right {
            block = right_block(first, first_column + 4u * quad, next);
        }
        for (var k = 0u; k < STEP; k++) {
            let a = left_step[2u * TALL * k + place.y];
            let b = left_step[2u * TALL * k + place.y + TALL];
            let c = right_step[2u * WIDE * k + place.x];
            let d = right_step[2u * WIDE * k + place.x + WIDE];
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
    let lower = row + 4u * TALL;
    let column = first_column + 4u * place.x;
    let farther = column + 4u * WIDE;
    store(out_first, row, column, s00); store(out_first, row, farther, s01);
    store(out_first, row + 1u, column, s10); store(out_first, row + 1u, farther, s11);
    store(out_first, row + 2u, column, s20); store(out_first, row + 2u, farther, s21);
    store(out_first, row + 3u, column, s30); store(out_first, row + 3u, farther, s31);
    store(out_first, lower, column, s40); store(out_first, lower, farther, s41);
    store(out_first, lower + 1u, column, s50); store(out_first, lower + 1u, farther, s51);
    store(out_first, lower + 2u, column, s60); store(out_first, lower + 2u, farther, s61);
    store(out_first, lower + 3u, column, s70); store(out_first, lower + 3u, farther, s71);
}
