//! Decompositions behind one small trait.
