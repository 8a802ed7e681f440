//! Blocks: the forward pass against [`crate::forward`], gradients against differences.

use super::{
    differences::check,
    models::{HIDDEN, KINDS, Noise, model},
};
use crate::{
    forward::{self, State},
    reverse::{Block, Linear, Matrix, Norm, NormGradient, Real, ReverseError},
};

fn stream<T: Real>(name: &str, rows: usize) -> Matrix<T> {
    let values = Noise::new(name).values(rows * HIDDEN, 1.5);
    Matrix { rows, columns: HIDDEN, values: values.into_iter().map(T::of).collect() }
}

#[test]
fn the_forward_pass_is_that_of_the_toolchain() {
    // Longer than a block of queries.
    let (length, rows) = (67, 134);
    for kind in KINDS {
        let (model, memory) = model(kind);
        for spec in &model.blocks {
            let block = Block::<f32>::read(spec, &memory, length).unwrap();
            let linears = block.read_linears(&memory).unwrap();
            let input = stream::<f32>(kind, rows);
            let (found, _) = block.forward(input.clone(), &linears).unwrap();

            let reference = forward::Block::read(spec, &memory, length).unwrap();
            let hidden = forward::Matrix { rows, columns: HIDDEN, values: input.values };
            let mut state = State { length, hidden, carried: Vec::new() };
            for (index, stage) in spec.stages.iter().enumerate() {
                let linears: Vec<_> = stage.linears.iter().map(|linear| linear.read(&memory).unwrap()).collect();
                reference.apply(index, &mut state, &linears).unwrap();
            }
            let scale = state.hidden.values.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in found.values.iter().zip(&state.hidden.values) {
                assert!((found - expected).abs() <= 1e-5 * scale, "{kind} {}: {found} {expected}", spec.index);
            }
        }
    }
}

/// A block, its linears and its input, all of which can be moved.
#[derive(Clone)]
struct Case<'a> {
    block: Block<'a, f64>,
    linears: Vec<Vec<Linear<f64>>>,
    input: Matrix<f64>,
    /// The loss is the inner product of the output with this.
    weights: Matrix<f64>,
}

impl Case<'_> {
    fn loss(&self) -> f64 {
        let (out, _) = self.block.forward(self.input.clone(), &self.linears).unwrap();
        out.values.iter().zip(&self.weights.values).map(|(out, weight)| out * weight).sum()
    }

    /// Every parameter with its name.
    fn parameters(&mut self) -> Vec<(String, &mut Vec<f64>)> {
        let block = &mut self.block;
        let mut all = vec![("input".to_owned(), &mut self.input.values), ("sinks".to_owned(), &mut block.sinks)];
        let norms = [
            ("attention norm", &mut block.attention_norm),
            ("norm behind attention", &mut block.after_attention),
            ("mlp norm", &mut block.mlp_norm),
            ("norm behind the mlp", &mut block.after_mlp),
        ];
        for (name, norm) in norms {
            all.extend(norm.iter_mut().flat_map(|norm| of_norm(name, norm)));
        }
        if let Some([query, key]) = &mut block.head_norms {
            all.extend(of_norm("query norm", query).into_iter().chain(of_norm("key norm", key)));
        }
        for (stage, linears) in self.linears.iter_mut().enumerate() {
            for (index, linear) in linears.iter_mut().enumerate() {
                all.push((format!("weight {stage} {index}"), &mut linear.weight.values));
                all.push((format!("bias {stage} {index}"), &mut linear.bias));
            }
        }
        all
    }

    /// Their gradients, in the same order.
    fn gradients(&self) -> Vec<Vec<f64>> {
        let (_, tape) = self.block.forward(self.input.clone(), &self.linears).unwrap();
        let mut of_linears = std::collections::BTreeMap::new();
        let found = self
            .block
            .reverse(&tape, &self.linears, self.weights.clone(), &mut |gradient| {
                of_linears.insert(gradient.place, [gradient.weight().values, gradient.bias()]);
                Ok(())
            })
            .unwrap();
        let mut all = vec![found.hidden.values, found.sinks];
        for norm in [found.attention_norm, found.after_attention, found.mlp_norm, found.after_mlp] {
            all.extend(norm.into_iter().flat_map(|NormGradient { weight, bias }| [weight, bias]));
        }
        all.extend(found.head_norms.into_iter().flatten().flat_map(|NormGradient { weight, bias }| [weight, bias]));
        for (stage, linears) in self.linears.iter().enumerate() {
            for (index, linear) in linears.iter().enumerate() {
                let [weight, bias] = of_linears.remove(&(stage, index)).unwrap();
                all.push(weight);
                all.push(if linear.bias.is_empty() { Vec::new() } else { bias });
            }
        }
        all
    }
}

fn of_norm<'n>(name: &str, norm: &'n mut Norm<f64>) -> [(String, &'n mut Vec<f64>); 2] {
    [(format!("{name} weight"), &mut norm.weight), (format!("{name} bias"), &mut norm.bias)]
}

fn case<'a>(spec: &'a forward::BlockSpec, memory: &super::models::Memory, length: usize, sequences: usize) -> Case<'a> {
    let block = Block::<f64>::read(spec, memory, length).unwrap();
    let linears = block.read_linears(memory).unwrap();
    let input = stream("input", length * sequences);
    Case { block, linears, input, weights: stream("loss", length * sequences) }
}

