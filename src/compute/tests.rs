//! The runtime on whatever adapter this machine has, software included.

use super::*;
use crate::compute::tests::fixtures::{DOUBLE, device, double};

pub(crate) mod fixtures;

#[test]
fn bytes_come_back_at_any_length_and_offset() {
    let Some(device) = device(None) else { return };
    for length in [0_usize, 1, 3, 4, 5, 16, 65535, 65536, 65537, (8 << 20) + 5, (33 << 20) + 7] {
        let bytes: Vec<u8> = (0..length).map(|index| (index * 31 + index / 251) as u8).collect();
        let buffer = device.upload("bytes", &bytes).unwrap();
        assert!(device.read(&buffer).unwrap() == bytes, "{length} bytes changed on their way");
        for (offset, count) in [(0, length / 2), (length / 3, length / 2), (length, 0)] {
            let part = device.read_later(&buffer, offset as u64, count as u64).unwrap().wait().unwrap();
            assert!(part == bytes[offset..offset + count], "{count} bytes from {offset} of {length} changed");
        }
    }
    let error = device.read_later(&device.upload("short", &[1, 2]).unwrap(), 1, 2).err();
    assert_eq!(error, Some(ComputeError::Range { label: "short".into(), bytes: 2, start: 1, end: 3 }));
}

#[test]
fn a_kernel_works_on_more_rows_than_a_binding_holds() {
    let Some(device) = device(Some(4096)) else { return };
    for (rows, columns) in [(1_u32, 1_u32), (1, 1000), (1000, 1), (97, 89), (129, 64)] {
        let values: Vec<u32> = (0..rows * columns).collect();
        let buffer = device.upload("values", bytemuck::cast_slice(&values)).unwrap();
        double(&device, &buffer, rows, columns).unwrap();
        let out = device.read(&buffer).unwrap();
        let doubled = out.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        assert!(doubled.eq(values.iter().map(|value| value * 2)), "{rows} × {columns}");
    }
    let wide = device.allocate("wide", 100 * 3996).unwrap();
    let error = double(&device, &wide, 100, 999).unwrap_err();
    assert!(matches!(error, ComputeError::TooLarge { .. }), "{error}");
    let error = device.dispatch(&DOUBLE, &[(&wide).into()], &[0; 16], [1, 1, 1]).unwrap_err();
    assert!(matches!(error, ComputeError::TooLarge { .. }), "{error}");
}

#[test]
fn pipelines_are_made_once_per_kernel_and_constants() {
    let Some(device) = device(None) else { return };
    let buffer = device.upload("values", &[0; 64]).unwrap();
    for _ in 0..3 {
        double(&device, &buffer, 4, 4).unwrap();
    }
    assert_eq!(device.inner.pipelines_made(), 1);
    let other = DOUBLE.clone().with("FACTOR", 3.0);
    device.dispatch(&other, &[(&buffer).into()], &[0; 16], [1, 1, 1]).unwrap();
    assert_eq!(device.inner.pipelines_made(), 2);
}

#[test]
fn the_budget_is_kept_and_given_back() {
    let Some(device) = fixtures::device_with(&Choice { memory_bytes: 1 << 20, ..fixtures::choice() }) else { return };
    let first = device.allocate("first", 800 << 10).unwrap();
    let error = device.allocate("second", 400 << 10).unwrap_err();
    let (used, budget) = (800 << 10, 1 << 20);
    assert_eq!(error, ComputeError::Budget { label: "second".into(), bytes: 400 << 10, used, budget });
    drop(first);
    device.allocate("second", 400 << 10).unwrap();
    assert_eq!(device.memory_bytes(), (0, 1 << 20));
}

