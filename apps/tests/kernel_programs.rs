//! `kernel-echo`, `kernel-httpd`, `kernel-sink` and `kernel-upload` as programs: ready line, signals, exit codes, and
//! what happens without descriptors.

// Test code, helpers included, fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ECHO: &str = env!("CARGO_BIN_EXE_kernel-echo");
const HTTPD: &str = env!("CARGO_BIN_EXE_kernel-httpd");
const SINK: &str = env!("CARGO_BIN_EXE_kernel-sink");
const UPLOAD: &str = env!("CARGO_BIN_EXE_kernel-upload");
/// Nothing takes so long, unless it is broken.
const SOON: Duration = Duration::from_secs(20);

/// A server, killed with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts `program` with at most `descriptors` and waits for the line that says that it is ready.
fn start(program: &str, descriptors: u32, arguments: &[&str]) -> (Server, String) {
    let (server, line, _) = start_and_listen(program, descriptors, arguments);
    (server, line)
}

/// Like [`start`], with the rest of what it prints.
fn start_and_listen(
    program: &str,
    descriptors: u32,
    arguments: &[&str],
) -> (Server, String, BufReader<ChildStdout>) {
    let port = free_port();
    let mut child = Command::new("sh")
        .args([
            "-c",
            "ulimit -n $0 && exec \"$@\"",
            &descriptors.to_string(),
        ])
        .args([program, "--address", "127.0.0.1"])
        .args(["--port", &port.to_string()])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let server = Server { child, port };
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    (server, line, output)
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Sends a signal; the exit code.
    fn end(mut self, signal: &str) -> Option<i32> {
        let id = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(kill.unwrap().success());
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

fn round_trip(mut stream: &TcpStream, payload: &[u8]) {
    stream.write_all(payload).unwrap();
    let mut received = vec![0; payload.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(received, payload);
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn ready_serving_and_ended_in_order() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("a"), "content").unwrap();
    let root = root.path().to_str().unwrap();
    for signal in ["TERM", "INT"] {
        let (echo, line) = start(ECHO, 100, &[]);
        let port = echo.port;
        assert_eq!(
            line,
            format!("ready: TCP and UDP port {port} of 127.0.0.1, kernel sockets\n")
        );
        round_trip(&echo.connect(), b"hello");
        assert_eq!(echo.end(signal), Some(0));

        let (httpd, line) = start(HTTPD, 100, &["--root", root, "--busy-poll", "50"]);
        assert!(
            line.ends_with("kernel sockets, busy polling for 50 µs\n"),
            "{line}"
        );
        let mut stream = httpd.connect();
        stream.write_all(b"GET /a HTTP/1.0\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\ncontent"));
        assert_eq!(httpd.end(signal), Some(0));
    }
}

#[test]
fn uploads_are_taken_and_counted() {
    let (sink, line, mut output) = start_and_listen(SINK, 100, &[]);
    let port = sink.port;
    assert_eq!(
        line,
        format!("ready: TCP port {port} of 127.0.0.1, kernel sockets\n")
    );
    let target = format!("127.0.0.1:{port}");
    for bytes in [1, 5_000_000] {
        let done = run(
            UPLOAD,
            &["--target", &target, "--bytes", &bytes.to_string()],
        );
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let result: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(result["bytes"], bytes);
        let (seconds, rate) = (&result["seconds"], &result["bytes_per_second"]);
        let product = seconds.as_f64().unwrap() * rate.as_f64().unwrap();
        assert!((product / f64::from(bytes) - 1.0).abs() < 1e-6, "{result}");
    }
    assert_eq!(sink.end("TERM"), Some(0));
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "taken 5000001 bytes\n");
}

#[test]
fn an_upload_that_fails_is_a_line_and_an_exit_code() {
    let (echo, _) = start(ECHO, 100, &[]);
    let closed = free_port();
    for (port, word) in [
        (closed, "Connection refused"),
        (echo.port, "sent 100 bytes where it was to send none"),
    ] {
        let target = format!("127.0.0.1:{port}");
        let failed = run(UPLOAD, &["--target", &target, "--bytes", "100"]);
        let error = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(failed.status.code(), Some(1), "{error}");
        assert!(
            error.starts_with("error: ") && error.contains(word),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(run(UPLOAD, &[]).status.code(), Some(2));
}

#[test]
fn without_descriptors_the_others_are_served_and_the_rest_later() {
    let (server, _) = start(ECHO, 40, &[]);
    let streams: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    // Each that ends makes room for the next in line; the kernel keeps them in order.
    for stream in &streams {
        round_trip(stream, b"my turn");
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        (&*stream).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }
    assert_eq!(server.end("TERM"), Some(0));
}

#[test]
fn failures_are_a_line_and_an_exit_code() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let local = ["--address", "127.0.0.1", "--port", &port];
    for (output, code, word) in [
        (run(ECHO, &local), 1, "Address already in use"),
        (
            run(HTTPD, &[&local[..], &["--root", root]].concat()),
            1,
            "Address already in use",
        ),
        (
            run(HTTPD, &[&local[..], &["--root", "/none"]].concat()),
            1,
            "cannot read /none",
        ),
        (
            run(ECHO, &["--address", "192.0.2.77"]),
            1,
            "no interface has this address",
        ),
    ] {
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(
            error.starts_with("error: ") && error.contains(word),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(run(ECHO, &["--port", "7"]).status.code(), Some(2));
}
