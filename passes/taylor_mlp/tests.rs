use super::*;
use crate::{
    checkpoint::Dtype,
    codec::taylor::{Basis, Expansion, Smooth, Taylor},
    forward::Matrix,
};

fn parse(text: &str) -> Result<Settings, crate::passes::SettingError> {
    Settings::parse(&text.parse().unwrap())
}

fn ranges(gaps: &[f64]) -> Ranges {
    Ranges {
        lowest: gaps.iter().enumerate().map(|(unit, gap)| unit as f64 * 0.25 - gap / 2.0).collect(),
        highest: gaps.iter().enumerate().map(|(unit, gap)| unit as f64 * 0.25 + gap / 2.0).collect(),
        mean: gaps.iter().enumerate().map(|(unit, gap)| unit as f64 * 0.25 + gap / 8.0).collect(),
        deviation: gaps.to_vec(),
        largest_up: gaps.iter().map(|gap| 1.0 + gap).collect(),
    }
}

fn format(settings: &Settings, columns: usize) -> Taylor {
    settings.format(columns, Smooth::Silu, true, Dtype::BF16)
}

#[test]
fn settings_are_typed_and_complete() {
    let default = parse("").unwrap();
    assert_eq!((default.order, default.basis, default.perturb), (8, Basis::Taylor, true));
    let all = "order = 4\nbasis = \"chebyshev\"\nperturb = false\nmargin = 0.5\nterms_dtype = \"bf16\"\nunits = 1";
    let set = parse(all).unwrap();
    assert_eq!((set.order, set.basis, set.perturb, set.margin), (4, Basis::Chebyshev, false, 0.5));
    assert_eq!((set.terms, set.units), (Dtype::BF16, 1.0));
    for (text, key) in [
        ("order = 0", "order"),
        ("order = 17", "order"),
        ("units = 0.0", "units"),
        ("units = 1.5", "units"),
        ("basis = \"legendre\"", "basis"),
        ("perturb = 1", "perturb"),
        ("margin = -0.1", "margin"),
        ("terms_dtype = \"f8\"", "terms_dtype"),
        ("point = \"left\"", "point"),
        ("basis = \"chebyshev\"\npoint = \"mean\"", "point"),
        ("deviations = 0.0", "deviations"),
        ("deviations = 2.0\nmargin = 0.1", "margin"),
        ("ordre = 3", "ordre"),
    ] {
        assert_eq!(parse(text).unwrap_err().key, key, "{text}");
    }
}

#[test]
fn the_smallest_ranges_that_converge_are_taken() {
    let settings = Settings { units: 0.5, perturb: false, ..parse("margin = 0.0").unwrap() };
    // Around 0.5 the radius is 3.18: a half width of 3 is beyond 0.7 of it.
    let ranges = ranges(&[1.0, 3.0, 6.0, 0.5, 2.0, 1.5]);
    let selection = Selection::new(&settings, &format(&settings, 6), &ranges, (0, "w")).unwrap();
    assert_eq!(selection.units, [0, 3, 5]);
    assert_eq!(selection.figures.outside, [2]);
    for (at, unit) in selection.units.iter().enumerate() {
        let (lo, hi) = (f64::from(selection.points.lo[at]), f64::from(selection.points.hi[at]));
        assert!(lo <= ranges.lowest[*unit] && hi >= ranges.highest[*unit], "unit {unit}: {lo} to {hi}");
        assert!((f64::from(selection.points.z0[at]) - f64::midpoint(lo, hi)).abs() < 1e-6);
    }
    // All but one can be; five of six are asked for, then six.
    let most = Settings { units: 0.84, ..settings };
    assert_eq!(Selection::new(&most, &format(&most, 6), &ranges, (0, "w")).unwrap().units, [0, 1, 3, 4, 5]);
    let all = Settings { units: 1.0, ..settings };
    let few = Selection::new(&all, &format(&all, 6), &ranges, (0, "w")).unwrap_err();
    assert_eq!((few.qualifying, few.wanted, few.units), (5, 6, 6));
    assert!((few.largest_share() - 0.8333).abs() < 1e-9);
    // Interpolation has no radius.
    let wide = Settings { basis: Basis::Chebyshev, ..all };
    assert_eq!(Selection::new(&wide, &format(&wide, 6), &ranges, (0, "w")).unwrap().units.len(), 6);
}

#[test]
fn ranges_may_end_at_deviations() {
    let settings = parse("units = 1.0\ndeviations = 2.0").unwrap();
    let ranges = Ranges { deviation: vec![0.5, 10.0], mean: vec![0.25, 0.5], ..ranges(&[8.0, 3.0]) };
    let selection = Selection::new(&Settings { perturb: false, ..settings }, &format(&settings, 2), &ranges, (0, "w"));
    let points = selection.unwrap().points;
    // Never beyond what was seen.
    assert_eq!((points.lo, points.hi), (vec![-0.751, -1.251], vec![1.251, 1.751]));
}

