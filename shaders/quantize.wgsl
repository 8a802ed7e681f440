// Weights to codes, with scales that the processor made.
//
// Formula, with w / s rounded as in parts/quotient.wgsl, so that codes are the processor's on every device:
//   integers, ZERO 0: clamp(round(w / s), −2^(bits−1), 2^(bits−1) − 1) + 2^(bits−1)
//   integers, ZERO 1: clamp(round(w / s) + z, 0, 2^bits − 1), z whole
//   integers, ZERO 2: clamp(round(w / s + z), 0, 2^bits − 1), z any; here the sum is in plain floats and a code may be one
//   step off where it lies next to the middle of two
//   fp8, fp4: the nearest E4M3 or E2M1 to w / s, ties to the even code, saturating
// Layout: binding 0 {rows, columns, width, groups, first_row, rows_per_scale, bits}; 1 weights as in parts/source.wgsl,
// [rows, columns]; 2 scales, bits of F32, [scale rows, groups]; 3 zero points (ZERO 1 and 2, else scales once more),
// shaped like the scales; 4 codes, one a byte, [rows, columns], the last word padded with zeros. Row r takes the scales of
// row (first_row + r) / rows_per_scale, column c those of group c / width.
// Threads: one a word of four codes.
// needs: parts/source.wgsl parts/linear.wgsl parts/quotient.wgsl

// 0 integers, 1 FP8, 2 FP4.
override ELEMENT: u32 = 0u;
// 0 symmetric, 1 whole zero points, 2 float ones.
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
@group(0) @binding(1) var<storage, read> weights: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> zeros: array<f32>;
@group(0) @binding(4) var<storage, read_write> codes: array<u32>;

// Above every code of 8 bits on either side of a zero point.
const MOST: u32 = 1024u;

// Place of element `index`'s scale.
fn scale_index(index: u32) -> u32 {
    let row = index / shape.columns;
    let group = (index - row * shape.columns) / shape.width;
    return (shape.first_row + row) / shape.rows_per_scale * shape.groups + group;
}

fn integer_code(w: u32, s: u32, place: u32) -> u32 {
    let largest = (1i << shape.bits) - 1;
    if ZERO == 2u {
        let sum = bitcast<f32>(w) / bitcast<f32>(s) + zeros[place];
        return u32(round(clamp(sum, 0.0, f32(largest))));
    }
    let magnitude = i32(rounded_quotient(w, s, 0, MOST));
    let level = select(magnitude, -magnitude, w >> 31u == 1u);
    var zero = 1i << (shape.bits - 1u);
    if ZERO == 1u {
        zero = i32(zeros[place]);
    }
    return u32(clamp(level + zero, 0, largest));
}

// Binary exponent of |w| / s, which is above 0.
fn quotient_exponent(w: Parts, s: Parts) -> i32 {
    return w.exponent - s.exponent - select(0, 1, w.mantissa < s.mantissa);
}

fn fp8_code(w: u32, s: u32) -> u32 {
    let sign = (w >> 24u) & 0x80u;
    let numerator = parts(w);
    if numerator.mantissa == 0u {
        return sign;
    }
    // The smallest normal number is 2⁻⁶, the last binade that of 2⁸; three bits of mantissa.
    let exponent = clamp(quotient_exponent(numerator, parts(s)), -6, 9);
    let magnitude = (u32(exponent + 6) << 3u) + rounded_quotient(w, s, exponent - 3, 16u);
    return sign | min(magnitude, 0x7eu);
}

fn fp4_code(w: u32, s: u32) -> u32 {
    let numerator = parts(w);
    if numerator.mantissa == 0u {
        return 0u;
    }
    let denominator = parts(s);
    let wanted = quotient_exponent(numerator, denominator);
    // A quotient that F32 rounds to zero loses its sign, which one that only the code rounds to zero keeps.
    let lost = wanted < -150 || (wanted == -150 && numerator.mantissa == denominator.mantissa);
    let sign = select((w >> 28u) & 8u, 0u, lost);
    let exponent = clamp(wanted, 0, 3);
    let magnitude = (u32(exponent) << 1u) + rounded_quotient(w, s, exponent - 1, 4u);
    return sign | min(magnitude, 7u);
}

fn code(w: u32, place: u32) -> u32 {
    let s = scales[place];
    if ELEMENT == 1u {
        return fp8_code(w, s);
    }
    if ELEMENT == 2u {
        return fp4_code(w, s);
    }
    return integer_code(w, s, place);
}

@compute @workgroup_size(THREADS)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let word = linear_group(group, groups) * THREADS + lane;
    let count = shape.rows * shape.columns;
    if word >= (count + 3u) / 4u {
        return;
    }
    var packed = 0u;
    for (var place = 0u; place < 4u; place += 1u) {
        let index = 4u * word + place;
        if index < count {
            let bits = source_bits(weights[source_word(index)], index);
            packed |= code(bits, scale_index(index)) << (8u * place);
        }
    }
    codes[word] = packed;
}
