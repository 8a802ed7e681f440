//! A device for tests, and a kernel to try it with.

use std::{io::Write, sync::LazyLock};

use super::super::{Buffer, Choice, ComputeError, Device, Kernel, Launch, RowBinding, Wanted};

/// Multiplies every value by `FACTOR`.
pub(crate) static DOUBLE: LazyLock<Kernel> = LazyLock::new(|| {
    let source = "
        override FACTOR: u32 = 2u;
        struct Shape { count: u32 }
        @group(0) @binding(0) var<uniform> shape: Shape;
        @group(0) @binding(1) var<storage, read_write> values: array<u32>;
        @compute @workgroup_size(64)
        fn double(@builtin(global_invocation_id) id: vec3<u32>) {
            if id.x < shape.count { values[id.x] = values[id.x] * FACTOR; }
        }";
    Kernel::new("double", source, "double")
});

/// What tests open: a real adapter where there is one, else a software adapter.
pub(crate) fn choice() -> Choice {
    let real = super::super::adapters().iter().any(|adapter| adapter.kind != super::super::AdapterKind::Software);
    Choice { wanted: if real { Wanted::Best } else { Wanted::Software }, ..Choice::default() }
}

/// A device, or `None` with a loud line where this machine has no adapter.
pub(crate) fn device(binding_bytes: Option<u64>) -> Option<Device> {
    device_with(&Choice { binding_bytes, ..choice() })
}

pub(crate) fn device_with(choice: &Choice) -> Option<Device> {
    match Device::open(choice) {
        Ok(device) => Some(device),
        Err(ComputeError::NoAdapter { reason }) => {
            skipped(&format!("no graphics adapter on this machine: {reason}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Doubles a matrix of words.
pub(crate) fn double(device: &Device, values: &Buffer, rows: u32, columns: u32) -> Result<(), ComputeError> {
    let bindings = [RowBinding::Rows { buffer: values, row_bytes: u64::from(columns) * 4 }];
    device.dispatch_rows(&DOUBLE, u64::from(rows), &bindings, |window| {
        let count = window.rows as u32 * columns;
        Launch { uniform: count.to_le_bytes().to_vec(), groups: [count.div_ceil(64), 1, 1] }
    })
}

/// Says so past the test harness, which keeps what a test that passes prints.
pub(crate) fn skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
