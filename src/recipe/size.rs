//! Sizes in bytes as people write them.

const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1000),
    ("mb", 1000_u64.pow(2)),
    ("gb", 1000_u64.pow(3)),
    ("tb", 1000_u64.pow(4)),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// No size takes more characters.
const MAX_LENGTH: usize = 64;

/// Reads a size such as `5GB`, `500MiB`, `1.5 GiB` or `4096`; capitals do not matter. Fractions round down to whole bytes.
///
/// # Errors
/// A sentence that says what was expected, when it is no such size, not above 0, or more than 64 bits hold.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as \"5GB\", \"500MiB\" or a number of bytes, got {text:?}");
    if text.len() > MAX_LENGTH {
        return Err("expected a size such as \"5GB\", got a text too long for one".to_owned());
    }
    let trimmed = text.trim();
    let digits =
        trimmed.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor =
        if unit.is_empty() { Some(1) } else { UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor) };
    let factor = factor.ok_or_else(expected)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(expected());
    }
    let too_large = || format!("{text:?} is more than 64 bits hold");
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let fraction = u128::from(fraction.parse::<u64>().map_err(|_| expected())?) * u128::from(factor)
        / 10_u128.pow(fraction.len() as u32);
    let bytes = u128::from(whole) * u128::from(factor) + fraction;
    match u64::try_from(bytes) {
        Ok(0) => Err(format!("expected a size above 0, got {text:?}")),
        Ok(bytes) => Ok(bytes),
        Err(_) => Err(too_large()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("5GB", 5_000_000_000),
            ("500MiB", 524_288_000),
            ("1.5 gib", 1_610_612_736),
            ("4096", 4096),
            ("1B", 1),
            ("0.5kb", 500),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "GB", "5XB", "-1", "1..5GB", ".5GB", "5.GB", "0", "0.1B", "1e9", "99999999TiB", "18446744073709551616"]
        {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
