//! `kernel-upload`: sends so many bytes over a connection of the kernel's, and says how long it took.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::kernel::cli::UploadArgs;
use interruptlet_apps::kernel::{run, upload};

fn main() -> ExitCode {
    run::exit_code(upload::run(&UploadArgs::parse()))
}
