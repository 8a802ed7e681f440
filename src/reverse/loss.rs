//! Losses of a student's logits against a teacher's or against the text, with their gradients.
//!
//! Logits of a batch are never whole in memory: classes are cut into pieces, tokens into runs. Where the classes are more
//! than one piece, a first round over them gathers what soft-max needs and a second computes the gradient.

use std::ops::Range;

use faer::Accum;
use rayon::prelude::*;

use super::{
    Head, Matrix, Real, ReverseError, TakeGradient, WeightGradient, head::CLASSES, linear::shape, matrix::multiply,
};
use crate::forward::WeightSource;

/// What a student's logits are compared with, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// KL(teacher ‖ student) over the classes, nats, mean over tokens.
    Divergence,
    /// Mean over tokens and classes of the squared difference of the logits (BitDelta, arXiv 2402.10193, §3.1).
    SquaredError,
    /// Cross-entropy of the next token, nats, mean over the tokens that have one. Needs no teacher.
    NextToken,
}

impl Loss {
    /// Whether it needs a teacher.
    #[must_use]
    pub fn has_teacher(self) -> bool {
        self != Self::NextToken
    }
}

/// What a batch's logits are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'r, T> {
    /// What the teacher's classes read, `[tokens, width]`.
    Teacher(&'r Matrix<T>),
    /// The class that each token should predict, where there is one.
    Tokens(&'r [Option<u32>]),
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

/// Compares the logits of a head with those of another, or with the text.
pub struct Comparison<'a, T> {
    loss: Loss,
    student: Classes<'a, T>,
    teacher: Option<Classes<'a, T>>,
    pieces: Pieces,
    /// The piece read last, of student and teacher; stays where there is only one.
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
    /// The student's logit of the token that it should predict.
    target: T,
}

impl<T: Real> Running<T> {
    const EMPTY: Self =
        Self { student: T::LOWEST, student_sum: 0.0, teacher: T::LOWEST, teacher_sum: 0.0, gap: 0.0, target: T::ZERO };

    fn add_student(&mut self, student: &[T]) {
        let top = largest(self.student, student);
        self.student_sum *= (self.student - top).exp().wide();
        self.student = top;
        self.student_sum += student.iter().map(|z| (*z - top).exp().wide()).sum::<f64>();
    }

    fn add_teacher(&mut self, student: &[T], teacher: &[T]) {
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

    fn log_sum(&self) -> f64 {
        self.student.wide() + libm::log(self.student_sum)
    }

    fn divergence(&self) -> f64 {
        self.gap / self.teacher_sum - self.teacher.wide() - libm::log(self.teacher_sum) + self.log_sum()
    }
}

fn largest<T: Real>(start: T, values: &[T]) -> T {
    values.iter().fold(start, |largest, value| if *value > largest { *value } else { largest })
}

impl<'a, T: Real> Comparison<'a, T> {
    /// A comparison of two heads, or of one with the text.
    ///
    /// # Errors
    /// [`ReverseError::Classes`] when they have not as many classes; [`ReverseError::NoTeacher`] for a loss that needs one.
    pub fn new(
        loss: Loss,
        student: Classes<'a, T>,
        teacher: Option<Classes<'a, T>>,
        pieces: Pieces,
    ) -> Result<Self, ReverseError> {
        let teacher = teacher.filter(|_| loss.has_teacher());
        match &teacher {
            None if loss.has_teacher() => return Err(ReverseError::NoTeacher),
            Some(teacher) if teacher.head.classes() != student.head.classes() => {
                let (student, teacher) = (student.head.classes(), teacher.head.classes());
                return Err(ReverseError::Classes { student, teacher });
            }
            _ => {}
        }
        Ok(Self { loss, student, teacher, pieces, kept: None })
    }

    fn weights(&mut self, piece: Range<usize>) -> Result<&[Matrix<T>; 2], ReverseError> {
        let kept = match self.kept.take() {
            Some(kept) if kept.0 == piece.start => kept,
            _ => {
                let read = |side: &Classes<'a, T>| side.head.class_weights(side.source, piece.start, piece.len());
                let teacher = self.teacher.as_ref().map(read).transpose()?.unwrap_or_default();
                (piece.start, [read(&self.student)?, teacher])
            }
        };
        Ok(&self.kept.insert(kept).1)
    }

    /// Loss of a batch and the gradient of what the student's classes read, `[tokens, width]`. Both are divided by
    /// `tokens`, which may count other batches as well. Gradients of the student's classes go to `take`, piece by piece and
    /// run by run.
    ///
    /// # Errors
    /// As [`WeightSource::read`]; [`ReverseError::NoTeacher`] when the reference is not what the loss needs;
    /// [`ReverseError::Shape`] when it is of other tokens; the first one that `take` gives.
    pub fn gradient(
        &mut self,
        student: &Matrix<T>,
        reference: Reference<'_, T>,
        tokens: usize,
        take: &mut TakeGradient<'_, T>,
    ) -> Result<(f64, Matrix<T>), ReverseError> {
        let (classes, rows) = (self.student.head.classes(), student.rows);
        let (loss, pieces, head) = (self.loss, self.pieces, self.student.head);
        let (teacher, targets) = match (reference, &self.teacher) {
            (Reference::Teacher(top), Some(teacher)) => (Some((teacher.head, top)), &[][..]),
            (Reference::Tokens(targets), None) => (None, targets),
            _ => return Err(ReverseError::NoTeacher),
        };
        shape("tokens of the reference", rows, teacher.map_or(targets.len(), |(_, top)| top.rows))?;
        let ranges = |whole: usize, part: usize| {
            (0..whole).step_by(part.max(1)).map(move |first| first..whole.min(first + part.max(1)))
        };
        let logits = |run: &Range<usize>, weights: &[Matrix<T>; 2]| {
            let teacher = teacher.map(|(head, top)| head.logits(&top.rows(run.clone()), &weights[1]));
            [head.logits(&student.rows(run.clone()), &weights[0]), teacher.unwrap_or_default()]
        };
        let gather = |running: &mut [Running<T>], run: &Range<usize>, first: usize, logits: &[Matrix<T>; 2]| {
            running[run.clone()].par_iter_mut().enumerate().for_each(|(token, running)| {
                let student = logits[0].row(token);
                running.add_student(student);
                if loss == Loss::Divergence {
                    running.add_teacher(student, logits[1].row(token));
                } else if let Some(logit) = place(targets[run.start + token], first).and_then(|at| student.get(at)) {
                    running.target = *logit;
                }
            });
        };
        let mut running = vec![Running::EMPTY; if loss == Loss::SquaredError { 0 } else { rows }];
        let single = pieces.classes >= classes;
        if loss != Loss::SquaredError && !single {
            for piece in ranges(classes, pieces.classes) {
                let first = piece.start;
                let weights = self.weights(piece)?;
                for run in ranges(rows, pieces.tokens) {
                    gather(&mut running, &run, first, &logits(&run, weights));
                }
            }
        }
        let mut d_top = Matrix::zeros(rows, student.columns);
        let mut squares = 0.0;
        for piece in ranges(classes, pieces.classes) {
            let weights = self.weights(piece.clone())?;
            for run in ranges(rows, pieces.tokens) {
                let logits = logits(&run, weights);
                if loss != Loss::SquaredError && single {
                    gather(&mut running, &run, 0, &logits);
                }
                let mut d = match loss {
                    Loss::Divergence => shares(&running[run.clone()], &logits, tokens),
                    Loss::NextToken => {
                        surprises(&running[run.clone()], &logits[0], &targets[run.clone()], piece.start, tokens)
                    }
                    Loss::SquaredError => {
                        let (d, sum) = differences(&logits[0], &logits[1], tokens * classes);
                        squares += sum;
                        d
                    }
                };
                head.reverse_cap(&logits[0], &mut d);
                let x = student.rows(run.clone());
                let (place, outputs) = ((CLASSES, piece.start), piece.len());
                take(&WeightGradient { place, x: &x, d: &d, first: 0, outputs })?;
                let target = d_top.view_mut().subrows_mut(run.start, run.len());
                multiply(target, Accum::Add, d.view(), weights[0].view());
            }
        }
        let total = match loss {
            Loss::Divergence => running.iter().map(Running::divergence).sum::<f64>() / tokens as f64,
            Loss::NextToken => {
                let losses = running.iter().zip(targets).filter(|(_, target)| target.is_some());
                losses.map(|(running, _)| running.log_sum() - running.target.wide()).sum::<f64>() / tokens as f64
            }
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

/// Where a target lies in a piece that begins with class `first`; it may lie behind its end.
fn place(target: Option<u32>, first: usize) -> Option<usize> {
    target.and_then(|target| (target as usize).checked_sub(first))
}

/// Gradient of the cross-entropy: (q − 1 at the target) / tokens, for tokens that have one.
fn surprises<T: Real>(
    running: &[Running<T>],
    student: &Matrix<T>,
    targets: &[Option<u32>],
    first: usize,
    tokens: usize,
) -> Matrix<T> {
    let mut d = Matrix::zeros(student.rows, student.columns);
    d.values.par_chunks_mut(student.columns.max(1)).enumerate().for_each(|(token, d)| {
        if targets[token].is_none() {
            return;
        }
        let running = &running[token];
        let factor = T::of(1.0 / (running.student_sum * tokens as f64));
        for (d, z) in d.iter_mut().zip(student.row(token)) {
            *d = (*z - running.student).exp() * factor;
        }
        if let Some(d) = place(targets[token], first).and_then(|at| d.get_mut(at)) {
            *d -= T::of(1.0 / tokens as f64);
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
