//! What graphics drivers are told through the environment.

/// Tells Mesa's layer that orders the adapters for a desktop to stay away: without a desktop it prints errors that mean
/// nothing, and the order is ours to choose. What the user has set stays.
///
/// Call it before there is a second thread.
#[expect(unsafe_code, reason = "setting a variable of the environment is unsafe where threads may read it")]
pub fn quiet_graphics_drivers() {
    const LAYER_OFF: &str = "NODEVICE_SELECT";
    if cfg!(target_os = "linux") && std::env::var_os(LAYER_OFF).is_none() {
        // SAFETY: the caller has started no thread yet, so that nothing reads the environment meanwhile.
        unsafe { std::env::set_var(LAYER_OFF, "1") };
    }
}
