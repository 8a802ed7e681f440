//! Stored tensors from points, gains and scales, and weights from stored tensors.

use half::f16;
use rayon::prelude::*;

use super::{
    Pyramid, Sizes,
    index::{Order, Word},
    words::{self, SLACK},
};
use crate::codec::{CodecError, bits};

/// A matrix in points, gains and scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Points {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Points, `[blocks, columns, dimension]`; magnitudes of each add up to the format's pulses.
    pub points: Vec<i16>,
    /// Gains, `[blocks, columns]`.
    pub gains: Vec<u8>,
    /// The columns' scales, finite and not negative.
    pub column_scales: Vec<f16>,
    /// The gains' levels, finite and not negative.
    pub gain_codebook: Vec<f32>,
}

/// By how much scale times level must stay below the largest F32.
pub(crate) const ROOM: f32 = 1.001;

/// The words of a format: those of up to 64 bits without any arithmetic on 128.
enum Orders {
    Narrow(Order<u64>),
    Wide(Order<u128>),
}

impl Orders {
    fn new(pyramid: &Pyramid) -> Result<Self, CodecError> {
        if let Some(order) = Order::new(pyramid.dimension, pyramid.pulses) {
            return Ok(Self::Narrow(order));
        }
        let problem = "its points take more than 128 bits";
        let refused = CodecError::Pyramid { pyramid: *pyramid, problem };
        Order::new(pyramid.dimension, pyramid.pulses).map(Self::Wide).ok_or(refused)
    }
}

fn malformed(what: &'static str, problem: impl Into<String>) -> CodecError {
    CodecError::Stored { what, problem: problem.into() }
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<(), CodecError> {
    if expected == got { Ok(()) } else { Err(CodecError::Length { what, expected, got }) }
}

impl Pyramid {
    /// The stored tensors, in the order of [`Pyramid::tensors`].
    ///
    /// # Errors
    /// [`CodecError`] when a list is of a wrong length, a point is not of this pyramid, or a gain has no level.
    pub fn encode(&self, coded: &Points) -> Result<Vec<Vec<u8>>, CodecError> {
        let sizes = self.sizes(coded.rows, coded.columns)?;
        let (columns, vectors) = (coded.columns, sizes.blocks * coded.columns);
        check_length("coordinates of points", vectors * self.dimension, coded.points.len())?;
        check_length("gains", vectors, coded.gains.len())?;
        check_length("column scales", columns, coded.column_scales.len())?;
        check_length("gain levels", 1 << self.gain_bits, coded.gain_codebook.len())?;
        let (orders, index_bits) = (Orders::new(self)?, self.index_bits().unwrap_or_default());
        let sum = |point: &[i16]| point.iter().map(|y| u32::from(y.unsigned_abs())).sum::<u32>();
        if coded.points.par_chunks_exact(self.dimension).any(|point| sum(point) != self.pulses) {
            return Err(malformed("points", format!("one does not have {} pulses", self.pulses)));
        }
        if coded.gains.iter().any(|gain| usize::from(*gain) >= coded.gain_codebook.len()) {
            return Err(malformed("gains", "one has no level"));
        }
        let mut words = vec![0; sizes.blocks * sizes.word_bytes];
        let mut gains = vec![0; sizes.blocks * sizes.gain_bytes];
        if columns > 0 {
            let blocks = words.par_chunks_exact_mut(sizes.word_bytes).zip(gains.par_chunks_exact_mut(sizes.gain_bytes));
            blocks.enumerate().for_each(|(block, (words, gains))| {
                let points = &coded.points[block * columns * self.dimension..][..columns * self.dimension];
                let mut stream = vec![0; words.len() + SLACK];
                match &orders {
                    Orders::Narrow(order) => {
                        for (at, point) in points.chunks_exact(self.dimension).enumerate() {
                            words::put(&mut stream, at * index_bits as usize, index_bits, order.index(point));
                        }
                    }
                    Orders::Wide(order) => {
                        for (at, point) in points.chunks_exact(self.dimension).enumerate() {
                            words::put_wide(&mut stream, at * index_bits as usize, index_bits, order.index(point));
                        }
                    }
                }
                words.copy_from_slice(&stream[..words.len()]);
                bits::pack(&coded.gains[block * columns..][..columns], self.gain_bits, gains);
            });
        }
        let column_scales = coded.column_scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let gain_codebook = coded.gain_codebook.iter().flat_map(|level| level.to_le_bytes()).collect();
        Ok(vec![words, gains, column_scales, gain_codebook])
    }

    /// The weights, `[rows, columns]`, of tensors in the order of [`Pyramid::tensors`].
    ///
    /// # Errors
    /// [`CodecError`] when there are not so many tensors or they are not of the lengths that the shape asks for; when an
    /// index is none of the pyramid's, scales or levels are negative or not finite or their products overflow, or bits
    /// after the last word or gain of a block are set.
    pub fn decode(&self, rows: usize, columns: usize, tensors: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        let sizes = self.sizes(rows, columns)?;
        let Ok([words, gains, column_scales, gain_codebook]) = <[&[u8]; 4]>::try_from(tensors) else {
            return Err(CodecError::Length { what: "tensors", expected: 4, got: tensors.len() });
        };
        check_length("bytes of words", sizes.blocks * sizes.word_bytes, words.len())?;
        check_length("bytes of gains", sizes.blocks * sizes.gain_bytes, gains.len())?;
        check_length("bytes of column scales", columns * 2, column_scales.len())?;
        check_length("bytes of gain levels", 4 << self.gain_bits, gain_codebook.len())?;
        let scales: Vec<f32> =
            column_scales.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect();
        let levels: Vec<f32> =
            gain_codebook.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        for (what, list) in [("column scales", &scales), ("gain levels", &levels)] {
            if let Some(index) = list.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(malformed(what, format!("number {index} is {}", list[index])));
            }
        }
        let largest = |list: &[f32]| list.iter().fold(0.0_f32, |largest, value| largest.max(*value));
        // No |y| is beyond √(Σ y²): what is finite here, with room for rounding, is finite in every weight.
        if !(largest(&scales) * largest(&levels) * ROOM).is_finite() {
            return Err(malformed("column scales", "times gain levels they are beyond F32"));
        }
        let orders = Orders::new(self)?;
        let mut weights = vec![0.0; rows * columns];
        if columns == 0 {
            return Ok(weights);
        }
        let index_bits = self.index_bits().unwrap_or_default();
        let job = Decode { pyramid: self, sizes, index_bits, scales: &scales, levels: &levels };
        let blocks = weights.par_chunks_mut(self.dimension * columns).enumerate();
        blocks.try_for_each(|(block, weights)| {
            let words = &words[block * sizes.word_bytes..][..sizes.word_bytes];
            let gains = &gains[block * sizes.gain_bytes..][..sizes.gain_bytes];
            match &orders {
                Orders::Narrow(order) => job.block(block, order, words::get, words, gains, weights),
                Orders::Wide(order) => job.block(block, order, words::get_wide, words, gains, weights),
            }
        })?;
        Ok(weights)
    }
}

