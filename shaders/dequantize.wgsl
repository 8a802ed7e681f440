// Codes back to weights.
//
// Formula: integers (code − z) · s, z = 2^(bits−1) where none is stored; FP8 and FP4 the code's value · s. One subtraction
// and one product, each rounded once: the processor's bits, but for products that F32 holds only as subnormals.
// Layout: as in quantize.wgsl, but binding 1 codes, one a byte, [rows, columns]; 2 scales; 3 zero points; 4 out, F32,
// [rows, columns].
// Threads: one a word of four codes.
// needs: parts/linear.wgsl

// 0 integers, 1 FP8, 2 FP4.
override ELEMENT: u32 = 0u;
// 0 symmetric, else zero points.
override ZERO: u32 = 0u;

struct Shape {
    rows: u32,
    columns: u32,
    width: u32,
    groups: u32,
    first_row: u32,
    rows_per_scale: u32,
    bits: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> codes: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> zeros: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

// E4M3: eight codes a binade from 2⁻⁶ on, below it steps of 2⁻⁹.
fn fp8_value(code: u32) -> f32 {
    let magnitude = code & 0x7fu;
    let normal = bitcast<f32>((magnitude << 20u) + (120u << 23u));
    let value = select(normal, f32(magnitude) * 0x1p-9f, magnitude < 8u);
    return select(value, -value, (code & 0x80u) != 0u);
}

// E2M1: two codes a binade from 1 on, below it a step of ½.
fn fp4_value(code: u32) -> f32 {
    let magnitude = code & 7u;
    let normal = bitcast<f32>((magnitude << 22u) + (126u << 23u));
    let value = select(normal, f32(magnitude) * 0.5, magnitude < 2u);
    return select(value, -value, (code & 8u) != 0u);
}

fn level(code: u32, place: u32) -> f32 {
    if ELEMENT == 1u {
        return fp8_value(code);
    }
    if ELEMENT == 2u {
        return fp4_value(code);
    }
    if ZERO == 0u {
        return f32(code) - f32(1u << (shape.bits - 1u));
    }
    return f32(code) - zeros[place];
}

@compute @workgroup_size(THREADS)
fn dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let word = linear_group(group, groups) * THREADS + lane;
    let count = shape.rows * shape.columns;
    if word >= (count + 3u) / 4u {
        return;
    }
    let packed = codes[word];
    for (var at = 0u; at < 4u; at += 1u) {
        let index = 4u * word + at;
        if index < count {
            let row = index / shape.columns;
            let column_group = (index - row * shape.columns) / shape.width;
            let place = (shape.first_row + row) / shape.rows_per_scale * shape.groups + column_group;
            out[index] = level((packed >> (8u * at)) & 0xffu, place) * scales[place];
        }
    }
}
