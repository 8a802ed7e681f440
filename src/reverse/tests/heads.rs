//! Heads and losses: against the toolchain's head, against definitions, against differences.

use super::{
    differences::{check, derivative},
    models::{HIDDEN, Memory, Noise, VOCABULARY, model},
};
use crate::{
    forward::{self, Model},
    reverse::{CLASSES, Classes, Comparison, Head, Loss, Matrix, Pieces, Reference, ReverseError, multiply_transposed},
};

const TOKENS: usize = 11;
/// With a soft cap, with a projection, with tied weights and layer norm, plain.
const HEADS: [&str; 4] = ["gemma2", "opt", "gpt2", "llama"];
const WHOLE: Pieces = Pieces { classes: VOCABULARY, tokens: 64 };
const SMALL: Pieces = Pieces { classes: 7, tokens: 4 };

/// What a token should predict; some should nothing.
fn target(token: usize) -> Option<u32> {
    (token % 4 != 3).then_some((token * 13 % VOCABULARY) as u32)
}

fn states(name: &str) -> Matrix<f64> {
    Matrix { rows: TOKENS, columns: HIDDEN, values: Noise::new(name).values(TOKENS * HIDDEN, 1.5) }
}

/// A student and a teacher of one architecture: the teacher's weights differ a little.
struct Pair {
    model: Model,
    student: Memory,
    teacher: Memory,
}

fn pair(kind: &str) -> Pair {
    let (model, mut student) = model(kind);
    // Multiples of 2⁻⁸ can be moved by small powers of two without rounding.
    for (_, values) in student.0.values_mut() {
        for value in values {
            *value = (*value * 256.0).round() / 256.0;
        }
    }
    let mut teacher = student.clone();
    for (name, (_, values)) in &mut teacher.0 {
        let mut noise = Noise::new(name);
        for value in values {
            *value += 0.2 * noise.next() as f32;
        }
    }
    Pair { model, student, teacher }
}

impl Pair {
    fn loss(&self, head: &Head<'_, f64>, hidden: &Matrix<f64>, loss: Loss, pieces: Pieces) -> f64 {
        self.gradient(head, hidden, loss, pieces).0
    }

    /// Loss, gradients of hidden states, of the norm and of all class weights, and the projection's.
    fn gradient(
        &self,
        head: &Head<'_, f64>,
        hidden: &Matrix<f64>,
        loss: Loss,
        pieces: Pieces,
    ) -> (f64, Vec<f64>, Vec<f64>, Matrix<f64>, Vec<f64>) {
        let teacher = Head::read(&self.model, &self.teacher).unwrap();
        let (reference, _) = teacher.forward(states("teacher"));
        let (top, tape) = head.forward(hidden.clone());
        let student = Classes { head, source: &self.student };
        let teacher = Classes { head: &teacher, source: &self.teacher };
        let mut comparison = Comparison::new(loss, student, Some(teacher), pieces).unwrap();
        let targets: Vec<Option<u32>> = (0..TOKENS).map(target).collect();
        let reference = if loss.has_teacher() { Reference::Teacher(&reference) } else { Reference::Tokens(&targets) };
        let mut classes = Matrix::zeros(head.classes(), head.width());
        let (value, d) = comparison
            .gradient(&top, reference, TOKENS, &mut |product| {
                assert_eq!(product.place.0, CLASSES);
                let part = product.weight();
                let first = product.place.1 * part.columns;
                classes.values[first..].iter_mut().zip(&part.values).for_each(|(sum, part)| *sum += part);
                Ok(())
            })
            .unwrap();
        let mut projection = Vec::new();
        let found = head
            .reverse(&tape, d, &mut |product| {
                projection = product.weight().values;
                Ok(())
            })
            .unwrap();
        let norm = found.norm.map_or_else(Vec::new, |norm| norm.weight);
        (value, found.hidden.values, norm, classes, projection)
    }
}

#[test]
fn logits_are_those_of_the_toolchain() {
    for kind in HEADS {
        let (model, memory) = model(kind);
        let values: Vec<f32> = states(kind).values.iter().map(|value| *value as f32).collect();
        let reference = model.head(&memory).unwrap();
        let top = reference.top(&forward::Matrix { rows: TOKENS, columns: HIDDEN, values: values.clone() });
        let expected = reference.logits(&top, &reference.classes(&memory, 0, VOCABULARY).unwrap(), 0);
        let head = Head::<f32>::read(&model, &memory).unwrap();
        let (top, _) = head.forward(Matrix { rows: TOKENS, columns: HIDDEN, values });
        let found = head.logits(&top, &head.class_weights(&memory, 0, VOCABULARY).unwrap());
        for (found, expected) in found.values.iter().zip(&expected.values) {
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{kind}: {found} {expected}");
        }
    }
}

