//! A difference of which some values are kept and all others are zero: values and their places, the same number in every
//! row or one number for the whole matrix (Model Breadcrumbs, arXiv 2312.06795, as a sparse delta).

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::{CodecError, Share};
use crate::checkpoint::{Dtype, bits_of, decode_to_f32, encode_from_f32};

/// How the places of kept values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Places {
    /// A bit for each weight.
    Mask,
    /// A number for each kept value.
    Index,
}

/// Kept values of a difference and their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crumbs {
    /// Values kept, of each row or of the matrix.
    pub kept: usize,
    /// What that number is of.
    pub share: Share,
    /// How their places are stored.
    pub places: Places,
    /// Type of the values: F16, BF16 or F32.
    pub dtype: Dtype,
}

impl Hash for Crumbs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Element types have no hash; equal ones have as many bits.
        (self.kept, self.share, self.places, bits_of(self.dtype)).hash(state);
    }
}

impl Crumbs {
    /// So many values of a matrix, with the places stored in the fewest bytes.
    #[must_use]
    pub fn smallest(kept: usize, share: Share, dtype: Dtype, rows: usize, columns: usize) -> Self {
        let mask = Self { kept, share, places: Places::Mask, dtype };
        let index = Self { places: Places::Index, ..mask };
        let bytes = |format: Self| {
            let (_, dtype, shape) = &format.tensors(rows, columns)[1];
            shape.iter().product::<usize>().saturating_mul(bits_of(*dtype))
        };
        let fits = index.validate(rows, columns).is_ok();
        if fits && mask.validate(rows, columns).is_ok() && bytes(index) < bytes(mask) { index } else { mask }
    }

    /// Its short name: `crumbs-17-row-mask`. The type of the values is not part of it.
    #[must_use]
    pub fn name(&self) -> String {
        let share = match self.share {
            Share::Matrix => "matrix",
            Share::Row => "row",
        };
        let places = match self.places {
            Places::Mask => "mask",
            Places::Index => "index",
        };
        format!("crumbs-{}-{share}-{places}", self.kept)
    }

    /// Reads a short name back.
    #[must_use]
    pub fn parse_name(name: &str, dtype: Dtype) -> Option<Self> {
        let (kept, _) = name.strip_prefix("crumbs-")?.split_once('-')?;
        let kept = kept.parse().ok()?;
        let shares = [Share::Matrix, Share::Row];
        let all = shares.into_iter().flat_map(|share| [Places::Mask, Places::Index].map(|places| (share, places)));
        all.map(|(share, places)| Self { kept, share, places, dtype }).find(|crumbs| crumbs.name() == name)
    }

    /// Weights among which [`Crumbs::kept`] are kept.
    fn among(&self, rows: usize, columns: usize) -> Option<usize> {
        match self.share {
            Share::Row => Some(columns),
            Share::Matrix => rows.checked_mul(columns),
        }
    }

    /// Checks that a matrix of this shape can be coded so.
    ///
    /// # Errors
    /// [`CodecError`] for another type of values, more values than weights or none, and a matrix that cannot be addressed.
    pub fn validate(&self, rows: usize, columns: usize) -> Result<(), CodecError> {
        if !matches!(self.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            let problem = format!("{:?} is none of F16, BF16, F32", self.dtype);
            return Err(CodecError::Stored { what: "values", problem });
        }
        if self.kept == 0 {
            return Err(CodecError::Zero { what: "number of values kept" });
        }
        let weights = rows.checked_mul(columns).filter(|&weights| weights < usize::MAX / 64);
        let (Some(_), Some(among)) = (weights, self.among(rows, columns)) else {
            return Err(CodecError::TooLarge { rows, columns });
        };
        if self.kept > among {
            return Err(CodecError::Length { what: "values kept", expected: among, got: self.kept });
        }
        if self.places == Places::Index && among as u64 > 1 << 32 {
            return Err(CodecError::TooLarge { rows, columns });
        }
        Ok(())
    }

    /// Bytes of a place's number.
    fn index_bytes(&self, rows: usize, columns: usize) -> usize {
        if self.among(rows, columns).is_some_and(|among| among <= 1 << 16) { 2 } else { 4 }
    }