struct Decode<'a> {
    pyramid: &'a Pyramid,
    sizes: Sizes,
    index_bits: u32,
    scales: &'a [f32],
    levels: &'a [f32],
}

impl Decode<'_> {
    fn block<W: Word>(
        &self,
        block: usize,
        order: &Order<W>,
        get: impl Fn(&[u8], usize, u32) -> W,
        words: &[u8],
        gains: &[u8],
        weights: &mut [f32],
    ) -> Result<(), CodecError> {
        let columns = self.scales.len();
        let index_bits = self.index_bits;
        for (what, bytes, used) in [
            ("words", words, columns * index_bits as usize),
            ("gains", gains, columns * usize::from(self.pyramid.gain_bits)),
        ] {
            if used % 8 != 0 && bytes[bytes.len() - 1] >> (used % 8) != 0 {
                return Err(malformed(what, format!("bits after the last of block {block} are set")));
            }
        }
        let mut stream = Vec::with_capacity(self.sizes.word_bytes + SLACK);
        stream.extend_from_slice(words);
        stream.resize(self.sizes.word_bytes + SLACK, 0);
        let mut codes = vec![0; columns];
        bits::unpack(gains, self.pyramid.gain_bits, &mut codes);
        let mut point = vec![0_i16; self.pyramid.dimension];
        let rows = weights.len() / columns;
        for (column, (gain, scale)) in codes.iter().zip(self.scales).enumerate() {
            if !order.point(get(&stream, column * index_bits as usize, index_bits), &mut point) {
                let problem = format!("that of block {block}, column {column} is no index of {}", self.pyramid.name());
                return Err(malformed("words", problem));
            }
            let square: i32 = point.iter().map(|y| i32::from(*y) * i32::from(*y)).sum();
            let step = Pyramid::step(*scale, self.levels[usize::from(*gain)], square as f32);
            for (row, y) in point[..rows].iter().enumerate() {
                weights[row * columns + column] = step * f32::from(*y);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: Pyramid = Pyramid { dimension: 3, pulses: 2, gain_bits: 3 };
    const WIDE: Pyramid = Pyramid { dimension: 16, pulses: 70, gain_bits: 2 };

    /// Two columns of `rows` rows, with all pulses of a vector at one place.
    fn coded(pyramid: &Pyramid, rows: usize) -> Points {
        let blocks = rows.div_ceil(pyramid.dimension);
        let mut points = vec![0; blocks * 2 * pyramid.dimension];
        for (vector, point) in points.chunks_exact_mut(pyramid.dimension).enumerate() {
            let pulses = pyramid.pulses as i16;
            point[vector % pyramid.dimension] = if vector % 2 == 0 { pulses } else { -pulses };
        }
        Points {
            rows,
            columns: 2,
            points,
            gains: (0..blocks * 2).map(|vector| (vector % 4) as u8).collect(),
            column_scales: vec![f16::from_f32(2.0), f16::from_f32(0.5)],
            gain_codebook: (0..1_u8 << pyramid.gain_bits).map(|level| f32::from(level) * 0.25).collect(),
        }
    }

    fn decode(pyramid: &Pyramid, rows: usize, tensors: &[Vec<u8>]) -> Result<Vec<f32>, CodecError> {
        pyramid.decode(rows, 2, &tensors.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn weights_are_those_of_the_definition() {
        for (pyramid, rows) in [(NARROW, 8), (WIDE, 37), (NARROW, 3)] {
            let coded = coded(&pyramid, rows);
            let weights = decode(&pyramid, rows, &pyramid.encode(&coded).unwrap()).unwrap();
            for (index, weight) in weights.iter().enumerate() {
                let (row, column) = (index / 2, index % 2);
                let vector = row / pyramid.dimension * 2 + column;
                let level = f64::from(coded.gain_codebook[usize::from(coded.gains[vector])]);
                // A point with all pulses at one place is a unit vector.
                let sign = if vector % 2 == 0 { 1.0 } else { -1.0 };
                let here = row % pyramid.dimension == vector % pyramid.dimension;
                let expected = if here { sign * level * coded.column_scales[column].to_f64() } else { 0.0 };
                assert!((f64::from(*weight) - expected).abs() < 1e-6, "{} {row} {column}", pyramid.name());
            }
        }
    }

    #[test]
    fn malformed_tensors_are_refused() {
        for pyramid in [NARROW, WIDE] {
            let good = pyramid.encode(&coded(&pyramid, 20)).unwrap();
            assert!(decode(&pyramid, 20, &good).is_ok());
            let refused = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
                let mut tensors = good.clone();
                change(&mut tensors);
                decode(&pyramid, 20, &tensors).unwrap_err()
            };
            for tensor in 0..4 {
                let error = refused(&|tensors| tensors[tensor].truncate(1));
                assert!(matches!(error, CodecError::Length { .. }), "{error}");
                let error = refused(&|tensors| tensors[tensor].push(0));
                assert!(matches!(error, CodecError::Length { .. }), "{error}");
            }
            assert!(matches!(refused(&|tensors| tensors.truncate(3)), CodecError::Length { .. }));
            let stored = |error: CodecError, part: &str| {
                assert!(matches!(error, CodecError::Stored { what, .. } if what == part), "{error}");
            };
            // Indices beyond the last: all bits of the first word are set. V is no power of two.
            stored(refused(&|tensors| tensors[0][..9].fill(0xff)), "words");
            stored(refused(&|tensors| tensors[2][1] = 0x7c), "column scales");
            stored(refused(&|tensors| tensors[2][1] |= 0x80), "column scales");
            stored(refused(&|tensors| tensors[2][..2].fill(0xff)), "column scales");
            stored(refused(&|tensors| tensors[3][4..8].copy_from_slice(&f32::NAN.to_le_bytes())), "gain levels");
            stored(refused(&|tensors| tensors[3][4..8].copy_from_slice(&(-1_f32).to_le_bytes())), "gain levels");
            // 2 · 3e38 is no F32.
            stored(refused(&|tensors| tensors[3][4..8].copy_from_slice(&3e38_f32.to_le_bytes())), "column scales");
        }
        let good = NARROW.encode(&coded(&NARROW, 20)).unwrap();
        // Two words of five bits and two gains of three leave bits of their last byte unused.
        for (tensor, at) in [(0, 1), (1, 0)] {
            let mut tensors = good.clone();
            tensors[tensor][at] |= 0x80;
            assert!(matches!(decode(&NARROW, 20, &tensors), Err(CodecError::Stored { .. })));
        }
    }

    #[test]
    fn points_of_another_pyramid_are_refused() {
        let mut wrong = coded(&NARROW, 6);
        wrong.points[0] += 1;
        assert!(matches!(NARROW.encode(&wrong), Err(CodecError::Stored { what: "points", .. })));
        let mut wrong = coded(&NARROW, 6);
        wrong.gains[0] = 8;
        assert!(matches!(NARROW.encode(&wrong), Err(CodecError::Stored { what: "gains", .. })));
        let mut wrong = coded(&NARROW, 6);
        wrong.points.pop();
        assert!(matches!(NARROW.encode(&wrong), Err(CodecError::Length { .. })));
    }
}
