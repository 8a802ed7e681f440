//! `bantam devices` and `run --device`, with and without adapters.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{io::Write, process::Command};

use common::{SMALL, assert_same, bantam, contents, expect_exit, write_model};
use serde_json::Value;

/// A driver list with nothing in it: a machine without adapters, where Vulkan is the only way to one.
#[cfg(target_os = "linux")]
const NO_DRIVERS: (&str, &str) = ("VK_DRIVER_FILES", "/dev/null");

/// Says so past the test harness, which keeps what a test that passes prints.
fn skipped(reason: &Value) {
    let _ = writeln!(std::io::stderr(), "SKIPPED, no graphics adapter on this machine: {reason}");
}

fn devices(environment: &[(&str, &str)]) -> Value {
    let mut command = bantam();
    command.args(["devices", "--json"]).envs(environment.iter().copied());
    serde_json::from_slice(&expect_exit(&mut command, 0).stdout).unwrap()
}

#[test]
fn adapters_are_listed_with_limits_and_a_score() {
    let report = devices(&[("BANTAM_ADAPTER", "software")]);
    assert_eq!(report["schema"], "bantam.devices/1");
    let list = report["devices"].as_array().unwrap();
    if list.is_empty() {
        skipped(&report["no_device"]);
        return;
    }
    let software = list.iter().filter(|device| device["kind"] == "software").count();
    let used = list.iter().filter(|device| device["used"] == true).count();
    assert_eq!(used, software.min(1), "{report}");
    for device in list {
        assert_eq!(device["problem"], Value::Null, "{device}");
        assert!(device["largest_binding_bytes"].as_u64().unwrap() >= 1 << 20, "{device}");
        for rate in ["copy", "upload", "read_back"] {
            let bytes = device["score"][format!("{rate}_bytes_per_second")].as_u64().unwrap();
            assert!(bytes > 1_000_000, "{rate}: {device}");
        }
        for rate in ["multiply_add", "product"] {
            let operations = device["score"][format!("{rate}_per_second")].as_u64().unwrap();
            assert!(operations > 1_000_000, "{rate}: {device}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_machine_without_adapters_says_so_and_exits_with_0() {
    let report = devices(&[NO_DRIVERS]);
    assert_eq!(report["devices"].as_array().unwrap().len(), 0);
    assert!(report["no_device"].as_str().unwrap().contains("no Vulkan"), "{report}");
    let mut command = bantam();
    command.arg("devices").envs([NO_DRIVERS]);
    let text = String::from_utf8(expect_exit(&mut command, 0).stdout).unwrap();
    assert!(text.starts_with("no graphics adapter"), "{text}");
}

#[test]
fn a_wrong_setting_names_the_variable() {
    let mut command = bantam();
    command.arg("devices").env("BANTAM_GPU_MEMORY", "plenty");
    let text = String::from_utf8(expect_exit(&mut command, 4).stderr).unwrap();
    assert!(text.contains("BANTAM_GPU_MEMORY") && text.contains("plenty"), "{text}");
}

/// What makes `--device gpu` use this machine's adapter, software included; `None`, loudly, where there is none.
fn adapter() -> Option<Vec<(&'static str, &'static str)>> {
    let report = devices(&[]);
    if report["no_device"].is_null() {
        return Some(vec![]);
    }
    if report["devices"].as_array().unwrap().is_empty() {
        skipped(&report["no_device"]);
        return None;
    }
    Some(vec![("BANTAM_ADAPTER", "software")])
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("model"), SMALL);
        Self(folder)
    }

    fn run(&self, pass: &str, layout: &str, device: &str, out: &str) -> Command {
        let recipe = self.0.path().join(format!("{out}.toml"));
        let text = format!(
            "schema = 1\nmodel = \"model\"\n[[pass]]\nuse = \"rtn\"\n{pass}\n[artifact]\nlayout = \"{layout}\"\n"
        );
        std::fs::write(&recipe, text).unwrap();
        let mut command = bantam();
        command.args(["run", "--device", device, "--json"]).arg(recipe).arg("--out").arg(self.0.path().join(out));
        command
    }

    fn manifest(&self, out: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.0.path().join(out).join("manifest.json")).unwrap()).unwrap()
    }
}

/// The manifest without the names of devices, and how many tensors had one.
fn without_devices(mut manifest: Value) -> (Value, usize) {
    let tensors = manifest["tensors"].as_array_mut().unwrap();
    let named = tensors.iter_mut().filter_map(|tensor| tensor.as_object_mut().unwrap().remove("device"));
    let count = named.filter(|name| name.as_str().is_some_and(|name| !name.is_empty())).count();
    (manifest, count)
}

