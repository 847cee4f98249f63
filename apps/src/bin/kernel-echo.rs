//! `kernel-echo`: TCP and UDP echo on the kernel's sockets.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::kernel::cli::EchoArgs;
use interruptlet_apps::kernel::run;

fn main() -> ExitCode {
    run::exit_code(run::echo(&EchoArgs::parse()))
}
