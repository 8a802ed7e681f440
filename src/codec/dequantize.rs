//! Codes back to weights, in F32 and in the order of operations that runtimes use: one subtraction, one product.

use std::slice;

use multiversion::multiversion;

use super::{
    Codec, CodecError, CodedRows, Element, Granularity, MatrixParameters, ScaleFormat, ZeroPoint, float4, float8,
    groups::convert,
};

impl Codec {
    /// Turns one row of the stripe, counted from its first, back into weights: (code − zero) · scale for integers, or
    /// code · scale + minimum, value · scale for floats (NVFP4: value · (scale / global scale)), then outliers in their exact values.
    ///
    /// # Errors
    /// [`CodecError`] when lists or positions are malformed, or a parameter is missing.
    pub fn dequantize_row(
        &self,
        coded: &CodedRows,
        row: usize,
        parameters: &MatrixParameters,
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        coded.check(self)?;
        if row >= coded.rows {
            return Err(CodecError::Rows { first_row: row, end: row.saturating_add(1), rows: coded.rows });
        }
        if out.len() != coded.columns {
            return Err(CodecError::Length { what: "places for weights", expected: coded.columns, got: out.len() });
        }
        self.row_unchecked(coded, row, parameters, &mut Vec::new(), out)
    }

    /// Turns all rows of the stripe back into weights, row-major.
    ///
    /// # Errors
    /// As for [`Codec::dequantize_row`].
    pub fn dequantize_rows(
        &self,
        coded: &CodedRows,
        parameters: &MatrixParameters,
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        coded.check(self)?;
        let expected = coded.rows * coded.columns;
        if out.len() != expected {
            return Err(CodecError::Length { what: "places for weights", expected, got: out.len() });
        }
        if coded.columns == 0 {
            return Ok(());
        }
        let mut divided = Vec::new();
        for (row, out) in out.chunks_exact_mut(coded.columns).enumerate() {
            self.row_unchecked(coded, row, parameters, &mut divided, out)?;
        }
        Ok(())
    }

    /// One row of a stripe whose lengths were checked; `divided` is scratch space.
    pub(crate) fn row_unchecked(
        &self,
        coded: &CodedRows,
        row: usize,
        parameters: &MatrixParameters,
        divided: &mut Vec<f32>,
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        let codes = &coded.codes[row * coded.columns..][..coded.columns];
        let group = self.group_columns(coded.columns);
        let missing = |what| CodecError::Missing { what };

        let scale_row = match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Channel | Granularity::Group(_) => row,
            Granularity::Block { rows, .. } => (coded.first_row + row) / rows.max(1) - coded.first_row / rows.max(1),
        };
        let groups = self.groups_per_row(coded.columns);
        let of_row = scale_row * groups..(scale_row + 1) * groups;
        let mut scales = match (self.granularity, &parameters.tensor_scale) {
            (Granularity::Tensor, Some(scale)) => slice::from_ref(scale),
            (Granularity::Tensor, None) => return Err(missing("scale")),
            _ => &coded.scales[of_row.clone()],
        };
        let implied = self.implied_zero();
        let zeros = match (self.zero, self.granularity, &parameters.tensor_zero) {
            (ZeroPoint::None, ..) => Zeros::Implied(implied),
            (ZeroPoint::Minimum, Granularity::Tensor, Some(minimum)) => Zeros::Minima(slice::from_ref(minimum)),
            (_, Granularity::Tensor, Some(zero)) => Zeros::Implied(*zero),
            (_, Granularity::Tensor, None) => return Err(missing("zero point")),
            (ZeroPoint::Minimum, ..) => Zeros::Minima(&coded.zeros[of_row]),
            _ => Zeros::Stored(&coded.zeros[of_row]),
        };
        if self.scale == ScaleFormat::E4M3OverGlobal {
            let global = parameters.tensor_scale.ok_or(missing("global scale"))?;
            divided.clear();
            divided.extend(scales.iter().map(|scale| scale / global));
            scales = divided;
        }

        match (self.element, zeros) {
            (Element::Integer { .. }, Zeros::Implied(zero)) => integers(codes, scales, zero, group, out),
            (Element::Integer { .. }, Zeros::Stored(zeros)) => integers_with_zeros(codes, scales, zeros, group, out),
            (Element::Integer { .. }, Zeros::Minima(minima)) => integers_with_minima(codes, scales, minima, group, out),
            (Element::Fp8E4M3, _) => fp8(codes, scales, group, out),
            (Element::Fp4E2M1, _) => fp4(codes, scales, group, out),
        }
        match (&parameters.outliers, self.outliers) {
            (Some(outliers), _) => outliers.apply(coded.first_row + row, out),
            (None, Some(count)) if count.count > 0 => Err(missing("list of outliers")),
            (None, _) => Ok(()),
        }
    }
}

enum Zeros<'a> {
    Implied(f32),
    Stored(&'a [f32]),
    Minima(&'a [f32]),
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn integers(codes: &[u8], scales: &[f32], zero: f32, group: usize, out: &mut [f32]) {
    convert(codes, (scales, scales), group, out, |code, scale, _| (f32::from(code) - zero) * scale);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn integers_with_zeros(codes: &[u8], scales: &[f32], zeros: &[f32], group: usize, out: &mut [f32]) {
    convert(codes, (scales, zeros), group, out, |code, scale, zero| (f32::from(code) - zero) * scale);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn integers_with_minima(codes: &[u8], scales: &[f32], minima: &[f32], group: usize, out: &mut [f32]) {
    convert(codes, (scales, minima), group, out, |code, scale, minimum| f32::from(code) * scale + minimum);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn fp8(codes: &[u8], scales: &[f32], group: usize, out: &mut [f32]) {
    convert(codes, (scales, scales), group, out, |code, scale, _| float8::e4m3_to_f32(code) * scale);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2", "x86_64+sse4.1"))]
fn fp4(codes: &[u8], scales: &[f32], group: usize, out: &mut [f32]) {
    convert(codes, (scales, scales), group, out, |code, scale, _| float4::e2m1_to_f32(code) * scale);
}
