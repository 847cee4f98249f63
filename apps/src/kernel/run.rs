//! Running the servers in the foreground: the ready line, signals, and the exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use super::cli::{EchoArgs, HttpdArgs, ListenArgs, SinkArgs};
use super::echo::Echo;
use super::event_loop::EventLoop;
use super::httpd::Httpd;
use super::listen::ListenError;
use super::sink::Sink;
use super::site::{Site, SiteError};
use super::stop::Stop;
use super::upload::UploadError;
use crate::http::descriptors;
use crate::serve::log_to_stderr;

/// Why a program ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is nothing to serve.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// There is nowhere to serve.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Not everything was sent.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The system failed.
    #[error("cannot watch for signals: {0}; see the limit of open files")]
    Signals(io::Error),
    /// The system failed.
    #[error("cannot wait for connections: {0}; see the limit of open files and the memory")]
    Loop(io::Error),
}

/// Says on standard error what went wrong, in a line, and turns it into an exit code: 0 if nothing did,
/// else 1.
pub fn exit_code(result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stderr(), "error: {failure}");
    ExitCode::FAILURE
}

/// Echoes until a signal.
///
/// # Errors
/// When it cannot start, or go on.
pub fn echo(args: &EchoArgs) -> Result<(), Failure> {
    let stop = prepare()?;
    let endpoint = args.listen.endpoint(args.port);
    let listener = endpoint.listen(false)?;
    let datagrams = Some(endpoint.datagrams()?);
    let event_loop = EventLoop::new(Echo, listener, datagrams, stop, endpoint.busy_poll);
    let event_loop = event_loop.map_err(Failure::Loop)?;
    say_ready(&format!("TCP and UDP port {}", args.port), &args.listen);
    event_loop.run().map_err(Failure::Loop)?;
    Ok(())
}

/// Serves files until a signal.
///
/// # Errors
/// When it cannot start, or go on.
pub fn httpd(args: &HttpdArgs) -> Result<(), Failure> {
    let stop = prepare()?;
    let site = Site::load(&args.root)?;
    let endpoint = args.listen.endpoint(args.port);
    let listener = endpoint.listen(true)?;
    let event_loop = EventLoop::new(Httpd::new(&site), listener, None, stop, endpoint.busy_poll);
    let event_loop = event_loop.map_err(Failure::Loop)?;
    say_ready(&format!("TCP port {}", args.port), &args.listen);
    event_loop.run().map_err(Failure::Loop)?;
    Ok(())
}

/// Takes and drops streams until a signal, and says how many bytes they had.
///
/// # Errors
/// When it cannot start, or go on.
pub fn sink(args: &SinkArgs) -> Result<(), Failure> {
    let stop = prepare()?;
    let endpoint = args.listen.endpoint(args.port);
    let listener = endpoint.listen(false)?;
    let event_loop = EventLoop::new(Sink::default(), listener, None, stop, endpoint.busy_poll);
    let event_loop = event_loop.map_err(Failure::Loop)?;
    say_ready(&format!("TCP port {}", args.port), &args.listen);
    let sink = event_loop.run().map_err(Failure::Loop)?;
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stdout(), "taken {} bytes", sink.bytes);
    Ok(())
}

fn prepare() -> Result<Stop, Failure> {
    log_to_stderr();
    descriptors::raise_limit();
    Stop::by_signal().map_err(Failure::Signals)
}

fn say_ready(services: &str, listen: &ListenArgs) {
    let polling = match listen.busy_poll {
        Some(micros) => format!(", busy polling for {micros} µs"),
        None => String::new(),
    };
    let mut output = io::stdout();
    // If nobody listens, the server serves all the same.
    let _ = writeln!(
        output,
        "ready: {services} of {}, kernel sockets{polling}",
        listen.address
    )
    .and_then(|()| output.flush());
}
