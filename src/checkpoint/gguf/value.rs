//! Metadata values.

/// One value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned number; written with 32 bits where it fits, else with 64.
    Unsigned(u64),
    /// A signed number; written with 32 bits where it fits, else with 64.
    Signed(i64),
    /// A number; written with 32 bits.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list.
    Array(Array),
}

/// A list of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Texts.
    Texts(Vec<String>),
    /// Numbers of 32 bits with a sign.
    Signed(Vec<i32>),
    /// Floats of 32 bits.
    Floats(Vec<f32>),
    /// Of a list that was read, how many elements it has.
    Length(u64),
}

impl Value {
    /// A number that is not negative.
    #[must_use]
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The numbers that types of values have in a file.
pub(super) mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}
