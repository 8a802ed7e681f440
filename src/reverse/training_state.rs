//! What a training has come to, as bytes and back.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{AdamW, ReverseError};

/// Parameters and the optimizer's state after some steps.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Names of the trained tensors, in the order of the lists.
    pub names: Vec<String>,
    /// Their parameters.
    pub parameters: Vec<Vec<f32>>,
    /// The optimizer's state, and how many steps are done.
    pub optimizer: AdamW,
}

/// The lists of a state and what their names begin with.
const PARTS: [&str; 3] = ["parameters.", "first.", "second."];

impl TrainingState {
    /// The state before the first step.
    #[must_use]
    pub fn new(names: Vec<String>, parameters: Vec<Vec<f32>>) -> Self {
        let optimizer = AdamW::new(&parameters);
        Self { names, parameters, optimizer }
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.optimizer.step
    }

    /// As a safetensors file: F32 lists `parameters.NAME`, `first.NAME`, `second.NAME`, and the U64 `step`. Equal states
    /// give equal bytes.
    ///
    /// # Errors
    /// [`ReverseError::Saved`] when a name is there twice.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ReverseError> {
        let step = self.optimizer.step.to_le_bytes();
        let lists = [&self.parameters, &self.optimizer.first, &self.optimizer.second];
        let little: Vec<(String, Vec<u8>)> = PARTS
            .iter()
            .zip(lists)
            .flat_map(|(part, lists)| {
                let bytes = |list: &Vec<f32>| list.iter().flat_map(|value| value.to_le_bytes()).collect();
                self.names.iter().zip(lists).map(move |(name, list)| (format!("{part}{name}"), bytes(list)))
            })
            .collect();
        let view = |dtype, count: usize, bytes| {
            TensorView::new(dtype, vec![count], bytes).map_err(|error| ReverseError::saved(error.to_string()))
        };
        let mut tensors = BTreeMap::from([("step".to_owned(), view(Dtype::U64, 1, &step[..])?)]);
        for (name, bytes) in &little {
            if tensors.insert(name.clone(), view(Dtype::F32, bytes.len() / 4, bytes)?).is_some() {
                return Err(ReverseError::saved(format!("has `{name}` twice")));
            }
        }
        safetensors::serialize(tensors, None).map_err(|error| ReverseError::saved(error.to_string()))
    }

    /// A state from its bytes, for tensors of these names with so many parameters each.
    ///
    /// # Errors
    /// [`ReverseError::Saved`] when the bytes are no such state.
    pub fn from_bytes(bytes: &[u8], names: &[String], counts: &[usize]) -> Result<Self, ReverseError> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| ReverseError::saved(format!("is no safetensors: {error}")))?;
        let tensor = |name: &str, dtype: Dtype, count: usize| -> Result<&[u8], ReverseError> {
            let tensor = file.tensor(name).map_err(|_| ReverseError::saved(format!("has no `{name}`")))?;
            if tensor.dtype() != dtype || tensor.shape() != [count] {
                let (found, shape) = (tensor.dtype(), tensor.shape());
                return Err(ReverseError::saved(format!(
                    "has `{name}` as {found:?} {shape:?}, expected {dtype:?} [{count}]"
                )));
            }
            Ok(tensor.data())
        };
        let expected = 1 + PARTS.len() * names.len();
        if file.len() != expected {
            return Err(ReverseError::saved(format!("has {} tensors, expected {expected}", file.len())));
        }
        let lists = |part: &str| -> Result<Vec<Vec<f32>>, ReverseError> {
            let list = |(name, count): (&String, &usize)| {
                let bytes = tensor(&format!("{part}{name}"), Dtype::F32, *count)?;
                Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            };
            names.iter().zip(counts).map(list).collect()
        };
        let step =
            tensor("step", Dtype::U64, 1)?.as_chunks::<8>().0.first().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let [parameters, first, second] = [lists(PARTS[0])?, lists(PARTS[1])?, lists(PARTS[2])?];
        let finite = |lists: &[Vec<f32>]| lists.iter().flatten().all(|value| value.is_finite());
        if !(finite(&parameters) && finite(&first) && finite(&second)) {
            return Err(ReverseError::saved("has values that are not finite"));
        }
        Ok(Self { names: names.to_vec(), parameters, optimizer: AdamW { step, first, second } })
    }
}
