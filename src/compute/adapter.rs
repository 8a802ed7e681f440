//! Which adapters there are, and which one to use.

use std::{
    env,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::ComputeError;
use crate::recipe::parse_bytes;

/// Names the adapter to use: `software`, or a part of an adapter's name.
const ADAPTER_VARIABLE: &str = "BANTAM_ADAPTER";
/// Bytes of device memory to use at most, with or without a unit (`6GiB`).
const MEMORY_VARIABLE: &str = "BANTAM_GPU_MEMORY";
/// Used when nothing else is said: little enough for every adapter of the last ten years.
const DEFAULT_MEMORY_BYTES: u64 = 2 << 30;

/// What kind of device an adapter is, in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, sharing its memory.
    Integrated,
    /// A share of a device, handed to a virtual machine.
    Virtual,
    /// The driver does not say.
    Unknown,
    /// A program that does a device's work on the processor: right but slow, for tests.
    Software,
}

impl AdapterKind {
    /// The kind in one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Unknown => "unknown",
            Self::Software => "software",
        }
    }
}

/// Which adapter is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best one that is no software.
    #[default]
    Best,
    /// A software adapter.
    Software,
    /// One whose name contains this, in any case.
    Named(String),
    /// The one at this place of [`adapters`].
    At(usize),
}

/// Which adapter to open, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Which adapter.
    pub wanted: Wanted,
    /// Device memory to use at most, in bytes.
    pub memory_bytes: u64,
    /// Lowers the largest binding, in bytes: for tests of what is done beyond it.
    pub binding_bytes: Option<u64>,
    /// Whether to use what only some adapters have; without, for tests, every kernel is the one that they all run.
    pub optional_features: bool,
}

impl Default for Choice {
    fn default() -> Self {
        Self { wanted: Wanted::Best, memory_bytes: DEFAULT_MEMORY_BYTES, binding_bytes: None, optional_features: true }
    }
}

impl Choice {
    /// What the environment says: `BANTAM_ADAPTER` (`software`, or a part of a name) and `BANTAM_GPU_MEMORY` (bytes,
    /// or with a unit such as `6GiB`).
    ///
    /// # Errors
    /// [`ComputeError::Setting`] when `BANTAM_GPU_MEMORY` is no size.
    pub fn from_environment() -> Result<Self, ComputeError> {
        let wanted = match env::var(ADAPTER_VARIABLE) {
            Ok(name) if name.eq_ignore_ascii_case("software") => Wanted::Software,
            Ok(name) if !name.trim().is_empty() => Wanted::Named(name.trim().to_owned()),
            _ => Wanted::Best,
        };
        let memory_bytes = match env::var(MEMORY_VARIABLE) {
            Ok(text) => {
                parse_bytes(&text).map_err(|problem| ComputeError::Setting { variable: MEMORY_VARIABLE, problem })?
            }
            Err(_) => DEFAULT_MEMORY_BYTES,
        };
        Ok(Self { wanted, memory_bytes, ..Self::default() })
    }
}

/// What is known of an adapter without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReport {
    /// The name, as the driver gives it.
    pub name: String,
    /// The kind.
    pub kind: AdapterKind,
    /// The interface it is driven through: `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// The largest buffer, in bytes.
    pub buffer_bytes: u64,
    /// The largest part of a buffer that a kernel can see, in bytes.
    pub binding_bytes: u64,
    /// Memory shared by a workgroup, in bytes.
    pub workgroup_memory_bytes: u32,
    /// Threads of a workgroup.
    pub workgroup_invocations: u32,
    /// Threads that run in step: the smallest and the largest number.
    pub subgroup: (u32, u32),
    /// Optional features that are there and used, by name.
    pub features: Vec<&'static str>,
}

/// All adapters of this machine, best first; software adapters last. None where there is no driver.
#[must_use]
pub fn adapters() -> Vec<AdapterReport> {
    sorted(&instance()).iter().map(report).collect()
}

pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // The same in debug and release builds, and no layers that have to be installed.
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

/// The result of a future of wgpu: on every native backend it is ready from the start.
pub(super) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn sorted(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let mut adapters = now(instance.enumerate_adapters(wgpu::Backends::all())).unwrap_or_default();
    adapters
        .retain(|adapter| adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    // A stable sort: among equals the driver's order counts.
    adapters.sort_by_key(|adapter| kind(&adapter.get_info()));
    adapters
}

fn kind(info: &wgpu::AdapterInfo) -> AdapterKind {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Other => AdapterKind::Unknown,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
    }
}

