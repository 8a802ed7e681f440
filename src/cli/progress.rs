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

/// How progress is shown, and since when it is.
pub struct Reporter {
    shown: Shown,
    start: Instant,
}

enum Shown {
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
        Self { shown: Shown::new(output, units), start: Instant::now() }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    /// Shows where the run is: `position` on the bar, where that is known, the words that `line` makes, or the members
    /// that `event` adds to an event.
    fn show(
        &self,
        position: Option<(usize, usize)>,
        line: impl FnOnce() -> String,
        event: impl FnOnce() -> serde_json::Value,
    ) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                if let Some((done, _)) = position {
                    bar.set_position(done as u64);
                }
                bar.set_message(line());
            }
            Shown::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    let counted = position.map_or_else(String::new, |(done, of)| format!("tensor {done}/{of}  "));
                    // Progress is a courtesy: a closed stderr must not stop the run.
                    let _ = std::io::stderr().write_all(format!("{counted}{}\n", line()).as_bytes());
                }
            }
            Shown::Events => {
                let mut event = event();
                event["schema"] = "bantam.event/1".into();
                event["rss_bytes"] = platform::current_rss_bytes().into();
                let _ = writeln!(std::io::stdout(), "{event}");
            }
        }
    }

    /// The time that what is left of something takes at the pace so far, as text; nothing at its start.
    fn left(&self, done: u64, of: u64) -> String {
        if done == 0 {
            return String::new();
        }
        let seconds = self.start.elapsed().as_secs_f64() * of.saturating_sub(done) as f64 / done as f64;
        format!("  {}", time_left(Duration::from_secs_f64(seconds)))
    }
}

impl Shown {
    fn new(output: &Output, units: usize) -> Self {
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
}

impl Progress for Reporter {
    fn calibrating(&self, block: usize, blocks: usize, what: &str) {
        self.show(
            None,
            || {
                let left = self.left(block as u64, blocks as u64);
                format!("calibrating block {}/{blocks}{left}  {what}", block + 1)
            },
            || json!({ "event": "calibrating", "block": block + 1, "blocks": blocks, "stage": what }),
        );
    }

    fn training(&self, step: u64, steps: u64, loss: f64) {
        self.show(
            None,
            || format!("training step {step}/{steps}{}  loss {loss:.5}", self.left(step, steps)),
            || json!({ "event": "training", "step": step, "steps": steps, "loss": loss }),
        );
    }

    fn update(&self, status: &Status) {
        self.show(
            Some((status.units_done, status.units)),
            || summary(status),
            || {
                json!({
                    "event": "progress",
                    "tensors_done": status.units_done,
                    "tensors": status.units,
                    "bytes_done": status.bytes_done,
                    "bytes": status.bytes,
                    "tensor": status.current,
                    "seconds": status.elapsed.as_secs_f64(),
                })
            },
        );
    }
}

/// `0.85 GB/s  64.3 MB  1:05 left  model.norm.weight`: rate, memory, time, and what was worked on.
fn summary(status: &Status) -> String {
    let memory = platform::current_rss_bytes().map(bytes_text);
    let rate = status.bytes_per_second().map(|rate| format!("{}/s", bytes_text(rate as u64)));
    let left = status.remaining().map(time_left);
    let parts = [rate, memory, left, Some(status.current.clone()).filter(|name| !name.is_empty())];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}

/// `1:05 left`, `3:01:05 left`.
fn time_left(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02} left"),
        hours => format!("{hours}:{:02}:{seconds:02} left", minutes % 60),
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::time_left;

    #[test]
    fn time_left_reads_like_a_clock() {
        for (seconds, text) in [(0, "0:00 left"), (65, "1:05 left"), (10_865, "3:01:05 left")] {
            assert_eq!(time_left(Duration::from_secs(seconds)), text);
        }
    }
}
