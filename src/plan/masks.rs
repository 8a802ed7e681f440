//! The masks of a recipe: alone they are encodings, before an encoding they are carried by it.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Encode, PlanError};
use crate::{
    checkpoint::MappedFile,
    codec::{Granularity, ScaleFormat},
    manifest::ContentHash,
    passes::{
        Choice, Kind, Settings,
        mask::{self, Given, MaskBook},
        rtn,
    },
    recipe::{Assignment, Recipe},
};

/// A mask that a rule asks for.
pub(super) struct Wanted {
    /// The rule that asks for it, by index.
    pub(super) rule: usize,
    /// How it is found.
    pub(super) settings: mask::Settings,
    /// Whether nothing encodes what it leaves.
    pub(super) alone: bool,
}

/// Files of masks that rules name, each opened once.
#[derive(Default)]
pub(super) struct Books(BTreeMap<String, Arc<MaskBook>>);

impl Books {
    /// Hashes of the files, by the names that the recipe has.
    pub(super) fn hashes(&self) -> BTreeMap<String, ContentHash> {
        self.0.iter().map(|(name, book)| (name.clone(), book.hash())).collect()
    }

    /// Finds a tensor's mask where its settings name a file.
    pub(super) fn find(
        &mut self,
        recipe: &Recipe,
        rule: usize,
        tensor: &str,
        experts: usize,
        settings: &mut mask::Settings,
    ) -> Result<(), PlanError> {
        let Some(name) = &settings.masks else { return Ok(()) };
        let rule = &recipe.passes[rule];
        let path = recipe.beside(name);
        if !self.0.contains_key(name) {
            self.0.insert(name.clone(), Arc::new(open(&path)?));
        }
        let Some(book) = self.0.get(name) else { return Ok(()) };
        if experts > 1 {
            let problem = "files of masks have none for stacked experts";
            return Err(PlanError::Masked {
                pass: rule.pass.clone(),
                line: rule.line,
                tensor: tensor.to_owned(),
                problem,
            });
        }
        if !book.has(tensor).map_err(|error| PlanError::MaskFile { path: path.clone(), message: error.to_string() })? {
            return Err(PlanError::NoMask { path, tensor: tensor.to_owned() });
        }
        settings.given = Some(Given { book: Arc::clone(book), parameter: tensor.to_owned() });
        Ok(())
    }
}

fn open(path: &Path) -> Result<MaskBook, PlanError> {
    let failed = |message| PlanError::MaskFile { path: path.to_owned(), message };
    let file = MappedFile::open(path).map_err(|error| failed(error.to_string()))?;
    MaskBook::new(file).map_err(|error| failed(error.to_string()))
}

/// The masks that rules ask for, by tensor.
pub(super) fn masks(recipe: &Recipe, assignments: &[Assignment]) -> Result<BTreeMap<String, Wanted>, PlanError> {
    let mut masks: BTreeMap<String, Wanted> = BTreeMap::new();
    for Assignment { rule: index, tensor, settings } in assignments {
        let rule = &recipe.passes[*index];
        let refused = |problem| {
            Err(PlanError::Masked { pass: rule.pass.clone(), line: rule.line, tensor: tensor.clone(), problem })
        };
        let rotated = |assignment: &Assignment| {
            assignment.tensor == *tensor && matches!(assignment.settings, Settings::Rotate(_))
        };
        match (settings, masks.get_mut(tensor)) {
            (Settings::Mask(_), Some(_)) => return refused("a rule before masks it already"),
            (Settings::Mask(settings), None) => {
                if assignments.iter().any(rotated) {
                    return refused("pass `rotate` mixes its columns, so that no zero would be left");
                }
                masks.insert(tensor.clone(), Wanted { rule: *index, settings: settings.clone(), alone: true });
            }
            (_, None) => {}
            (Settings::Rtn(_) | Settings::Gptq(_), Some(_)) if settings.needs_weights() => {
                return refused("its number format would be chosen from weights that the mask leaves out");
            }
            (Settings::Rtn(_) | Settings::Gptq(_), Some(mask)) if mask.settings.learning.is_some() => {
                return refused("learned masks stand alone: encode their result in a second run, behind `magnitude`");
            }
            (Settings::Rtn(rtn::Settings { number: rtn::Number::KQuant { .. }, .. }), Some(_)) => {
                return refused("its super-blocks do not keep weights at zero");
            }
            (Settings::Rtn(_) | Settings::Gptq(_), Some(mask)) => mask.alone = false,
            (_, Some(_)) if rule.kind == Kind::Transform => {
                return refused("what scales or turns weights has to come before the mask");
            }
            (_, Some(_)) => return refused("its codes do not keep weights at zero; `rtn` and `gptq` do"),
        }
    }
    Ok(masks)
}

/// Refuses number formats in which what is left out would not be zero.
pub(super) fn check(pass: &str, line: usize, tensor: &str, experts: usize, choice: &Choice) -> Result<(), PlanError> {
    let (Some(_), Some(codec)) = (&choice.mask, choice.codec.scalar()) else { return Ok(()) };
    let whole = matches!(codec.granularity, Granularity::Tensor | Granularity::Block { .. });
    let problem = if codec.zero.is_float() {
        "zero points that are not whole leave no weight at zero"
    } else if codec.outliers.is_some() {
        "weights kept exact beside the codes do not go with masks"
    } else if experts > 1 && (whole || codec.scale == ScaleFormat::E4M3OverGlobal) {
        "stacked experts that share scales do not go with masks"
    } else {
        return Ok(());
    };
    Err(PlanError::Masked { pass: pass.to_owned(), line, tensor: tensor.to_owned(), problem })
}

/// Tells of matrices whose rows do not end with a whole group.
pub(super) fn dense_columns<'a>(encodes: impl Iterator<Item = &'a Encode>) -> Option<String> {
    let left = |encode: &&Encode| {
        encode.mask().is_some_and(|mask| !encode.matrix.columns.is_multiple_of(mask.solve.pattern.of))
    };
    let mut left = encodes.filter(left);
    let first = left.next()?;
    Some(format!(
        "{} masked matrices have columns that are no whole group at the end of each row, and those stay dense: `{}`, {} \
         columns, is the first",
        1 + left.count(),
        first.matrix.name,
        first.matrix.columns
    ))
}
