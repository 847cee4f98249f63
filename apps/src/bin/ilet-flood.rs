//! `ilet-flood`: TCP SYNs from random addresses, and what comes back.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::bare::cli::FloodArgs;
use interruptlet_apps::bare::flood::run;
use interruptlet_apps::serve::exit_code;

fn main() -> ExitCode {
    let args = FloodArgs::parse();
    exit_code(run(&args))
}
