//! An open device: its limits and features, and the net that catches what goes wrong on it.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    AdapterReport, Choice, ComputeError,
    adapter::{choose, instance, now, report},
    kernel::Pipelines,
    kernels::{Checked, Tiles},
    memory::Budget,
    staging::Staging,
};

/// An optional ability that a kernel may ask for; where it is missing there is another kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `f16` in shaders (`enable f16;`).
    ShaderF16,
    /// Operations among the threads that run in step (`subgroupAdd` and the like).
    Subgroup,
    /// Timestamps, so that kernels can be timed on the device.
    Timestamps,
    /// Small matrices of F16 that are multiplied whole, with sums in F32 (tensor cores, simdgroup matrices).
    CooperativeMatrix,
}

impl Feature {
    const ALL: [Self; 4] = [Self::ShaderF16, Self::Subgroup, Self::Timestamps, Self::CooperativeMatrix];

    /// The name as `bantam devices` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ShaderF16 => "f16",
            Self::Subgroup => "subgroups",
            Self::Timestamps => "timestamps",
            Self::CooperativeMatrix => "cooperative matrices",
        }
    }

    fn flag(self) -> wgpu::Features {
        match self {
            Self::ShaderF16 => wgpu::Features::SHADER_F16,
            Self::Subgroup => wgpu::Features::SUBGROUP,
            Self::Timestamps => wgpu::Features::TIMESTAMP_QUERY,
            Self::CooperativeMatrix => wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
        }
    }
}

/// The features of [`Feature`] that an adapter has.
pub(super) fn used_features(adapter: &wgpu::Adapter) -> Vec<Feature> {
    let there = adapter.features();
    let usable = |feature: &Feature| match feature {
        Feature::CooperativeMatrix => there.contains(wgpu::Features::SHADER_F16) && cooperative_edge(adapter).is_some(),
        _ => true,
    };
    Feature::ALL.into_iter().filter(|feature| there.contains(feature.flag()) && usable(feature)).collect()
}

/// Edge of the cooperative matrices that there is a kernel for: F16 with sums in F32, 16 × 16 or 8 × 8.
fn cooperative_edge(adapter: &wgpu::Adapter) -> Option<u32> {
    let properties = adapter.cooperative_matrix_properties();
    [16, 8].into_iter().find(|edge| {
        properties.iter().any(|matrix| {
            [matrix.m_size, matrix.n_size, matrix.k_size] == [*edge; 3]
                && matrix.ab_type == wgpu::CooperativeScalarType::F16
                && matrix.cr_type == wgpu::CooperativeScalarType::F32
        })
    })
}

/// The word of consent that wgpu asks for before it hands out what it calls experimental.
#[expect(unsafe_code, reason = "wgpu's token; its own checks of shaders and bindings stay on")]
fn experimental(features: &[Feature]) -> wgpu::ExperimentalFeatures {
    if features.contains(&Feature::CooperativeMatrix) {
        // SAFETY: the one such feature is used by one shader, which validation goes through as through all others, and
        // whose product is compared with that of another kernel before it is trusted.
        return unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    wgpu::ExperimentalFeatures::disabled()
}

/// What a device allows, as far as callers have to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest buffer, in bytes.
    pub buffer_bytes: u64,
    /// The largest part of a buffer that one binding covers, in bytes. [`super::Device::dispatch_rows`] works beyond it.
    pub binding_bytes: u64,
    /// Bindings begin at multiples of this many bytes.
    pub alignment_bytes: u64,
    /// Memory shared by a workgroup, in bytes.
    pub workgroup_memory_bytes: u32,
    /// Threads of a workgroup.
    pub workgroup_invocations: u32,
    /// Workgroups along one dimension of a dispatch.
    pub groups_per_dimension: u32,
    /// Bytes of the uniform block.
    pub uniform_bytes: u64,
}

/// An open device. Clones share everything; all methods work from any thread.
#[derive(Clone)]
pub struct Device {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: Limits,
    pub(super) budget: Arc<Budget>,
    pub(super) pipelines: Pipelines,
    pub(super) staging: Staging,
    pub(super) tiles: Tiles,
    pub(super) cooperative: Checked,
    report: AdapterReport,
    features: Vec<Feature>,
    cooperative_edge: Option<u32>,
    trouble: Arc<Trouble>,
}

/// What the driver reported outside of any call.
#[derive(Debug, Default)]
struct Trouble {
    lost: Mutex<Option<String>>,
    stray: Mutex<Option<String>>,
}

fn take(slot: &Mutex<Option<String>>) -> Option<String> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put(slot: &Mutex<Option<String>>, message: String) {
    slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
}

impl Device {
    /// Opens the adapter that is wanted, with all it allows and every feature of [`Feature`] that it has.
    ///
    /// # Errors
    /// [`ComputeError::NoAdapter`] where there is none, [`ComputeError::Open`] where the driver refuses.
    pub fn open(choice: &Choice) -> Result<Self, ComputeError> {
        // A driver that is broken enough to bring its loader down must not take the run with it.
        catch_unwind(|| Self::open_unguarded(choice)).unwrap_or_else(|_| {
            Err(ComputeError::NoAdapter { reason: "the graphics driver failed while it was looked for".to_owned() })
        })
    }

