//! The numbers that gradients are computed in: F32 for work, F64 for checks.

use std::{
    fmt::Debug,
    ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign},
};

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};

/// F32 or F64.
pub trait Real:
    bytemuck::Pod
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// The lowest number, less than every finite one.
    const LOWEST: Self;

    /// The nearest number.
    fn of(value: f64) -> Self;

    /// As F64, exactly.
    fn wide(self) -> f64;

    /// As F32, rounded.
    fn narrow(self) -> f32;

    /// e^x.
    #[must_use]
    fn exp(self) -> Self;

    /// The hyperbolic tangent.
    #[must_use]
    fn tanh(self) -> Self;

    /// The error function.
    #[must_use]
    fn erf(self) -> Self;

    /// The square root.
    #[must_use]
    fn sqrt(self) -> Self;

    /// `out (+)= factor · a b` on this thread.
    fn multiply(out: MatMut<'_, Self>, accumulate: Accum, a: MatRef<'_, Self>, b: MatRef<'_, Self>, factor: Self);

    /// F32 numbers as these, without a copy where they are.
    fn from_singles(values: Vec<f32>) -> Vec<Self>;
}

macro_rules! real {
    ($type:ty, $exp:expr, $tanh:expr, $erf:expr, $singles:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const LOWEST: Self = <$type>::NEG_INFINITY;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn narrow(self) -> f32 {
                self as f32
            }

            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }

            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }

            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }

            fn multiply(
                out: MatMut<'_, Self>,
                accumulate: Accum,
                a: MatRef<'_, Self>,
                b: MatRef<'_, Self>,
                factor: Self,
            ) {
                matmul(out, accumulate, a, b, factor, Par::Seq);
            }

            fn from_singles(values: Vec<f32>) -> Vec<Self> {
                $singles(values)
            }
        }
    };
}

// libm, not the host's library: the same bits everywhere.
real!(f32, crate::forward::exp, libm::tanhf, libm::erff, std::convert::identity);
real!(f64, libm::exp, libm::tanh, libm::erf, |values: Vec<f32>| values.into_iter().map(f64::from).collect());
