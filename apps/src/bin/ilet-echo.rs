//! `ilet-echo`: TCP and UDP echo on one port.

use std::process::ExitCode;

use clap::Parser;
use interruptlet::{DatagramService, Duration, Stack, StreamService};
use interruptlet_apps::cli::EchoArgs;
use interruptlet_apps::echo::{DatagramEcho, StreamEcho};
use interruptlet_apps::serve::{self, Failure};

/// Nobody defers here, but a handler that overruns its budget would be moved to the slow path.
const SLOW_THREADS: usize = 1;
/// There are no incomplete requests either.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that vanish without a word must not keep their connections for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let args = EchoArgs::parse();
    serve::exit_code(run(&args))
}

fn run(args: &EchoArgs) -> Result<(), Failure> {
    let config = args.stack.config(SLOW_THREADS)?;
    let stream = StreamService {
        interruptlet: Box::new(|_worker| Box::new(StreamEcho)),
        slow: None,
        request_timeout: REQUEST_TIMEOUT,
        idle_timeout: Some(IDLE_TIMEOUT),
        keep_alive: None,
    };
    let datagram = DatagramService {
        interruptlet: Box::new(|_worker| Box::new(DatagramEcho)),
        slow: None,
    };
    let builder = Stack::builder(config)
        .stream(args.port, stream)
        .datagram(args.port, datagram);
    serve::run(
        builder,
        &args.stack,
        &format!("TCP and UDP port {}", args.port),
    )
}
