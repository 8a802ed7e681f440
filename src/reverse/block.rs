//! A decoder block with a tape, and its reverse.

use super::{
    Linear, Matrix, Norm, NormGradient, Real, ReverseError, WeightGradient,
    activation::Gate,
    attention::Attend,
    heads::{HeadPreparation, Rotation},
    linear::{apply_together, reverse_together, shape},
};
use crate::forward::{After, BlockSpec, ForwardError, Kind, NormSpec, WeightSource, vector};

/// The stages that a block must have, in this order.
const STAGES: [Kind; 4] = [Kind::Attention, Kind::AttentionOutput, Kind::Mlp, Kind::MlpOutput];

/// A block with its small weights in memory; linears are given by whoever drives it, one list per stage.
#[derive(Debug, Clone)]
pub struct Block<'a, T> {
    /// What it computes.
    pub spec: &'a BlockSpec,
    /// Before attention.
    pub attention_norm: Option<Norm<T>>,
    /// Behind attention, see [`After`].
    pub after_attention: Option<Norm<T>>,
    /// Before the MLP.
    pub mlp_norm: Option<Norm<T>>,
    /// Behind the MLP.
    pub after_mlp: Option<Norm<T>>,
    /// Of query and key heads.
    pub head_norms: Option<[Norm<T>; 2]>,
    /// One per query head, or empty.
    pub sinks: Vec<T>,
    rotation: Option<Rotation<T>>,
    length: usize,
}

/// What a block's reverse needs of its forward pass.
#[derive(Debug)]
pub struct Tape<T> {
    /// The residual stream before the block, and between attention and MLP.
    streams: [Matrix<T>; 2],
    /// Inputs of the four stages' linears.
    inputs: [Matrix<T>; 4],
    /// Queries, keys and values as the linears give them; only where heads are normed.
    raw_heads: Option<Matrix<T>>,
    /// The same, prepared.
    heads: Matrix<T>,
    /// Outputs of the MLP's first linears.
    gates: Matrix<T>,
    /// What the norms behind attention and MLP read.
    behind: [Option<Matrix<T>>; 2],
}

/// Gradients of a block's input and small weights.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockGradient<T> {
    /// `[tokens, hidden]`.
    pub hidden: Matrix<T>,
    /// Of [`Block::attention_norm`].
    pub attention_norm: Option<NormGradient<T>>,
    /// Of [`Block::after_attention`].
    pub after_attention: Option<NormGradient<T>>,
    /// Of [`Block::mlp_norm`].
    pub mlp_norm: Option<NormGradient<T>>,
    /// Of [`Block::after_mlp`].
    pub after_mlp: Option<NormGradient<T>>,
    /// Of [`Block::head_norms`].
    pub head_norms: Option<[NormGradient<T>; 2]>,
    /// Of [`Block::sinks`].
    pub sinks: Vec<T>,
}

/// Takes the gradients of linears, one after the other.
pub type TakeGradient<'f, T> = dyn FnMut(&WeightGradient<'_, T>) -> Result<(), ReverseError> + 'f;

/// Whether gradients can be taken through a block.
///
/// # Errors
/// [`ReverseError::Unsupported`] with what is missing.
pub fn supports(spec: &BlockSpec) -> Result<(), ReverseError> {
    let part = if spec.experts.is_some() {
        "routed experts"
    } else if spec.latent.is_some() {
        "latent attention"
    } else if !spec.stages.iter().map(|stage| stage.kind).eq(STAGES) {
        "other stages than attention and an MLP"
    } else {
        return Ok(());
    };
    Err(ReverseError::Unsupported { place: format!("block {}", spec.index), part })
}

impl<'a, T: Real> Block<'a, T> {
    /// Reads the small weights, for sequences of `length` tokens.
    ///
    /// # Errors
    /// As [`supports`] and [`WeightSource::read`]; [`ReverseError::Shape`] for weights that do not fit together.
    pub fn read(spec: &'a BlockSpec, source: &dyn WeightSource, length: usize) -> Result<Self, ReverseError> {
        supports(spec)?;
        let attention = &spec.attention;
        let hidden = spec.stages[3].linears.first().map_or(0, |linear| linear.rows);
        let read = |spec: &NormSpec, width: usize| read_norm(spec, source, width);
        let norm = |spec: &Option<NormSpec>| spec.as_ref().map(|spec| read(spec, hidden)).transpose();
        let after = |after: &After| match after {
            After::Nothing => Ok(None),
            After::Branch(spec) | After::Sum(spec) => read(spec, hidden).map(Some),
        };
        let block = Self {
            spec,
            attention_norm: norm(&spec.attention_norm)?,
            after_attention: after(&spec.after_attention)?,
            mlp_norm: norm(&spec.mlp_norm)?,
            after_mlp: after(&spec.after_mlp)?,
            head_norms: match &spec.head_norms {
                Some([query, key]) => Some([read(query, attention.key_width)?, read(key, attention.key_width)?]),
                None => None,
            },
            sinks: match &spec.sinks {
                Some(name) => T::from_singles(vector(source, name)?),
                None => Vec::new(),
            },
            rotation: spec.rope.as_ref().map(|rope| rope.rotation(length).into()),
            length,
        };
        block.check(hidden)?;
        Ok(block)
    }

