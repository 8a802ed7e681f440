mod blocks;
mod differences;
mod heads;
pub(crate) mod models;
mod training;
