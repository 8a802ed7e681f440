// What the terms of a polynomial in place of an activation multiply.
//
// Formula: out = u · sⁿ with s = (clamp(z, low, high) − point) / scale of the unit; u = 1 if not `gated`. The power is
// made by one product after the other, from u on.
// Layout: binding 0 Shape; 1 z, 2 u (anything if not `gated`), 4 out, all [rows, width] F32; 3 points, F32 [4, width]:
// point, scale, low, high; first and strides count elements.
// Threads: one an element of out.

struct Shape {
    rows: u32,
    width: u32,
    power: u32,
    gated: u32,
    z_first: u32,
    z_stride: u32,
    u_first: u32,
    u_stride: u32,
    points_first: u32,
    points_stride: u32,
    out_first: u32,
    out_stride: u32,
}

const SIZE: u32 = 64u;

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> u: array<f32>;
@group(0) @binding(3) var<storage, read> points: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(SIZE)
fn powers(@builtin(global_invocation_id) place: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = place.y * groups.x * SIZE + place.x;
    let row = i / shape.width;
    let unit = i % shape.width;
    if row >= shape.rows {
        return;
    }
    let at = shape.points_first + unit;
    let low = points[at + 2u * shape.points_stride];
    let high = points[at + 3u * shape.points_stride];
    let inside = min(max(z[shape.z_first + row * shape.z_stride + unit], low), high);
    let s = (inside - points[at]) / points[at + shape.points_stride];
    var power = 1.0;
    if shape.gated != 0u {
        power = u[shape.u_first + row * shape.u_stride + unit];
    }
    for (var n = 0u; n < shape.power; n++) {
        power *= s;
    }
    out[shape.out_first + row * shape.out_stride + unit] = power;
}