    /// Whether widths fit together, so that no index can leave its row.
    fn check(&self, hidden: usize) -> Result<(), ReverseError> {
        let (spec, attention) = (self.spec, &self.spec.attention);
        let grouped = attention.key_value_heads > 0 && attention.heads.is_multiple_of(attention.key_value_heads);
        if !grouped || attention.key_width == 0 || attention.value_width == 0 || self.length == 0 {
            let place = format!("block {}", spec.index);
            return Err(ReverseError::Unsupported { place, part: "heads or sequences without any channel or token" });
        }
        let name = |stage: usize| spec.stages[stage].linears.first().map_or("", |linear| linear.weight.as_str());
        let outputs = |stage: usize| spec.stages[stage].linears.iter().map(|linear| linear.rows).sum::<usize>();
        let keys = (attention.heads + attention.key_value_heads) * attention.key_width;
        shape(name(0), keys + attention.key_value_heads * attention.value_width, outputs(0))?;
        shape(name(1), hidden, outputs(1))?;
        let mixed = attention.heads * attention.value_width;
        let width = outputs(2) / if spec.gated { 2 } else { 1 };
        for (stage, columns) in [hidden, mixed, hidden, width].into_iter().enumerate() {
            for linear in &spec.stages[stage].linears {
                shape(&linear.weight, columns, linear.columns)?;
            }
        }
        if let Some(rotation) = &self.rotation
            && rotation.channels() > attention.key_width
        {
            shape("rotated channels", attention.key_width, rotation.channels())?;
        }
        if !self.sinks.is_empty() {
            shape("sinks", attention.heads, self.sinks.len())?;
        }
        Ok(())
    }

    /// Reads its linears as they are stored, one list per stage.
    ///
    /// # Errors
    /// As [`WeightSource::read`] and [`Linear::new`].
    pub fn read_linears(&self, source: &dyn WeightSource) -> Result<Vec<Vec<Linear<T>>>, ReverseError> {
        let stage = |stage: &crate::forward::Stage| {
            stage.linears.iter().map(|spec| Linear::new(&spec.weight, spec.read(source)?)).collect()
        };
        self.spec.stages.iter().map(stage).collect()
    }

