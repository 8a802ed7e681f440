//! Losses between a student's and a teacher's logits, with their gradients.
//!
//! Logits of a batch are never whole in memory: classes are cut into pieces, tokens into runs. Where the classes are more
//! than one piece, a first round over them gathers what soft-max needs and a second computes the gradient.

use std::ops::Range;

use faer::Accum;
use rayon::prelude::*;

use super::{Head, Matrix, Real, ReverseError, TakeGradient, WeightGradient, head::CLASSES, matrix::multiply};
use crate::forward::WeightSource;

/// How a student's logits are compared with a teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// KL(teacher ‖ student) over the classes, nats, mean over tokens.
    Divergence,
    /// Mean over tokens and classes of the squared difference of the logits (BitDelta, arXiv 2402.10193, §3.1).
    SquaredError,
}

/// A head and where its classes' weights lie.
#[derive(Clone, Copy)]
pub struct Classes<'a, T> {
    /// The head.
    pub head: &'a Head<'a, T>,
    /// The weights.
    pub source: &'a dyn WeightSource,
}

/// How much of the logits is in memory at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Classes of a piece.
    pub classes: usize,
    /// Tokens of a run.
    pub tokens: usize,
}

impl Pieces {
    /// Pieces whose weights (of student and teacher) and logits take about so many bytes together.
    #[must_use]
    pub fn within(bytes: usize, width: usize, classes: usize, number_bytes: usize) -> Self {
        let numbers = bytes / number_bytes.max(1);
        let piece = (numbers / 2 / (2 * width.max(1))).clamp(1, classes.max(1));
        Self { classes: piece, tokens: (numbers / 2 / (3 * piece)).clamp(1, 4096) }
    }
}

/// Compares the logits of two heads.
pub struct Comparison<'a, T> {
    loss: Loss,
    student: Classes<'a, T>,
    teacher: Classes<'a, T>,
    pieces: Pieces,
    /// The piece read last; stays where there is only one.
    kept: Option<(usize, [Matrix<T>; 2])>,
}

/// What soft-max needs of one token's classes seen so far.
#[derive(Debug, Clone, Copy)]
struct Running<T> {
    student: T,
    student_sum: f64,
    teacher: T,
    teacher_sum: f64,
    /// `Σ e^(r − largest) (r − z)` over teacher's logits r and student's z.
    gap: f64,
}

impl<T: Real> Running<T> {
    const EMPTY: Self = Self { student: T::LOWEST, student_sum: 0.0, teacher: T::LOWEST, teacher_sum: 0.0, gap: 0.0 };

    fn add(&mut self, student: &[T], teacher: &[T]) {
        let largest = |start: T, values: &[T]| values.iter().fold(start, |m, v| if *v > m { *v } else { m });
        let top = largest(self.student, student);
        self.student_sum *= (self.student - top).exp().wide();
        self.student = top;
        self.student_sum += student.iter().map(|z| (*z - top).exp().wide()).sum::<f64>();
        let top = largest(self.teacher, teacher);
        let factor = (self.teacher - top).exp().wide();
        self.teacher_sum *= factor;
        self.gap *= factor;
        self.teacher = top;
        for (r, z) in teacher.iter().zip(student) {
            let share = (*r - top).exp().wide();
            self.teacher_sum += share;
            self.gap += share * (*r - *z).wide();
        }
    }

    fn divergence(&self) -> f64 {
        let teacher = self.teacher.wide() + self.teacher_sum.ln();
        let student = self.student.wide() + self.student_sum.ln();
        self.gap / self.teacher_sum - teacher + student
    }
}

impl<'a, T: Real> Comparison<'a, T> {
    /// A comparison of two heads.
    ///
    /// # Errors
    /// [`ReverseError::Classes`] when they have not as many classes.
    pub fn new(
        loss: Loss,
        student: Classes<'a, T>,
        teacher: Classes<'a, T>,
        pieces: Pieces,
    ) -> Result<Self, ReverseError> {
        let (ours, theirs) = (student.head.classes(), teacher.head.classes());
        if ours != theirs {
            return Err(ReverseError::Classes { student: ours, teacher: theirs });
        }
        Ok(Self { loss, student, teacher, pieces, kept: None })
    }

    fn weights(&mut self, piece: Range<usize>) -> Result<&[Matrix<T>; 2], ReverseError> {
        let kept = match self.kept.take() {
            Some(kept) if kept.0 == piece.start => kept,
            _ => {
                let read = |side: &Classes<'a, T>| side.head.class_weights(side.source, piece.start, piece.len());
                (piece.start, [read(&self.student)?, read(&self.teacher)?])
            }
        };
        Ok(&self.kept.insert(kept).1)
    }

