//! Kernels at work: bindings, uniforms, and several kernels in one submission.

use std::sync::Arc;

use super::{
    Buffer, ComputeError, Device, Kernel, RowBinding, Window, device::Inner, kernel::Pipeline, memory::Lease, windows,
};

/// A buffer as a kernel sees it.
#[derive(Debug, Clone, Copy)]
pub enum Binding<'a> {
    /// All of it.
    Whole(&'a Buffer),
    /// `bytes` bytes from `offset` on, a multiple of [`super::Limits::alignment_bytes`].
    Part {
        /// The buffer.
        buffer: &'a Buffer,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
    },
}

impl<'a> From<&'a Buffer> for Binding<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::Whole(buffer)
    }
}

/// One kernel with all it needs.
struct Step {
    label: String,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    groups: [u32; 3],
    /// Of the uniform block, until it is handed over.
    _lease: Option<Lease>,
}

/// Kernels that are handed to the device together, in order; each sees what those before it wrote.
#[must_use = "nothing is done before `submit`"]
pub struct Batch<'a> {
    inner: &'a Inner,
    steps: Vec<Step>,
}

impl Device {
    /// Begins a batch of kernels.
    pub fn batch(&self) -> Batch<'_> {
        Batch { inner: &self.inner, steps: Vec::new() }
    }

    /// Queues one kernel: `groups` workgroups along each dimension, the uniform block from `uniform` (empty: none), and
    /// the bindings from 1 on. Does not wait.
    ///
    /// # Errors
    /// As for [`Batch::add`] and [`Batch::submit`].
    pub fn dispatch(
        &self,
        kernel: &Kernel,
        bindings: &[Binding<'_>],
        uniform: &[u8],
        groups: [u32; 3],
    ) -> Result<(), ComputeError> {
        let mut batch = self.batch();
        batch.add(kernel, bindings, uniform, groups)?;
        batch.submit()
    }

    /// Queues a kernel over `rows` rows of the bindings, in as many windows of rows as the largest binding makes
    /// necessary: the kernel always sees its rows from 0 on. `launch` says, for each window, the uniform block and the
    /// number of workgroups.
    ///
    /// # Errors
    /// As for [`Device::dispatch`]; [`ComputeError::TooLarge`] when the fewest rows that begin at an aligned byte
    /// exceed a binding.
    pub fn dispatch_rows(
        &self,
        kernel: &Kernel,
        rows: u64,
        bindings: &[RowBinding<'_>],
        launch: impl Fn(Window) -> super::Launch,
    ) -> Result<(), ComputeError> {
        let mut batch = self.batch();
        for window in windows::windows(&self.inner.limits, rows, bindings)? {
            let parts: Vec<Binding<'_>> = bindings.iter().map(|binding| binding.part(window)).collect();
            let launch = launch(window);
            batch.add(kernel, &parts, &launch.uniform, launch.groups)?;
        }
        batch.submit()
    }
}

impl Batch<'_> {
    /// Adds a kernel; see [`Device::dispatch`]. With no workgroups it does nothing.
    ///
    /// # Errors
    /// [`ComputeError::Refused`] when the shader does not compile or the bindings are not what it declares,
    /// [`ComputeError::TooLarge`] when a binding exceeds the adapter's largest, [`ComputeError::Budget`] when there is no
    /// memory left for the uniform block, [`ComputeError::Lost`].
    pub fn add(
        &mut self,
        kernel: &Kernel,
        bindings: &[Binding<'_>],
        uniform: &[u8],
        groups: [u32; 3],
    ) -> Result<(), ComputeError> {
        if groups.contains(&0) {
            return Ok(());
        }
        let (inner, label) = (self.inner, kernel.label());
        let limit = inner.limits.binding_bytes;
        for binding in bindings {
            let (buffer, bytes) = binding.extent();
            if bytes > limit {
                let label = buffer.label().to_owned();
                return Err(ComputeError::TooLarge { label, what: "in one binding", bytes, limit });
            }
        }
        if uniform.len() as u64 > inner.limits.uniform_bytes {
            let (bytes, limit) = (uniform.len() as u64, inner.limits.uniform_bytes);
            return Err(ComputeError::TooLarge { label, what: "of uniforms", bytes, limit });
        }
        let pipeline = inner.pipeline(kernel)?;
        let uniform_bytes = uniform.len().next_multiple_of(16) as u64;
        let lease = (!uniform.is_empty()).then(|| inner.budget.lease("uniforms", uniform_bytes)).transpose()?;
        let group = inner.guarded(&format!("binding buffers to kernel `{label}`"), || {
            let uniform = (!uniform.is_empty()).then(|| inner.uniform(uniform)).transpose()?;
            let mut entries: Vec<wgpu::BindGroupEntry<'_>> = uniform
                .iter()
                .map(|uniform| wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() })
                .collect();
            for (index, binding) in bindings.iter().enumerate() {
                entries.push(wgpu::BindGroupEntry { binding: index as u32 + 1, resource: binding.resource() });
            }
            let layout = &pipeline.bindings;
            let descriptor = wgpu::BindGroupDescriptor { label: Some(&label), layout, entries: &entries };
            Ok::<_, wgpu::MapRangeError>(inner.device.create_bind_group(&descriptor))
        })?;
        let group = group.map_err(|error| ComputeError::Refused {
            operation: format!("writing uniforms of kernel `{label}`"),
            message: error.to_string(),
        })?;
        self.steps.push(Step { label, pipeline, group, groups, _lease: lease });
        Ok(())
    }

    /// Hands everything over; does not wait.
    ///
    /// # Errors
    /// [`ComputeError::Refused`] for more workgroups than the adapter allows, [`ComputeError::Lost`].
    pub fn submit(self) -> Result<(), ComputeError> {
        let Some(first) = self.steps.first() else { return Ok(()) };
        let operation = match self.steps.len() {
            1 => format!("kernel `{}`", first.label),
            count => format!("{count} kernels from `{}` on", first.label),
        };
        self.inner.guarded(&operation, || {
            let mut encoder = self.inner.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                for step in &self.steps {
                    pass.set_pipeline(&step.pipeline.raw);
                    pass.set_bind_group(0, &step.group, &[]);
                    let [x, y, z] = step.groups;
                    pass.dispatch_workgroups(x, y, z);
                }
            }
            self.inner.queue.submit([encoder.finish()]);
        })
    }
}

impl<'a> Binding<'a> {
    fn extent(&self) -> (&'a Buffer, u64) {
        match *self {
            Self::Whole(buffer) => (buffer, buffer.bytes()),
            Self::Part { buffer, bytes, .. } => (buffer, bytes),
        }
    }

    fn resource(&self) -> wgpu::BindingResource<'a> {
        match *self {
            Self::Whole(buffer) => buffer.raw.as_entire_binding(),
            Self::Part { buffer, offset, bytes } => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &buffer.raw,
                offset,
                size: wgpu::BufferSize::new(bytes.next_multiple_of(4).max(4)),
            }),
        }
    }
}

impl Inner {
    /// A uniform block, padded to whole vectors as WGSL lays structures out.
    fn uniform(&self, bytes: &[u8]) -> Result<wgpu::Buffer, wgpu::MapRangeError> {
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("uniforms"),
            size: bytes.len().next_multiple_of(16) as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        raw.get_mapped_range_mut(..)?.slice(..bytes.len()).copy_from_slice(bytes);
        raw.unmap();
        Ok(raw)
    }
}