/// The adapter to open.
pub(super) fn choose(instance: &wgpu::Instance, wanted: &Wanted) -> Result<wgpu::Adapter, ComputeError> {
    let mut adapters = sorted(instance);
    let known: Vec<(String, AdapterKind)> =
        adapters.iter().map(wgpu::Adapter::get_info).map(|info| (info.name.clone(), kind(&info))).collect();
    let place = place(&known, wanted)?;
    Ok(adapters.swap_remove(place))
}

/// The place among [`adapters`] of the one that is wanted.
///
/// # Errors
/// [`ComputeError::NoAdapter`] that says what there is instead.
pub fn chosen(adapters: &[AdapterReport], wanted: &Wanted) -> Result<usize, ComputeError> {
    let known: Vec<(String, AdapterKind)> =
        adapters.iter().map(|adapter| (adapter.name.clone(), adapter.kind)).collect();
    place(&known, wanted)
}

fn place(known: &[(String, AdapterKind)], wanted: &Wanted) -> Result<usize, ComputeError> {
    let fits = |place: usize, name: &str, kind: AdapterKind| match wanted {
        Wanted::Best => kind != AdapterKind::Software,
        Wanted::Software => kind == AdapterKind::Software,
        Wanted::Named(part) => name.to_lowercase().contains(&part.to_lowercase()),
        Wanted::At(wanted) => place == *wanted,
    };
    let found = known.iter().enumerate().find(|(place, (name, kind))| fits(*place, name, *kind));
    if let Some((place, _)) = found {
        return Ok(place);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    let there = if names.is_empty() {
        "this machine has no Vulkan, Metal or Direct3D 12 driver that offers one".to_owned()
    } else {
        format!("there is only {}", names.join(", "))
    };
    let reason = match wanted {
        Wanted::Best if names.is_empty() => there,
        Wanted::Best => format!("{there}, which is software: {ADAPTER_VARIABLE}=software uses it all the same"),
        Wanted::Software => format!("a software adapter was asked for, {there}"),
        Wanted::Named(part) => format!("{ADAPTER_VARIABLE} asks for `{part}`, {there}"),
        Wanted::At(place) => format!("number {place} was asked for, {there}"),
    };
    Err(ComputeError::NoAdapter { reason })
}

/// What is known of an adapter.
pub(super) fn report(adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let driver = [info.driver.as_str(), info.driver_info.as_str()];
    AdapterReport {
        kind: kind(&info),
        backend: info.backend.to_str().to_owned(),
        driver: driver.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
        buffer_bytes: limits.max_buffer_size,
        binding_bytes: limits.max_storage_buffer_binding_size,
        workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        workgroup_invocations: limits.max_compute_invocations_per_workgroup,
        subgroup: (info.subgroup_min_size, info.subgroup_max_size),
        features: super::device::used_features(adapter).into_iter().map(super::Feature::name).collect(),
        name: info.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(kinds: &[(&str, AdapterKind)]) -> Vec<(String, AdapterKind)> {
        kinds.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
    }

    #[test]
    fn software_is_used_only_when_asked_for() {
        let both = known(&[("Card", AdapterKind::Discrete), ("llvmpipe", AdapterKind::Software)]);
        assert_eq!(place(&both, &Wanted::Best), Ok(0));
        assert_eq!(place(&both, &Wanted::Software), Ok(1));
        assert_eq!(place(&both, &Wanted::Named("LLVM".into())), Ok(1));
        let only = place(&both[1..], &Wanted::Best).unwrap_err().to_string();
        assert!(only.contains("llvmpipe") && only.contains("BANTAM_ADAPTER=software"), "{only}");
        let none = place(&[], &Wanted::Software).unwrap_err().to_string();
        assert!(none.contains("driver"), "{none}");
        let unknown = place(&both, &Wanted::Named("arc".into())).unwrap_err().to_string();
        assert!(unknown.contains("`arc`") && unknown.contains("Card, llvmpipe"), "{unknown}");
    }

    #[test]
    fn cards_of_their_own_come_first_and_software_last() {
        use AdapterKind::{Discrete, Integrated, Software, Unknown, Virtual};
        let mut kinds = [Software, Unknown, Virtual, Discrete, Integrated];
        kinds.sort();
        assert_eq!(kinds, [Discrete, Integrated, Virtual, Unknown, Software]);
    }
}