#[test]
fn the_device_writes_the_processors_bytes_and_is_named_in_the_manifest() {
    let Some(environment) = adapter() else { return };
    let bench = Bench::new();
    let linears = 14;
    for (index, (pass, layout, on_device)) in [
        ("bits = 4\ngroup_size = 128", "compressed-tensors", linears),
        ("bits = 3\ngroup_size = 100\nsymmetric = false", "bantam", linears),
        ("bits = 8\ngranularity = \"channel\"", "compressed-tensors", linears),
        ("bits = 4\ngroup_size = 64\nsymmetric = false", "gptq", linears),
        ("format = \"fp8\"\ngranularity = \"block\"", "compressed-tensors", linears),
        ("format = \"fp8\"\ngranularity = \"tensor\"", "compressed-tensors", linears),
        ("format = \"mxfp4\"", "bantam", linears),
        ("format = \"nvfp4\"", "compressed-tensors", linears),
        ("bits = 4\ngroup_size = 128\nrange = \"mse\"", "compressed-tensors", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let names = [format!("cpu{index}"), format!("gpu{index}"), format!("again{index}")];
        expect_exit(&mut bench.run(pass, layout, "cpu", &names[0]), 0);
        for out in &names[1..] {
            expect_exit(bench.run(pass, layout, "gpu", out).envs(environment.clone()), 0);
        }
        let folder = |name: &String| bench.0.path().join(name);
        assert_same(&folder(&names[1]), &folder(&names[2]));
        let (mut cpu, mut gpu) = (contents(&folder(&names[0])), contents(&folder(&names[1])));
        cpu.remove("manifest.json");
        gpu.remove("manifest.json");
        assert!(cpu == gpu, "{pass}: other bytes on the device");
        let (gpu, named) = without_devices(bench.manifest(&names[1]));
        assert_eq!(named, on_device, "{pass}");
        assert_eq!(gpu, bench.manifest(&names[0]), "{pass}");
    }
}

#[test]
fn what_the_device_fails_at_is_done_on_the_processor_and_counted() {
    let Some(environment) = adapter() else { return };
    // The command line counts, not the environment.
    let environment: Vec<_> = environment.into_iter().chain([("BANTAM_GPU_MEMORY", "1GiB")]).collect();
    let little = ["--max-device-memory", "1KiB"];
    let bench = Bench::new();
    let pass = "bits = 4\ngroup_size = 128";
    expect_exit(&mut bench.run(pass, "compressed-tensors", "cpu", "cpu"), 0);
    let mut run = bench.run(pass, "compressed-tensors", "gpu", "gpu");
    let output = expect_exit(run.args(little).envs(environment.clone()), 0);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warning.contains("BANTAM_GPU_MEMORY") && warning.contains("on the processor"), "{warning}");
    let manifest = bench.manifest("gpu");
    let fallbacks = manifest["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 14, "one for every linear: {fallbacks:?}");
    assert!(fallbacks.iter().all(|fallback| fallback["kind"] == "device-failed"), "{fallbacks:?}");
    let weights = |out: &str| std::fs::read(bench.0.path().join(out).join("model.safetensors")).unwrap();
    assert!(weights("gpu") == weights("cpu"));
    let mut denied = bench.run(pass, "compressed-tensors", "gpu", "denied");
    expect_exit(denied.args(little).envs(environment).args(["--deny", "fallback"]), 1);
}

#[test]
fn a_devices_memory_beside_the_processors_counts_in_the_plan() {
    let Some(environment) = adapter() else { return };
    let bench = Bench::new();
    let pass = "bits = 4\ngroup_size = 128";
    let budget = ["--max-memory", "120MB"];
    expect_exit(bench.run(pass, "compressed-tensors", "cpu", "cpu").args(budget), 0);
    let mut run = bench.run(pass, "compressed-tensors", "gpu", "gpu");
    let output = expect_exit(run.args(budget).args(["--threads", "1"]).envs(environment), 4);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("memory"), "{message}");
}

#[test]
fn auto_writes_the_processors_bytes_and_manifest_and_says_what_it_chose() {
    let bench = Bench::new();
    let pass = "bits = 4\ngroup_size = 128";
    expect_exit(&mut bench.run(pass, "compressed-tensors", "cpu", "cpu"), 0);
    let mut run = bench.run(pass, "compressed-tensors", "auto", "auto");
    let output = expect_exit(run.arg("--verbose").env("BANTAM_ADAPTER", "software"), 0);
    let detail = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(detail.contains("computing on the processor: "), "{detail}");
    assert_same(&bench.0.path().join("cpu"), &bench.0.path().join("auto"));
}

#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter_gpu_is_refused_and_auto_is_the_processor() {
    let bench = Bench::new();
    let pass = "bits = 4\ngroup_size = 128";
    let output = expect_exit(bench.run(pass, "compressed-tensors", "gpu", "gpu").envs([NO_DRIVERS]), 4);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("no graphics adapter") && message.contains("bantam devices"), "{message}");
    assert!(!bench.0.path().join("gpu").exists());
    expect_exit(bench.run(pass, "compressed-tensors", "auto", "auto").envs([NO_DRIVERS]), 0);
    assert_eq!(without_devices(bench.manifest("auto")).1, 0);
}
