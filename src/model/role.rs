//! How roles are written and taken apart.

use std::fmt;

use super::Role;

impl Role {
    /// The first word of its path: `embedding`, `head`, `norm`, `router`, `attention`, `mlp`, `shared_expert`,
    /// `expert`, `linear` or `other`.
    #[must_use]
    pub fn family(&self) -> &'static str {
        match self {
            Self::Embedding | Self::OtherEmbedding(_) => "embedding",
            Self::Head => "head",
            Self::Norm => "norm",
            Self::Router => "router",
            Self::Attention(_) => "attention",
            Self::Mlp(_) => "mlp",
            Self::SharedExpert(_) => "shared_expert",
            Self::Expert(..) => "expert",
            Self::Linear => "linear",
            Self::Other => "other",
        }
    }

    /// The last word of its path where it has more than one: `query`, `down`, `gate_up`, `position`, …
    #[must_use]
    pub fn part(&self) -> Option<&'static str> {
        match self {
            Self::OtherEmbedding(part)
            | Self::Attention(part)
            | Self::Mlp(part)
            | Self::SharedExpert(part)
            | Self::Expert(_, part) => Some(part),
            Self::Embedding | Self::Head | Self::Norm | Self::Router | Self::Linear | Self::Other => None,
        }
    }

    /// The role of the expert with this index, for an expert's; every other role unchanged.
    #[must_use]
    pub(super) fn of_expert(&self, index: Option<usize>) -> Self {
        match self {
            Self::Expert(_, part) => Self::Expert(index, part),
            role => role.clone(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.family())?;
        if let Self::Expert(Some(index), _) = self {
            write!(formatter, ".{index}")?;
        }
        match self.part() {
            Some(part) => write!(formatter, ".{part}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_written_as_documented() {
        for (role, written) in [
            (Role::Embedding, "embedding"),
            (Role::OtherEmbedding("position"), "embedding.position"),
            (Role::Head, "head"),
            (Role::Norm, "norm"),
            (Role::Router, "router"),
            (Role::Attention("key_value_a"), "attention.key_value_a"),
            (Role::Mlp("gate_up"), "mlp.gate_up"),
            (Role::SharedExpert("up"), "shared_expert.up"),
            (Role::Expert(Some(17), "down"), "expert.17.down"),
            (Role::Expert(None, "down"), "expert.down"),
            (Role::Linear, "linear"),
            (Role::Other, "other"),
        ] {
            assert_eq!(role.to_string(), written);
        }
    }
}
