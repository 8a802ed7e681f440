mod blocks;
mod differences;
mod heads;
mod models;
mod training;
