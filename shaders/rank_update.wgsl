// Symmetric rank-k update: the second moments (Hessian) of a layer's input.
//
// Formula: sums += lower triangle of xᵀ x. Products of CHUNK rows are added up in F32; each of these partial sums is
// then added to a pair of F32 without loss (Knuth's two-sum), so that the error does not grow with the number of rows.
// Layout: binding 0 Shape; 1 x, [rows, columns], row-major, F32, F16 or BF16, widened on load; a row begins `stride`
// elements after the one before, the first one at element `first` of its binding, which is a multiple of 16 bytes long;
// 2 sums, pairs of F32 whose sum is the value, [lines, columns] row-major, the lines from `first_line` on; only
// elements with column <= line are read and written.
// Threads: tiles as in multiply.wgsl: EDGE × EDGE make 8·EDGE × 8·EDGE sums, in steps of EDGE rows.

struct Shape {
    rows: u32,
    columns: u32,
    first: u32,
    stride: u32,
    first_line: u32,
    lines: u32,
    // Always 0; the compiler does not know.
    nothing: u32,
    unused: u32,
}

const F32: u32 = 0u;
const F16: u32 = 1u;

// 8 or 16: the edge of a workgroup and the rows of a step.
override EDGE: u32 = 16u;
// A multiple of EDGE.
override CHUNK: u32 = 1024u;
// 0 for F32, 1 for F16, 2 for BF16.
override TYPE: u32 = 0u;
// Whether first and stride are multiples of 4, so that quads can be loaded whole.
override ALIGNED: bool = false;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec2<f32>>;

// [EDGE, 2·EDGE] quads each: in every row the channels of the tile's lines, and of its columns.
var<workgroup> line_step: array<vec4<f32>, 2 * EDGE * EDGE>;
var<workgroup> column_step: array<vec4<f32>, 2 * EDGE * EDGE>;

fn widen_quad(pair: vec2<u32>) -> vec4<f32> {
    if TYPE == F16 {
        return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
    }
    return bitcast<vec4<f32>>(vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u));
}

fn one(index: u32) -> f32 {
    if TYPE == F32 {
        return bitcast<f32>(x[index >> 2u][index & 3u]);
    }
    let shifted = x[index >> 3u][(index >> 1u) & 3u] >> (16u * (index & 1u));
    if TYPE == F16 {
        return unpack2x16float(shifted).x;
    }
    return bitcast<f32>(shifted << 16u);
}

fn load(row: u32, column: u32) -> vec4<f32> {
    if row >= shape.rows || column >= shape.columns {
        return vec4<f32>();
    }
    let index = shape.first + row * shape.stride + column;
    var quad: vec4<f32>;
    if !ALIGNED {
        quad = vec4<f32>(one(index), one(index + 1u), one(index + 2u), one(index + 3u));
    } else if TYPE == F32 {
        quad = bitcast<vec4<f32>>(x[index >> 2u]);
    } else {
        let words = x[index >> 3u];
        quad = widen_quad(select(words.xy, words.zw, (index & 4u) != 0u));
    }
    // Zeros in the place of what lies past the end: anything may stand there, NaN too.
    let columns = vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), quad, columns < vec4<u32>(shape.columns));
}

// A rounded value that the compiler must take as it is. By the laws of real numbers the corrections of a two-sum are
// zero, and a compiler may apply these laws.
fn rounded(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) ^ shape.nothing);
}

fn add(line: u32, column: u32, parts: vec4<f32>) {
    if line >= shape.first_line + shape.lines {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if column + i <= line {
            let index = (line - shape.first_line) * shape.columns + column + i;
            let before = sums[index];
            let part = parts[i];
            let sum = rounded(before.x + part);
            let taken = rounded(sum - before.x);
            let lost = rounded(before.x - rounded(sum - taken)) + rounded(part - taken);
            sums[index] = vec2<f32>(sum, before.y + lost);
        }
    }
}

