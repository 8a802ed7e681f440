//! Short names: `vptq-v8-k4096-r256-g4-o64v4k1024-norm-perm`.

use std::fmt::Write;

use super::{OutlierColumns, VectorFormat};
use crate::codec::{ScaleFormat, name::plain_number};

impl VectorFormat {
    /// The short name: vector length and centroids, then what there is of residual centroids, groups, outlier columns
    /// (their number, vector length and centroids), norm and permutation. The type of stored floats is not part of it.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = format!("vptq-v{}-k{}", self.vector_length, self.centroids);
        let mut part = |text: std::fmt::Arguments<'_>| {
            // A string takes whatever is written.
            let _ = name.write_fmt(text);
        };
        if self.residual_centroids > 0 {
            part(format_args!("-r{}", self.residual_centroids));
        }
        if self.groups != 1 {
            part(format_args!("-g{}", self.groups));
        }
        if let Some(outliers) = self.outliers {
            part(format_args!("-o{}v{}k{}", outliers.columns, outliers.vector_length, outliers.centroids));
        }
        if self.norm {
            part(format_args!("-norm"));
        }
        if self.permuted {
            part(format_args!("-perm"));
        }
        name
    }

    /// Reads a short name back; `None` for what is not one.
    #[must_use]
    pub fn parse_name(name: &str, storage: ScaleFormat) -> Option<Self> {
        let mut parts = name.strip_prefix("vptq-")?.split('-').peekable();
        let mut number = |key: char| {
            let value = plain_number(parts.peek()?.strip_prefix(key)?)?;
            parts.next();
            Some(value)
        };
        let mut format = Self::plain(number('v')?, number('k')?, 0, storage);
        if let Some(centroids) = number('r') {
            format.residual_centroids = centroids;
        }
        if let Some(groups) = number('g') {
            format.groups = groups;
        }
        if let Some(text) = parts.peek().and_then(|part| part.strip_prefix('o')) {
            let (columns, rest) = text.split_once('v')?;
            let (vector_length, centroids) = rest.split_once('k')?;
            format.outliers = Some(OutlierColumns {
                columns: plain_number(columns)?,
                vector_length: plain_number(vector_length)?,
                centroids: plain_number(centroids)?,
            });
            parts.next();
        }
        format.norm = parts.next_if_eq(&"norm").is_some();
        format.permuted = parts.next_if_eq(&"perm").is_some();
        // Whatever is not the one spelling of a format is no name.
        (parts.next().is_none() && format.name() == name).then_some(format)
    }
}
