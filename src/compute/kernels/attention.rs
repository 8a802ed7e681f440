//! Attention of whole sequences: in one pass where heads are narrow enough for workgroup memory; else by scores, their
//! soft-max, and the mean of values, for as many heads at a time as fit.

mod fused;

use super::{Causal, DeviceMatrix, Heads, Product, View, by_subgroups, groups_for, shader};
use crate::{
    compute::{Binding, ComputeError, Device, Kernel},
    forward::Attention,
};

const BY_SUBGROUPS: &str = shader!("softmax.wgsl", "reduce_subgroup.wgsl");
const BY_MEMORY: &str = shader!("softmax.wgsl", "reduce.wgsl");
/// Most bytes of the scores that are there at the same time.
const SCORE_BYTES: u64 = 256 << 20;
/// Queries of a block where not all of a sequence fit are a multiple of this where possible.
const QUERIES: usize = 128;

/// Queries, keys and values, heads side by side in rows of tokens.
#[derive(Debug, Clone)]
pub struct QueryKeyValue<'a> {
    /// `[tokens, heads · key_width]`.
    pub query: View<'a>,
    /// `[tokens, key_value_heads · key_width]`.
    pub key: View<'a>,
    /// `[tokens, key_value_heads · value_width]`.
    pub value: View<'a>,
}

/// Memory for scores, made at the first use and kept for the next: at most 256 MiB. Attention in one pass needs none.
#[derive(Debug, Default)]
pub struct Scores(Option<DeviceMatrix>);

impl Scores {
    /// As a matrix of this shape; what it holds is left over.
    fn shaped(&mut self, device: &Device, rows: usize, columns: usize) -> Result<&DeviceMatrix, ComputeError> {
        let fits = |matrix: &DeviceMatrix| matrix.buffer.bytes() >= 4 * (rows * columns) as u64;
        let matrix = match self.0.take().filter(fits) {
            Some(matrix) => DeviceMatrix { rows, columns, ..matrix },
            None => DeviceMatrix::zeros(device, "scores", rows, columns)?,
        };
        Ok(self.0.insert(matrix))
    }
}

/// Heads of sequences that are worked on together.
struct Share {
    sequences: usize,
    heads: usize,
    queries: usize,
}

/// Queues attention of sequences of `length` tokens each: `out`, `[tokens, heads · value_width]` F32, becomes the
/// outputs of all heads. `sinks` is `[1, heads]`. Does not wait.
///
/// # Errors
/// As for [`crate::compute::Batch::add`] and [`Device::allocate`]; [`ComputeError::TooLarge`] where the keys of a sequence
/// exceed a binding.
///
/// # Panics
/// When the shapes do not fit together.
pub fn attend(
    device: &Device,
    attention: &Attention,
    inputs: &QueryKeyValue<'_>,
    length: usize,
    sinks: Option<&DeviceMatrix>,
    scores: &mut Scores,
    out: &View<'_>,
) -> Result<(), ComputeError> {
    let (heads, tokens) = (attention.heads, inputs.query.rows.len());
    if tokens == 0 || heads == 0 {
        return Ok(());
    }
    assert!(tokens.is_multiple_of(length), "sequences are whole");
    assert!(heads.is_multiple_of(attention.key_value_heads), "key heads are shared evenly");
    let Some(share) = fused::share(device, attention, inputs, out, length) else {
        return attend_by_scores(device, attention, inputs, length, sinks, scores, out);
    };
    let sequences = tokens / length;
    for sequence in (0..sequences).step_by(share.sequences) {
        let keys = sequence * length..(sequence + 1) * length;
        let together = share.sequences.min(sequences - sequence);
        for query in (0..length).step_by(share.queries) {
            let queries = query..length.min(query + share.queries);
            fused::queue(device, attention, inputs, keys.clone(), queries, together, (sinks, out))?;
        }
    }
    Ok(())
}

/// The same by scores in memory, whatever the width of heads; there must be tokens and heads.
///
/// # Errors
/// As for [`attend`].
pub fn attend_by_scores(
    device: &Device,
    attention: &Attention,
    inputs: &QueryKeyValue<'_>,
    length: usize,
    sinks: Option<&DeviceMatrix>,
    scores: &mut Scores,
    out: &View<'_>,
) -> Result<(), ComputeError> {
    let (heads, sequences) = (attention.heads, inputs.query.rows.len() / length);
    let share = share(device, attention, inputs, out, length);
    let layers = share.sequences * share.heads;
    let scores = scores.shaped(device, layers * share.queries, length)?;
    for sequence in (0..sequences).step_by(share.sequences) {
        for head in (0..heads).step_by(share.heads) {
            for query in (0..length).step_by(share.queries) {
                let part = Part {
                    sequence,
                    sequences: share.sequences.min(sequences - sequence),
                    head,
                    heads: share.heads.min(heads - head),
                    query,
                    queries: share.queries.min(length - query),
                };
                part.queue(device, attention, inputs, length, (scores, sinks, out))?;
            }
        }
    }
    Ok(())
}

