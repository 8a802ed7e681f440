//! Streams of words of up to 128 bits, least significant bit first, without padding between them.
//!
//! Word i of b bits occupies bits i·b to (i + 1)·b − 1; bit k is bit k mod 8 of byte k div 8: the order of
//! [`super::super::bits`], for words that are wider.

/// Bytes beyond a stream that [`put`] and [`get`] may touch.
pub const SLACK: usize = 16;

/// Bytes of a stream of `count` words; none where that overflows.
#[must_use]
pub fn stream_bytes(count: usize, bits: u32) -> Option<usize> {
    // In two parts, so that only what does not fit overflows.
    (count / 8).checked_mul(bits as usize)?.checked_add((count % 8 * bits as usize).div_ceil(8))
}

/// Writes the lower `bits` bits, at most 64, from bit `at` on; the bits are zero before. `out` has [`SLACK`].
#[inline(always)]
pub fn put(out: &mut [u8], at: usize, bits: u32, word: u64) {
    let (first, shift) = (at / 8, at % 8);
    let place = &mut out[first..first + 9];
    debug_assert!(bits == 64 || word >> bits == 0);
    for (byte, more) in place[..8].iter_mut().zip((word << shift).to_le_bytes()) {
        *byte |= more;
    }
    // The bits shifted out; in two steps, as a shift by 64 is none.
    place[8] |= (word >> 1 >> (63 - shift)) as u8;
}

/// Reads `bits` bits, at most 64, from bit `at` on. `stream` has [`SLACK`].
#[inline(always)]
pub fn get(stream: &[u8], at: usize, bits: u32) -> u64 {
    let (first, shift) = (at / 8, at % 8);
    let place = &stream[first..first + 9];
    let mut low = [0; 8];
    low.copy_from_slice(&place[..8]);
    let word = u64::from_le_bytes(low) >> shift | u64::from(place[8]) << 1 << (63 - shift);
    if bits < 64 { word & ((1 << bits) - 1) } else { word }
}

/// As [`put`], for up to 128 bits.
pub fn put_wide(out: &mut [u8], at: usize, bits: u32, word: u128) {
    put(out, at, bits.min(64), word as u64);
    if bits > 64 {
        put(out, at + 64, bits - 64, (word >> 64) as u64);
    }
}

/// As [`get`], for up to 128 bits.
pub fn get_wide(stream: &[u8], at: usize, bits: u32) -> u128 {
    let low = u128::from(get(stream, at, bits.min(64)));
    if bits > 64 { low | u128::from(get(stream, at + 64, bits - 64)) << 64 } else { low }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn words_lie_bit_after_bit(words in prop::collection::vec(any::<u128>(), 1..20), bits in 1_u32..=128) {
            let mask = u128::MAX >> (128 - bits);
            let bytes = stream_bytes(words.len(), bits).unwrap();
            let mut stream = vec![0; bytes + SLACK];
            for (index, word) in words.iter().enumerate() {
                put_wide(&mut stream, index * bits as usize, bits, word & mask);
            }
            // Bit by bit, as it is defined.
            let mut expected = vec![0_u8; bytes + SLACK];
            for (index, word) in words.iter().enumerate() {
                for bit in 0..bits as usize {
                    let at = index * bits as usize + bit;
                    expected[at / 8] |= ((word >> bit & 1) as u8) << (at % 8);
                }
            }
            prop_assert_eq!(&stream, &expected);
            stream[bytes..].fill(0xff);
            for (index, word) in words.iter().enumerate() {
                prop_assert_eq!(get_wide(&stream, index * bits as usize, bits), word & mask);
            }
        }
    }

    #[test]
    fn bytes_of_streams_are_exact_and_do_not_overflow() {
        assert_eq!(stream_bytes(3, 3), Some(2));
        assert_eq!(stream_bytes(0, 128), Some(0));
        assert_eq!(stream_bytes(usize::MAX, 8), Some(usize::MAX));
        assert_eq!(stream_bytes(usize::MAX, 9), None);
    }
}
