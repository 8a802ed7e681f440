//! Names of tensors, both ways: transformers' on the left, llama.cpp's on the right.

const OUTSIDE: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

const IN_BLOCK: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A name's module and what it is of it: `weight` or `bias`.
fn parts(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, what)| ["weight", "bias"].contains(what))
}

/// Number and rest behind a prefix: `3.mlp.up_proj`.
fn numbered<'a>(module: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let (number, rest) = module.strip_prefix(prefix)?.split_once('.')?;
    // Only numbers as they are written: a name has one form.
    let plain = number == "0" || (!number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit()));
    (plain && !number.is_empty() && number.len() < 10).then_some((number, rest))
}

/// The name in a file; `None` for tensors that have none.
pub(in crate::layout) fn to_file(name: &str) -> Option<String> {
    let (module, what) = parts(name)?;
    if let Some((_, outside)) = OUTSIDE.iter().find(|(theirs, _)| *theirs == module) {
        return Some(format!("{outside}.{what}"));
    }
    let (number, rest) = numbered(module, "model.layers.")?;
    let (_, inside) = IN_BLOCK.iter().find(|(theirs, _)| *theirs == rest)?;
    Some(format!("blk.{number}.{inside}.{what}"))
}

/// The name of the model's tensor that a file's is; `None` for tensors that are none.
pub(in crate::layout) fn from_file(name: &str) -> Option<String> {
    let (module, what) = parts(name)?;
    if let Some((theirs, _)) = OUTSIDE.iter().find(|(_, outside)| *outside == module) {
        return Some(format!("{theirs}.{what}"));
    }
    let (number, rest) = numbered(module, "blk.")?;
    let (theirs, _) = IN_BLOCK.iter().find(|(_, inside)| *inside == rest)?;
    Some(format!("model.layers.{number}.{theirs}.{what}"))
}

/// Whether a tensor is a projection of queries or keys, or its bias.
pub(super) fn is_query_or_key(name: &str) -> bool {
    is_query(name) || is_key(name)
}

/// Whether a tensor is a projection of queries, or its bias.
pub(in crate::layout) fn is_query(name: &str) -> bool {
    parts(name).is_some_and(|(module, _)| module.ends_with(".self_attn.q_proj"))
}

/// Whether a tensor is a projection of keys, or its bias.
pub(in crate::layout) fn is_key(name: &str) -> bool {
    parts(name).is_some_and(|(module, _)| module.ends_with(".self_attn.k_proj"))
}