#[test]
fn losses_follow_their_definitions() {
    for kind in HEADS {
        let pair = pair(kind);
        let head = Head::<f64>::read(&pair.model, &pair.student).unwrap();
        let teacher = Head::<f64>::read(&pair.model, &pair.teacher).unwrap();
        let all = |head: &Head<'_, f64>, source: &Memory, hidden: Matrix<f64>| -> Vec<Vec<f64>> {
            let (top, _) = head.forward(hidden);
            let plain = multiply_transposed(&top, &head.class_weights(source, 0, VOCABULARY).unwrap());
            let cap = |z: f64| if kind == "gemma2" { 3.0 * (z / 3.0).tanh() } else { z };
            plain.values.chunks(VOCABULARY).map(|row| row.iter().map(|z| cap(*z)).collect()).collect()
        };
        let (student, teacher) =
            (all(&head, &pair.student, states("student")), all(&teacher, &pair.teacher, states("teacher")));
        let log_shares = |row: &[f64]| -> Vec<f64> {
            let total = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            row.iter().map(|z| z - total).collect()
        };
        let (mut divergence, mut squares, mut surprise) = (0.0, 0.0, 0.0);
        for (token, (z, r)) in student.iter().zip(&teacher).enumerate() {
            let (q, p) = (log_shares(z), log_shares(r));
            divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            surprise -= target(token).map_or(0.0, |class| q[class as usize]);
            squares += z.iter().zip(r).map(|(z, r)| (z - r).powi(2)).sum::<f64>();
        }
        for pieces in [WHOLE, SMALL] {
            for (loss, expected) in [
                (Loss::Divergence, divergence / TOKENS as f64),
                (Loss::SquaredError, squares / (TOKENS * VOCABULARY) as f64),
                (Loss::NextToken, surprise / TOKENS as f64),
            ] {
                let found = pair.loss(&head, &states("student"), loss, pieces);
                assert!((found - expected).abs() < 1e-11 * expected, "{kind} {loss:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn gradients_of_heads_agree_with_differences() {
    for kind in HEADS {
        for loss in [Loss::Divergence, Loss::SquaredError, Loss::NextToken] {
            for pieces in [WHOLE, SMALL] {
                let mut pair = pair(kind);
                let model = pair.model.clone();
                let mut head = Head::<f64>::read(&model, &pair.student).unwrap();
                let mut hidden = states("student");
                let (_, d_hidden, d_norm, d_classes, d_projection) = pair.gradient(&head, &hidden, loss, pieces);
                let name = format!("{kind} {loss:?} {pieces:?}");
                let moved =
                    |start: &[f64], steps: &[f64]| start.iter().zip(steps).map(|(a, b)| a + b).collect::<Vec<_>>();

                let start = hidden.values.clone();
                check(&format!("{name} hidden"), &d_hidden, |steps| {
                    hidden.values = moved(&start, steps);
                    pair.loss(&head, &hidden, loss, pieces)
                });
                hidden.values = start;
                let start = head.norm.as_ref().unwrap().weight.clone();
                check(&format!("{name} norm"), &d_norm, |steps| {
                    head.norm.as_mut().unwrap().weight = moved(&start, steps);
                    pair.loss(&head, &hidden, loss, pieces)
                });
                head.norm.as_mut().unwrap().weight = start;
                if let Some(start) = head.projection.as_ref().map(|linear| linear.weight.values.clone()) {
                    check(&format!("{name} projection"), &d_projection, |steps| {
                        head.projection.as_mut().unwrap().weight.values = moved(&start, steps);
                        pair.loss(&head, &hidden, loss, pieces)
                    });
                    head.projection.as_mut().unwrap().weight.values = start;
                }
                let tensor = model.head.as_ref().unwrap().weight.clone();
                let largest = d_classes.values.iter().map(|d| d.abs()).fold(0.0, f64::max);
                for at in [0, 17 * head.width() + 3, d_classes.values.len() - 1] {
                    let start = pair.student.0[&tensor].1[at];
                    let found = derivative(|step| {
                        pair.student.0.get_mut(&tensor).unwrap().1[at] = start + step as f32;
                        pair.loss(&head, &hidden, loss, pieces)
                    });
                    pair.student.0.get_mut(&tensor).unwrap().1[at] = start;
                    let error = (found - d_classes.values[at]).abs();
                    assert!(error < 1e-6 * d_classes.values[at].abs().max(0.1 * largest), "{name} class weight {at}");
                }
            }
        }
    }
}

#[test]
fn heads_that_cannot_be_compared_are_refused() {
    let (narrow, memory) = model("llama");
    let (_, mut other) = model("gpt2");
    let rows = VOCABULARY + 1;
    other.0.insert("lm_head.weight".to_owned(), (vec![rows, HIDDEN], vec![0.5; rows * HIDDEN]));
    let config = serde_json::json!({"model_type": "gpt2", "n_layer": 2, "n_embd": HIDDEN, "n_head": 4});
    let wide = Model::new(Some(&config), &other).unwrap();
    let (ours, theirs) = (Head::<f64>::read(&narrow, &memory).unwrap(), Head::<f64>::read(&wide, &other).unwrap());
    let student = Classes { head: &ours, source: &memory };
    let teacher = Classes { head: &theirs, source: &other };
    let error = Comparison::new(Loss::Divergence, student, Some(teacher), WHOLE).err();
    assert!(matches!(error, Some(ReverseError::Classes { student: VOCABULARY, teacher }) if teacher == rows));
}
