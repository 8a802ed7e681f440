// The point of a pyramid that is nearest in direction to each vector.
//
// Formula: y with Σ |y| = K for which (Σ |x| |y|)² / Σ y² is about as large as it can be, and the signs of x. From two
// starts, all zeros and ⌊K |x| / Σ |x|⌋: pulses where each helps most, then moves of single pulses until none helps; the
// better one. Everything as codec/pyramid/search.rs has it, in the same order: quotients are compared crosswise, ties go to
// the lowest coordinate. WGSL rounds divisions less strictly and may fuse products with sums, so that of two points with
// nearly the same cosine it may be the other one.
// Layout: binding 0 Shape; 1 x, [rows, columns] F32, of which LENGTH consecutive rows of a column are a vector, rows beyond
// the last being zero; 2 points, [vectors of a column · LENGTH, columns] F32; first and stride count elements.
// Threads: one a vector.

struct Shape {
    vectors: u32,
    columns: u32,
    rows: u32,
    pulses: u32,
    x_first: u32,
    x_stride: u32,
    points_first: u32,
    rounds: u32,
}

// Set for each length: registers cannot be counted at run time.
const LENGTH: u32 = 8u;
const SIZE: u32 = 64u;
// How much better a move must be than sums are exact, or rounding could make moves cycle: 1 + 2⁻²⁰.
const WORTH: f32 = 1.00000095367431640625;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> points: array<f32>;

// |x| over the largest of them, and the point in hand.
var<private> m: array<f32, LENGTH>;
var<private> y: array<f32, LENGTH>;

// (Σ m y)² and Σ y².
fn cosine() -> vec2<f32> {
    var product = 0.0;
    var square = 0.0;
    for (var j = 0u; j < LENGTH; j++) {
        product += m[j] * y[j];
        square += y[j] * y[j];
    }
    return vec2<f32>(product * product, square);
}

// Adds the missing pulses, then moves pulses as long as that helps.
fn climb() {
    var product = 0.0;
    var square = 0.0;
    var missing = f32(shape.pulses);
    for (var j = 0u; j < LENGTH; j++) {
        product += m[j] * y[j];
        square += y[j] * y[j];
        missing -= y[j];
    }
    for (; missing > 0.0; missing -= 1.0) {
        var best = 0u;
        var best_product = product + m[0];
        var best_square = square + (2.0 * y[0] + 1.0);
        for (var j = 1u; j < LENGTH; j++) {
            let more = product + m[j];
            let more_square = square + (2.0 * y[j] + 1.0);
            if more * more * best_square > best_product * best_product * more_square {
                best = j;
                best_product = more;
                best_square = more_square;
            }
        }
        y[best] += 1.0;
        product = best_product;
        square = best_square;
    }
    // Settled when a whole round has moved nothing.
    var still = 0u;
    for (var step = 0u; step < shape.rounds * LENGTH && still < LENGTH; step++) {
        let i = step % LENGTH;
        still += 1u;
        if y[i] == 0.0 {
            continue;
        }
        var best = LENGTH;
        var best_product = product;
        var best_square = square;
        var best_energy = product * product * WORTH;
        let without = product - m[i];
        let square_without = square - (2.0 * y[i] - 1.0);
        for (var j = 0u; j < LENGTH; j++) {
            let more = without + m[j];
            let more_square = square_without + (2.0 * y[j] + 1.0);
            let energy = more * more;
            if j != i && energy * best_square > best_energy * more_square {
                best = j;
                best_energy = energy;
                best_product = more;
                best_square = more_square;
            }
        }
        if best < LENGTH {
            y[i] -= 1.0;
            y[best] += 1.0;
            product = best_product;
            square = best_square;
            still = 0u;
        }
    }
}

@compute @workgroup_size(SIZE)
fn pyramid_search(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    if i >= shape.vectors * shape.columns {
        return;
    }
    let first_row = i / shape.columns * LENGTH;
    let column = i % shape.columns;
    var largest = 0.0;
    var negative: array<bool, LENGTH>;
    for (var j = 0u; j < LENGTH; j++) {
        var value = 0.0;
        if first_row + j < shape.rows {
            value = x[shape.x_first + (first_row + j) * shape.x_stride + column];
        }
        negative[j] = value < 0.0;
        m[j] = abs(value);
        largest = max(largest, m[j]);
    }
    let unit = select(1.0, largest, largest > 0.0);
    var total = 0.0;
    for (var j = 0u; j < LENGTH; j++) {
        m[j] = m[j] / unit;
        total += m[j];
    }
    total = select(1.0, total, total > 0.0);

    for (var j = 0u; j < LENGTH; j++) {
        y[j] = 0.0;
    }
    climb();
    let one = cosine();
    let from_zero = y;
    for (var j = 0u; j < LENGTH; j++) {
        y[j] = floor(f32(shape.pulses) * m[j] / total);
    }
    climb();
    let other = cosine();
    let second = other.x * one.y > one.x * other.y;
    let out = shape.points_first + first_row * shape.columns + column;
    for (var j = 0u; j < LENGTH; j++) {
        let magnitude = select(from_zero[j], y[j], second);
        points[out + j * shape.columns] = select(magnitude, 0.0 - magnitude, negative[j]);
    }
}
