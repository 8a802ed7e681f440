//! `bantam devices` and `run --device`, with and without adapters.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{bantam, expect_exit};
use serde_json::Value;

/// A driver list with nothing in it: a machine without adapters, where Vulkan is the only way to one.
#[cfg(target_os = "linux")]
const NO_DRIVERS: (&str, &str) = ("VK_DRIVER_FILES", "/dev/null");

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
        eprintln!("SKIPPED, no graphics adapter on this machine: {}", report["no_device"]);
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
        assert!(device["score"]["multiply_add_per_second"].as_u64().unwrap() > 1_000_000, "{device}");
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
