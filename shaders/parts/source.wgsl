// Weights as they lie in a checkpoint, read as the bits of an F32.
//
// Bits, not floats: devices may flush subnormal floats to zero, and these must survive. SOURCE says what a buffer of
// words holds: 0 F32 (one a word), 1 BF16, 2 F16 (two a word, the first one in the low half).

override SOURCE: u32 = 0u;

// The word in which element `index` lies.
fn source_word(index: u32) -> u32 {
    return select(index >> 1u, index, SOURCE == 0u);
}

// The bits of the F32 that element `index` is, from its word.
fn source_bits(word: u32, index: u32) -> u32 {
    if SOURCE == 0u {
        return word;
    }
    let half = (word >> ((index & 1u) * 16u)) & 0xffffu;
    if SOURCE == 1u {
        return half << 16u;
    }
    return half_bits(half);
}

// F16 to F32: exponent and mantissa move, subnormals become normal.
fn half_bits(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let mantissa = half & 0x3ffu;
    if exponent == 31u {
        return sign | 0x7f800000u | (mantissa << 13u);
    }
    if exponent != 0u {
        return sign | ((exponent + 112u) << 23u) | (mantissa << 13u);
    }
    if mantissa == 0u {
        return sign;
    }
    let leading = firstLeadingBit(mantissa);
    return sign | ((leading + 103u) << 23u) | ((mantissa << (23u - leading)) & 0x7fffffu);
}
