mod blocks;
mod differences;
mod models;