    /// The tensors of a valid matrix. `values`, `[rows, kept]` or `[kept]`, in the order of their places; then either
    /// `mask` U8 `[rows, ⌈columns / 8⌉]`, bit b of byte k of a row is column 8 k + b, padding bits are zero; or `indices`,
    /// shaped like the values, ascending: columns, or row · columns + column where the number kept is of the matrix; U16 where
    /// every number is below 65536, else U32.
    #[must_use]
    pub fn tensors(&self, rows: usize, columns: usize) -> [(&'static str, Dtype, Vec<usize>); 2] {
        let shape = match self.share {
            Share::Row => vec![rows, self.kept],
            Share::Matrix => vec![self.kept],
        };
        let places = match (self.places, self.index_bytes(rows, columns)) {
            (Places::Mask, _) => ("mask", Dtype::U8, vec![rows, columns.div_ceil(8)]),
            (Places::Index, 2) => ("indices", Dtype::U16, shape.clone()),
            (Places::Index, _) => ("indices", Dtype::U32, shape.clone()),
        };
        [("values", self.dtype, shape), places]
    }

    /// The tensors of a difference `[rows, columns]`. `places` are those kept, row · columns + column, ascending, as many as
    /// [`Crumbs::kept`] says of each row or of the matrix.
    ///
    /// # Errors
    /// [`CodecError`] when there are not as many places, or a value is too large for its type.
    pub fn encode(
        &self,
        rows: usize,
        columns: usize,
        difference: &[f32],
        places: &[usize],
    ) -> Result<Vec<Vec<u8>>, CodecError> {
        self.validate(rows, columns)?;
        let expected = if self.share == Share::Row { rows * self.kept } else { self.kept };
        if places.len() != expected {
            return Err(CodecError::Length { what: "values kept", expected, got: places.len() });
        }
        let kept: Vec<f32> = places.iter().map(|&place| difference[place]).collect();
        let mut values = Vec::new();
        if encode_from_f32(self.dtype, &kept, &mut values) > 0 {
            let problem = format!("a difference is too large for {:?}", self.dtype);
            return Err(CodecError::Stored { what: "values", problem });
        }
        let stored = match self.places {
            Places::Mask => {
                let row_bytes = columns.div_ceil(8);
                let mut mask = vec![0_u8; rows * row_bytes];
                for place in places {
                    let (row, column) = (place / columns, place % columns);
                    mask[row * row_bytes + column / 8] |= 1 << (column % 8);
                }
                mask
            }
            Places::Index => {
                let width = self.index_bytes(rows, columns);
                let number = |place: &usize| if self.share == Share::Row { place % columns } else { *place };
                places.iter().flat_map(|place| (number(place) as u32).to_le_bytes().into_iter().take(width)).collect()
            }
        };
        Ok(vec![values, stored])
    }

    /// The difference `[rows, columns]`.
    ///
    /// # Errors
    /// [`CodecError`] for tensors of other lengths, a mask with another number of bits or set padding, numbers that do not
    /// ascend or lie outside, and values that are not finite.
    pub fn decode(&self, rows: usize, columns: usize, stored: &[&[u8]]) -> Result<Vec<f32>, CodecError> {
        self.validate(rows, columns)?;
        let [values, places] = stored else {
            return Err(CodecError::Length { what: "tensors", expected: 2, got: stored.len() });
        };
        for ((_, dtype, shape), (what, got)) in self
            .tensors(rows, columns)
            .iter()
            .zip([("bytes of values", values.len()), ("bytes of places", places.len())])
        {
            let expected = shape.iter().product::<usize>() * bits_of(*dtype) / 8;
            if got != expected {
                return Err(CodecError::Length { what, expected, got });
            }
        }
        let mut kept = vec![0.0; values.len() * 8 / bits_of(self.dtype)];
        decode_to_f32(self.dtype, values, &mut kept);
        if let Some(at) = kept.iter().position(|value| !value.is_finite()) {
            return Err(CodecError::Stored { what: "values", problem: format!("number {at} is {}", kept[at]) });
        }
        let mut out = vec![0.0; rows * columns];
        match self.places {
            Places::Mask => self.decode_mask(rows, columns, places, &kept, &mut out)?,
            Places::Index => self.decode_indices(rows, columns, places, &kept, &mut out)?,
        }
        Ok(out)
    }

    fn decode_mask(
        &self,
        rows: usize,
        columns: usize,
        mask: &[u8],
        kept: &[f32],
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        let wrong = |problem: String| CodecError::Stored { what: "mask", problem };
        let mut kept = kept.iter();
        let (row_bytes, mut all) = (columns.div_ceil(8), 0);
        for row in 0..rows {
            let mask = &mask[row * row_bytes..][..row_bytes];
            let set: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
            if self.share == Share::Row && set != self.kept {
                return Err(wrong(format!("row {row} keeps {set} values; expected {}", self.kept)));
            }
            if !columns.is_multiple_of(8) && mask.last().is_some_and(|last| last >> (columns % 8) != 0) {
                return Err(wrong(format!("row {row} has bits beyond its columns")));
            }
            all += set;
            let places = (0..columns).filter(|column| mask[column / 8] >> (column % 8) & 1 == 1);
            for (column, value) in places.zip(kept.by_ref().take(set)) {
                out[row * columns + column] = *value;
            }
        }
        if self.share == Share::Matrix && all != self.kept {
            return Err(wrong(format!("it keeps {all} values; expected {}", self.kept)));
        }
        Ok(())
    }

    fn decode_indices(
        &self,
        rows: usize,
        columns: usize,
        indices: &[u8],
        kept: &[f32],
        out: &mut [f32],
    ) -> Result<(), CodecError> {
        let width = self.index_bytes(rows, columns);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let among = if self.share == Share::Row { columns } else { rows * columns };
        let lists = indices.chunks_exact(self.kept * width).zip(kept.chunks_exact(self.kept));
        for (list, (numbers, values)) in lists.enumerate() {
            let mut next = 0;
            for (bytes, value) in numbers.chunks_exact(width).zip(values) {
                let place = number(bytes);
                if place < next || place >= among {
                    let problem = format!("list {list} does not ascend below {among}");
                    return Err(CodecError::Stored { what: "indices", problem });
                }
                next = place + 1;
                out[list * among + place] = *value;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slices(stored: &[Vec<u8>]) -> Vec<&[u8]> {
        stored.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn names_read_back() {
        for share in [Share::Matrix, Share::Row] {
            for places in [Places::Mask, Places::Index] {
                let crumbs = Crumbs { kept: 17, share, places, dtype: Dtype::BF16 };
                assert_eq!(Crumbs::parse_name(&crumbs.name(), Dtype::BF16), Some(crumbs));
            }
        }
        for name in
            ["crumbs-17-row", "crumbs-017-row-mask", "crumbs--row-mask", "crumbs-1-column-mask", "crumbs-+1-row-mask"]
        {
            assert_eq!(Crumbs::parse_name(name, Dtype::BF16), None, "{name}");
        }
    }

    #[test]
    fn bytes_are_as_documented() {
        // Two rows of nine columns, two values each: columns 0 and 8, then 3 and 4.
        let mut difference = vec![9.0; 18];
        (difference[0], difference[8], difference[12], difference[13]) = (1.0, -2.0, 0.5, 0.0);
        let places = [0, 8, 12, 13];
        let mask = Crumbs { kept: 2, share: Share::Row, places: Places::Mask, dtype: Dtype::BF16 };
        let stored = mask.encode(2, 9, &difference, &places).unwrap();
        assert_eq!(stored[0], [0x80, 0x3f, 0x00, 0xc0, 0x00, 0x3f, 0, 0]);
        assert_eq!(stored[1], [1, 1, 0b1_1000, 0]);
        let index = Crumbs { places: Places::Index, ..mask };
        assert_eq!(index.encode(2, 9, &difference, &places).unwrap()[1], [0, 0, 8, 0, 3, 0, 4, 0]);
        let whole = Crumbs { kept: 4, share: Share::Matrix, ..index };
        assert_eq!(whole.encode(2, 9, &difference, &places).unwrap()[1], [0, 0, 8, 0, 12, 0, 13, 0]);
        let mut expected = vec![0.0; 18];
        (expected[0], expected[8], expected[12]) = (1.0, -2.0, 0.5);
        for format in [mask, index, whole, Crumbs { places: Places::Mask, ..whole }] {
            let stored = format.encode(2, 9, &difference, &places).unwrap();
            assert_eq!(format.decode(2, 9, &slices(&stored)).unwrap(), expected, "{}", format.name());
            let sizes =
                format.tensors(2, 9).map(|(_, dtype, shape)| shape.iter().product::<usize>() * bits_of(dtype) / 8);
            assert_eq!(sizes.to_vec(), stored.iter().map(Vec::len).collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            rows in 1_usize..7,
            columns in 1_usize..40,
            share in prop_oneof![Just(Share::Row), Just(Share::Matrix)],
            places in prop_oneof![Just(Places::Mask), Just(Places::Index)],
            dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F16)],
            seed in any::<u64>(),
        ) {
            let among = if share == Share::Row { columns } else { rows * columns };
            let kept = 1 + (seed >> 40) as usize % among;
            // Whole numbers: every type holds them.
            let difference: Vec<f32> =
                (0..rows * columns).map(|at| ((seed ^ (at as u64 * 0x9e37_79b9)) % 251) as f32 - 125.0).collect();
            let first = (seed >> 8) as usize % (among - kept + 1);
            let lists = if share == Share::Row { rows } else { 1 };
            let chosen: Vec<usize> =
                (0..lists).flat_map(|list| (first..first + kept).map(move |at| list * among + at)).collect();
            let format = Crumbs { kept, share, places, dtype };
            let stored = format.encode(rows, columns, &difference, &chosen).unwrap();
            let mut expected = vec![0.0; rows * columns];
            for place in chosen {
                expected[place] = difference[place];
            }
            prop_assert_eq!(format.decode(rows, columns, &slices(&stored)).unwrap(), expected);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            rows in 0_usize..5,
            columns in 0_usize..20,
            kept in 0_usize..30,
            mask in any::<bool>(),
            by_row in any::<bool>(),
            values in prop::collection::vec(any::<u8>(), 0..200),
            places in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let share = if by_row { Share::Row } else { Share::Matrix };
            let format = Crumbs { kept, share, places: if mask { Places::Mask } else { Places::Index }, dtype: Dtype::F16 };
            if let Ok(values) = format.decode(rows, columns, &[&values, &places]) {
                prop_assert_eq!(values.len(), rows * columns);
            }
        }
    }

    #[test]
    fn the_smaller_form_of_places_is_taken() {
        let places = |kept| Crumbs::smallest(kept, Share::Row, Dtype::F16, 4, 256).places;
        assert_eq!((places(15), places(16), places(17)), (Places::Index, Places::Mask, Places::Mask));
        let wide = Crumbs::smallest(9, Share::Matrix, Dtype::F16, 512, 256);
        assert_eq!((wide.places, wide.tensors(512, 256)[1].1), (Places::Index, Dtype::U32));
    }

    #[test]
    fn malformed_bytes_are_named() {
        let index = Crumbs { kept: 2, share: Share::Row, places: Places::Index, dtype: Dtype::F32 };
        let values: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let wrong = |error: Result<Vec<f32>, CodecError>, expected: &str| match error {
            Err(CodecError::Stored { what, .. }) => assert_eq!(what, expected),
            other => panic!("{other:?}"),
        };
        wrong(index.decode(1, 9, &[&values, &[3, 0, 3, 0]]), "indices");
        wrong(index.decode(1, 9, &[&values, &[3, 0, 9, 0]]), "indices");
        wrong(index.decode(1, 9, &[&values, &[4, 0, 3, 0]]), "indices");
        let nan = [f32::NAN.to_le_bytes(), 1.0_f32.to_le_bytes()].concat();
        wrong(index.decode(1, 9, &[&nan, &[3, 0, 4, 0]]), "values");
        let mask = Crumbs { places: Places::Mask, ..index };
        wrong(mask.decode(1, 9, &[&values, &[1, 0]]), "mask");
        wrong(mask.decode(1, 9, &[&values, &[1, 2]]), "mask");
        assert!(matches!(mask.decode(1, 9, &[&values, &[3]]), Err(CodecError::Length { .. })));
        assert!(matches!(mask.decode(1, 9, &[&values]), Err(CodecError::Length { .. })));
        assert!(matches!(Crumbs { kept: 10, ..mask }.validate(1, 9), Err(CodecError::Length { .. })));
        assert!(matches!(Crumbs { kept: 0, ..mask }.validate(1, 9), Err(CodecError::Zero { .. })));
        assert!(matches!(mask.validate(usize::MAX / 2, 3), Err(CodecError::TooLarge { .. })));
        let half = Crumbs { dtype: Dtype::F16, ..mask };
        assert!(matches!(half.encode(1, 9, &[1e6; 9], &[0, 1]), Err(CodecError::Stored { .. })));
    }
}
