//! Sizes as people write and read them: `8GiB`, `500MB`, `2.20 GB`.

use std::{fmt, str::FromStr};

/// A number of bytes, written as a number with an optional decimal (`GB`) or binary (`GiB`) unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
];
const TEBIBYTE: (&str, u64) = ("TIB", 1 << 40);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || {
            format!(
                "`{text}` is not a size, expected a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB (`8GiB`)"
            )
        };
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
        let unit = text[digits..].trim().to_ascii_uppercase();
        let number = text[..digits].replace('_', "");
        let factor = UNITS.iter().chain([&TEBIBYTE]).find(|(name, _)| *name == unit).ok_or_else(refusal)?.1;
        let too_large = || format!("`{text}` is more bytes than can be counted");
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let well_formed = !(whole.is_empty() && fraction.is_empty()) && fraction.chars().all(|c| c.is_ascii_digit());
        if !well_formed || fraction.len() > 9 {
            return Err(refusal());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
        let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| refusal())? };
        let part = part * u128::from(factor) / 10_u128.pow(fraction.len() as u32);
        let bytes = u128::from(whole) * u128::from(factor) + part;
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

impl fmt::Display for ByteSize {
    /// Three significant digits and a decimal unit, exact below 1000.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for larger in ["kB", "MB", "GB", "TB", "PB"] {
            if value < 999.5 {
                break;
            }
            value /= 1000.0;
            unit = larger;
        }
        let decimals = match value {
            _ if unit == "B" => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        formatter.pad(&format!("{value:.decimals$} {unit}"))
    }
}

/// Writes a count with a space between thousands: `4 194 304`.
#[must_use]
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{ByteSize, grouped};

    #[test]
    fn sizes_are_read_with_decimal_and_binary_units() {
        let cases = [
            ("8GiB", 8 << 30),
            ("500MB", 500_000_000),
            ("1.5 kb", 1500),
            ("0", 0),
            ("7b", 7),
            (".5KiB", 512),
            ("1TiB", 1 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GB", "8G", "-1GB", "1.2.3MB", "8 apples", ".", "1e3", "20000000000TB", "99999999999999999999"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994_999, "9.99 MB"), (12_345_678, "12.3 MB")];
        for (bytes, text) in cases.into_iter().chain([(999_499_999, "999 MB"), (999_500_000, "1.00 GB")]) {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(grouped(4_194_304), "4 194 304");
        assert_eq!(grouped(999), "999");
    }
}
