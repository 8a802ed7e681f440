//! Short names of codecs, as in manifests, plans and policies.

use super::{Codec, Element, Granularity, ScaleFormat, ZeroPoint};

/// The codec names that stand for a whole combination.
const NAMED: [(&str, Element, usize, ScaleFormat); 3] = [
    ("mxfp4", Element::Fp4E2M1, 32, ScaleFormat::E8M0),
    ("mxfp8", Element::Fp8E4M3, 32, ScaleFormat::E8M0),
    ("nvfp4", Element::Fp4E2M1, 16, ScaleFormat::E4M3OverGlobal),
];

const OUTLIERS: &str = "+outliers";

impl Codec {
    /// The short name: `int4-g128`, `int4-g128-asym`, `int3-g64-hqq`, `int4-g32-min`, `int8-channel`, `int8-tensor`, `fp8-channel`,
    /// `fp8-block128x128`, `mxfp4`, `mxfp8`, `nvfp4`; `+outliers` at the end where some weights are kept exact. The type
    /// of float scales and the number of outliers are not part of it.
    #[must_use]
    pub fn name(&self) -> String {
        let outliers = if self.outliers.is_some() { OUTLIERS } else { "" };
        for (name, element, size, scale) in NAMED {
            if (self.element, self.granularity, self.scale) == (element, Granularity::Group(size), scale) {
                return format!("{name}{outliers}");
            }
        }
        let element = match self.element {
            Element::Integer { bits } => format!("int{bits}"),
            Element::Fp8E4M3 => "fp8".to_owned(),
            Element::Fp4E2M1 => "fp4".to_owned(),
        };
        let granularity = match self.granularity {
            Granularity::Tensor => "tensor".to_owned(),
            Granularity::Channel => "channel".to_owned(),
            Granularity::Group(size) => format!("g{size}"),
            Granularity::Block { rows, columns } => format!("block{rows}x{columns}"),
        };
        let scale = match self.scale {
            ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::BF16 => "",
            ScaleFormat::E8M0 => "-e8m0",
            ScaleFormat::E4M3OverGlobal => "-e4m3",
        };
        let zero = match self.zero {
            ZeroPoint::None => "",
            ZeroPoint::Integer => "-asym",
            ZeroPoint::Float => "-hqq",
            ZeroPoint::Minimum => "-min",
        };
        format!("{element}-{granularity}{scale}{zero}{outliers}")
    }

    /// Reads a short name back; `float_scale` is the scale format where the name implies none. `None` for what is not a
    /// name of a valid codec, and for names with outliers, whose number the name does not tell.
    #[must_use]
    pub fn parse_name(name: &str, float_scale: ScaleFormat) -> Option<Self> {
        for (known, element, size, scale) in NAMED {
            if name == known {
                let granularity = Granularity::Group(size);
                return Some(Self { element, granularity, scale, zero: ZeroPoint::None, outliers: None });
            }
        }
        let mut parts = name.split('-');
        let element = match parts.next()? {
            "fp8" => Element::Fp8E4M3,
            "fp4" => Element::Fp4E2M1,
            other => Element::Integer { bits: plain_number(other.strip_prefix("int")?)?.try_into().ok()? },
        };
        let granularity = match parts.next()? {
            "tensor" => Granularity::Tensor,
            "channel" => Granularity::Channel,
            other => match other.strip_prefix("block") {
                Some(block) => {
                    let (rows, columns) = block.split_once('x')?;
                    Granularity::Block { rows: plain_number(rows)?, columns: plain_number(columns)? }
                }
                None => Granularity::Group(plain_number(other.strip_prefix('g')?)?),
            },
        };
        let mut codec = Self { element, granularity, scale: float_scale, zero: ZeroPoint::None, outliers: None };
        let mut rest = parts.next();
        codec.scale = match rest {
            Some("e8m0") => ScaleFormat::E8M0,
            Some("e4m3") => ScaleFormat::E4M3OverGlobal,
            _ => codec.scale,
        };
        if matches!(rest, Some("e8m0" | "e4m3")) {
            rest = parts.next();
        }
        codec.zero = match rest {
            None => ZeroPoint::None,
            Some("asym") => ZeroPoint::Integer,
            Some("hqq") => ZeroPoint::Float,
            Some("min") => ZeroPoint::Minimum,
            Some(_) => return None,
        };
        (parts.next().is_none() && codec.validate(0, 0).is_ok()).then_some(codec)
    }
}

/// Reads decimal digits without sign or leading zero.
pub(super) fn plain_number(text: &str) -> Option<usize> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for name in [
            "int4-g128",
            "int4-g128-asym",
            "int8-channel",
            "int8-tensor",
            "int3-g64-hqq",
            "int4-g32-min",
            "fp8-channel",
            "fp8-tensor",
            "fp8-block128x128",
            "mxfp4",
            "mxfp8",
            "nvfp4",
            "fp8-g64-e8m0",
            "fp4-g32-e4m3",
            "int2-block1x16-asym",
        ] {
            let codec = Codec::parse_name(name, ScaleFormat::BF16).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(codec.name(), name);
        }
        let mut codec = Codec::parse_name("int4-g128", ScaleFormat::F16).unwrap();
        assert_eq!(
            codec,
            Codec {
                element: Element::Integer { bits: 4 },
                granularity: Granularity::Group(128),
                scale: ScaleFormat::F16,
                zero: ZeroPoint::None,
                outliers: None
            }
        );
        codec.outliers = Some(super::super::OutlierCount { count: 3 });
        assert_eq!(codec.name(), "int4-g128+outliers");
        assert_eq!(Codec::parse_name("int4-g128+outliers", ScaleFormat::F16), None);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "",
            "int4",
            "int9-g128",
            "int1-g128",
            "int4-g0",
            "int4-g",
            "int4-g+8",
            "int4-g08",
            "int04-g8",
            "fp8-g32-asym",
            "int4-g128-asym-hqq",
            "int4-g128-",
            "int4-block8",
            "int4-block0x8",
            "int8-channel-e8m0",
            "fp4-tensor-e4m3",
            "int4-g99999999999999999999",
            "uint4-g8",
            "nvfp4-g16",
        ] {
            assert_eq!(Codec::parse_name(name, ScaleFormat::BF16), None, "{name}");
        }
    }
}
