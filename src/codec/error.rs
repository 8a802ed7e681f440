//! What can be wrong with a codec or with the data it is given.

use super::{Element, Pyramid, ScaleFormat};

/// What a codec cannot do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// A weight is infinite or not a number.
    #[error("the weight at row {row}, column {column} is {value}; only finite weights can be encoded")]
    NonFinite {
        /// Row of the first one found.
        row: usize,
        /// Its column.
        column: usize,
        /// The weight.
        value: f32,
    },
    /// An integer width that no codec has.
    #[error("codes of {bits} bits are not supported, expected 2 to 8")]
    Bits {
        /// The width asked for.
        bits: u8,
    },
    /// A group or block without elements.
    #[error("the {what} is 0, expected at least 1")]
    Zero {
        /// What is zero.
        what: &'static str,
    },
    /// A float element with a zero point.
    #[error("{element:?} codes have no zero point")]
    ZeroPointOfFloat {
        /// The element.
        element: Element,
    },
    /// A scale format that the element or granularity does not go with.
    #[error("{element:?} codes cannot have {scale:?} scales {of}")]
    Scale {
        /// The element.
        element: Element,
        /// The scale format.
        scale: ScaleFormat,
        /// "of this granularity" or why else.
        of: &'static str,
    },
    /// More elements than can be addressed.
    #[error("a matrix of {rows} × {columns} weights is too large")]
    TooLarge {
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// More outliers than weights, or than can be indexed.
    #[error("{count} outliers do not fit a matrix of {rows} × {columns} weights")]
    TooManyOutliers {
        /// How many were asked for.
        count: u64,
        /// The matrix's rows.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// A list of a wrong length.
    #[error("{got} {what} where shape and codec ask for {expected}")]
    Length {
        /// What is listed.
        what: &'static str,
        /// How many shape and codec ask for.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// Rows outside of the matrix.
    #[error("rows {first_row}..{end} of a matrix of {rows} rows were asked for")]
    Rows {
        /// First row asked for.
        first_row: usize,
        /// One past the last row asked for.
        end: usize,
        /// The matrix's rows.
        rows: usize,
    },
    /// A parameter of the whole matrix is missing.
    #[error("the {what} of the matrix is missing")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// Outlier positions that do not describe a sparse matrix.
    #[error("the outliers of row {row} are malformed: {what}")]
    Outliers {
        /// The row.
        row: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A pattern of kept weights that no mask has.
    #[error("keeping {keep} of each {of} weights is not supported, expected at least 1 and fewer than all of 2 to 8")]
    Pattern {
        /// Weights kept of each group.
        keep: usize,
        /// Weights of a group.
        of: usize,
    },
    /// A mask that does not keep what its pattern says.
    #[error("the mask keeps {kept} weights of row {row} from column {column} on where it has to keep {expected}")]
    Mask {
        /// Row of the first such group.
        row: usize,
        /// Its first column.
        column: usize,
        /// Weights that it keeps.
        kept: usize,
        /// Weights that it has to keep.
        expected: usize,
    },
    /// A pyramid that no matrix is stored in.
    #[error("{}: {problem}", .pyramid.name())]
    Pyramid {
        /// The format asked for.
        pyramid: Pyramid,
        /// What is wrong.
        problem: &'static str,
    },
    /// A format of vectors that cannot be, or not for this matrix.
    #[error("not a format of vectors: {problem}")]
    Vector {
        /// What does not go together, with the numbers.
        problem: String,
    },
    /// Rows that are no whole blocks.
    #[error("{columns} columns are not whole `{format}` blocks of {block} weights")]
    Blocks {
        /// The format's name.
        format: &'static str,
        /// Weights of a block.
        block: usize,
        /// The matrix's columns.
        columns: usize,
    },
    /// Stored bytes of a coded matrix that cannot be what they claim.
    #[error("stored {what} are malformed: {problem}")]
    Stored {
        /// Which part.
        what: &'static str,
        /// What is wrong, with the numbers.
        problem: String,
    },
}
