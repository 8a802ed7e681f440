//! Every step against a slow one in F64, and what every result must keep to.

mod fixtures;
mod kmeans;
mod searching;
mod solving;
mod steps;
