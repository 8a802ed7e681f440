//! Matrices that share codebooks are solved together, as one that has all their rows.

use super::{
    Moments, Part, SolveFailure, Solved,
    driver::Worker,
    matrices::{Factors, fewest_tokens},
};
use crate::{
    Result,
    codec::{CodedMatrix, Coding, Whole},
    forward::{LinearSpec, Matrix, WeightSource},
    passes::{Deviations, Settings, vptq},
    plan::Encode,
};

impl<'a> Worker<'a> {
    /// Finds and keeps the codes of those of these linears that share codebooks; the others are left.
    pub(super) fn solve_shared(
        &mut self,
        source: &dyn WeightSource,
        linears: &[LinearSpec],
        moments: &Moments,
        factors: &mut Factors<'_>,
    ) -> Result<()> {
        let encode = |linear: &LinearSpec| self.encodes.get(linear.weight.as_str()).copied();
        let owner = |encode: &'a Encode| encode.choice.codebook_of.as_deref().unwrap_or(&encode.matrix.name);
        let owners: Vec<&str> =
            linears.iter().filter_map(encode).filter(|encode| encode.choice.codebook_of.is_some()).map(owner).collect();
        for (place, &name) in owners.iter().enumerate() {
            if owners[..place].contains(&name) {
                continue;
            }
            let members: Vec<(&LinearSpec, &'a Encode)> = linears
                .iter()
                .filter_map(|linear| Some((linear, self.encodes.get(linear.weight.as_str()).copied()?)))
                .filter(|(_, encode)| owner(encode) == name)
                .collect();
            if members.iter().any(|(linear, _)| self.solutions.solved(&linear.weight, 0).is_none()) {
                self.solve_together(source, &members, moments, factors)?;
            }
        }
        Ok(())
    }

    fn solve_together(
        &mut self,
        source: &dyn WeightSource,
        members: &[(&LinearSpec, &'a Encode)],
        moments: &Moments,
        factors: &mut Factors<'_>,
    ) -> Result<()> {
        let Some(&(first, encode)) = members.first() else { return Ok(()) };
        let (Settings::Vptq(settings), Coding::Whole(Whole::Vector(format)), Some(factoring)) =
            (&encode.settings, &encode.choice.codec, encode.settings.factoring())
        else {
            return Ok(());
        };
        let weights: Vec<Matrix> =
            members.iter().map(|(linear, _)| linear.read_weight(source)).collect::<std::result::Result<_, _>>()?;
        let few = moments.count < fewest_tokens(first.columns);
        // Too little is known of the input: every channel counts alike.
        let alike = few.then(|| Moments::alike(first.columns));
        let mut plain = Factors::on(None);
        let factors = if few { &mut plain } else { factors };
        let (factor, known) = self
            .solutions
            .clock
            .time(Part::Factor, || factors.of(alike.as_ref().unwrap_or(moments), factoring, None, &first.weight))?;
        let problems: Vec<vptq::Linear<'_>> = members
            .iter()
            .zip(&weights)
            .map(|((linear, _), weights)| vptq::Linear {
                name: &linear.weight,
                weights: &weights.values,
                rows: weights.rows,
                format,
                arithmetic: format.storage,
            })
            .collect();
        let failed = |source| SolveFailure::Matrix { tensor: first.weight.clone(), source };
        let (solutions, report) = self
            .solutions
            .clock
            .time(Part::Solve, || vptq::solve_stacked(factor, &known.view(), &problems, &settings.solve))
            .map_err(failed)?;
        let damping = factor.damping();
        let mut deviations: Deviations = report.deviations.clone();
        if few {
            deviations.insert(if moments.count == 0 { "no-statistics" } else { "few-tokens" }, 1);
        }
        if let Some((kind, count)) = deviations.iter().next().filter(|_| self.job.deny_fallbacks) {
            let (tensor, kind, count) = (first.weight.clone(), (*kind).to_owned(), *count);
            return Err(SolveFailure::Denied { tensor, kind, count }.into());
        }
        // Losses are those of all together.
        let per_token = moments.count.max(1) as f64;
        let solved = Solved {
            tokens: moments.count,
            loss_nearest: report.loss_nearest / per_token,
            loss_sweep: report.loss_sweep.map(|loss| loss / per_token),
            loss: report.loss_refined / per_token,
            damping,
        };
        for ((linear, encode), solution) in members.iter().zip(solutions) {
            let coded = CodedMatrix::Whole(solution.tensors);
            let coding = &encode.choice.codec;
            self.solutions.keep(&linear.weight, linear.expert, coding, &coded, solved.clone(), &deviations)?;
        }
        Ok(())
    }
}
