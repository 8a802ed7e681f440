//! The model map: what `config.json` and the tensor names say about the model. Headers only, no weights.

use serde_json::Value;

/// Name and dense shape of a logical tensor: all that the map needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedShape {
    /// Logical tensor name.
    pub name: String,
    /// Dense shape as stored.
    pub shape: Vec<usize>,
}

/// What a tensor is for. Displayed as a dotted path, the one that recipes select by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `embedding`: token embedding.
    Embedding,
    /// `embedding.position`, `embedding.type`: other embeddings.
    OtherEmbedding(&'static str),
    /// `head`: output projection to the vocabulary.
    Head,
    /// `norm`: any norm weight or bias.
    Norm,
    /// `router`: expert routing.
    Router,
    /// `attention.<part>`: `query`, `key`, `value`, `output`, fused `qkv`; latent attention's `query_a`, `query_b`,
    /// `key_value_a`, `key_value_b`.
    Attention(&'static str),
    /// `mlp.<part>`: `gate`, `up`, `down`, fused `gate_up`.
    Mlp(&'static str),
    /// `shared_expert.<part>`: an expert that sees every token.
    SharedExpert(&'static str),
    /// `expert.<index>.<part>`; index `None` for stacked experts (`expert.<part>`).
    Expert(Option<usize>, &'static str),
    /// `linear`: a matrix of an unknown architecture that a pass may take.
    Linear,
    /// `other`: everything else (biases, sinks, rotary tables, vision towers, …).
    Other,
}

/// How a tensor is a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixView {
    /// Experts of a stacked tensor.
    pub experts: Option<usize>,
    /// Output features, of one expert.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Whether it is stored `[input, output]`.
    pub transposed: bool,
    /// Parts of a fused projection, in row order: part name and rows. Empty when not fused.
    pub fused: Vec<(&'static str, usize)>,
}

/// One tensor of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTensor {
    /// Logical tensor name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Decoder block it belongs to.
    pub block: Option<usize>,
    /// Set for linears (matrices that multiply activations), the head included, embeddings not.
    pub matrix: Option<MatrixView>,
    /// Linears with the same value share one input; an index into [`ModelMap::inputs`].
    pub input: Option<usize>,
}

/// One activation that feeds linears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The norm weight that produces it, where a norm does (`model.layers.0.input_layernorm.weight`).
    pub norm: Option<String>,
    /// The linears that read it.
    pub linears: Vec<String>,
    /// Other readers that a rescaled input must reach too (routers, shared experts' gates).
    pub others: Vec<String>,
}

/// The map of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMap {
    /// `architectures[0]` of the config, or `model_type`, or `unknown`.
    pub architecture: String,
    /// Whether bantam knows this architecture; if not, linears were found by shape and name alone.
    pub known: bool,
    /// Prefix of the language model inside a multimodal one, `""` or e.g. `"language_model."`.
    pub prefix: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// Name under which the head module is known even when tied (`lm_head`), for layouts' ignore lists.
    pub head_module: Option<String>,
    /// All tensors, in the order given.
    pub tensors: Vec<MappedTensor>,
    /// The shared inputs.
    pub inputs: Vec<Input>,
    /// What the user should be told, one line each (unknown architecture, …).
    pub notes: Vec<String>,
}

impl ModelMap {
    /// Maps the model. Never fails: an unknown architecture gets a map by shape and name, with a note.
    #[must_use]
    pub fn new(config: Option<&Value>, tensors: &[NamedShape]) -> Self {
        let _ = config;
        let mut mapped = Vec::new();
        for t in tensors {
            let n = t.name.as_str();
            let role = if n.contains("embed") {
                Role::Embedding
            } else if n.contains("lm_head") {
                Role::Head
            } else if n.contains("norm") {
                Role::Norm
            } else if n.contains("q_proj.w") {
                Role::Attention("query")
            } else if n.contains("k_proj.w") {
                Role::Attention("key")
            } else if n.contains("v_proj.w") {
                Role::Attention("value")
            } else if n.contains("o_proj.w") {
                Role::Attention("output")
            } else if n.contains("gate_proj.w") {
                Role::Mlp("gate")
            } else if n.contains("up_proj.w") {
                Role::Mlp("up")
            } else if n.contains("down_proj.w") {
                Role::Mlp("down")
            } else {
                Role::Other
            };
            let matrix = (t.shape.len() == 2 && !matches!(role, Role::Embedding | Role::Norm | Role::Other))
                .then(|| matrix_by_shape(&t.shape));
            mapped.push(MappedTensor { name: t.name.clone(), role, block: None, matrix, input: None });
        }
        Self {
            architecture: "interim".into(),
            known: true,
            prefix: String::new(),
            blocks: 0,
            tied_embeddings: false,
            head_module: Some("lm_head".into()),
            tensors: mapped,
            inputs: vec![],
            notes: vec![],
        }
    }

    /// One tensor by name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&MappedTensor> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// interim
pub fn matrix_by_shape(shape: &[usize]) -> MatrixView {
    MatrixView { experts: None, rows: shape[0], columns: shape[1], transposed: false, fused: vec![] }
}
impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Role::Embedding => write!(f, "embedding"),
            Role::Head => write!(f, "head"),
            Role::Norm => write!(f, "norm"),
            Role::Attention(p) => write!(f, "attention.{p}"),
            Role::Mlp(p) => write!(f, "mlp.{p}"),
            _ => write!(f, "other"),
        }
    }
}
