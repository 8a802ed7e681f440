//! The product of factors against its definition in F64, and what is hostile.

use proptest::prelude::*;

use super::Factors;
use crate::codec::{CodecError, ScaleFormat};

fn factors(ranks: &[usize], exact: bool) -> Factors {
    Factors { ranks: ranks.to_vec(), storage: ScaleFormat::F32, exact }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn names_read_back() {
    for (name, ranks, exact) in
        [("factors-32", &[32][..], false), ("factors-12.20", &[12, 20], false), ("factors-1-exact", &[1], true)]
    {
        assert_eq!(factors(ranks, exact).name(), name);
        assert_eq!(Factors::parse_name(name, ScaleFormat::F32), Some(factors(ranks, exact)));
    }
    for name in ["factors-", "factors-0", "factors-4.", "factors-04", "factors-+4", "factors-4-exact-exact", "factors"]
    {
        assert_eq!(Factors::parse_name(name, ScaleFormat::F32), None, "{name}");
    }
}

#[test]
fn malformed_bytes_are_named() {
    let (one, two) = (bytes(&[1.0]), bytes(&[1.0, 2.0]));
    let format = factors(&[1], false);
    assert_eq!(format.decode(1, 2, &[&two, &one]).unwrap(), [1.0, 2.0]);
    assert!(matches!(format.decode(1, 2, &[&one, &one]), Err(CodecError::Length { .. })));
    assert!(matches!(format.decode(1, 2, &[&two]), Err(CodecError::Length { .. })));
    assert!(matches!(format.decode(1, 2, &[&two, &one, &two]), Err(CodecError::Length { .. })));
    let infinite = bytes(&[f32::NEG_INFINITY]);
    assert!(matches!(format.decode(1, 2, &[&two, &infinite]), Err(CodecError::Stored { what: "factor B", .. })));
    for (wrong, rows, columns) in [
        (factors(&[], false), 2, 2),
        (factors(&[0], false), 2, 2),
        (factors(&[3], false), 2, 9),
        (factors(&[1, 1], false), 3, 9),
        (factors(&[1, 2], false), 2, 9),
        (factors(&[1], false), usize::MAX / 2, 3),
        (Factors { storage: ScaleFormat::E8M0, ..factors(&[1], false) }, 2, 2),
    ] {
        assert!(wrong.validate(rows, columns).is_err(), "{wrong:?} {rows} {columns}");
        assert!(wrong.decode(rows, columns, &[&one, &one]).is_err());
    }
}

proptest! {
    /// Rows of each group against their own product, summed in F64.
    #[test]
    fn groups_multiply_apart(
        group_rows in 1usize..6,
        columns in 1usize..9,
        shares in prop::collection::vec(0.0f64..1.0, 1..5),
        exact: bool,
        seed in 0u32..1000,
    ) {
        let most = group_rows.min(columns);
        let ranks: Vec<usize> = shares.iter().map(|share| 1 + (share * most as f64) as usize % most).collect();
        let (format, rows) = (factors(&ranks, exact), group_rows * ranks.len());
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let latent: usize = ranks.iter().sum();
        let a: Vec<f32> = (0..latent * columns).map(|_| next()).collect();
        let b: Vec<f32> = (0..group_rows * latent).map(|_| next()).collect();
        let kept = vec![f32::NAN; rows * columns];
        let parts = [format.stored(&a), format.stored(&b), format.stored(&kept)];
        let parts: Vec<&[u8]> = parts.iter().take(2 + usize::from(exact)).map(Vec::as_slice).collect();
        let sizes: Vec<usize> = format.tensors(rows, columns).iter().map(crate::codec::StoredTensor::bytes).collect();
        prop_assert_eq!(sizes, parts.iter().map(|part| part.len()).collect::<Vec<_>>());
        let decoded = format.decode(rows, columns, &parts).unwrap();
        let mut first = 0;
        for (group, rank) in ranks.iter().enumerate() {
            for row in 0..group_rows {
                for column in 0..columns {
                    let exact: f64 = (first..first + rank)
                        .map(|channel| f64::from(b[row * latent + channel]) * f64::from(a[channel * columns + column]))
                        .sum();
                    let got = f64::from(decoded[(group * group_rows + row) * columns + column]);
                    prop_assert!((got - exact).abs() < 1e-5, "{} {}", got, exact);
                }
            }
            first += rank;
        }
        prop_assert_eq!(Factors::parse_name(&format.name(), ScaleFormat::F32), Some(format));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(
        lengths in prop::collection::vec(0usize..40, 0..4),
        ranks in prop::collection::vec(0usize..5, 0..4),
        rows in 0usize..8,
        columns in 0usize..8,
    ) {
        let stored: Vec<Vec<u8>> = lengths.iter().map(|length| vec![0xA5; *length]).collect();
        let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        if let Ok(values) = factors(&ranks, false).decode(rows, columns, &stored) {
            prop_assert_eq!(values.len(), rows * columns);
        }
    }
}
