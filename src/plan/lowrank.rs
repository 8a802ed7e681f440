//! Keys and values in factors: which projections they are, and how many latent channels each has.

use std::collections::BTreeMap;

use super::{Inputs, Options, PlanError};
use crate::{
    Result,
    codec::{Factors, Whole},
    forward::{BlockSpec, Kind, Model},
    layout::{Activations, Cached, LatentCache, LayoutName},
    model::{MatrixView, Role},
    passes::{
        Choice, Matrix,
        lowrank_kv::{self, Method, Metric, Ranks, Settings, Share},
    },
    solve::{Key, Statistics},
};

/// A matrix that a rule of `lowrank_kv` takes.
pub(super) struct Wanted<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) view: &'a MatrixView,
    pub(super) role: &'a Role,
    pub(super) settings: &'a Settings,
    pub(super) rule: usize,
    pub(super) rotated: bool,
}

/// What the model does with one of them.
struct Projection<'a> {
    wanted: Wanted<'a>,
    block: usize,
    stage: usize,
    part: Cached,
    /// Key-value heads.
    heads: usize,
    /// Channels of one.
    width: usize,
    /// Heads of a group.
    group: usize,
}

impl Projection<'_> {
    fn groups(&self) -> usize {
        self.heads / self.group
    }

    /// Latent channels of a group at most.
    fn most(&self) -> usize {
        (self.group * self.width).min(self.wanted.matrix.columns)
    }
}

/// The codec and the cache of every matrix of `lowrank_kv`, by its place among `wanted`. Reads weights only where ranks are
/// given out by what they keep.
///
/// # Errors
/// [`PlanError::LowRank`] for matrices that are no projection of keys or values; [`PlanError::NoStatistics`].
pub(super) fn choose<'a>(
    inputs: Inputs<'_>,
    layout: LayoutName,
    wanted: impl Iterator<Item = (usize, Wanted<'a>)>,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<usize, (Choice, LatentCache)>> {
    let wanted: Vec<(usize, Wanted<'a>)> = wanted.collect();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    wanted.iter().try_for_each(|(_, wanted)| is_cached(inputs, wanted))?;
    let model = Model::new(inputs.source.checkpoint().config().map(|config| &config.value), inputs.source)?;
    let mut projections = Vec::with_capacity(wanted.len());
    for (index, wanted) in wanted {
        projections.push((index, projection(inputs, &model, wanted)?));
    }
    let mut ranks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut shared: BTreeMap<(usize, u64), Vec<usize>> = BTreeMap::new();
    for (at, (_, projection)) in projections.iter().enumerate() {
        match projection.wanted.settings.ranks {
            Ranks::Density { key, value } => {
                let density = if projection.part == Cached::Key { key } else { value };
                ranks.insert(at, uniform(projection, density));
            }
            Ranks::Ratio(ratio) if options.gathers_statistics => {
                ranks.insert(at, uniform(projection, ratio));
            }
            Ranks::Ratio(ratio) => shared.entry((projection.wanted.rule, ratio.to_bits())).or_default().push(at),
        }
    }
    for ((rule, ratio), members) in shared {
        let of: Vec<&Projection<'_>> = members.iter().map(|&at| &projections[at].1).collect();
        let found = allocated(inputs, rule, f64::from_bits(ratio), &of)?;
        ranks.extend(members.into_iter().zip(found));
        let rule = &inputs.recipe.passes[rule];
        notes.push(format!(
            "ranks of rule `{}` (recipe line {}) follow from the weights: {} matrices were read to plan",
            rule.pass,
            rule.line,
            of.len()
        ));
    }
    let mut choice = |at: usize, projection: &Projection<'_>| {
        let settings = projection.wanted.settings;
        // Dense weights have no window: nothing stands beside them.
        let exact = settings.window > 0 && layout != LayoutName::Dense;
        let storage = projection.wanted.matrix.scale;
        let codec = Whole::Factors(Factors { ranks: ranks.remove(&at).unwrap_or_default(), storage, exact }).into();
        let choice = Choice { codec, rotations: None, codebook_of: None, mask: None, activations: Activations::None };
        let cache = LatentCache {
            layer: projection.block,
            part: projection.part,
            window: settings.window,
            bits: settings.cache_bits,
            absorb_values: settings.absorb_values,
        };
        (choice, cache)
    };
    Ok(projections.iter().enumerate().map(|(at, (index, projection))| (*index, choice(at, projection))).collect())
}

fn uniform(projection: &Projection<'_>, density: f64) -> Vec<usize> {
    let rank = Settings::rank(density, projection.group, projection.width).min(projection.most());
    vec![rank; projection.groups()]
}

fn refused(inputs: Inputs<'_>, wanted: &Wanted<'_>, problem: String) -> PlanError {
    let rule = &inputs.recipe.passes[wanted.rule];
    PlanError::LowRank { pass: rule.pass.clone(), line: rule.line, tensor: wanted.matrix.name.clone(), problem }
}

/// Refuses what is no projection of keys alone, or of values alone.
fn is_cached(inputs: Inputs<'_>, wanted: &Wanted<'_>) -> std::result::Result<(), PlanError> {
    let problem = match wanted.role {
        Role::Attention("key" | "value") if wanted.rotated => "pass `rotate` rotates it".to_owned(),
        Role::Attention("key" | "value") if wanted.view.transposed || wanted.view.experts.is_some() => {
            "it is stored turned, or as a stack".to_owned()
        }
        Role::Attention("key" | "value") => String::new(),
        Role::Attention("qkv") => {
            format!("{} stores queries, keys and values in one matrix", inputs.model.architecture)
        }
        Role::Attention("key_value_a" | "key_value_b") => {
            format!("the cache of {} holds latents already", inputs.model.architecture)
        }
        role => format!("it is {role}; only keys and values are cached"),
    };
    if problem.is_empty() { Ok(()) } else { Err(refused(inputs, wanted, problem)) }
}

