//! Dense streams of small codes: least significant bit first, crossing byte and word borders without padding.
//!
//! Code i of a stream of b bits occupies bits i·b to (i+1)·b−1; bit k is bit k mod 8 of byte k div 8. Read as
//! little-endian 32-bit words that is also GPTQ's and compressed-tensors' order, so one routine serves all.

use multiversion::multiversion;

/// Bytes that `count` codes of `bits` bits take.
#[must_use]
pub fn packed_bytes(count: usize, bits: u8) -> usize {
    // In two parts, so that no count overflows.
    count / 8 * usize::from(bits) + (count % 8 * usize::from(bits)).div_ceil(8)
}

/// Packs codes of 1 to 8 bits; higher bits of a code are ignored. What `out` has beyond [`packed_bytes`], and the unused
/// bits of the last byte, become zero.
///
/// # Panics
/// Panics when `out` is too short or the width is not 1 to 8.
pub fn pack(codes: &[u8], bits: u8, out: &mut [u8]) {
    let (packed, padding) = out.split_at_mut(packed_bytes(codes.len(), bits));
    padding.fill(0);
    match bits {
        1 => pack_width::<1>(codes, packed),
        2 => pack_two(codes, packed),
        3 => pack_width::<3>(codes, packed),
        4 => pack_four(codes, packed),
        5 => pack_width::<5>(codes, packed),
        6 => pack_width::<6>(codes, packed),
        7 => pack_width::<7>(codes, packed),
        8 => packed.copy_from_slice(codes),
        _ => panic!("codes of {bits} bits, expected 1 to 8"),
    }
}

/// Unpacks `codes.len()` codes of 1 to 8 bits.
///
/// # Panics
/// Panics when `packed` is shorter than [`packed_bytes`] or the width is not 1 to 8.
pub fn unpack(packed: &[u8], bits: u8, codes: &mut [u8]) {
    let packed = &packed[..packed_bytes(codes.len(), bits)];
    match bits {
        1 => unpack_width::<1>(packed, codes),
        2 => unpack_two(packed, codes),
        3 => unpack_width::<3>(packed, codes),
        4 => unpack_four(packed, codes),
        5 => unpack_width::<5>(packed, codes),
        6 => unpack_width::<6>(packed, codes),
        7 => unpack_width::<7>(packed, codes),
        8 => codes.copy_from_slice(packed),
        _ => panic!("codes of {bits} bits, expected 1 to 8"),
    }
}

/// Packs codes of 1 to 16 bits, as [`pack`] does.
///
/// # Panics
/// Panics when `out` is too short or the width is not 1 to 16.
pub fn pack_wide(codes: &[u16], bits: u8, out: &mut [u8]) {
    assert!((1..=16).contains(&bits), "codes of {bits} bits, expected 1 to 16");
    let (packed, padding) = out.split_at_mut(packed_bytes(codes.len(), bits));
    padding.fill(0);
    let mut packed = packed.iter_mut();
    let (mut waiting, mut count) = (0u32, 0);
    for &code in codes {
        waiting |= (u32::from(code) & ((1 << bits) - 1)) << count;
        count += bits;
        while count >= 8 {
            if let Some(byte) = packed.next() {
                *byte = waiting as u8;
            }
            waiting >>= 8;
            count -= 8;
        }
    }
    if let Some(byte) = packed.next() {
        *byte = waiting as u8;
    }
}