#[test]
fn signs_follow_from_seed_and_name() {
    let settings = parse("units = 1.0").unwrap();
    let ranges = ranges(&[1.0; 64]);
    let ranges = Ranges { lowest: vec![-0.5; 64], highest: vec![0.25; 64], ..ranges };
    let negated = |seed, name| {
        let format = format(&settings, 64);
        Selection::new(&settings, &format, &ranges, (seed, name)).unwrap().gate
    };
    let first = negated(0, "a");
    assert_eq!(first, negated(0, "a"));
    assert!(first != negated(1, "a") && first != negated(0, "b"));
    let count = first.iter().filter(|factor| **factor < 0.0).count();
    assert!((16..=48).contains(&count), "{count} of 64");
}

#[test]
fn what_is_encoded_comes_back_and_computes_the_same() {
    let (rows, columns) = (7, 16);
    let values = (0..rows * columns).map(|i| ((i * 53 + 7) % 31) as f32 / 16.0 - 1.0).collect();
    let mut weights = Matrix { rows, columns, values };
    // A unit that nothing is made of.
    (0..rows).for_each(|row| weights.row_mut(row)[3] = 0.0);
    let ranges = ranges(&[1.0; 16]);
    let ranges = Ranges { lowest: vec![-1.5; 16], highest: vec![0.5; 16], ..ranges };
    for text in ["units = 0.75", "units = 1.0\nbasis = \"chebyshev\"", "units = 0.75\npoint = \"mean\"\nmargin = 0.0"] {
        let settings = parse(text).unwrap();
        let format = Taylor { plain: Dtype::F32, ..format(&settings, columns) };
        let mut selection = Selection::new(&settings, &format, &ranges, (5, "w")).unwrap();
        selection.see(&weights, &ranges);
        let stored = encode(&format, &selection, &weights, None).unwrap();
        let lengths: Vec<usize> = format.tensors(rows, columns).iter().map(crate::codec::StoredTensor::bytes).collect();
        assert_eq!(stored.iter().map(Vec::len).collect::<Vec<_>>(), lengths, "{text}");
        let parts: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        let expansion = Expansion::new(format, rows, columns, &parts).unwrap();
        for (got, expected) in expansion.dense().into_iter().zip(&weights.values) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{text}: {got}, not {expected}");
        }
        let factors = expansion.gate_factors();
        for (at, unit) in selection.units.iter().enumerate() {
            assert_eq!(factors[*unit], selection.gate[at], "{text}: unit {unit}");
        }
        // A token within the range: Σ Θ_n s^n u against W (φ(z) u), in F64.
        let z = |unit: usize| -1.5 + 2.0 * (unit as f64 + 0.5) / columns as f64;
        let u = |unit: usize| (unit as f64 / 5.0 - 1.3).clamp(-ranges.largest_up[unit], ranges.largest_up[unit]);
        for row in 0..rows {
            let exact: f64 = (0..columns)
                .map(|unit| f64::from(weights.row(row)[unit]) * u(unit) * Smooth::Silu.value(z(unit)))
                .sum();
            let mut got: f64 = expansion
                .plain_units()
                .into_iter()
                .map(|unit| f64::from(weights.row(row)[unit]) * u(unit) * Smooth::Silu.value(z(unit)))
                .sum();
            let mut terms = vec![0.0; format.units];
            for power in 0..=format.order {
                expansion.read_terms(power, row, &mut terms);
                for (at, unit) in expansion.units.iter().enumerate() {
                    let z = z(*unit) * f64::from(factors[*unit]);
                    let s = (z - f64::from(expansion.points.z0[at])) / f64::from(expansion.points.h[at]);
                    got += f64::from(terms[at]) * s.powi(power as i32) * u(*unit);
                }
            }
            let bound = selection.figures.output_error + 1e-5;
            assert!((got - exact).abs() <= bound, "{text}: {got}, not {exact}, bound {bound:e}");
        }
        assert!(selection.figures.output_error > 0.0);
    }
}

#[test]
fn terms_that_overflow_are_named() {
    let weights = Matrix { rows: 1, columns: 2, values: vec![60000.0, 1.0] };
    let settings = parse("units = 0.5\nterms_dtype = \"f16\"\nmargin = 0.0").unwrap();
    let format = format(&settings, 2);
    let ranges = Ranges { lowest: vec![2.0, -9.0], highest: vec![3.0, 9.0], ..ranges(&[1.0, 2.0]) };
    let selection = Selection::new(&settings, &format, &ranges, (0, "w")).unwrap();
    assert!(encode(&format, &selection, &weights, None).unwrap_err().to_string().contains("too large"));
}
