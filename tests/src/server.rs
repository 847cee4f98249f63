//! Owns the server under test: finding its binary, starting it in the lab, its output and its end.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::{Lab, SERVER_IF, VERSIONS};
use crate::report::Report;
use crate::sys;
use crate::wait::{SOON, expect_soon, poll_for};

/// How long a server may take to drain after SIGTERM.
const DRAIN: Duration = Duration::from_secs(40);

/// The port that [`Launch::echo`] serves.
pub const ECHO_PORT: u16 = 7;
/// The port that [`Launch::httpd`] serves.
pub const HTTP_PORT: u16 = 80;

/// A server that is to be started: its command line.
#[derive(Debug)]
pub struct Launch<'lab> {
    lab: &'lab Lab,
    command: Vec<OsString>,
}

impl<'lab> Launch<'lab> {
    /// `ilet-echo` on the lab's interface and both of its addresses.
    pub fn echo(lab: &'lab Lab) -> Self {
        Self::bare(lab, "ilet-echo")
            .with("--interface", SERVER_IF)
            .with("--port", ECHO_PORT.to_string())
            .with_addresses()
    }

    /// `ilet-httpd` likewise, serving the files in `root`.
    pub fn httpd(lab: &'lab Lab, root: &Path) -> Self {
        Self::bare(lab, "ilet-httpd")
            .with("--interface", SERVER_IF)
            .with("--port", HTTP_PORT.to_string())
            .with("--root", root)
            .with_addresses()
    }

    /// `program` without any argument.
    pub fn bare(lab: &'lab Lab, program: &str) -> Self {
        Self {
            lab,
            command: vec![binary(program).into()],
        }
    }

    /// Adds a flag and its value.
    pub fn with(self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        let mut launch = self.with_flag(flag);
        launch.command.push(value.as_ref().to_owned());
        launch
    }

    /// Adds a flag that takes no value.
    pub fn with_flag(mut self, flag: &str) -> Self {
        self.command.push(flag.into());
        self
    }

    /// Adds the lab's addresses of both versions.
    pub fn with_addresses(self) -> Self {
        let lab = self.lab;
        VERSIONS.iter().fold(self, |launch, &version| {
            launch.with("--address", lab.server_cidr(version))
        })
    }

    /// Has the server run through another command (`setpriv ...`), which must exec it.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.command
            .splice(0..0, wrapper.iter().map(OsString::from));
        self
    }

    /// Starts the server and waits until it says that it serves.
    ///
    /// # Panics
    ///
    /// If it ends or stays silent instead.
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        let ready = poll_for(SOON, || {
            let ended = server
                .child
                .try_wait()
                .expect("look after the server")
                .is_some();
            (ended || server.is_ready()).then_some(())
        });
        // An ended server may have been ready for a moment; what counts is that it serves now.
        let serves = ready.is_some() && server.is_ready() && server.exit_status().is_none();
        assert!(serves, "the server did not get ready");
        server
    }

    /// Starts the server expecting that it refuses, and gives what it said.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn refuse(self) -> Refusal {
        let mut server = self.spawn();
        let status = server.wait_for_end(SOON);
        server.join_readers();
        Refusal {
            code: status.code(),
            stdout: server.stdout.lines(),
            stderr: server.stderr.lines(),
        }
    }

    fn spawn(self) -> Server {
        let (program, arguments) = self.command.split_first().expect("a command has a program");
        spawn(self.lab.server().command(program).args(arguments))
    }
}

fn spawn(command: &mut Command) -> Server {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the server");
    let stdout = Capture::of(child.stdout.take().expect("a piped stdout"));
    let stderr = Capture::of(child.stderr.take().expect("a piped stderr"));
    Server {
        child,
        stdout,
        stderr,
    }
}

/// What a server that refused to start left behind.
#[derive(Debug)]
pub struct Refusal {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The lines on standard output.
    pub stdout: Vec<String>,
    /// The lines on standard error.
    pub stderr: Vec<String>,
}

/// A running server. Dropping it kills it; a test that passes ends with [`Server::stop`].
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdout: Capture,
    stderr: Capture,
}

impl Server {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything on standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines()
    }

    /// Everything on standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lines()
    }

    /// The most memory that the server ever had resident, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the server's status");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("a VmHWM line");
        let kibibytes: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("a number");
        kibibytes * 1024
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        sys::signal(self.pid(), libc::SIGTERM).expect("signal the server");
    }

    /// Sends SIGINT and does not wait.
    pub fn interrupt(&self) {
        sys::signal(self.pid(), libc::SIGINT).expect("signal the server");
    }

    /// Ends the server with SIGTERM, checks that it ended well and that every frame is accounted
    /// for, and gives its counters.
    pub fn stop(self) -> Report {
        self.terminate();
        self.finish()
    }

    /// Like [`Server::stop`] for a server that was already told to end.
    pub fn finish(mut self) -> Report {
        let status = self.wait_for_end(DRAIN);
        self.join_readers();
        assert!(status.success(), "the server ended with {status}");
        let lines = self.stdout.lines();
        let report = Report::last_in(lines.iter().map(String::as_str));
        let report = report.expect("the server printed its counters");
        report.assert_conserved();
        report
    }

    /// Ends the server with SIGKILL, as a crash would.
    pub fn kill(mut self) {
        self.child.kill().expect("kill the server");
        self.child.wait().expect("reap the server");
    }

    /// The exit status if the server has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("look after the server")
    }

    /// Waits until the server ends by itself.
    ///
    /// # Panics
    ///
    /// If it does not within `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> ExitStatus {
        let ended = poll_for(limit, || self.exit_status());
        ended.unwrap_or_else(|| panic!("the server did not end within {limit:?}"))
    }

    /// Waits until a line that starts with `prefix` is on standard output.
    pub fn expect_line(&self, prefix: &str) -> String {
        expect_soon(prefix, || {
            self.stdout()
                .into_iter()
                .find(|line| line.starts_with(prefix))
        })
    }

    fn is_ready(&self) -> bool {
        self.stdout().iter().any(|line| line.starts_with("ready:"))
    }

    fn join_readers(&mut self) {
        self.stdout.join();
        self.stderr.join();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Does nothing if it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("server's stdout: {:#?}", self.stdout());
            eprintln!("server's stderr: {:#?}", self.stderr());
        }
    }
}

/// The lines of a pipe, read by a thread so that the server never blocks on it.
#[derive(Debug)]
struct Capture {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let Ok(line) = line else { break };
                shared.lock().expect("no reader panics").push(line);
            }
        });
        Self {
            lines,
            reader: Some(reader),
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no reader panics").clone()
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Finds a program of this workspace: in `ILET_BIN_DIR`, else in the release directory beside the profile that
/// this test was built in, else in that profile's own.
///
/// # Panics
///
/// If it is in none of them.
pub fn binary(name: &str) -> PathBuf {
    let mut candidates = Vec::new();
    if let Some(directory) = std::env::var_os("ILET_BIN_DIR") {
        candidates.push(PathBuf::from(directory).join(name));
    } else {
        let test = std::env::current_exe().expect("the test's own path");
        // target/PROFILE/deps/TEST
        if let Some(profile) = test.parent().and_then(Path::parent) {
            candidates.extend(
                profile
                    .parent()
                    .map(|target| target.join("release").join(name)),
            );
            candidates.push(profile.join(name));
        }
    }
    let found = candidates.iter().find(|path| path.is_file());
    found.cloned().unwrap_or_else(|| {
        panic!(
            "no {name} in {candidates:?}: run `cargo build --release -p interruptlet-apps` first"
        )
    })
}