/// So many queries at most, a multiple of a tile of them where possible.
fn whole_tiles(queries: usize, tile: usize) -> usize {
    if queries > tile { queries / tile * tile } else { queries }
}

/// How much fits.
fn share(device: &Device, attention: &Attention, inputs: &QueryKeyValue<'_>, out: &View<'_>, length: usize) -> Share {
    let limits = device.limits();
    let widest = [&inputs.query, &inputs.key, &inputs.value, out];
    let widest = widest.iter().map(|view| view.matrix.columns as u64 * view.matrix.number.bytes()).max().unwrap_or(1);
    let room = limits.binding_bytes.saturating_sub(limits.alignment_bytes.max(16));
    let rows = (room / widest.max(1)).max(1) as usize;
    let bytes = limits.binding_bytes.min(SCORE_BYTES);
    let row_bytes = (4 * length) as u64;
    let queries = ((bytes / row_bytes).max(1) as usize).min(rows).min(length);
    let queries = if queries < length { whole_tiles(queries, QUERIES) } else { queries };
    let fit = (bytes / row_bytes) as usize / queries;
    let sharing = attention.heads / attention.key_value_heads;
    // A run of heads begins with the first one of a key head, or lies within those of one.
    let heads = if fit >= sharing {
        (fit / sharing * sharing).min(attention.heads)
    } else {
        (1..=fit.max(1)).rev().find(|count| sharing.is_multiple_of(*count)).unwrap_or(1)
    };
    let bound = rows / length;
    let most_layers = limits.groups_per_dimension as usize;
    let sequences = if heads == attention.heads { (fit / heads).min(bound).min(most_layers / heads).max(1) } else { 1 };
    Share { sequences, heads, queries }
}

/// Some queries of some heads of some sequences.
struct Part {
    sequence: usize,
    sequences: usize,
    head: usize,
    heads: usize,
    query: usize,
    queries: usize,
}

impl Part {
    fn queue(
        &self,
        device: &Device,
        attention: &Attention,
        inputs: &QueryKeyValue<'_>,
        length: usize,
        (scores, sinks, out): (&DeviceMatrix, Option<&DeviceMatrix>, &View<'_>),
    ) -> Result<(), ComputeError> {
        let (key_width, value_width) = (attention.key_width, attention.value_width);
        let sharing = attention.heads / attention.key_value_heads;
        let first = self.sequence * length;
        let (keys, queries) = (first..first + length, first + self.query..first + self.query + self.queries);
        let of = |head: usize, width: usize| head * width..(head + 1) * width;
        let query = inputs.query.some_rows(queries.clone()).some_columns(of(self.head, key_width));
        let key = inputs.key.some_rows(keys.clone()).some_columns(of(self.head / sharing, key_width));
        let value = inputs.value.some_rows(keys).some_columns(of(self.head / sharing, value_width));
        let target = out.some_rows(queries).some_columns(of(self.head, value_width));
        let table = scores.part(0..self.queries, 0..length);
        let (layer, stride) = (self.queries * length, |view: &View<'_>| length * view.matrix.columns);
        let mut heads = Heads {
            sequences: self.sequences,
            heads: self.heads,
            share: sharing.min(self.heads),
            sequence_strides: [stride(&query), stride(&key), self.heads * layer],
            head_strides: [key_width, key_width, layer],
            causal: if attention.causal { Causal::Below } else { Causal::Everything },
            first_query: self.query,
        };
        let mut batch = device.batch();
        let product = Product { alpha: attention.scale, ..Product::TRANSPOSED };
        product.add_heads(device, &mut batch, [&query, &key, &table], &heads)?;

        let layers = self.sequences * self.heads;
        let flag = |flag: bool| u32::from(flag);
        #[rustfmt::skip]
        let uniform = [
            layers as u32, self.queries as u32, self.query as u32, length as u32,
            self.heads as u32, self.head as u32, flag(attention.causal), attention.window.unwrap_or(0) as u32,
            flag(sinks.is_some()), attention.soft_cap.unwrap_or(0.0).to_bits(), 0, 0,
        ];
        let bound = scores.part(0..layers * self.queries, 0..length).bound(device).binding;
        // Something has to be bound where there are no sinks, but not what is written.
        let sinks = sinks.map_or(query.bound(device).binding, |sinks| Binding::Whole(&sinks.buffer));
        let kernel = Kernel::new("softmax", by_subgroups(device, BY_SUBGROUPS, BY_MEMORY), "softmax");
        let groups = groups_for(device, layers * self.queries, 1);
        batch.add(&kernel, &[sinks, bound], bytemuck::cast_slice(&uniform), groups)?;

        heads.sequence_strides = [self.heads * layer, stride(&value), stride(&target)];
        heads.head_strides = [layer, value_width, value_width];
        heads.causal = if attention.causal { Causal::UpToRow } else { Causal::Everything };
        let product = Product { right_transposed: false, ..Product::TRANSPOSED };
        product.add_heads(device, &mut batch, [&table, &value, &target], &heads)?;
        batch.submit()
    }
}
