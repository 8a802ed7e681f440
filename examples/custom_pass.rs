//! A pass of one's own: 4-bit codes whose scales are powers of two, so that a runtime can shift instead of multiply.
//!
//! usage: `cargo run --release --example custom_pass -- RECIPE`, with a rule `use = "power_of_two"` in the recipe

use std::{error::Error, path::Path, sync::atomic::AtomicBool};

use bantam::{
    checkpoint::Checkpoint,
    codec::{Codec, CodecError, CodedRows, Element, Granularity, MatrixParameters, RowSource, ZeroPoint},
    layout::LogicalCheckpoint,
    model::ModelMap,
    passes::{EncodedStripe, Kind, Matrix, MatrixEncoder, PassInfo, SettingError, custom},
    plan::{Inputs, Options, Plan},
    recipe::{Overrides, Recipe},
    run::{self, Outcome, Silent},
};
use serde_json::{Map, Value, json};

#[derive(Debug, Clone)]
struct PowerOfTwo {
    group_size: usize,
}

const INFO: PassInfo = PassInfo {
    name: "power_of_two",
    kind: Kind::Encoding,
    keys: &["group_size"],
    default_select: &["linear"],
    default_skip: &["head"],
    parse: |settings| match settings.get("group_size").map_or(Some(128), toml::Value::as_integer) {
        Some(size @ 1..=65536) => Ok(custom::settings(PowerOfTwo { group_size: size as usize })),
        _ => Err(SettingError::new("group_size", "expected a whole number from 1 to 65536")),
    },
};

impl custom::Encoding for PowerOfTwo {
    fn settings(&self) -> Map<String, Value> {
        Map::from_iter([("group_size".to_owned(), json!(self.group_size))])
    }

    fn codec(&self, matrix: &Matrix) -> Result<Codec, SettingError> {
        let (element, granularity) = (Element::Integer { bits: 4 }, Granularity::Group(self.group_size));
        Ok(Codec { element, granularity, scale: matrix.scale, zero: ZeroPoint::None, outliers: None })
    }

    fn encoder(&self, _: &Matrix, _: &Codec) -> Box<dyn MatrixEncoder> {
        Box::new(self.clone())
    }
}

impl MatrixEncoder for PowerOfTwo {
    fn prepare(&self, _: &dyn RowSource) -> Result<MatrixParameters, CodecError> {
        Ok(MatrixParameters::default())
    }

    fn encode(
        &self,
        source: &dyn RowSource,
        _: &MatrixParameters,
        first_row: usize,
        rows: usize,
    ) -> Result<EncodedStripe, CodecError> {
        let columns = source.columns();
        let mut weights = vec![0.0; rows * columns];
        source.read_rows(first_row, &mut weights)?;
        let mut coded = CodedRows { first_row, rows, columns, ..CodedRows::default() };
        for group in weights.chunks(columns).flat_map(|row| row.chunks(self.group_size)) {
            let largest = group.iter().fold(2.0_f32.powi(-20), |largest, weight| largest.max(weight.abs()));
            // The exponent alone: the power of two below. Either that or the next one has the least error.
            let below = f32::from_bits((largest / 7.5).to_bits() & 0x7f80_0000);
            let error = |scale: f32| group.iter().map(|w| (w - (code(*w, scale) - 8.0) * scale).powi(2)).sum::<f32>();
            let scale = if error(below) < error(2.0 * below) { below } else { 2.0 * below };
            coded.scales.push(scale);
            coded.codes.extend(group.iter().map(|weight| code(*weight, scale) as u8));
        }
        Ok(EncodedStripe { rows: coded, ..EncodedStripe::default() })
    }
}

/// The stored code, 0 to 15: 8 stands for zero.
fn code(weight: f32, scale: f32) -> f32 {
    (weight / scale).round_ties_even().clamp(-8.0, 7.0) + 8.0
}

pub(crate) fn compress(recipe: &Path, overrides: &Overrides, threads: usize) -> bantam::Result<Outcome> {
    let recipe = Recipe::read_with_passes(recipe, overrides, &[INFO])?;
    let source = LogicalCheckpoint::open(Checkpoint::open(&recipe.model)?)?;
    let inputs = Inputs { recipe: &recipe, source: &source, model: &ModelMap::of(&source) };
    let plan = Plan::new(inputs, &Options { threads, ..Options::default() })?;
    let options = run::Options {
        fresh: false,
        deny_fallbacks: false,
        device: None,
        record_device: false,
        stop: &AtomicBool::new(false),
        progress: &Silent,
    };
    run::run(&plan, &source, &options)
}

fn main() -> Result<(), Box<dyn Error>> {
    let recipe = std::env::args().nth(1).ok_or("usage: custom_pass RECIPE")?;
    let threads = std::thread::available_parallelism()?.get();
    let outcome = compress(Path::new(&recipe), &Overrides::default(), threads)?;
    println!("{} tensors encoded", outcome.manifest.totals.compressed_tensors);
    Ok(())
}
