//! `ilet-reflect`: UDP packets go back as they came, addresses and ports swapped.

use std::process::ExitCode;

use clap::Parser;
use interruptlet::Config;
use interruptlet_apps::bare::cli::{ReflectArgs, host};
use interruptlet_apps::bare::reflect::Reflector;
use interruptlet_apps::bare::serve;
use interruptlet_apps::serve::{Failure, exit_code};

fn main() -> ExitCode {
    let args = ReflectArgs::parse();
    exit_code(run(&args))
}

fn run(args: &ReflectArgs) -> Result<(), Failure> {
    let config = Config {
        shared_address: true,
        ..args.queue.config(host(args.address), args.core, args.poll)
    };
    let services = format!("UDP port {} of {}", args.port, args.address);
    serve(&config, (&[], &[args.port]), &services, |_, _| {
        Reflector::new(args.port)
    })
}
