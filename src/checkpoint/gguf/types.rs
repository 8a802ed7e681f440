//! ggml's tensor types: those that bantam reads and writes, and the names of the others.

use super::super::Dtype;

/// A tensor type of ggml that bantam reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GgmlType {
    /// Plain floats of 32 bits.
    F32,
    /// Plain floats of 16 bits.
    F16,
    /// Plain brain floats.
    BF16,
    /// 32 codes of 4 bits around 8, one F16 scale.
    Q4_0,
    /// 32 codes of 4 bits, one F16 scale and one F16 minimum.
    Q4_1,
    /// 32 signed bytes, one F16 scale.
    Q8_0,
    /// 256 codes of 4 bits, eight 6-bit scales and minima, two F16 factors.
    Q4K,
    /// 256 codes of 6 bits, sixteen 8-bit scales, one F16 factor.
    Q6K,
    /// 32 FP4 values, one exponent.
    Mxfp4,
}

/// All of them with their numbers in a file and their names.
const KNOWN: [(GgmlType, u32, &str); 9] = [
    (GgmlType::F32, 0, "F32"),
    (GgmlType::F16, 1, "F16"),
    (GgmlType::Q4_0, 2, "Q4_0"),
    (GgmlType::Q4_1, 3, "Q4_1"),
    (GgmlType::Q8_0, 8, "Q8_0"),
    (GgmlType::Q4K, 12, "Q4_K"),
    (GgmlType::Q6K, 14, "Q6_K"),
    (GgmlType::BF16, 30, "BF16"),
    (GgmlType::Mxfp4, 39, "MXFP4"),
];

/// The names of types that bantam does not read, for messages.
const OTHERS: [(u32, &str); 26] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];

impl GgmlType {
    /// The type with this number; for others what to call it.
    ///
    /// # Errors
    /// The name of a type that bantam does not read.
    pub fn from_number(number: u32) -> Result<Self, String> {
        if let Some((known, ..)) = KNOWN.iter().find(|(_, known, _)| *known == number) {
            return Ok(*known);
        }
        let named = OTHERS.iter().find(|(other, _)| *other == number);
        Err(named.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned()))
    }

    fn known(self) -> (u32, &'static str) {
        KNOWN.iter().find(|(known, ..)| *known == self).map_or((0, "F32"), |&(_, number, name)| (number, name))
    }

    /// Its number in a file.
    #[must_use]
    pub fn number(self) -> u32 {
        self.known().0
    }

    /// Its name as ggml writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.known().1
    }

    /// Consecutive weights of one row that are stored together; rows are whole blocks.
    #[must_use]
    pub fn block_weights(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 | Self::Mxfp4 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
            Self::Mxfp4 => 17,
        }
    }

    /// The element type, where it is a plain one.
    #[must_use]
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// The type of plain elements; `None` where a file has none such.
    #[must_use]
    pub fn of_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Bytes of a tensor with this shape, outermost first; `None` where rows are no whole blocks or the size overflows.
    #[must_use]
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<u64> {
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(self.block_weights()) {
            return None;
        }
        let elements = shape.iter().try_fold(1_u64, |product, &side| product.checked_mul(side as u64))?;
        (elements / self.block_weights() as u64).checked_mul(self.block_bytes() as u64)
    }
}
