//! A progress bar for commands that only read a model through: on a terminal, nowhere else.

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;

/// A bar of bytes, or nothing.
#[derive(Debug)]
pub struct Meter(Option<ProgressBar>);

impl Meter {
    /// Shows a bar where the user wants one.
    #[must_use]
    pub fn new(output: &Output, what: &'static str) -> Self {
        if !output.progress_bar() {
            return Self(None);
        }
        let bar = ProgressBar::new(0).with_message(what);
        // A template of known keys cannot fail; the default look serves if it does.
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self(Some(bar))
    }

    /// Moves the bar; safe from many threads.
    pub fn bytes(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            // Threads report out of order: the bar never goes back.
            if done > bar.position() {
                bar.set_position(done);
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}
