//! How many planes, or whether signs at all: chosen for each matrix from its difference, when a run is planned.

use serde::Serialize;
use toml::Value;

use super::{Share, Signs, low_rank, scales};
use crate::{
    codec::{CodecError, Delta, LowRank, Whole, delta::MAX_PLANES},
    forward::Matrix,
    passes::SettingError,
};

/// What decides the form of a difference beside the shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Target {
    /// Largest ‖D − D̂‖ / ‖D‖ of a matrix's difference D; chooses the planes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_relative_error: Option<f64>,
    /// Whether a product of two thin matrices is taken where it does better in no more bytes.
    pub low_rank: bool,
}

/// What is chosen for one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// The form.
    pub form: Whole,
    /// ‖D − D̂‖ / ‖D‖ of it; 0 where nothing has changed.
    pub error: f64,
}

impl Target {
    /// Types and takes a key; none where it is another one's.
    pub(super) fn take(&mut self, key: &str, value: &Value) -> Option<Result<(), SettingError>> {
        let wrong = |expected: &str| {
            Some(Err(SettingError { key: key.to_owned(), message: format!("expected {expected}, got {value}") }))
        };
        match (key, value) {
            ("max_relative_error", Value::Float(error)) if *error > 0.0 && *error < 1.0 => {
                self.max_relative_error = Some(*error);
            }
            ("max_relative_error", _) => return wrong("a number above 0, below 1"),
            ("low_rank", Value::Boolean(low_rank)) => self.low_rank = *low_rank,
            ("low_rank", _) => return wrong("true or false"),
            _ => return None,
        }
        Some(Ok(()))
    }

    /// Whether forms follow from the weights.
    #[must_use]
    pub fn needs_weights(&self) -> bool {
        self.low_rank || self.max_relative_error.is_some()
    }

    /// The form of a matrix, or of a stack of matrices of one shape, from their differences: the fewest planes within the
    /// error asked for, or `planes` where none is asked for; and in place of them, where that is let, the smallest rank
    /// within that error which takes fewer bytes, or without one the largest rank which takes no more bytes and has a
    /// smaller error.
    ///
    /// # Errors
    /// Whatever `difference` fails with, and [`CodecError`] when a difference cannot be decomposed.
    pub fn choose<E: From<CodecError>>(
        &self,
        share: Share,
        planes: usize,
        stack: usize,
        difference: impl Fn(usize) -> Result<Matrix, E>,
    ) -> Result<Chosen, E> {
        let most = if self.max_relative_error.is_some() { MAX_PLANES } else { planes };
        // What is left after so many planes, squared; none of it is the difference's own.
        let mut left = vec![0.0; most + 1];
        let mut shape = (0, 0);
        for index in 0..stack {
            let matrix = difference(index)?;
            shape = (matrix.rows, matrix.columns);
            residuals(matrix, share, &mut left);
        }
        let relative = |squares: f64| if left[0] > 0.0 { (squares / left[0]).sqrt() } else { 0.0 };
        let fits = |planes: &usize| self.max_relative_error.is_some_and(|most| relative(left[*planes]) <= most);
        let count = (1..=most).find(fits).unwrap_or(most);
        let signs = Delta { planes: count, share };
        let chosen = Chosen { form: Whole::Delta(signs), error: relative(left[count]) };
        if !self.low_rank || left[0] == 0.0 {
            return Ok(chosen);
        }
        let bytes =
            Whole::Delta(signs).tensors(shape.0, shape.1).iter().map(|tensor| tensor.bytes() as u64).sum::<u64>();
        let of_one = LowRank { rank: 1 }.bytes(shape.0, shape.1);
        let room = if self.max_relative_error.is_some() { bytes.saturating_sub(1) } else { bytes };
        let largest = usize::try_from(room / of_one.max(1)).unwrap_or(usize::MAX).min(shape.0.min(shape.1));
        if largest == 0 {
            return Ok(chosen);
        }
        // Squares of singular values, summed over the stack.
        let mut energies = vec![0.0; largest];
        for index in 0..stack {
            let values = low_rank::factors(&difference(index)?, largest)?.values;
            energies.iter_mut().zip(values).for_each(|(energy, value)| *energy += value * value);
        }
        // What lies below this is less than F16 loses of the others.
        let rank = energies.iter().take_while(|energy| **energy > 1e-10 * left[0]).count();
        let mut rest = left[0];
        let within = |rest: f64| relative(rest.max(0.0)) <= self.max_relative_error.unwrap_or(0.0);
        let enough = energies[..rank].iter().position(|energy| {
            rest -= energy;
            within(rest)
        });
        let mut rank = match (self.max_relative_error, enough) {
            (Some(_), None) => return Ok(chosen),
            (Some(_), Some(index)) => index + 1,
            (None, _) => rank,
        };
        // What is stored is rounded; one more may be needed.
        while (1..=largest).contains(&rank) {
            let format = LowRank { rank };
            let mut squares = 0.0;
            for index in 0..stack {
                squares += missed(format, &difference(index)?)?;
            }
            let error = relative(squares);
            let better = self.max_relative_error.map_or(error < chosen.error, |most| error <= most);
            if better {
                return Ok(Chosen { form: Whole::LowRank(format), error });
            }
            if self.max_relative_error.is_none() {
                break;
            }
            rank += 1 + rank / 16;
        }
        Ok(chosen)
    }
}

