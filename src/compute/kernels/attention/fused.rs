//! Attention in one pass over keys and values, without scores in memory.

use std::ops::Range;

use super::{QueryKeyValue, whole_tiles};
use crate::{
    compute::{
        Binding, ComputeError, Device, Kernel,
        kernels::{DeviceMatrix, View, shader},
    },
    forward::Attention,
};

const SOURCE: &str = shader!("attend.wgsl");
/// Queries of a tile.
const TILE: usize = 64;
/// The widest values.
const WIDEST: usize = 128;
/// Workgroup memory: a step of queries and keys or of values, and the shares of a tile.
const WORKGROUP_BYTES: u32 = 16 * (2 * 16 * 16 + 64 * 17);
const WORKGROUP_INVOCATIONS: u32 = 256;

/// What is launched together: whole sequences, or some queries of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) sequences: usize,
    pub(super) queries: usize,
}

/// How much can be launched together; `None` where values are too wide, a workgroup has too little memory, or the keys or
/// values of a sequence exceed a binding.
pub(super) fn share(
    device: &Device,
    attention: &Attention,
    inputs: &QueryKeyValue<'_>,
    out: &View<'_>,
    length: usize,
) -> Option<Share> {
    let limits = device.limits();
    let most_groups = limits.groups_per_dimension as usize;
    let fits = attention.value_width <= WIDEST
        && limits.workgroup_memory_bytes >= WORKGROUP_BYTES
        && limits.workgroup_invocations >= WORKGROUP_INVOCATIONS
        && attention.heads <= most_groups;
    // A binding begins up to one alignment before its first row, and ends up to one vector after its last.
    let room = limits.binding_bytes.saturating_sub(limits.alignment_bytes.max(16));
    let rows = |view: &View<'_>| (room / (view.matrix.columns as u64 * view.matrix.number.bytes()).max(1)) as usize;
    let (queries, keys) = (rows(&inputs.query).min(rows(out)), rows(&inputs.key).min(rows(&inputs.value)));
    if !fits || keys < length || queries == 0 {
        return None;
    }
    let sequences = (queries.min(keys) / length).min(most_groups);
    Some(if sequences > 0 {
        Share { sequences, queries: length }
    } else {
        Share { sequences: 1, queries: whole_tiles(queries, TILE) }
    })
}

/// Queues attention of some queries of `sequences` sequences, the first of which has these keys; `queries` are those of one
/// sequence, all of them where there are several.
pub(super) fn queue(
    device: &Device,
    attention: &Attention,
    inputs: &QueryKeyValue<'_>,
    keys: Range<usize>,
    queries: Range<usize>,
    sequences: usize,
    (sinks, out): (Option<&DeviceMatrix>, &View<'_>),
) -> Result<(), ComputeError> {
    let length = keys.len();
    let all_keys = keys.start..keys.start + sequences * length;
    let all_queries = keys.start + queries.start..keys.start + queries.end + (sequences - 1) * length;
    let query = inputs.query.some_rows(all_queries.clone());
    let (key, value) = (inputs.key.some_rows(all_keys.clone()), inputs.value.some_rows(all_keys));
    let target = out.some_rows(all_queries);
    let bounds = [&query, &key, &value, &target].map(|view| view.bound(device));
    let flag = |flag: bool| u32::from(flag);
    let (key_width, value_width) = (attention.key_width, attention.value_width);
    #[rustfmt::skip]
    let uniform = [
        bounds[0].first, query.stride(), bounds[1].first, key.stride(),
        bounds[2].first, value.stride(), bounds[3].first, target.stride(),
        length as u32, queries.start as u32, queries.len() as u32, (attention.heads / attention.key_value_heads) as u32,
        key_width as u32, value_width as u32, flag(attention.causal), attention.window.unwrap_or(0) as u32,
        flag(sinks.is_some()), 0, attention.scale.to_bits(), attention.soft_cap.unwrap_or(0.0).to_bits(),
    ];
    let aligned = |place: usize, width: usize| {
        let whole = uniform[2 * place..][..2].iter().all(|count| count.is_multiple_of(4)) && width.is_multiple_of(4);
        f64::from(flag(whole))
    };
    let kernel = Kernel::new("attend", SOURCE, "attend")
        .with("QUERY_TYPE", query.matrix.number.constant())
        .with("KEY_TYPE", key.matrix.number.constant())
        .with("VALUE_TYPE", value.matrix.number.constant())
        .with("QUERY_ALIGNED", aligned(0, key_width))
        .with("KEY_ALIGNED", aligned(1, key_width))
        .with("VALUE_ALIGNED", aligned(2, value_width))
        .with("WIDE", f64::from(flag(value_width > TILE)));
    // Something has to be bound where there are no sinks, but not what is written.
    let sinks = sinks.map_or(bounds[0].binding, |sinks| Binding::Whole(&sinks.buffer));
    let bindings = [bounds[0].binding, bounds[1].binding, bounds[2].binding, sinks, bounds[3].binding];
    let groups = [queries.len().div_ceil(TILE) as u32, attention.heads as u32, sequences as u32];
    device.dispatch(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups)
}
