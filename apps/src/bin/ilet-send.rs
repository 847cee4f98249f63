//! `ilet-send`: so many UDP packets in flight to a reflector, and how many came back.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::bare::cli::SendArgs;
use interruptlet_apps::bare::send::run;
use interruptlet_apps::serve::exit_code;

fn main() -> ExitCode {
    let args = SendArgs::parse();
    exit_code(run(&args))
}
