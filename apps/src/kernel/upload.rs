//! `kernel-upload`: one connection that sends, and how long that takes.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use serde_json::json;

use super::cli::UploadArgs;
use super::listen::CONGESTION_CONTROL;
use super::run::Failure;

/// Bytes that are written at once.
const WRITE_BYTES: usize = 256 * 1024;

/// Not everything was sent, or the server did not close after it.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// There is no connection.
    #[error("cannot connect to {target}: {source}; is the server running?")]
    Connect {
        /// The server.
        target: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke, or nothing went on for too long.
    #[error("{target} took at most {sent} of {bytes} bytes: {source}")]
    Broken {
        /// The server.
        target: SocketAddr,
        /// Bytes that the kernel took.
        sent: u64,
        /// Bytes that were to be sent.
        bytes: u64,
        /// What happened.
        source: io::Error,
    },
    /// A sink says nothing.
    #[error("{target} sent {bytes} bytes where it was to send none: is it a sink?")]
    Answered {
        /// The server.
        target: SocketAddr,
        /// How many.
        bytes: u64,
    },
}

/// Uploads as the command line says, and prints what it took.
///
/// # Errors
/// When not everything was sent, or the server did not close after it.
pub fn run(args: &UploadArgs) -> Result<(), Failure> {
    let timeout = Duration::from_secs(args.timeout.into());
    let took = upload(args.target, args.bytes, timeout)?;
    let seconds = took.as_secs_f64();
    let line = json!({
        "bytes": args.bytes,
        "seconds": seconds,
        "bytes_per_second": args.bytes as f64 / seconds,
    });
    // If nobody listens, the exit code is left.
    let _ = writeln!(io::stdout(), "{line}");
    Ok(())
}

/// Sends `bytes` to `target` and waits for its end. Returns the time from the first byte on. `timeout` is for
/// each step.
///
/// # Errors
/// When not everything was sent, or the server did not close after it.
pub fn upload(target: SocketAddr, bytes: u64, timeout: Duration) -> Result<Duration, UploadError> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)
        .map_err(|source| UploadError::Connect { target, source })?;
    // Without it, the system's choice has to do.
    let _ = sockopt::set_tcp_congestion(&stream, CONGESTION_CONTROL);
    let mut sent = 0;
    let began = Instant::now();
    let answered = send_all(&mut stream, bytes, timeout, &mut sent);
    let took = began.elapsed();
    match answered {
        Ok(0) => Ok(took),
        Ok(bytes) => Err(UploadError::Answered { target, bytes }),
        Err(source) => Err(UploadError::Broken {
            target,
            sent,
            bytes,
            source,
        }),
    }
}

/// Returns how many bytes came back until the server's end.
fn send_all(
    stream: &mut TcpStream,
    bytes: u64,
    timeout: Duration,
    sent: &mut u64,
) -> io::Result<u64> {
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    let content = vec![b'.'; WRITE_BYTES];
    while *sent < bytes {
        let len = (bytes - *sent).min(WRITE_BYTES as u64) as usize;
        match stream.write(&content[..len]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) => *sent += taken as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    io::copy(stream, &mut io::sink())
}
