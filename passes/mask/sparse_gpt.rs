//! SparseGPT's sweep over groups of columns, with exact losses.
//!
//! Frantar and Alistarh (2301.00774) score each weight of a group on its own, `w² / U_jj²`. Here all weights that leave a
//! group do so together: given that all groups before are fixed, the inverse second moments of what is left are
//! `C = U_FFᵀ U_FF`, whose block of the group needs the group's own block of U alone, `C_QQ = U_QQᵀ U_QQ`. Leaving out `w_P`
//! costs `w_P (C_PP)⁻¹ w_Pᵀ`, and the best change of everything left, the group's other weights included, is
//! `w −= z U_Q·` with `z = w_P (C_PP)⁻¹ (U_QP)ᵀ`: z takes the place of the error in GPTQ's update, so blocks of columns and
//! rows in lanes work as there.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{Pattern, forms::Forms, rows::Rows};
use crate::passes::gptq::{Factor, lanes};

/// The costs of each group in the order of the sweep.
pub struct Sweep {
    forms: Vec<Forms>,
    block: usize,
}

impl Sweep {
    /// What all rows share. The factor is one of [`Factor::grouped`].
    pub fn new(factor: &Factor, pattern: Pattern, block_size: usize) -> Self {
        let (columns, of) = (factor.columns, pattern.of);
        let forms = (0..columns / of).into_par_iter().map(|group| {
            let place = group * of;
            let upper: Vec<f64> = (0..of * of)
                .map(|index| f64::from(factor.upper[(place + index / of) * columns + place + index % of]))
                .collect();
            let inverse: Vec<f64> = (0..of * of)
                .map(|index| (0..of).map(|k| upper[k * of + index / of] * upper[k * of + index % of]).sum())
                .collect();
            Forms::new(pattern, &inverse, &upper)
        });
        Self { forms: forms.collect(), block: block_size.clamp(of, 65536) / of * of }
    }

    /// Chooses what each row keeps, unless `fixed`, and changes the values that are kept. Starts from the target.
    pub fn run(&self, rows: &mut Rows, fixed: bool) {
        let (lanes, of, factor) = (rows.lanes, rows.pattern.of, rows.factor);
        let columns = factor.columns;
        let whole = rows.whole();
        let mut work = vec![0.0; columns * lanes];
        for (to, column) in work.chunks_exact_mut(lanes).zip(&factor.permutation) {
            to.copy_from_slice(&rows.target[column * lanes..][..lanes]);
        }
        let by_bits = self.forms.first().map_or([0; 256], Forms::by_bits);
        let upper = MatRef::from_row_major_slice(&factor.upper, columns, columns);
        let mut errors = vec![0.0; self.block * lanes];
        let mut group = vec![0.0; of * lanes];
        let (mut costs, mut chosen) = (vec![0.0; lanes], vec![0; lanes]);
        for start in (0..whole).step_by(self.block) {
            let end = whole.min(start + self.block);
            for place in (start..end).step_by(of) {
                let forms = &self.forms[place / of];
                let own = &work[place * lanes..(place + of) * lanes];
                group.iter_mut().zip(own).for_each(|(to, weight)| *to = f64::from(*weight));
                let kept = &mut rows.kept[factor.permutation[place] / of * lanes..][..lanes];
                if fixed {
                    chosen.iter_mut().zip(kept.iter()).for_each(|(index, kept)| *index = by_bits[usize::from(*kept)]);
                } else {
                    forms.cheapest(&group, &mut costs, &mut chosen);
                }
                let errors = &mut errors[(place - start) * lanes..][..of * lanes];
                for (lane, choice) in chosen.iter().enumerate() {
                    kept[lane] = forms.choices[usize::from(*choice)].kept;
                    for (place, error) in errors[lane..].iter_mut().step_by(lanes).enumerate() {
                        *error = forms.spread(usize::from(*choice), &group, lane, place) as f32;
                    }
                }
                for (row, error) in errors.chunks_exact(lanes).enumerate() {
                    let factors = &factor.upper[(place + row) * columns + place + row..][..end - place - row];
                    lanes::add_outer(&mut work[(place + row) * lanes..end * lanes], factors, -1.0, error);
                }
            }
            let rest = columns - end;
            if rest > 0 {
                let count = end - start;
                let errors = MatRef::from_column_major_slice(&errors[..count * lanes], lanes, count);
                let to = MatMut::from_column_major_slice_mut(&mut work[end * lanes..], lanes, rest);
                matmul(to, Accum::Add, errors, upper.submatrix(start, end, count, rest), -1.0, Par::Seq);
            }
        }
        for (from, column) in work.chunks_exact(lanes).zip(&factor.permutation) {
            rows.values[column * lanes..][..lanes].copy_from_slice(from);
        }
        let mut values = std::mem::take(&mut rows.values);
        // What is left out is zero but for rounding.
        rows.clear(&mut values);
        rows.values = values;
    }
}
