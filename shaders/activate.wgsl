// Activations of the MLP, element by element.
//
// Formula: activate: out = f(x). gated: out = f(gate) · up for rows [gate | up] of x. clamped_gate (gpt-oss), gate and
// up in turn in x: g = min(gate, limit), out = g · σ(alpha · g) · (clamp(up, ±limit) + 1). f is, by FUNCTION: 0 SiLU, 1
// GELU by the error function, 2 GELU by the hyperbolic tangent, 3 x · σ(1.702 x), 4 ReLU.
// Layout: binding 0 Shape; 1 x, [rows, width] or [rows, 2 · width]; 2 out, [rows, width]; all F32, first and strides
// count elements.
// Threads: one an element of out.

struct Shape {
    rows: u32,
    width: u32,
    alpha: f32,
    limit: f32,
    x_first: u32,
    x_stride: u32,
    out_first: u32,
    out_stride: u32,
}

const SIZE: u32 = 64u;

override FUNCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

fn sigmoid(x: f32) -> f32 {
    // Beyond this the exponential would overflow.
    return 1.0 / (1.0 + exp(min(-x, 88.0)));
}

// By its series near zero, where the quotient would lose digits; beyond 9 it is one in F32.
fn hyperbolic_tangent(x: f32) -> f32 {
    let square = x * x;
    if square < 0.04 {
        return x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * 62.0 / 2835.0))));
    }
    return 1.0 - 2.0 / (exp(2.0 * clamp(x, -9.0, 9.0)) + 1.0);
}

// 1 − erf(|x|) to 1.2e-7 of its value: exp(−x²) times a polynomial in t = 1 / (1 + |x| / 2), after Press et al.,
// Numerical Recipes, §6.2.
fn complementary_error(x: f32) -> f32 {
    let z = abs(x);
    let t = 1.0 / (1.0 + 0.5 * z);
    var p = 0.17087277;
    p = fma(p, t, -0.82215223);
    p = fma(p, t, 1.48851587);
    p = fma(p, t, -1.13520398);
    p = fma(p, t, 0.27886807);
    p = fma(p, t, -0.18628806);
    p = fma(p, t, 0.09678418);
    p = fma(p, t, 0.37409196);
    p = fma(p, t, 1.00002368);
    p = fma(p, t, -1.26551223);
    return t * exp(p - z * z);
}

fn function_of(x: f32) -> f32 {
    switch FUNCTION {
        case 0u: {
            return x * sigmoid(x);
        }
        case 1u: {
            let tail = 0.5 * complementary_error(x * 0.70710678);
            return x * select(tail, 1.0 - tail, x > 0.0);
        }
        case 2u: {
            return 0.5 * x * (1.0 + hyperbolic_tangent(0.7978846 * (x + 0.044715 * x * x * x)));
        }
        case 3u: {
            return x * sigmoid(1.702 * x);
        }
        default: {
            return max(x, 0.0);
        }
    }
}

// Row and column of the invocation's element of out.
fn element(place: vec3<u32>, groups: vec3<u32>) -> vec2<u32> {
    let i = place.y * groups.x * SIZE + place.x;
    return vec2<u32>(i / shape.width, i % shape.width);
}

@compute @workgroup_size(SIZE)
fn activate(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = element(place, groups);
    if at.x < shape.rows {
        let value = x[shape.x_first + at.x * shape.x_stride + at.y];
        out[shape.out_first + at.x * shape.out_stride + at.y] = function_of(value);
    }
}

@compute @workgroup_size(SIZE)
fn gated(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = element(place, groups);
    if at.x < shape.rows {
        let gate = shape.x_first + at.x * shape.x_stride + at.y;
        out[shape.out_first + at.x * shape.out_stride + at.y] = function_of(x[gate]) * x[gate + shape.width];
    }
}

@compute @workgroup_size(SIZE)
fn clamped_gate(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = element(place, groups);
    if at.x < shape.rows {
        let pair = shape.x_first + at.x * shape.x_stride + 2u * at.y;
        let gate = min(x[pair], shape.limit);
        let up = clamp(x[pair + 1u], -shape.limit, shape.limit);
        out[shape.out_first + at.x * shape.out_stride + at.y] = gate * sigmoid(gate * shape.alpha) * (up + 1.0);
    }
}