    fn preparation(&self) -> HeadPreparation<'_, T> {
        let attention = &self.spec.attention;
        HeadPreparation {
            norms: self.head_norms.as_ref(),
            rotation: self.rotation.as_ref(),
            query_heads: attention.heads,
            heads: attention.heads + attention.key_value_heads,
            width: attention.key_width,
            length: self.length,
        }
    }

    fn gate(&self) -> Gate {
        Gate { activation: self.spec.activation, gated: self.spec.gated }
    }

    fn attend<'t>(&'t self, heads: &'t Matrix<T>) -> Attend<'t, T> {
        Attend { rule: &self.spec.attention, y: heads, length: self.length, sinks: &self.sinks }
    }

    /// The residual stream behind the block and what its reverse needs. `hidden` is `[tokens, hidden]`, whole sequences;
    /// `linears` are those of [`BlockSpec::stages`].
    ///
    /// # Errors
    /// [`ForwardError::Overflow`] when the residual stream is not finite any more.
    pub fn forward(&self, hidden: Matrix<T>, linears: &[Vec<Linear<T>>]) -> Result<(Matrix<T>, Tape<T>), ReverseError> {
        debug_assert_eq!(hidden.rows % self.length, 0);
        let normed =
            |norm: &Option<Norm<T>>, x: &Matrix<T>| norm.as_ref().map_or_else(|| x.clone(), |norm| norm.apply(x));
        let first = normed(&self.attention_norm, &hidden);
        let mut heads = apply_together(&linears[0], &first);
        let raw_heads = self.head_norms.is_some().then(|| heads.clone());
        self.preparation().apply(&mut heads);
        let mixed = self.attend(&heads).forward();
        let branch = apply_together(&linears[1], &mixed);
        let (middle, behind_attention) =
            self.residual(&hidden, branch, self.after_attention.as_ref(), &self.spec.after_attention, "attention")?;
        let third = normed(&self.mlp_norm, &middle);
        let gates = apply_together(&linears[2], &third);
        let inner = self.gate().apply(&gates);
        let branch = apply_together(&linears[3], &inner);
        let (out, behind_mlp) = self.residual(&middle, branch, self.after_mlp.as_ref(), &self.spec.after_mlp, "mlp")?;
        let tape = Tape {
            streams: [hidden, middle],
            inputs: [first, mixed, third, inner],
            raw_heads,
            heads,
            gates,
            behind: [behind_attention, behind_mlp],
        };
        Ok((out, tape))
    }

    /// The stream behind a branch, and what the norm there has read.
    fn residual(
        &self,
        hidden: &Matrix<T>,
        mut branch: Matrix<T>,
        norm: Option<&Norm<T>>,
        after: &After,
        what: &'static str,
    ) -> Result<(Matrix<T>, Option<Matrix<T>>), ReverseError> {
        let (out, read) = match norm {
            Some(norm) if matches!(after, After::Sum(_)) => {
                branch.add(hidden);
                (norm.apply(&branch), Some(branch))
            }
            Some(norm) => {
                let mut out = norm.apply(&branch);
                out.add(hidden);
                (out, Some(branch))
            }
            None => {
                branch.add(hidden);
                (branch, None)
            }
        };
        if out.is_finite() {
            return Ok((out, read));
        }
        Err(ForwardError::Overflow { block: self.spec.index, what }.into())
    }

    /// Gradients of everything from that of the output, `d`: those of the linears go to `take`, stage by stage from the
    /// last, the others come back.
    ///
    /// # Errors
    /// The first one that `take` gives.
    pub fn reverse(
        &self,
        tape: &Tape<T>,
        linears: &[Vec<Linear<T>>],
        d: Matrix<T>,
        take: &mut TakeGradient<'_, T>,
    ) -> Result<BlockGradient<T>, ReverseError> {
        let mut stage = |stage: usize, d: &Matrix<T>| -> Result<Matrix<T>, ReverseError> {
            let mut first = 0;
            for (index, linear) in linears[stage].iter().enumerate() {
                let outputs = linear.weight.rows;
                take(&WeightGradient { place: (stage, index), x: &tape.inputs[stage], d, first, outputs })?;
                first += outputs;
            }
            Ok(reverse_together(&linears[stage], d))
        };
        let (mut hidden, branch, after_mlp) =
            reverse_residual(d, self.after_mlp.as_ref(), &self.spec.after_mlp, tape.behind[1].as_ref());
        let inner = stage(3, branch.as_ref().unwrap_or(&hidden))?;
        let mut input = stage(2, &self.gate().reverse(&tape.gates, &inner))?;
        let mlp_norm = self.mlp_norm.as_ref().map(|norm| norm.reverse(&tape.streams[1], &mut input));
        hidden.add(&input);
        let (mut hidden, branch, after_attention) = reverse_residual(
            hidden,
            self.after_attention.as_ref(),
            &self.spec.after_attention,
            tape.behind[0].as_ref(),
        );
        let mixed = stage(1, branch.as_ref().unwrap_or(&hidden))?;
        let (mut heads, sinks) = self.attend(&tape.heads).reverse(&mixed);
        let head_norms = self.preparation().reverse(tape.raw_heads.as_ref(), &mut heads);
        let mut input = stage(0, &heads)?;
        let attention_norm = self.attention_norm.as_ref().map(|norm| norm.reverse(&tape.streams[0], &mut input));
        hidden.add(&input);
        Ok(BlockGradient { hidden, attention_norm, after_attention, mlp_norm, after_mlp, head_norms, sinks })
    }
}

type Reversed<T> = (Matrix<T>, Option<Matrix<T>>, Option<NormGradient<T>>);

/// Gradients of the stream before a residual sum, of the branch where it differs, and of the norm behind the branch.
fn reverse_residual<T: Real>(
    mut d: Matrix<T>,
    norm: Option<&Norm<T>>,
    after: &After,
    read: Option<&Matrix<T>>,
) -> Reversed<T> {
    match (norm, read) {
        (Some(norm), Some(read)) if matches!(after, After::Sum(_)) => {
            let gradient = norm.reverse(read, &mut d);
            (d, None, Some(gradient))
        }
        (Some(norm), Some(read)) => {
            let mut branch = d.clone();
            let gradient = norm.reverse(read, &mut branch);
            (d, Some(branch), Some(gradient))
        }
        _ => (d, None, None),
    }
}

/// Reads a norm and checks that it is as wide as what it norms.
pub(super) fn read_norm<T: Real>(
    spec: &NormSpec,
    source: &dyn WeightSource,
    width: usize,
) -> Result<Norm<T>, ReverseError> {
    let norm: Norm<T> = spec.read(source)?.into();
    for (part, values) in [("weight", &norm.weight), ("bias", &norm.bias)] {
        if !values.is_empty() {
            shape(&format!("{}.{part}", spec.name), width, values.len())?;
        }
    }
    Ok(norm)
}
