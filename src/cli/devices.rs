//! `bantam devices`: the graphics adapters of this machine, and how fast they are.

use std::fmt::Write;

use serde::Serialize;

use super::{ByteSize, DevicesArguments, Output, Style, table::wrapped};
use crate::{
    ExitCode,
    compute::{AdapterReport, Choice, ComputeError, Device, Score, Wanted, adapters, chosen, score},
};

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    devices: Vec<Line>,
    /// Why `--device gpu` would find none.
    no_device: Option<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    kind: &'static str,
    backend: String,
    driver: String,
    /// Whether `--device gpu` uses it.
    used: bool,
    largest_buffer_bytes: u64,
    largest_binding_bytes: u64,
    workgroup_memory_bytes: u32,
    workgroup_threads: u32,
    subgroup_threads: [u32; 2],
    features: Vec<&'static str>,
    score: Option<Rates>,
    /// Why there is no score.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the keys of the JSON")]
struct Rates {
    copy_bytes_per_second: u64,
    multiply_add_per_second: u64,
    product_per_second: u64,
    upload_bytes_per_second: u64,
    read_back_bytes_per_second: u64,
}

/// Executes the command.
///
/// # Errors
/// When the environment's settings for adapters are wrong, or stdout fails.
pub fn execute(_: &DevicesArguments, output: &Output) -> Result<ExitCode, anyhow::Error> {
    let choice = Choice::from_environment().map_err(crate::Error::from)?;
    let found = adapters();
    let used = chosen(&found, &choice.wanted);
    let mut devices = Vec::new();
    for (place, adapter) in found.into_iter().enumerate() {
        output.detail(&format!("measuring {}", adapter.name));
        let wanted = Choice { wanted: Wanted::At(place), ..choice.clone() };
        let measured = Device::open(&wanted).and_then(|device| score(&device));
        devices.push(Line::new(adapter, used.as_ref().is_ok_and(|used| *used == place), measured));
    }
    let report = Report { schema: "bantam.devices/1", devices, no_device: used.err().map(|error| error.to_string()) };
    if output.json() {
        output.json_result(&report)?;
    } else {
        output.result(&render(&report, output))?;
    }
    Ok(ExitCode::Done)
}

impl Line {
    fn new(adapter: AdapterReport, used: bool, measured: Result<Score, ComputeError>) -> Self {
        let rates = |score: &Score| Rates {
            copy_bytes_per_second: score.copy_bytes_per_second as u64,
            multiply_add_per_second: score.multiply_add_per_second as u64,
            product_per_second: score.product_per_second as u64,
            upload_bytes_per_second: score.upload_bytes_per_second as u64,
            read_back_bytes_per_second: score.read_back_bytes_per_second as u64,
        };
        Self {
            kind: adapter.kind.name(),
            name: adapter.name,
            backend: adapter.backend,
            driver: adapter.driver,
            used,
            largest_buffer_bytes: adapter.buffer_bytes,
            largest_binding_bytes: adapter.binding_bytes,
            workgroup_memory_bytes: adapter.workgroup_memory_bytes,
            workgroup_threads: adapter.workgroup_invocations,
            subgroup_threads: [adapter.subgroup.0, adapter.subgroup.1],
            features: adapter.features,
            score: measured.as_ref().ok().map(rates),
            problem: measured.err().map(|error| error.to_string()),
        }
    }

    fn render(&self, output: &Output, text: &mut String) {
        let size = |bytes: u64| ByteSize(bytes).to_string();
        let used = if self.used { ", used by --device gpu" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} ({}{used})", output.paint(Style::Bold, &self.name), self.kind);
        let _ = writeln!(text, "  driver      {} {}", self.backend, self.driver);
        let [low, high] = self.subgroup_threads;
        let in_step = if low == high { format!("{low}") } else { format!("{low} to {high}") };
        let (buffer, binding) = (size(self.largest_buffer_bytes), size(self.largest_binding_bytes));
        let _ = writeln!(text, "  limits      buffers of {buffer}, {binding} of them in one binding");
        let shared = size(u64::from(self.workgroup_memory_bytes));
        let threads = self.workgroup_threads;
        let _ = writeln!(text, "  workgroups  {threads} threads, {in_step} in step, {shared} shared");
        let features = if self.features.is_empty() { "none".to_owned() } else { self.features.join(", ") };
        let _ = writeln!(text, "  features    {features}");
        if let Some(problem) = &self.problem {
            let _ = writeln!(text, "  measured    {}", wrapped(problem, 14));
        }
        if let Some(score) = &self.score {
            let (copy, add) = (size(score.copy_bytes_per_second), score.multiply_add_per_second as f64 / 1e9);
            let (up, down) = (size(score.upload_bytes_per_second), size(score.read_back_bytes_per_second));
            let product = score.product_per_second as f64 / 1e9;
            let _ = writeln!(
                text,
                "  measured    copy {copy}/s, multiply-add {add:.1} GFLOP/s, products {product:.1} GFLOP/s"
            );
            let _ = writeln!(text, "              upload {up}/s, read-back {down}/s");
        }
    }
}

fn render(report: &Report, output: &Output) -> String {
    let mut text = String::new();
    for line in &report.devices {
        line.render(output, &mut text);
    }
    if let Some(reason) = &report.no_device {
        text.push_str(&wrapped(reason, 0));
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}
