//! `ilet-sink`: takes and drops TCP streams on one port.

use std::process::ExitCode;

use clap::Parser;
use interruptlet::{Duration, Stack, StreamService};
use interruptlet_apps::cli::SinkArgs;
use interruptlet_apps::serve::{self, Failure};
use interruptlet_apps::sink::StreamSink;

/// Nobody defers here, but a handler that overruns its budget would be moved to the slow path.
const SLOW_THREADS: usize = 1;
/// There are no incomplete requests either.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that vanish without a word must not keep their connections for ever.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let args = SinkArgs::parse();
    serve::exit_code(run(&args))
}

fn run(args: &SinkArgs) -> Result<(), Failure> {
    let config = args.stack.config(SLOW_THREADS)?;
    let stream = StreamService {
        interruptlet: Box::new(|_worker| Box::new(StreamSink)),
        slow: None,
        request_timeout: REQUEST_TIMEOUT,
        idle_timeout: Some(IDLE_TIMEOUT),
        keep_alive: None,
    };
    let builder = Stack::builder(config).stream(args.port, stream);
    serve::run(builder, &args.stack, &format!("TCP port {}", args.port))
}