    /// Loss of a batch and the gradient of what the student's classes read, from what both heads' classes read,
    /// `[tokens, width]`. Both are divided by `tokens`, which may count other batches as well. Gradients of the student's
    /// classes go to `take`, piece by piece and run by run.
    ///
    /// # Errors
    /// As [`WeightSource::read`]; the first one that `take` gives.
    pub fn gradient(
        &mut self,
        student: &Matrix<T>,
        teacher: &Matrix<T>,
        tokens: usize,
        take: &mut TakeGradient<'_, T>,
    ) -> Result<(f64, Matrix<T>), ReverseError> {
        let (classes, rows) = (self.student.head.classes(), student.rows);
        let (loss, pieces, heads) = (self.loss, self.pieces, [self.student.head, self.teacher.head]);
        let ranges = |whole: usize, part: usize| {
            (0..whole).step_by(part.max(1)).map(move |first| first..whole.min(first + part.max(1)))
        };
        let logits = |run: &Range<usize>, weights: &[Matrix<T>; 2]| {
            [
                heads[0].logits(&student.rows(run.clone()), &weights[0]),
                heads[1].logits(&teacher.rows(run.clone()), &weights[1]),
            ]
        };
        let gather = |running: &mut [Running<T>], logits: &[Matrix<T>; 2]| {
            running.par_iter_mut().enumerate().for_each(|(token, running)| {
                running.add(logits[0].row(token), logits[1].row(token));
            });
        };
        let mut running = vec![Running::EMPTY; if loss == Loss::Divergence { rows } else { 0 }];
        let single = pieces.classes >= classes;
        if loss == Loss::Divergence && !single {
            for piece in ranges(classes, pieces.classes) {
                let weights = self.weights(piece)?;
                for run in ranges(rows, pieces.tokens) {
                    gather(&mut running[run.clone()], &logits(&run, weights));
                }
            }
        }
        let mut d_top = Matrix::zeros(rows, student.columns);
        let mut squares = 0.0;
        for piece in ranges(classes, pieces.classes) {
            let weights = self.weights(piece.clone())?;
            for run in ranges(rows, pieces.tokens) {
                let mut logits = logits(&run, weights);
                let [student_logits, teacher_logits] = &mut logits;
                let mut d = match loss {
                    Loss::Divergence => {
                        if single {
                            gather(&mut running[run.clone()], &logits);
                        }
                        shares(&running[run.clone()], &logits, tokens)
                    }
                    Loss::SquaredError => {
                        let (d, sum) = differences(student_logits, teacher_logits, tokens * classes);
                        squares += sum;
                        d
                    }
                };
                heads[0].reverse_cap(&logits[0], &mut d);
                let x = student.rows(run.clone());
                let (place, outputs) = ((CLASSES, piece.start), piece.len());
                take(&WeightGradient { place, x: &x, d: &d, first: 0, outputs })?;
                let target = d_top.view_mut().subrows_mut(run.start, run.len());
                multiply(target, Accum::Add, d.view(), weights[0].view());
            }
        }
        let total = match loss {
            Loss::Divergence => running.iter().map(Running::divergence).sum::<f64>() / tokens as f64,
            Loss::SquaredError => squares / (tokens * classes) as f64,
        };
        Ok((total, d_top))
    }
}

/// Gradient of the divergence: (q − p) / tokens, with q the student's probabilities and p the teacher's.
fn shares<T: Real>(running: &[Running<T>], [student, teacher]: &[Matrix<T>; 2], tokens: usize) -> Matrix<T> {
    let mut d = Matrix::zeros(student.rows, student.columns);
    d.values.par_chunks_mut(student.columns.max(1)).enumerate().for_each(|(token, d)| {
        let running = &running[token];
        let factor = |sum: f64| T::of(1.0 / (sum * tokens as f64));
        let (ours, theirs) = (factor(running.student_sum), factor(running.teacher_sum));
        for ((d, z), r) in d.iter_mut().zip(student.row(token)).zip(teacher.row(token)) {
            *d = (*z - running.student).exp() * ours - (*r - running.teacher).exp() * theirs;
        }
    });
    d
}

/// Gradient of the squared error, 2 (z − r) / count, and the sum of squares.
fn differences<T: Real>(student: &Matrix<T>, teacher: &Matrix<T>, count: usize) -> (Matrix<T>, f64) {
    let mut d = Matrix::zeros(student.rows, student.columns);
    let factor = T::of(2.0 / count as f64);
    let sums: Vec<f64> = d
        .values
        .par_chunks_mut(student.columns.max(1))
        .enumerate()
        .map(|(token, d)| {
            let mut sum = 0.0;
            for ((d, z), r) in d.iter_mut().zip(student.row(token)).zip(teacher.row(token)) {
                let difference = *z - *r;
                sum += difference.wide() * difference.wide();
                *d = factor * difference;
            }
            sum
        })
        .collect();
    (d, sums.iter().sum())
}
