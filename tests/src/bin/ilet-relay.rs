//! `ilet-relay`: a link with delay, rate, queue and loss between two interfaces.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use interruptlet::port::link::Faults;
use interruptlet_tests::relay::{self, Passed};
use interruptlet_tests::trace::Trace;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Forward Ethernet frames between two interfaces, either way over a link with a delay, a rate, a queue and loss.
///
/// Whatever comes in on the one is sent on the other, so neither may have addresses in use, and nothing else may
/// forward between them. Segments must not be merged on the way (`ethtool -K IF gro off`), and the ends must make their
/// own checksums (`ethtool -K PEER tx off`).
#[derive(Debug, Parser)]
#[command(name = "ilet-relay", version, after_help = EXIT_CODES)]
struct Args {
    /// The interface of the servers' side
    #[arg(long, value_name = "IF")]
    server: String,

    /// The interface of the clients' side
    #[arg(long, value_name = "IF")]
    client: String,

    /// How long a frame is under way, in milliseconds, either way: half of what it adds to a round trip
    #[arg(long, value_name = "MS", default_value_t = 0.0, value_parser = delay)]
    delay: f64,

    /// Megabits per second, either way [default: any number]
    #[arg(long, value_name = "MBIT", default_value_t = 0.0, hide_default_value = true, value_parser = rate)]
    rate: f64,

    /// Bytes that may wait for the rate, either way; what comes then is dropped [0: any number]
    #[arg(long, value_name = "BYTES", default_value_t = 1_000_000)]
    queue: usize,

    /// Lose frames, each with this probability, either way
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    loss: f64,

    /// Decides which frames
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..u64::MAX))]
    seed: u64,

    /// Write the headers of all frames to FILE as they come (pcap), those that are lost afterwards included
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

const EXIT_CODES: &str = "Ends on SIGTERM and SIGINT, and prints a line of JSON: what became of the frames.\n\
    Exit code: 0 after a signal, 1 if it could not start or go on, 2 for a wrong command line.";

fn main() -> ExitCode {
    let Err(error) = run(&Args::parse()) else {
        return ExitCode::SUCCESS;
    };
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stderr(), "error: {error}; see --help");
    ExitCode::FAILURE
}

fn run(args: &Args) -> io::Result<()> {
    let end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&end))?;
    }
    let link = Faults {
        delay: interruptlet::Duration::from_micros((args.delay * 1e3) as u64),
        rate: (args.rate * 1e6) as u64,
        queue_bytes: args.queue,
        loss: args.loss,
        ..Faults::default()
    };
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    let interfaces = [&args.server[..], &args.client];
    let ready = || {
        say(&format!(
            "ready: between {} and {}",
            args.server, args.client
        ))
    };
    let [from_server, from_client] =
        relay::run(interfaces, [link; 2], args.seed, trace, end, ready)?;
    let said = json!({
        "from_server": counts(from_server),
        "from_client": counts(from_client),
    });
    say(&said.to_string());
    Ok(())
}

fn counts(passed: Passed) -> Value {
    json!({
        "frames": passed.link.frames,
        "lost": passed.link.lost,
        "queue_full": passed.link.queue_drops,
        "line_full": passed.line_full,
        "missed": passed.missed,
        "unsent": passed.unsent,
    })
}

fn say(line: &str) {
    let mut output = io::stdout();
    // If nobody listens, it relays all the same.
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn number(text: &str, most: f64, what: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    number
        .filter(|number| (0.0..=most).contains(number))
        .ok_or_else(|| format!("not {what}"))
}

fn delay(text: &str) -> Result<f64, String> {
    number(text, 10_000.0, "milliseconds, from 0 to 10000")
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 100_000.0, "megabits per second, from 0 to 100000")
}

fn probability(text: &str) -> Result<f64, String> {
    number(text, 1.0, "a probability, from 0 to 1")
}
