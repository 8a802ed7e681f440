//! Kernels and the pipelines made of them.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{ComputeError, device::Inner};

/// A compute shader: its source, the function that is called, and the values of its overrides.
///
/// What every kernel keeps to: all bindings are in group 0; binding 0 is the uniform block, if there is one, and the
/// buffers follow from binding 1 on in the order in which [`super::Device::dispatch`] is given them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kernel {
    name: Cow<'static, str>,
    source: Cow<'static, str>,
    entry: &'static str,
    constants: Vec<(&'static str, u64)>,
}

impl Kernel {
    /// The kernel `entry` of a WGSL source; `name` is for messages.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, source: impl Into<Cow<'static, str>>, entry: &'static str) -> Self {
        Self { name: name.into(), source: source.into(), entry, constants: Vec::new() }
    }

    /// The same with the shader's `override` constant of this name set to a value.
    #[must_use]
    pub fn with(mut self, constant: &'static str, value: f64) -> Self {
        self.constants.push((constant, value.to_bits()));
        self
    }

    /// The name, with the entry where that is another.
    pub(super) fn label(&self) -> String {
        if self.name == self.entry { self.name.to_string() } else { format!("{}:{}", self.name, self.entry) }
    }
}

/// The pipelines of a device: making one takes up to tens of milliseconds, a second time as long as the first.
#[derive(Debug, Default)]
pub(super) struct Pipelines(Mutex<HashMap<Kernel, Arc<Pipeline>>>);

#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) bindings: wgpu::BindGroupLayout,
}

impl Inner {
    /// The pipeline of a kernel, made at its first use.
    pub(super) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, ComputeError> {
        let pipelines = || self.pipelines.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = pipelines().get(kernel) {
            return Ok(Arc::clone(pipeline));
        }
        let label = kernel.label();
        let constants: Vec<(&str, f64)> =
            kernel.constants.iter().map(|(name, bits)| (*name, f64::from_bits(*bits))).collect();
        let pipeline = self.guarded(&format!("compiling kernel `{label}`"), || {
            let source = wgpu::ShaderSource::Wgsl(Cow::Borrowed(&kernel.source));
            let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&label), source };
            let module = self.device.create_shader_module(descriptor);
            let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: None,
                module: &module,
                entry_point: Some(kernel.entry),
                // Every kernel writes its shared memory before it reads it.
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            Pipeline { bindings: raw.get_bind_group_layout(0), raw }
        })?;
        Ok(Arc::clone(pipelines().entry(kernel.clone()).or_insert_with(|| Arc::new(pipeline))))
    }

    /// How many pipelines there are.
    #[cfg(test)]
    pub(super) fn pipelines_made(&self) -> usize {
        self.pipelines.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
