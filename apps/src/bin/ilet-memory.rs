//! `ilet-memory`: what one TCP echo request costs in user space, over memory.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use interruptlet_apps::bare::cli::MemoryArgs;
use interruptlet_apps::bare::memory::measure;
use interruptlet_apps::serve::{Failure, exit_code};
use serde_json::json;

fn main() -> ExitCode {
    let args = MemoryArgs::parse();
    exit_code(run(&args))
}

fn run(args: &MemoryArgs) -> Result<(), Failure> {
    let nanoseconds = measure(&args.plan())?;
    let (server, connections, requests) = (args.server.name(), args.connections, args.requests);
    let line = if args.json {
        json!({
            "server": server,
            "engine_only": args.engine_only,
            "connections": connections,
            "requests": requests,
            "size": args.size,
            "ns_per_request": nanoseconds,
        })
        .to_string()
    } else {
        format!(
            "{server}: {nanoseconds:.1} ns per request of {} bytes, {connections} connections, {requests} requests",
            args.size
        )
    };
    // If nobody listens any more, so be it.
    let _ = writeln!(io::stdout(), "{line}");
    Ok(())
}
