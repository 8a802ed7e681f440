//! Blocks of the families before Llama: projections with biases, layer norms, no rotary positions.

use super::{
    super::{
        ForwardError, Kind, Stage,
        attention::Attention,
        spec::{After, BlockSpec},
    },
    Builder,
};

impl Builder<'_> {
    fn plain_attention(&self, causal: bool, hidden: usize) -> Result<Attention, ForwardError> {
        let heads = self.heads()?;
        let width = hidden / heads;
        Ok(Attention {
            heads,
            key_value_heads: heads,
            key_width: width,
            value_width: width,
            scale: (width as f64).powf(-0.5) as f32,
            causal,
            window: None,
            soft_cap: None,
        })
    }

    fn plain_block(&self, index: usize, stages: Vec<Stage>, attention: Attention) -> Result<BlockSpec, ForwardError> {
        Ok(BlockSpec {
            index,
            stages,
            attention_norm: None,
            after_attention: After::Nothing,
            mlp_norm: None,
            after_mlp: After::Nothing,
            head_norms: None,
            latent_norms: None,
            attention,
            latent: None,
            cache: None,
            sinks: None,
            rope: None,
            activation: self.activation()?,
            gated: false,
            experts: None,
        })
    }

    pub(super) fn opt_block(&self, index: usize) -> Result<BlockSpec, ForwardError> {
        let (name, hidden) = (format!("{}{index}.", self.blocks), self.hidden()?);
        let width = self.config.needed("ffn_dim")?;
        let linear = |part: &str, rows, columns| self.linear(&format!("{name}{part}"), rows, columns, false);
        let stage = |kind, linears| Stage { kind, linears };
        let projections =
            ["q_proj", "k_proj", "v_proj"].iter().map(|part| linear(&format!("self_attn.{part}"), hidden, hidden));
        let stages = vec![
            stage(Kind::Attention, projections.collect::<Result<_, _>>()?),
            stage(Kind::AttentionOutput, vec![linear("self_attn.out_proj", hidden, hidden)?]),
            stage(Kind::Mlp, vec![linear("fc1", width, hidden)?]),
            stage(Kind::MlpOutput, vec![linear("fc2", hidden, width)?]),
        ];
        let mut block = self.plain_block(index, stages, self.plain_attention(true, hidden)?)?;
        let attention_norm = self.norm(format!("{name}self_attn_layer_norm"))?;
        let mlp_norm = self.norm(format!("{name}final_layer_norm"))?;
        if self.config.flag("do_layer_norm_before")?.unwrap_or(true) {
            (block.attention_norm, block.mlp_norm) = (Some(attention_norm), Some(mlp_norm));
        } else {
            (block.after_attention, block.after_mlp) = (After::Sum(attention_norm), After::Sum(mlp_norm));
        }
        Ok(block)
    }

    pub(super) fn gpt2_block(&self, index: usize) -> Result<BlockSpec, ForwardError> {
        let (name, hidden) = (format!("{}{index}.", self.blocks), self.hidden()?);
        let width = self.config.count("n_inner")?.filter(|width| *width > 0).unwrap_or(4 * hidden);
        let linear = |part: &str, rows, columns| self.linear(&format!("{name}{part}"), rows, columns, true);
        let stage = |kind, linear| Stage { kind, linears: vec![linear] };
        let stages = vec![
            stage(Kind::Attention, linear("attn.c_attn", 3 * hidden, hidden)?),
            stage(Kind::AttentionOutput, linear("attn.c_proj", hidden, hidden)?),
            stage(Kind::Mlp, linear("mlp.c_fc", width, hidden)?),
            stage(Kind::MlpOutput, linear("mlp.c_proj", hidden, width)?),
        ];
        let mut attention = self.plain_attention(true, hidden)?;
        if !self.config.flag("scale_attn_weights")?.unwrap_or(true) {
            attention.scale = 1.0;
        }
        if self.config.flag("scale_attn_by_inverse_layer_idx")?.unwrap_or(false) {
            attention.scale /= (index + 1) as f32;
        }
        let mut block = self.plain_block(index, stages, attention)?;
        block.attention_norm = Some(self.norm(format!("{name}ln_1"))?);
        block.mlp_norm = Some(self.norm(format!("{name}ln_2"))?);
        Ok(block)
    }

    pub(super) fn bert_block(&self, index: usize) -> Result<BlockSpec, ForwardError> {
        let (name, hidden) = (format!("{}{index}.", self.blocks), self.hidden()?);
        let width = self.config.needed("intermediate_size")?;
        let linear = |part: &str, rows, columns| self.linear(&format!("{name}{part}"), rows, columns, false);
        let projections =
            ["query", "key", "value"].iter().map(|part| linear(&format!("attention.self.{part}"), hidden, hidden));
        let stages = vec![
            Stage { kind: Kind::Attention, linears: projections.collect::<Result<_, _>>()? },
            Stage { kind: Kind::AttentionOutput, linears: vec![linear("attention.output.dense", hidden, hidden)?] },
            Stage { kind: Kind::Mlp, linears: vec![linear("intermediate.dense", width, hidden)?] },
            Stage { kind: Kind::MlpOutput, linears: vec![linear("output.dense", hidden, width)?] },
        ];
        let mut block = self.plain_block(index, stages, self.plain_attention(false, hidden)?)?;
        block.after_attention = After::Sum(self.norm(format!("{name}attention.output.LayerNorm"))?);
        block.after_mlp = After::Sum(self.norm(format!("{name}output.LayerNorm"))?);
        Ok(block)
    }
}
