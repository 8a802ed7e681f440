//! Progress on stderr: a bar on a terminal, plain lines elsewhere, events with `--json`.

use std::{
    io::Write,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Output, plan_text::bytes_text};
use crate::{
    platform,
    run::{Progress, Status},
};

/// How progress is shown.
pub enum Reporter {
    /// A bar that redraws itself.
    Bar(ProgressBar),
    /// A line every few seconds.
    Lines(Mutex<Instant>),
    /// A JSON object a line on stdout.
    Events,
    /// Not at all.
    Nothing,
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl Reporter {
    /// Chooses by what is asked for and where stderr goes.
    #[must_use]
    pub fn new(output: &Output, units: usize) -> Self {
        if output.json() {
            return Self::Events;
        }
        if !output.progress_bar() {
            return if output.progress_lines() { Self::Lines(Mutex::new(Instant::now())) } else { Self::Nothing };
        }
        let bar = ProgressBar::new(units as u64);
        // A template of known keys cannot fail; the default look serves if it does.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self::Bar(bar)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Reporter {
    fn calibrating(&self, block: usize, blocks: usize, what: &str) {
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => bar.set_message(format!("calibrating block {}/{blocks}  {what}", block + 1)),
            Self::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let line = format!("calibrating block {}/{blocks}  {what}\n", block + 1);
                    // Progress is a courtesy: a closed stderr must not stop the run.
                    let _ = std::io::stderr().write_all(line.as_bytes());
                }
            }
            Self::Events => {
                let event = json!({
                    "schema": "bantam.event/1",
                    "event": "calibrating",
                    "block": block + 1,
                    "blocks": blocks,
                    "stage": what,
                    "rss_bytes": platform::current_rss_bytes(),
                });
                let _ = writeln!(std::io::stdout(), "{event}");
            }
        }
    }

    fn training(&self, step: u64, steps: u64, loss: f64) {
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => bar.set_message(format!("training step {step}/{steps}  loss {loss:.5}")),
            Self::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let line = format!("training step {step}/{steps}  loss {loss:.5}\n");
                    // Progress is a courtesy: a closed stderr must not stop the run.
                    let _ = std::io::stderr().write_all(line.as_bytes());
                }
            }
            Self::Events => {
                let event = json!({
                    "schema": "bantam.event/1",
                    "event": "training",
                    "step": step,
                    "steps": steps,
                    "loss": loss,
                    "rss_bytes": platform::current_rss_bytes(),
                });
                let _ = writeln!(std::io::stdout(), "{event}");
            }
        }
    }

    fn update(&self, status: &Status) {
        match self {
            Self::Nothing => {}
            Self::Bar(bar) => {
                bar.set_position(status.units_done as u64);
                bar.set_message(summary(status));
            }
            Self::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let line = format!("tensor {}/{}  {}\n", status.units_done, status.units, summary(status));
                    // Progress is a courtesy: a closed stderr must not stop the run.
                    let _ = std::io::stderr().write_all(line.as_bytes());
                }
            }
            Self::Events => {
                let event = json!({
                    "schema": "bantam.event/1",
                    "event": "progress",
                    "tensors_done": status.units_done,
                    "tensors": status.units,
                    "bytes_done": status.bytes_done,
                    "bytes": status.bytes,
                    "tensor": status.current,
                    "seconds": status.elapsed.as_secs_f64(),
                    "rss_bytes": platform::current_rss_bytes(),
                });
                let _ = writeln!(std::io::stdout(), "{event}");
            }
        }
    }
}

fn summary(status: &Status) -> String {
    let memory = platform::current_rss_bytes().map_or_else(String::new, |bytes| format!("  {}", bytes_text(bytes)));
    let left = status.remaining().as_secs();
    format!(
        "{:.2} GB/s{memory}  {}:{:02} left  {}",
        status.bytes_per_second() / 1e9,
        left / 60,
        left % 60,
        status.current
    )
}

/// Progress of something that has steps and nothing else to tell.
pub struct Steps {
    bar: Option<ProgressBar>,
    lines: Option<Mutex<Instant>>,
    what: &'static str,
}

impl Steps {
    /// Steps of this name; silent with `--json`.
    #[must_use]
    pub fn new(output: &Output, what: &'static str) -> Self {
        let bar = (!output.json() && output.progress_bar()).then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar
        });
        let lines = (!output.json() && bar.is_none() && output.progress_lines()).then(|| Mutex::new(Instant::now()));
        Self { bar, lines, what }
    }

    /// So many are done.
    pub fn show(&self, done: usize, of: usize) {
        if let Some(bar) = &self.bar {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(self.what);
        }
        if let Some(Ok(mut last)) = self.lines.as_ref().map(Mutex::lock)
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            // Progress is a courtesy: a closed stderr must not stop the work.
            let _ = std::io::stderr().write_all(format!("{} {done}/{of}\n", self.what).as_bytes());
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
