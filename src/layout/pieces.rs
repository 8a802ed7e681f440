//! The bytes that packing gives, and where in a tensor they go.

/// Bytes of one stored tensor: `bytes` cut into runs of `run` bytes, the i-th of which starts at `offset + i · stride`
/// from the tensor's start. A contiguous piece has `run == bytes.len()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index into [`super::Layout::tensors`]'s list for the matrix.
    pub tensor: usize,
    /// Byte offset of the first run.
    pub offset: u64,
    /// Length of a run in bytes.
    pub run: usize,
    /// Distance of run starts in bytes.
    pub stride: u64,
    /// The runs, one after the other.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Bytes that lie together.
    pub(crate) fn contiguous(tensor: usize, offset: usize, bytes: Vec<u8>) -> Self {
        let run = bytes.len();
        Self { tensor, offset: offset as u64, run, stride: run as u64, bytes }
    }

    /// A column range of a row-major tensor: `bytes` holds `run` bytes of each row, `stride` apart.
    pub(super) fn strided(tensor: usize, offset: usize, run: usize, stride: usize, bytes: Vec<u8>) -> Self {
        Self { tensor, offset: offset as u64, run, stride: stride as u64, bytes }
    }

    /// Copies the runs to their places in the whole tensor's bytes.
    ///
    /// # Panics
    /// Panics when a run lies outside the tensor: a defect of the layout.
    pub fn scatter(&self, tensor: &mut [u8]) {
        for (index, run) in self.bytes.chunks(self.run.max(1)).enumerate() {
            let start = (self.offset + index as u64 * self.stride) as usize;
            tensor[start..start + run.len()].copy_from_slice(run);
        }
    }
}

/// Copies pieces to their places in whole tensors, one buffer per tensor of the matrix.
///
/// # Panics
/// Panics when a piece lies outside its buffer: buffers have [`super::TensorSpec::bytes`], pieces lie inside by design.
pub fn scatter(pieces: &[Piece], buffers: &mut [Vec<u8>]) {
    for piece in pieces {
        piece.scatter(&mut buffers[piece.tensor]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_land_a_stride_apart() {
        let mut buffers = vec![vec![0; 2], vec![0; 12]];
        scatter(
            &[Piece::contiguous(0, 0, vec![7, 8]), Piece::strided(1, 1, 2, 4, vec![1, 2, 3, 4, 5, 6])],
            &mut buffers,
        );
        assert_eq!(buffers[0], [7, 8]);
        assert_eq!(buffers[1], [0, 1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0]);
    }
}