#[test]
fn every_way_to_device_memory_keeps_to_the_budget() {
    let Some(device) = fixtures::device_with(&Choice { memory_bytes: 100, ..fixtures::choice() }) else { return };
    let is_refused = |outcome: Result<(), ComputeError>| {
        let error = outcome.unwrap_err();
        assert!(matches!(error, ComputeError::Budget { budget: 100, .. }), "{error}");
    };
    is_refused(device.allocate("allocated", 101).map(drop));
    is_refused(device.upload("uploaded", &[0; 101]).map(drop));
    is_refused(kernels::DeviceMatrix::zeros(&device, "zeros", 3, 9).map(drop));
    is_refused(kernels::SecondMoments::new(&device, 4).map(drop));
    // A uniform block counts as long as its kernel is not handed over.
    let values = device.allocate("values", 80).unwrap();
    let mut batch = device.batch();
    batch.add(&fixtures::DOUBLE, &[(&values).into()], &[0; 16], [1, 1, 1]).unwrap();
    assert_eq!(device.memory_bytes().0, 96);
    is_refused(batch.add(&fixtures::DOUBLE, &[(&values).into()], &[0; 16], [1, 1, 1]));
    batch.submit().unwrap();
    assert_eq!(device.memory_bytes().0, 80);
}

#[test]
fn mistakes_are_errors_that_name_the_kernel_and_the_device_goes_on() {
    let Some(device) = device(None) else { return };
    let buffer = device.upload("values", &[1; 64]).unwrap();
    let no_wgsl = Kernel::new("no_wgsl", "fn main( {", "main");
    let error = device.dispatch(&no_wgsl, &[(&buffer).into()], &[], [1, 1, 1]).unwrap_err();
    assert!(matches!(&error, ComputeError::Refused { operation, .. } if operation.contains("no_wgsl")), "{error}");
    for (bindings, uniform, groups) in [
        (vec![], vec![0; 16], [1, 1, 1]),
        (vec![(&buffer).into(), (&buffer).into()], vec![0; 16], [1, 1, 1]),
        (vec![(&buffer).into()], vec![], [1, 1, 1]),
        (vec![(&buffer).into()], vec![0; 16], [u32::MAX, 1, 1]),
    ] {
        let error = device.dispatch(&DOUBLE, &bindings, &uniform, groups).unwrap_err();
        assert!(matches!(&error, ComputeError::Refused { operation, .. } if operation.contains("double")), "{error}");
    }
    let limit = device.limits().buffer_bytes;
    let error = device.allocate("huge", limit + 16).unwrap_err();
    assert!(matches!(error, ComputeError::TooLarge { .. }), "{error}");
    double(&device, &buffer, 4, 4).unwrap();
    assert_eq!(device.read(&buffer).unwrap(), [2; 64]);
}

#[test]
fn a_lost_device_is_an_error_everywhere_and_never_a_panic() {
    let Some(device) = device(None) else { return };
    let buffer = device.upload("values", &vec![1; 1 << 20]).unwrap();
    let pending = device.read_later(&buffer, 0, 64).unwrap();
    device.destroy();
    let _ = pending.wait();
    for outcome in [
        device.allocate("more", 64).map(|_| ()),
        device.write(&buffer, 0, &vec![0; 1 << 20]),
        device.read(&buffer).map(|_| ()),
        double(&device, &buffer, 4, 4),
        device.finish(),
    ] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, ComputeError::Lost { .. }) && error.is_final(), "{error}");
    }
}

#[test]
fn several_threads_share_a_device() {
    let Some(device) = device(None) else { return };
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let device = &device;
            scope.spawn(move || {
                for round in 0..5 {
                    let values = vec![thread * 1000 + round; 40_000];
                    let buffer = device.upload("values", bytemuck::cast_slice(&values)).unwrap();
                    double(device, &buffer, 200, 200).unwrap();
                    let out = device.read(&buffer).unwrap();
                    let expected: Vec<u32> = values.iter().map(|value| value * 2).collect();
                    assert!(out == bytemuck::cast_slice::<u32, u8>(&expected));
                }
            });
        }
    });
}

#[test]
fn an_adapter_that_is_not_there_is_an_error_that_names_those_that_are() {
    let error = Device::open(&Choice { wanted: Wanted::Named("no such adapter".into()), ..Choice::default() });
    let Err(ComputeError::NoAdapter { reason }) = error else { panic!("{error:?}") };
    assert!(reason.contains("no such adapter"), "{reason}");
}
