//! What can go wrong on a graphics processor.

/// A failure of the device. The same work can be done on the processor after any of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComputeError {
    /// No adapter can be used.
    #[error("no graphics adapter: {reason}")]
    NoAdapter {
        /// What was looked for, and what there was.
        reason: String,
    },
    /// What the environment says about adapters is wrong.
    #[error("the environment variable {variable} is wrong: {problem}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The adapter is there but cannot be opened.
    #[error("adapter `{adapter}` cannot be opened: {message}")]
    Open {
        /// The adapter's name.
        adapter: String,
        /// The driver's words.
        message: String,
    },
    /// The memory budget of the device does not allow a buffer.
    #[error(
        "`{label}` needs {bytes} bytes of device memory, {used} of the budget of {budget} are in use: \
         raise BANTAM_GPU_MEMORY or use --device cpu"
    )]
    Budget {
        /// What the buffer is for.
        label: String,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes in use.
        used: u64,
        /// Bytes that may be in use together.
        budget: u64,
    },
    /// Something exceeds a limit of the adapter that splitting by rows cannot get around.
    #[error("`{label}` has {bytes} bytes {what}, this adapter allows {limit}")]
    TooLarge {
        /// The buffer or kernel.
        label: String,
        /// Of what the limit is.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// The adapter's limit in bytes.
        limit: u64,
    },
    /// The device has no memory left although the budget allowed it.
    #[error(
        "the device is out of memory at {operation}: other programs use it too, or BANTAM_GPU_MEMORY is above what it has"
    )]
    OutOfMemory {
        /// What was being done.
        operation: String,
    },
    /// The device is gone: unplugged, reset after a hang, or its driver crashed.
    #[error("the device was lost at {operation}: {message}")]
    Lost {
        /// What was being done.
        operation: String,
        /// The driver's words.
        message: String,
    },
    /// A call that the device refused: a mistake in bantam or a defect of the driver.
    #[error("{operation} was refused: {message}")]
    Refused {
        /// What was being done.
        operation: String,
        /// The words of the validation.
        message: String,
    },
    /// A range beyond the end of a buffer.
    #[error("`{label}` has {bytes} bytes, bytes {start} to {end} were asked for")]
    Range {
        /// The buffer.
        label: String,
        /// Its bytes.
        bytes: u64,
        /// First byte asked for.
        start: u64,
        /// The byte after the last one asked for.
        end: u64,
    },
}

impl ComputeError {
    /// Whether the device cannot be used any more, so that other work need not try it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NoAdapter { .. } | Self::Setting { .. } | Self::Open { .. } | Self::Lost { .. })
    }
}
