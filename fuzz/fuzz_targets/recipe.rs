//! A recipe: never a panic, an error that can be shown, and a resolved form of whatever is accepted.
#![no_main]

use std::path::Path;

use bantam::recipe::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Recipe::parse(text, Path::new("recipe.toml")) {
        Ok(recipe) => assert!(recipe.resolved().is_object()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