/// Adds ‖R‖² of what is left of a difference after 0, 1, 2, … planes.
fn residuals(mut difference: Matrix, share: Share, left: &mut [f64]) {
    let squares = |matrix: &Matrix| matrix.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    left[0] += squares(&difference);
    for left in &mut left[1..] {
        let signs = Signs::of(difference.rows, difference.columns, &difference.values);
        let scales = scales(&difference, &signs, share, None).into_iter().map(|scale| scale as f32).collect();
        super::Plane { signs, scales }.add_to(&mut difference, -1.0);
        *left += squares(&difference);
    }
}

/// ‖D − D̂‖² of what is stored.
fn missed(format: LowRank, difference: &Matrix) -> Result<f64, CodecError> {
    let stored = low_rank::encode(format, difference)?;
    let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
    let decoded = format.decode(difference.rows, difference.columns, &stored)?;
    Ok(decoded.iter().zip(&difference.values).map(|(a, b)| f64::from(a - b).powi(2)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without pattern, about half of them negative.
    fn noise(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
        };
        Matrix { rows, columns, values: (0..rows * columns).map(|_| next() + next() + next()).collect() }
    }

    fn product(left: &Matrix, right: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(left.rows, right.columns);
        for row in 0..left.rows {
            for column in 0..right.columns {
                let terms = (0..left.columns).map(|at| left.row(row)[at] * right.row(at)[column]);
                out.values[row * right.columns + column] = terms.sum();
            }
        }
        out
    }

    fn choose(target: Target, planes: usize, difference: &Matrix) -> Chosen {
        target.choose(Share::Row, planes, 1, |_| Ok::<_, CodecError>(difference.clone())).unwrap()
    }

    #[test]
    fn the_fewest_planes_within_the_error_are_taken() {
        let difference = noise(96, 120, 1);
        let mut before = 0;
        for most in [0.7, 0.4, 0.2, 0.1] {
            let target = Target { max_relative_error: Some(most), low_rank: true };
            let Chosen { form: Whole::Delta(delta), error } = choose(target, 1, &difference) else {
                panic!("noise has full rank")
            };
            assert!(error <= most && delta.planes >= before, "{most}");
            // One plane less, by the definition, is not enough.
            let planes = super::super::decompose(difference.clone(), delta.planes - 1, Share::Row, None);
            let mut rest = difference.clone();
            for plane in &planes {
                plane.add_to(&mut rest, -1.0);
            }
            let norm =
                |matrix: &Matrix| matrix.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            assert!(norm(&rest) / norm(&difference) > most, "{most}");
            before = delta.planes;
        }
        assert!(before > 3);
    }

    #[test]
    fn a_product_of_thin_matrices_is_stored_as_one() {
        // Wide enough for the sketch, and narrow enough for the whole decomposition.
        for (rows, columns) in [(200, 170), (40, 50)] {
            let exact = product(&noise(rows, 2, 3), &noise(2, columns, 4));
            let target = Target { max_relative_error: Some(0.01), low_rank: true };
            let Chosen { form, error } = choose(target, 1, &exact);
            assert_eq!(form, Whole::LowRank(LowRank { rank: 2 }));
            assert!(error < 1e-3, "{error}");
            // Without an error asked for: at most the bytes of one plane.
            let Chosen { form, .. } = choose(Target { low_rank: true, ..Target::default() }, 1, &exact);
            assert_eq!(form, Whole::LowRank(LowRank { rank: 2 }));
        }
    }

    #[test]
    fn a_sketch_finds_what_the_whole_decomposition_finds() {
        let mut difference = product(&noise(160, 6, 5), &noise(6, 150, 6));
        difference.values.iter_mut().zip(noise(160, 150, 7).values).for_each(|(value, noise)| *value += 0.05 * noise);
        let wide = ndarray::Array2::from_shape_fn((160, 150), |(r, c)| f64::from(difference.row(r)[c]));
        let exact = crate::linalg::default_backend().thin_svd(wide.view()).unwrap().values;
        let found = low_rank::factors(&difference, 6).unwrap().values;
        for at in 0..6 {
            assert!((found[at] - exact[at]).abs() < 1e-6 * exact[0], "{at}: {} {}", found[at], exact[at]);
        }
        let tail: f64 = exact.iter().skip(6).map(|value| value * value).sum();
        let missed = missed(LowRank { rank: 6 }, &difference).unwrap();
        assert!(missed < 1.01 * tail + 1e-6 * exact[0].powi(2), "{missed} {tail}");
    }

    #[test]
    fn nothing_changed_is_one_plane_without_error() {
        let target = Target { max_relative_error: Some(0.1), low_rank: true };
        let chosen = choose(target, 4, &Matrix::zeros(9, 20));
        assert_eq!(chosen, Chosen { form: Whole::Delta(Delta { planes: 1, share: Share::Row }), error: 0.0 });
    }

    #[test]
    fn keys_are_typed() {
        let mut target = Target::default();
        assert!(target.take("planes", &Value::Integer(1)).is_none());
        assert!(target.take("low_rank", &Value::Boolean(true)).unwrap().is_ok());
        assert!(target.take("max_relative_error", &Value::Float(0.2)).unwrap().is_ok());
        assert_eq!(target, Target { max_relative_error: Some(0.2), low_rank: true });
        assert_eq!(target.take("low_rank", &Value::Integer(1)).unwrap().unwrap_err().key, "low_rank");
        for wrong in [Value::Float(0.0), Value::Float(1.0), Value::Integer(0), Value::Float(f64::NAN)] {
            assert!(target.take("max_relative_error", &wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
