use super::{Settings, kept_places};
use crate::codec::ScaleFormat;
use crate::{
    checkpoint::Dtype,
    codec::{Share, Whole},
    forward::Matrix as Dense,
    passes::{Matrix, SettingError},
};

fn parse(text: &str) -> Result<Settings, SettingError> {
    Settings::parse(&text.parse().unwrap())
}

/// Ranks by sorting pairs, in f64: largest first, of equals the first.
fn by_sorting(values: &[f32], outliers: usize, kept: usize) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = values.iter().map(|value| f64::from(*value).abs()).zip(0..).collect();
    order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
    let mut places: Vec<usize> = order[outliers..outliers + kept].iter().map(|(_, place)| *place).collect();
    places.sort_unstable();
    places
}

#[test]
fn places_are_those_of_a_sorted_list() {
    // Few magnitudes of either sign: most are ties.
    let values: Vec<f32> = (0..997_usize).map(|i| ((i * 7919 + 13) % 23) as f32 - 11.0).collect();
    for (outliers, kept) in [(0, 1), (0, 997), (5, 100), (6, 150), (900, 97), (996, 1), (3, 0)] {
        assert_eq!(kept_places(&values, outliers, kept), by_sorting(&values, outliers, kept), "{outliers} {kept}");
    }
    assert_eq!(kept_places(&[-0.0, 0.0, 0.0], 1, 1), [1]);
}

#[test]
fn small_tensors_keep_something_and_the_shares_hold_in_large_ones() {
    let settings = parse("").unwrap();
    for values in [1, 2, 3, 10] {
        let (outliers, kept) = settings.counts(values);
        assert!(kept >= 1 && outliers + kept <= values, "{values}");
    }
    assert_eq!(settings.counts(4096), (25, 614));
    // Every value but the outliers: no share of none is ever an empty end.
    assert_eq!(parse("density = 1.0\noutliers = 0.0").unwrap().counts(7), (0, 7));
    assert_eq!(parse("density = 0.5\noutliers = 0.5").unwrap().counts(5), (3, 2));
    assert_eq!(settings.counts(0), (0, 0));
}

#[test]
fn settings_are_typed_and_complete() {
    let default = parse("").unwrap();
    assert_eq!((default.density, default.outliers, default.scale), (0.15, 0.006, 1.0));
    let all = parse("density = 0.05\noutliers = 0.01\nranking = \"tensor\"\nscale = 0.3\nvalues = \"f16\"").unwrap();
    assert_eq!((all.ranking, all.values), (Share::Matrix, Some(Dtype::F16)));
    for (text, key) in [
        ("density = 0", "density"),
        ("density = 1.5", "density"),
        ("outliers = 1.0", "outliers"),
        ("outliers = -0.1", "outliers"),
        ("density = 0.9\noutliers = 0.2", "density"),
        ("scale = 0.0", "scale"),
        ("scale = \"much\"", "scale"),
        ("ranking = \"column\"", "ranking"),
        ("values = \"f8\"", "values"),
        ("gamma = 0.1", "gamma"),
    ] {
        assert_eq!(parse(text).unwrap_err().key, key, "{text}");
    }
}

#[test]
fn what_is_stored_decodes_to_the_masked_difference() {
    let (rows, columns) = (7, 83);
    let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 29 + 7) % 131) as f32 / 64.0 - 1.0).collect();
    let difference = Dense { rows, columns, values };
    let matrix = Matrix {
        name: "w".into(),
        rows,
        columns,
        experts: 1,
        seed: 0,
        dense_dtype: Dtype::F32,
        scale: ScaleFormat::F32,
        minimum_zero_point: 0,
        float_zero_allowed: false,
        minima: crate::layout::Minima::Never,
    };
    for text in ["", "ranking = \"tensor\"", "density = 0.02\nscale = -0.5", "density = 0.01\nranking = \"tensor\""] {
        let settings = parse(text).unwrap();
        let choice = settings.choose(&matrix).unwrap();
        let Some(Whole::Crumbs(crumbs)) = choice.codec.whole() else { panic!("{choice:?}") };
        let stored = settings.encode(crumbs, &difference).unwrap();
        let stored: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        let decoded = crumbs.decode(rows, columns, &stored).unwrap();
        let among = if settings.ranking == Share::Row { columns } else { rows * columns };
        let mut expected = vec![0.0; rows * columns];
        for (group, values) in difference.values.chunks(among).enumerate() {
            let outliers = (settings.outliers * among as f64).round() as usize;
            let kept = ((settings.density * among as f64).round() as usize).max(1);
            for place in by_sorting(values, outliers, kept) {
                expected[group * among + place] = settings.scale * values[place];
            }
        }
        assert_eq!(decoded, expected, "{text}");
    }
}