@compute @workgroup_size(EDGE, EDGE)
fn rank_update(
    @builtin(workgroup_id) tile: vec3<u32>,
    @builtin(local_invocation_id) place: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let tile_line = shape.first_line + tile.y * 8u * EDGE;
    let tile_column = tile.x * 8u * EDGE;
    // All of it above the diagonal.
    if tile_column > tile_line + 8u * EDGE - 1u {
        return;
    }

    // The first half of the invocations loads the tile's lines, the second its columns.
    let half = EDGE * EDGE / 2u;
    let loads_lines = index < half;
    let quad = index % half % (2u * EDGE);
    let depth = 4u * (index % half / (2u * EDGE));
    let channel = select(tile_column, tile_line, loads_lines) + 4u * quad;
    let cell = depth * 2u * EDGE + quad;

    for (var chunk = 0u; chunk < shape.rows; chunk += CHUNK) {
        var s00 = vec4<f32>(); var s01 = vec4<f32>();
        var s10 = vec4<f32>(); var s11 = vec4<f32>();
        var s20 = vec4<f32>(); var s21 = vec4<f32>();
        var s30 = vec4<f32>(); var s31 = vec4<f32>();
        var s40 = vec4<f32>(); var s41 = vec4<f32>();
        var s50 = vec4<f32>(); var s51 = vec4<f32>();
        var s60 = vec4<f32>(); var s61 = vec4<f32>();
        var s70 = vec4<f32>(); var s71 = vec4<f32>();

        let end = min(chunk + CHUNK, shape.rows);
        for (var start = chunk; start < end; start += EDGE) {
            let row = start + depth;
            let q0 = load(row, channel);
            let q1 = load(row + 1u, channel);
            let q2 = load(row + 2u, channel);
            let q3 = load(row + 3u, channel);
            // The step before has been multiplied by all.
            workgroupBarrier();
            if loads_lines {
                line_step[cell] = q0;
                line_step[cell + 2u * EDGE] = q1;
                line_step[cell + 4u * EDGE] = q2;
                line_step[cell + 6u * EDGE] = q3;
            } else {
                column_step[cell] = q0;
                column_step[cell + 2u * EDGE] = q1;
                column_step[cell + 4u * EDGE] = q2;
                column_step[cell + 6u * EDGE] = q3;
            }
            workgroupBarrier();
            for (var k = 0u; k < EDGE; k++) {
                let line = 2u * EDGE * k;
                let a = line_step[line + place.y];
                let b = line_step[line + place.y + EDGE];
                let c = column_step[line + place.x];
                let d = column_step[line + place.x + EDGE];
                s00 = fma(a.xxxx, c, s00); s01 = fma(a.xxxx, d, s01);
                s10 = fma(a.yyyy, c, s10); s11 = fma(a.yyyy, d, s11);
                s20 = fma(a.zzzz, c, s20); s21 = fma(a.zzzz, d, s21);
                s30 = fma(a.wwww, c, s30); s31 = fma(a.wwww, d, s31);
                s40 = fma(b.xxxx, c, s40); s41 = fma(b.xxxx, d, s41);
                s50 = fma(b.yyyy, c, s50); s51 = fma(b.yyyy, d, s51);
                s60 = fma(b.zzzz, c, s60); s61 = fma(b.zzzz, d, s61);
                s70 = fma(b.wwww, c, s70); s71 = fma(b.wwww, d, s71);
            }
        }

        let line = tile_line + 4u * place.y;
        let lower = line + 4u * EDGE;
        let column = tile_column + 4u * place.x;
        let farther = column + 4u * EDGE;
        add(line, column, s00); add(line, farther, s01);
        add(line + 1u, column, s10); add(line + 1u, farther, s11);
        add(line + 2u, column, s20); add(line + 2u, farther, s21);
        add(line + 3u, column, s30); add(line + 3u, farther, s31);
        add(lower, column, s40); add(lower, farther, s41);
        add(lower + 1u, column, s50); add(lower + 1u, farther, s51);
        add(lower + 2u, column, s60); add(lower + 2u, farther, s61);
        add(lower + 3u, column, s70); add(lower + 3u, farther, s71);
    }
}
