//! `kernel-httpd`: files over HTTP on the kernel's sockets.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::kernel::cli::HttpdArgs;
use interruptlet_apps::kernel::run;

fn main() -> ExitCode {
    run::exit_code(run::httpd(&HttpdArgs::parse()))
}
