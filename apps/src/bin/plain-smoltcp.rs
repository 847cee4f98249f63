//! `plain-smoltcp`: TCP echo on smoltcp, all sockets in one set.

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;

use clap::Parser;
use interruptlet::Instant;
use interruptlet_apps::bare::cli::PlainArgs;
use interruptlet_apps::bare::plain::{Place, Server};
use interruptlet_apps::bare::serve;
use interruptlet_apps::serve::{Failure, exit_code};

fn main() -> ExitCode {
    let args = PlainArgs::parse();
    exit_code(run(&args))
}

fn run(args: &PlainArgs) -> Result<(), Failure> {
    let config = args.queue.config(args.address, args.core, args.poll);
    let services = format!(
        "TCP port {} of {} with {} sockets",
        args.port, args.address, args.sockets
    );
    serve(
        &config,
        (&[args.port], &[]),
        &services,
        |attachment, lane| {
            let place = Place {
                link: attachment.link_address(),
                mtu: attachment.mtu(),
                address: args.address,
                port: args.port,
                sockets: args.sockets,
            };
            // Random keys from the operating system, by way of the standard library's hasher.
            let seed = RandomState::new().hash_one(args.port);
            Server::new(&place, lane, seed, Instant::ZERO)
        },
    )
}
