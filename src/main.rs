//! Parse, dispatch, exit code: nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    bantam::platform::quiet_graphics_drivers();
    ExitCode::from(bantam::cli::main(std::env::args_os()) as u8)
}