#[test]
fn every_gradient_of_every_architecture_agrees_with_differences() {
    let mut kinds_of_parameters = std::collections::BTreeSet::new();
    for kind in KINDS {
        let (model, memory) = model(kind);
        for spec in &model.blocks {
            let mut case = case(spec, &memory, 9, 2);
            let gradients = case.gradients();
            let names: Vec<String> = case.parameters().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), gradients.len());
            for (at, (name, gradient)) in names.iter().zip(&gradients).enumerate() {
                let start = case.parameters()[at].1.clone();
                assert_eq!(start.len(), gradient.len(), "{kind}, {name}");
                if start.is_empty() {
                    continue;
                }
                kinds_of_parameters.insert(name.clone());
                if kind.starts_with("opt") && name == "bias 0 1" {
                    // Without rotation a query's scores all grow by the same, and soft-max does not see it.
                    assert!(gradient.iter().all(|g| g.abs() < 1e-12), "{kind} {name}: {gradient:?}");
                    continue;
                }
                let moved = &mut case;
                check(&format!("{kind} block {}, {name}", spec.index), gradient, |steps| {
                    let values: Vec<f64> = start.iter().zip(steps).map(|(value, step)| value + step).collect();
                    *moved.parameters()[at].1 = values;
                    moved.loss()
                });
                *case.parameters()[at].1 = start;
            }
        }
    }
    for needed in [
        "input",
        "sinks",
        "attention norm bias",
        "norm behind attention weight",
        "norm behind the mlp bias",
        "query norm weight",
        "key norm weight",
        "weight 2 1",
        "bias 3 0",
    ] {
        assert!(kinds_of_parameters.contains(needed), "{needed} was never checked");
    }
}

#[test]
fn gradients_through_several_blocks_of_queries_agree_with_differences() {
    for kind in ["llama", "mistral"] {
        let (model, memory) = model(kind);
        let mut case = case(&model.blocks[0], &memory, 130, 1);
        let gradient = case.gradients().swap_remove(0);
        let start = case.input.values.clone();
        check(&format!("{kind}, long input"), &gradient, |steps| {
            case.input.values = start.iter().zip(steps).map(|(value, step)| value + step).collect();
            case.loss()
        });
    }
}

#[test]
fn products_with_a_direction_are_those_of_the_whole_matrix() {
    let (model, memory) = model("phi3");
    let case = case(&model.blocks[0], &memory, 9, 2);
    let (_, tape) = case.block.forward(case.input.clone(), &case.linears).unwrap();
    let mut seen = 0;
    case.block
        .reverse(&tape, &case.linears, case.weights.clone(), &mut |gradient| {
            let whole = gradient.weight();
            let columns = whole.columns;
            let sign = |row: usize, column: usize| if (row * 7 + column * 3) % 5 < 2 { 1.0 } else { -1.0 };
            let found = gradient.row_products(&|rows, out| {
                for (row, out) in rows.zip(out.chunks_exact_mut(columns)) {
                    out.iter_mut().enumerate().for_each(|(column, out)| *out = sign(row, column));
                }
            });
            assert_eq!(found.len(), whole.rows);
            for (row, found) in found.iter().enumerate() {
                let expected: f64 = whole.row(row).iter().enumerate().map(|(at, value)| value * sign(row, at)).sum();
                let size: f64 = whole.row(row).iter().map(|value| value.abs()).sum();
                assert!((found - expected).abs() <= 1e-12 * size, "{:?} row {row}", gradient.place);
            }
            let some = gradient.weight_rows(3..7);
            for (found, expected) in some.values.iter().zip(&whole.rows(3..7).values) {
                assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0));
            }
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 4);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (model, memory) = model("qwen3");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let block = Block::<f32>::read(&model.blocks[1], &memory, 67).unwrap();
            let linears = block.read_linears(&memory).unwrap();
            let (out, tape) = block.forward(stream("input", 67 * 3), &linears).unwrap();
            let mut all = Vec::new();
            let found = block
                .reverse(&tape, &linears, out, &mut |gradient| {
                    all.extend(gradient.weight().values);
                    all.extend(gradient.row_products(&|_, out| out.fill(0.3)).iter().map(|value| *value as f32));
                    Ok(())
                })
                .unwrap();
            all.extend(found.hidden.values);
            all.extend(found.attention_norm.into_iter().flat_map(|norm| norm.weight));
            all.extend(found.head_norms.into_iter().flatten().flat_map(|norm| norm.weight));
            all.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

#[test]
fn what_is_missing_is_named() {
    let (model, memory) = model("llama");
    let mut spec = model.blocks[0].clone();
    spec.latent = Some(forward::Latent { query: None, key_value: 4, plain: 4, rotated: 2 });
    let error = Block::<f32>::read(&spec, &memory, 4).unwrap_err();
    assert!(
        matches!(&error, ReverseError::Unsupported { place, part: "latent attention" } if place == "block 0"),
        "{error}"
    );
    let mut spec = model.blocks[1].clone();
    spec.stages.swap(0, 2);
    assert!(matches!(Block::<f32>::read(&spec, &memory, 4), Err(ReverseError::Unsupported { .. })));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let (model, mut memory) = model("qwen3");
    memory.0.insert("model.layers.0.self_attn.q_norm.weight".to_owned(), (vec![5], vec![1.0; 5]));
    let error = Block::<f32>::read(&model.blocks[0], &memory, 4).unwrap_err();
    assert!(matches!(error, ReverseError::Shape { expected: 6, found: 5, .. }), "{error}");
}
