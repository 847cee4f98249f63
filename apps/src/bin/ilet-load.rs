//! `ilet-load`: a load generator on Interruptlet's client side.

use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::load::cli::LoadArgs;
use interruptlet_apps::load::run;

fn main() -> ExitCode {
    run::main(&LoadArgs::parse())
}