/// Finds the projection in the model.
fn projection<'a>(inputs: Inputs<'_>, model: &Model, wanted: Wanted<'a>) -> Result<Projection<'a>> {
    let part = if *wanted.role == Role::Attention("key") { Cached::Key } else { Cached::Value };
    let place = |block: &BlockSpec| {
        let reads = |stage: &crate::forward::Stage| {
            stage.kind == Kind::Attention && stage.linears.iter().any(|linear| linear.weight == wanted.matrix.name)
        };
        Some((block.stages.iter().position(reads)?, block.index, block.attention.clone()))
    };
    let Some((stage, block, attention)) = model.blocks.iter().find_map(place) else {
        return Err(refused(inputs, &wanted, "no block's attention reads it".to_owned()).into());
    };
    if !attention.causal {
        let problem = format!("{} keeps no cache: its tokens see those behind them", inputs.model.architecture);
        return Err(refused(inputs, &wanted, problem).into());
    }
    let heads = attention.key_value_heads;
    let width = if part == Cached::Key { attention.key_width } else { attention.value_width };
    if heads * width != wanted.matrix.rows {
        let problem = format!("{} rows are not {heads} heads of {width} channels", wanted.matrix.rows);
        return Err(refused(inputs, &wanted, problem).into());
    }
    let group = if wanted.settings.group_heads == 0 { heads } else { wanted.settings.group_heads };
    if !heads.is_multiple_of(group) {
        let rule = &inputs.recipe.passes[wanted.rule];
        let error = crate::passes::SettingError::new(
            "group_heads",
            format!("groups of {group} heads do not divide {heads} key-value heads"),
        );
        return Err(PlanError::setting(&rule.pass, rule.line, &wanted.matrix.name, error).into());
    }
    Ok(Projection { wanted, block, stage, part, heads, width, group })
}

/// Ranks for `ratio` of all channels, given out where they keep most.
fn allocated(inputs: Inputs<'_>, rule: usize, ratio: f64, members: &[&Projection<'_>]) -> Result<Vec<Vec<usize>>> {
    let statistics = inputs.recipe.calibration.as_ref().and_then(|calibration| calibration.statistics.as_ref());
    let statistics = statistics.map(|path| Statistics::open(path)).transpose()?;
    let rule = &inputs.recipe.passes[rule];
    let mut shares = Vec::with_capacity(members.len());
    for projection in members {
        shares.push(share(inputs, projection, statistics.as_ref()).map_err(|error| match error {
            Problem::NoStatistics => {
                let method = projection.wanted.settings.method.name();
                PlanError::NoStatistics { pass: rule.pass.clone(), line: rule.line, method }.into()
            }
            Problem::Weights(error) => refused_weights(inputs, projection, &error).into(),
            Problem::Other(error) => error,
        })?);
    }
    let channels: usize = members.iter().map(|projection| projection.wanted.matrix.rows).sum();
    let budget = (ratio * channels as f64) as usize;
    lowrank_kv::allocate(&shares, budget).ok_or_else(|| {
        let groups: usize = members.iter().map(|projection| projection.groups()).sum();
        let message = format!(
            "leaves {budget} latent channels for {groups} groups of heads; the smallest ratio that works is {:.6}",
            groups as f64 / channels as f64
        );
        let tensor = &members[0].wanted.matrix.name;
        let error = crate::passes::SettingError::new("cache_ratio", message);
        PlanError::setting(&rule.pass, rule.line, tensor, error).into()
    })
}

enum Problem {
    NoStatistics,
    Weights(crate::passes::gptq::SolveError),
    Other(crate::Error),
}

fn refused_weights(
    inputs: Inputs<'_>,
    projection: &Projection<'_>,
    error: &crate::passes::gptq::SolveError,
) -> PlanError {
    refused(inputs, &projection.wanted, error.to_string())
}

/// What latent channels of one projection would keep.
fn share(
    inputs: Inputs<'_>,
    projection: &Projection<'_>,
    statistics: Option<&Statistics>,
) -> std::result::Result<Share, Problem> {
    let Wanted { matrix, view, settings, .. } = &projection.wanted;
    let moments = match (settings.method, statistics) {
        (Method::Svd, _) => None,
        (_, None) => return Err(Problem::NoStatistics),
        (_, Some(statistics)) => {
            let key = Key { block: projection.block, stage: projection.stage, expert: None };
            let moments = statistics.moments(key).filter(|moments| {
                moments.columns == matrix.columns && moments.hessian.len() == matrix.columns * matrix.columns
            });
            Some(moments.ok_or_else(|| {
                let problem = "the saved statistics have no second moments of its input".to_owned();
                Problem::Other(refused(inputs, &projection.wanted, problem).into())
            })?)
        }
    };
    let rows = inputs.source.rows(&matrix.name, view.transposed).map_err(|error| Problem::Other(error.into()))?;
    let mut weights = vec![0.0; matrix.rows * matrix.columns];
    rows.read_rows(0, &mut weights).map_err(|error| Problem::Weights(error.into()))?;
    rows.release_rows(0..matrix.rows);
    let channels = moments.as_ref().map(|moments| lowrank_kv::channels(&moments.mean_abs()));
    let metric = match (settings.method, &channels, &moments) {
        (Method::Asvd, Some(channels), _) => Metric::Channels(channels),
        (Method::Optimal, _, Some(moments)) => Metric::Moments(&moments.hessian),
        _ => Metric::Alike,
    };
    let groups = lowrank_kv::energies(&weights, matrix.columns, projection.groups(), metric);
    Ok(Share { groups: groups.map_err(Problem::Weights)? })
}
