//! The heavy kernels: each file puts the WGSL file of the same name in `shaders/` to work.
//!
//! All take matrices that are on the device already, add their steps to a [`super::Batch`], and leave the results there.
//! What a kernel may bind is limited; matrices beyond the limit are worked on in parts, which changes no result but the
//! order of sums where it says so. A buffer cannot be read and written by the same step, so inputs and outputs are
//! different matrices unless a function works in place.

mod activate;
mod attention;
mod gptq_sweep;
mod hadamard;
mod matrix;
mod multiply;
mod normalize;
mod rank_update;
mod rotate;
mod triangular_solve;

pub use activate::{Gate, add_branch};
pub use attention::{QueryKeyValue, attend};
pub use gptq_sweep::{Levels, Swept, sweep};
pub use hadamard::hadamard;
pub use matrix::{DeviceMatrix, Number, View};
pub use multiply::{Causal, Heads, Product};
pub use normalize::DeviceNorm;
pub use rank_update::SecondMoments;
pub use rotate::Angles;
pub use triangular_solve::solve_lower;

/// Workgroups for `count` items of `per_group` each, as a grid whose width no adapter refuses. The kernel gets at most
/// one row of workgroups too many.
fn grid(count: usize, per_group: usize) -> [u32; 3] {
    /// What every adapter allows along a dimension.
    const WIDEST: usize = 65535;
    let groups = count.div_ceil(per_group);
    let lines = groups.div_ceil(WIDEST).max(1);
    [groups.div_ceil(lines) as u32, lines as u32, 1]
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use naga::{
        front::wgsl,
        valid::{Capabilities, ValidationFlags, Validator},
    };

    #[test]
    fn every_shader_is_valid_without_an_adapter() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
        let paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!paths.is_empty());
        for path in paths {
            let (name, source) = (path.display().to_string(), fs::read_to_string(&path).unwrap());
            let module =
                wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{}", e.emit_to_string_with_path(&source, &name)));
            // F16 in F32 arithmetic: `unpack2x16float`, which only the oldest interfaces lack.
            let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32);
            if let Err(error) = validator.validate(&module) {
                panic!("{}", error.emit_to_string_with_path(&source, &name));
            }
        }
    }
}
