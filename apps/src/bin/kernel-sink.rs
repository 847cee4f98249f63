//! `kernel-sink`: takes and drops TCP streams on the kernel's sockets.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::kernel::cli::SinkArgs;
use interruptlet_apps::kernel::run;

fn main() -> ExitCode {
    run::exit_code(run::sink(&SinkArgs::parse()))
}