/// Unpacks `codes.len()` codes of 1 to 16 bits.
///
/// # Panics
/// Panics when `packed` is shorter than [`packed_bytes`] or the width is not 1 to 16.
pub fn unpack_wide(packed: &[u8], bits: u8, codes: &mut [u16]) {
    assert!((1..=16).contains(&bits), "codes of {bits} bits, expected 1 to 16");
    let mut packed = packed[..packed_bytes(codes.len(), bits)].iter();
    let (mut waiting, mut count) = (0u32, 0);
    for code in codes {
        while count < bits {
            waiting |= u32::from(packed.next().copied().unwrap_or(0)) << count;
            count += 8;
        }
        *code = (waiting & ((1 << bits) - 1)) as u16;
        waiting >>= bits;
        count -= bits;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn pack_four(codes: &[u8], packed: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks::<2>();
    for (byte, pair) in packed.iter_mut().zip(pairs) {
        let pair = u16::from_le_bytes(*pair) & 0x0f0f;
        *byte = (pair | pair >> 4) as u8;
    }
    if let ([code], Some(byte)) = (rest, packed.last_mut()) {
        *byte = code & 0x0f;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn unpack_four(packed: &[u8], codes: &mut [u8]) {
    let (pairs, rest) = codes.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(packed) {
        let byte = u16::from(*byte);
        *pair = ((byte | byte << 4) & 0x0f0f).to_le_bytes();
    }
    if let ([code], Some(byte)) = (rest, packed.last()) {
        *code = byte & 0x0f;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn pack_two(codes: &[u8], packed: &mut [u8]) {
    let (quads, rest) = codes.as_chunks::<4>();
    for (byte, quad) in packed.iter_mut().zip(quads) {
        let quad = u32::from_le_bytes(*quad) & 0x0303_0303;
        *byte = (quad | quad >> 6 | quad >> 12 | quad >> 18) as u8;
    }
    if !rest.is_empty() {
        pack_width::<2>(rest, &mut packed[quads.len()..]);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn unpack_two(packed: &[u8], codes: &mut [u8]) {
    let (quads, rest) = codes.as_chunks_mut::<4>();
    for (quad, byte) in quads.iter_mut().zip(packed) {
        let byte = u32::from(*byte);
        *quad = ((byte | byte << 6 | byte << 12 | byte << 18) & 0x0303_0303).to_le_bytes();
    }
    if !rest.is_empty() {
        let done = quads.len();
        unpack_width::<2>(&packed[done..], rest);
    }
}

/// Eight codes, one a byte, become the low 8·BITS bits: neighbours join to fields of 2, then 4, then 8 codes.
#[inline(always)]
fn join<const BITS: u32>(codes: u64) -> u64 {
    let one = 0x00ff_00ff_00ff_00ff & (0x0101_0101_0101_0101 * ((1 << BITS) - 1));
    let two = 0x0000_ffff_0000_ffff & (0x0001_0001_0001_0001 * ((1 << (2 * BITS)) - 1));
    let four = (1 << (4 * BITS)) - 1;
    let pairs = (codes & one) | (codes & (one << 8)) >> (8 - BITS);
    let quads = (pairs & two) | (pairs & (two << 16)) >> (16 - 2 * BITS);
    (quads & four) | (quads & (four << 32)) >> (32 - 4 * BITS)
}

/// The reverse of [`join`].
#[inline(always)]
fn split<const BITS: u32>(stream: u64) -> u64 {
    let one = 0x00ff_00ff_00ff_00ff & (0x0101_0101_0101_0101 * ((1 << BITS) - 1));
    let two = 0x0000_ffff_0000_ffff & (0x0001_0001_0001_0001 * ((1 << (2 * BITS)) - 1));
    let four = (1 << (4 * BITS)) - 1;
    let quads = (stream & four) | (stream << (32 - 4 * BITS)) & (four << 32);
    let pairs = (quads & two) | (quads << (16 - 2 * BITS)) & (two << 16);
    (pairs & one) | (pairs << (8 - BITS)) & (one << 8)
}

fn pack_width<const BITS: u32>(codes: &[u8], packed: &mut [u8]) {
    let (eights, rest) = codes.as_chunks::<8>();
    let (packed, last) = packed.split_at_mut(eights.len() * BITS as usize);
    for (out, eight) in packed.chunks_exact_mut(BITS as usize).zip(eights) {
        out.copy_from_slice(&join::<BITS>(u64::from_le_bytes(*eight)).to_le_bytes()[..BITS as usize]);
    }
    let mut eight = [0; 8];
    eight[..rest.len()].copy_from_slice(rest);
    last.copy_from_slice(&join::<BITS>(u64::from_le_bytes(eight)).to_le_bytes()[..last.len()]);
}

fn unpack_width<const BITS: u32>(packed: &[u8], codes: &mut [u8]) {
    let (eights, rest) = codes.as_chunks_mut::<8>();
    let (packed, last) = packed.split_at(eights.len() * BITS as usize);
    let load = |bytes: &[u8]| {
        let mut stream = [0; 8];
        stream[..bytes.len()].copy_from_slice(bytes);
        split::<BITS>(u64::from_le_bytes(stream)).to_le_bytes()
    };
    for (eight, bytes) in eights.iter_mut().zip(packed.chunks_exact(BITS as usize)) {
        *eight = load(bytes);
    }
    rest.copy_from_slice(&load(last)[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One bit at a time, by the definition at the head of this file.
    fn pack_by_definition(codes: &[u16], bits: usize) -> Vec<u8> {
        let mut out = vec![0; (codes.len() * bits).div_ceil(8)];
        for (index, code) in codes.iter().enumerate() {
            for bit in 0..bits {
                let place = index * bits + bit;
                out[place / 8] |= ((code >> bit & 1) as u8) << (place % 8);
            }
        }
        out
    }

    #[test]
    fn three_bits_in_words_are_the_known_pattern() {
        // 32 codes 0, 1, …, 7, 0, … in three words: the sequence 0o76543210 repeats every 24 bits.
        let codes: Vec<u8> = (0..32).map(|i| i % 8).collect();
        let mut out = [0xff; 13];
        pack(&codes, 3, &mut out);
        assert_eq!(out, [0x88, 0xc6, 0xfa, 0x88, 0xc6, 0xfa, 0x88, 0xc6, 0xfa, 0x88, 0xc6, 0xfa, 0]);
    }

    proptest! {
        #[test]
        fn streams_are_as_defined_and_come_back(
            bits in 1u8..=16,
            codes in prop::collection::vec(any::<u16>(), 0..300),
            padding in 0usize..5,
        ) {
            let kept: Vec<u16> = codes.iter().map(|code| (u32::from(*code) % (1 << bits)) as u16).collect();
            let mut expected = pack_by_definition(&kept, usize::from(bits));
            prop_assert_eq!(expected.len(), packed_bytes(codes.len(), bits));
            expected.resize(expected.len() + padding, 0);

            let mut out = vec![0xee; expected.len()];
            pack_wide(&codes, bits, &mut out);
            prop_assert_eq!(&out, &expected);
            let mut again = vec![0xdead; codes.len()];
            unpack_wide(&out, bits, &mut again);
            prop_assert_eq!(&again, &kept);

            if bits <= 8 {
                let narrow: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
                let mut out = vec![0xee; expected.len()];
                pack(&narrow, bits, &mut out);
                prop_assert_eq!(&out, &expected);
                let mut again = vec![0xee; codes.len()];
                unpack(&out, bits, &mut again);
                prop_assert!(again.iter().zip(&kept).all(|(a, b)| u16::from(*a) == *b));
            }
        }
    }
}
