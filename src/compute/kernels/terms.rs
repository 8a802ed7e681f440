//! Polynomials in place of an activation and its down projection: making their terms, and what they add up to.

use super::{DeviceMatrix, Product, Source, View, groups_for, linear_groups, matrix, shader, words};
use crate::compute::{Batch, Buffer, ComputeError, Device, Kernel, Launch, RowBinding};

const POWERS: &str = shader!("powers.wgsl");
/// Invocations of a workgroup.
const SIZE: usize = 64;

/// One term of a polynomial, `Θ_n = W diag(c_n)`, F32 `[rows, columns]`, each product rounded once. `coefficients` are F32, one
/// a column: [`crate::passes::taylor_mlp::encode`] multiplies with F64 and may differ by a unit in the last place.
///
/// # Errors
/// [`ComputeError`] for want of memory, or of a device.
pub fn term(device: &Device, weights: &Source<'_>, coefficients: &Buffer) -> Result<Buffer, ComputeError> {
    let (rows, columns) = (weights.rows, weights.columns);
    let out = device.allocate("a term", rows * columns * 4)?;
    if rows > 0 && columns > 0 {
        let text = shader!("scale_columns.wgsl", "source.wgsl", "linear.wgsl");
        let kernel = weights.kernel("scale_columns", text, "scale_columns");
        let bindings = [
            weights.binding(),
            RowBinding::Whole(coefficients),
            RowBinding::Rows { buffer: &out, row_bytes: columns * 4 },
        ];
        device.dispatch_rows(&kernel, rows, &bindings, |window| Launch {
            uniform: words(&[window.rows, columns]),
            groups: linear_groups(&device.limits(), window.rows * columns),
        })?;
    }
    Ok(out)
}

/// The terms of a layer on the device.
#[derive(Debug)]
pub struct DeviceTerms {
    /// `Θ_n`, `[outputs, units]`, from power `lowest_power` on.
    pub terms: Vec<DeviceMatrix>,
    /// The power of the first one.
    pub lowest_power: usize,
    /// Point, scale, lowest and highest argument, F32 `[4, units]`.
    pub points: DeviceMatrix,
}

impl DeviceTerms {
    /// Adds to the batch: `out += Σ_n Θ_n (sⁿ ∘ u)`, as [`crate::forward::add_terms`] has it; one product of matrices for each
    /// power. `z`, `u` and `power`, which is overwritten, are F32 `[tokens, units]`, `out` is F32 `[tokens, outputs]`; all are
    /// different matrices.
    ///
    /// # Errors
    /// As for [`Batch::add`]; [`ComputeError::TooLarge`] where one row exceeds a binding.
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn add(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        [z, power]: [&View<'_>; 2],
        u: Option<&View<'_>>,
        out: &View<'_>,
    ) -> Result<(), ComputeError> {
        let shape = |view: &View<'_>| (view.rows.len(), view.columns.len());
        assert_eq!((self.points.rows, self.points.columns), (4, z.columns.len()), "a range for every unit");
        assert!(shape(power) == shape(z) && u.is_none_or(|u| shape(u) == shape(z)), "one shape");
        let product = Product { beta: 1.0, ..Product::TRANSPOSED };
        for (index, term) in self.terms.iter().enumerate() {
            self.add_power(device, batch, self.lowest_power + index, [z, u.unwrap_or(z), power], u.is_some())?;
            product.add(device, batch, power, &term.view(), out)?;
        }
        Ok(())
    }

    /// `power = u ∘ sⁿ`.
    fn add_power(
        &self,
        device: &Device,
        batch: &mut Batch<'_>,
        n: usize,
        views: [&View<'_>; 3],
        gated: bool,
    ) -> Result<(), ComputeError> {
        let kernel = Kernel::new("powers", POWERS, "powers");
        let width = views[0].columns.len();
        let points = self.points.view();
        let at = points.bound(device);
        for rows in matrix::windows(device, &views) {
            let [z, u, power] = views.map(|view| view.some_rows(rows.clone()));
            let [from, factor, to] = [&z, &u, &power].map(|view| view.bound(device));
            #[rustfmt::skip]
            let uniform = [
                rows.len() as u32, width as u32, n as u32, u32::from(gated),
                from.first, z.stride(), factor.first, u.stride(),
                at.first, points.stride(), to.first, power.stride(),
            ];
            let bindings = [from.binding, factor.binding, at.binding, to.binding];
            let groups = groups_for(device, rows.len() * width, SIZE);
            batch.add(&kernel, &bindings, bytemuck::cast_slice(&uniform), groups)?;
        }
        Ok(())
    }
}
