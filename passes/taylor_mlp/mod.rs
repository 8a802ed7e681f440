//! `TaylorMLP`: activations as polynomials, of which the down projection is stored as terms. A slowdown, not a protection.

pub mod hardened;
