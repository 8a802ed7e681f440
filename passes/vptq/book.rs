//! Codebooks, and the search for the centroid, or the pair of centroids, that a vector is stored as.

use super::kernel::{LANES, Winners, nearest, nearest_several, with_norms};

/// The centroids of some columns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Book {
    /// Components of a vector.
    pub length: usize,
    /// `[centroids, length]`.
    pub main: Vec<f32>,
    /// What is added, `[residual centroids, length]`; empty for nothing.
    pub residual: Vec<f32>,
}

impl Book {
    /// Centroid and residual of a pair of indices; the second slice is empty without residuals.
    #[inline]
    pub fn pair(&self, first: u16, second: u16) -> (&[f32], &[f32]) {
        let length = self.length;
        let residual =
            if self.residual.is_empty() { &[] } else { &self.residual[usize::from(second) * length..][..length] };
        (&self.main[usize::from(first) * length..][..length], residual)
    }
}

/// What a search finds for each lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Centroid.
    pub first: [u32; LANES],
    /// Residual; 0 without residual codebook.
    pub second: [u32; LANES],
    /// Squared distance, up to rounding.
    pub distance: [f32; LANES],
}

impl Default for Found {
    fn default() -> Self {
        Self { first: [0; LANES], second: [0; LANES], distance: [0.0; LANES] }
    }
}

/// A codebook ready to be searched.
pub struct Searcher<'a> {
    book: &'a Book,
    main: Vec<f32>,
    residual: Vec<f32>,
    beam: usize,
}

impl<'a> Searcher<'a> {
    /// `beam` candidates of the main codebook are tried with every residual; at least one.
    pub fn new(book: &'a Book, beam: usize) -> Self {
        let beam = beam.clamp(1, book.main.len() / book.length.max(1));
        Self {
            book,
            main: with_norms(&book.main, book.length),
            residual: with_norms(&book.residual, book.length),
            beam,
        }
    }

    /// Finds what each lane's vector is stored as; `x` is `[length, LANES]`. `scratch` keeps its memory between calls.
    pub fn search(&self, x: &[f32], scratch: &mut Scratch, found: &mut Found) {
        let length = self.book.length;
        if self.residual.is_empty() {
            let winners = &mut scratch.winners;
            nearest(length, x, &self.main, winners);
            let squares = squares(x);
            for (lane, square) in squares.into_iter().enumerate() {
                found.distance[lane] = (square - 2.0 * winners.score[lane]).max(0.0);
            }
            found.first = winners.index;
            found.second = [0; LANES];
            return;
        }
        scratch.candidates.resize(self.beam, Winners::NONE);
        scratch.rest.resize(length * LANES, 0.0);
        if self.beam == 1 {
            nearest(length, x, &self.main, &mut scratch.candidates[0]);
        } else {
            nearest_several(length, x, &self.main, &mut scratch.candidates);
        }
        found.distance = [f32::INFINITY; LANES];
        for candidate in &scratch.candidates {
            for lane in 0..LANES {
                let centroid = &self.book.main[candidate.index[lane] as usize * length..][..length];
                for (component, value) in centroid.iter().enumerate() {
                    scratch.rest[component * LANES + lane] = x[component * LANES + lane] - value;
                }
            }
            nearest(length, &scratch.rest, &self.residual, &mut scratch.winners);
            let squares = squares(&scratch.rest);
            for (lane, square) in squares.into_iter().enumerate() {
                let distance = (square - 2.0 * scratch.winners.score[lane]).max(0.0);
                // A lane that lacks a candidate has none that is nearer.
                if distance < found.distance[lane] && candidate.score[lane] > f32::NEG_INFINITY {
                    found.distance[lane] = distance;
                    found.first[lane] = candidate.index[lane];
                    found.second[lane] = scratch.winners.index[lane];
                }
            }
        }
    }
}

/// Memory of a search.
pub struct Scratch {
    candidates: Vec<Winners>,
    rest: Vec<f32>,
    winners: Winners,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { candidates: Vec::new(), rest: Vec::new(), winners: Winners::NONE }
    }
}

/// |x|² of each lane.
pub fn squares(x: &[f32]) -> [f32; LANES] {
    let mut squares = [0.0_f32; LANES];
    for component in x.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            squares[lane] = component[lane].mul_add(component[lane], squares[lane]);
        }
    }
    squares
}