    fn open_unguarded(choice: &Choice) -> Result<Self, ComputeError> {
        let adapter = choose(&instance(), &choice.wanted)?;
        let report = report(&adapter);
        let mut features = used_features(&adapter);
        features.retain(|_| choice.optional_features);
        let mut required_limits = adapter.limits();
        if let Some(bytes) = choice.binding_bytes {
            required_limits.max_storage_buffer_binding_size =
                bytes.min(required_limits.max_storage_buffer_binding_size);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("bantam"),
            required_features: features.iter().fold(wgpu::Features::empty(), |all, feature| all | feature.flag()),
            required_limits,
            experimental_features: experimental(&features),
            ..wgpu::DeviceDescriptor::default()
        };
        let open = |message: String| ComputeError::Open { adapter: report.name.clone(), message };
        let (device, queue) = now(adapter.request_device(&descriptor))
            .ok_or_else(|| open("the driver did not answer".to_owned()))?
            .map_err(|error| open(error.to_string()))?;
        let trouble = Arc::new(Trouble::default());
        let lost = Arc::clone(&trouble);
        device.set_device_lost_callback(move |reason, message| {
            put(&lost.lost, if message.is_empty() { format!("{reason:?}") } else { message });
        });
        let stray = Arc::clone(&trouble);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| put(&stray.stray, error.to_string())));
        let granted = device.limits();
        let limits = Limits {
            buffer_bytes: granted.max_buffer_size,
            binding_bytes: granted.max_storage_buffer_binding_size,
            alignment_bytes: u64::from(granted.min_storage_buffer_offset_alignment).max(4),
            workgroup_memory_bytes: granted.max_compute_workgroup_storage_size,
            workgroup_invocations: granted.max_compute_invocations_per_workgroup,
            groups_per_dimension: granted.max_compute_workgroups_per_dimension,
            uniform_bytes: granted.max_uniform_buffer_binding_size,
        };
        let inner = Inner {
            device,
            queue,
            limits,
            budget: Budget::new(choice.memory_bytes),
            pipelines: Pipelines::default(),
            staging: Staging::default(),
            tiles: Tiles::default(),
            cooperative: Checked::default(),
            report,
            cooperative_edge: cooperative_edge(&adapter).filter(|_| features.contains(&Feature::CooperativeMatrix)),
            features,
            trouble,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the device has an optional feature.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.inner.features.contains(&feature)
    }

    /// Edge of the device's cooperative matrices, if it has some that there is a kernel for.
    pub(super) fn cooperative_edge(&self) -> Option<u32> {
        self.inner.cooperative_edge
    }

    /// What the device allows.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// What is known of the adapter.
    #[must_use]
    pub fn adapter(&self) -> &AdapterReport {
        &self.inner.report
    }

    /// Bytes of device memory in use, and how many may be.
    #[must_use]
    pub fn memory_bytes(&self) -> (u64, u64) {
        (self.inner.budget.used(), self.inner.budget.bytes())
    }

    /// Waits until everything queued so far is done.
    ///
    /// # Errors
    /// [`ComputeError::Lost`], or what went wrong in what was queued.
    pub fn finish(&self) -> Result<(), ComputeError> {
        self.inner.wait("waiting for the device", None)
    }

    /// Makes the device unusable, as the loss of it does: for tests of what happens then.
    #[doc(hidden)]
    pub fn destroy(&self) {
        self.inner.device.destroy();
    }
}

impl Inner {
    /// Calls wgpu and turns whatever it reports into an error, a panic of its own included.
    pub(super) fn guarded<T>(&self, operation: &str, call: impl FnOnce() -> T) -> Result<T, ComputeError> {
        self.check(operation)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation]
                .map(|filter| self.device.push_error_scope(filter));
            let value = call();
            // Scopes are a stack, so the last one goes first.
            let mut caught = None;
            for scope in scopes.into_iter().rev() {
                caught = now(scope.pop()).flatten().or(caught);
            }
            (value, caught)
        }));
        let operation = operation.to_owned();
        match outcome {
            Err(_) => Err(ComputeError::Lost { operation, message: "the driver's interface failed".to_owned() }),
            Ok((_, Some(wgpu::Error::OutOfMemory { .. }))) => Err(ComputeError::OutOfMemory { operation }),
            Ok((_, Some(error))) => {
                // That a device is gone is told by the next poll only; until then its calls are merely refused.
                let _ = catch_unwind(AssertUnwindSafe(|| self.device.poll(wgpu::PollType::Poll)));
                self.check(&operation)?;
                Err(ComputeError::Refused { operation, message: error.to_string().trim().to_owned() })
            }
            Ok((value, None)) => {
                self.check(&operation)?;
                Ok(value)
            }
        }
    }

    /// Waits for one submission, or for all.
    pub(super) fn wait(
        &self,
        operation: &str,
        submission_index: Option<wgpu::SubmissionIndex>,
    ) -> Result<(), ComputeError> {
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.guarded(operation, poll)?
            .map(|_| ())
            .map_err(|error| ComputeError::Lost { operation: operation.to_owned(), message: error.to_string() })
    }

    /// What the driver reported by itself since the last call.
    fn check(&self, operation: &str) -> Result<(), ComputeError> {
        let operation = || operation.to_owned();
        let lost = self.trouble.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(message) = lost {
            return Err(ComputeError::Lost { operation: operation(), message });
        }
        match take(&self.trouble.stray) {
            Some(message) => Err(ComputeError::Refused { operation: operation(), message }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Device").field("adapter", &self.inner.report.name).finish_non_exhaustive()
    }
}
