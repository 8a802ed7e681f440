// w / s rounded as the processor rounds it, on every device.
//
// WGSL allows a division 2.5 units in the last place and the loss of subnormals, so a quotient near the middle between
// two codes could go either way. Here the division only proposes: both mantissas are brought to [1, 2), where all devices
// divide well enough, and where the proposal is within 2⁻¹⁸ of a middle, integers decide exactly.

// A float as mantissa · 2^(exponent − 23), the mantissa in [2²³, 2²⁴) or 0.
struct Parts {
    mantissa: u32,
    exponent: i32,
}

fn parts(bits: u32) -> Parts {
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x00800000u {
        return Parts((magnitude & 0x7fffffu) | 0x800000u, i32(magnitude >> 23u) - 127);
    }
    if magnitude == 0u {
        return Parts(0u, 0);
    }
    let shift = 23u - firstLeadingBit(magnitude);
    return Parts(magnitude << shift, -126 - i32(shift));
}

// round(fl(|w| / s) / 2^unit) to nearest even, where fl rounds to F32 to nearest even as a processor divides; at most
// `most`, which is below 2¹². `w` and `s` are the bits of finite F32, s above 0. The unit may not depend on bits of the
// quotient below the ones that the rounding keeps.
fn rounded_quotient(w: u32, s: u32, unit: i32, most: u32) -> u32 {
    let numerator = parts(w);
    let denominator = parts(s);
    if numerator.mantissa == 0u {
        return 0u;
    }
    // |w| / s / 2^unit = (a / b) · 2^d with a / b in (½, 2).
    let d = numerator.exponent - denominator.exponent - unit;
    if d > 12 {
        return most;
    }
    if d < -3 {
        return 0u;
    }
    let a = bitcast<f32>((numerator.mantissa & 0x7fffffu) | 0x3f800000u);
    let b = bitcast<f32>((denominator.mantissa & 0x7fffffu) | 0x3f800000u);
    let proposal = (a / b) * bitcast<f32>(u32(d + 127) << 23u);
    let below = u32(proposal);
    let above_middle = proposal - (f32(below) + 0.5);
    // Half a unit is reached by the sum of the division's error and the rounding to F32 only far within this.
    if abs(above_middle) > max(proposal, 0.5) * 0x1p-18f {
        return min(below + select(0u, 1u, above_middle > 0.0), most);
    }
    return min(below + decide(numerator.mantissa, denominator.mantissa, d, below), most);
}

// Whether fl(a / b · 2^d), which is next to below + ½, rounds up: 1 or 0.
fn decide(a: u32, b: u32, d: i32, below: u32) -> u32 {
    // Twice the distance from the middle in units of the divisor. Its terms may exceed 32 bits, but it is small, so that
    // what wraps around cancels.
    let up = u32(max(d, 0));
    let down = u32(max(-d, 0));
    let distance = bitcast<i32>(((2u * a) << up) - (2u * below + 1u) * (b << down));
    // The middle has the binary exponent e, so F32 has a distance of 2^(e − 23) there: what is within half of it, or on
    // the border of it since the middle's mantissa is even, becomes the middle itself.
    let e = select(i32(firstLeadingBit(below)), -1, below == 0u);
    let shift = u32(23 - e) - down;
    // Below ½ itself the distance is half as large.
    let finer = select(0u, 1u, below == 0u && distance < 0);
    if u32(abs(distance)) <= (b >> (shift + finer)) {
        // A tie goes to the even code.
        return below & 1u;
    }
    return select(0u, 1u, distance > 0);
}
