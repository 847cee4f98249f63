//! Owns one network namespace as a test uses it: commands and sockets inside it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};

use crate::sys;
use crate::wait::SOON;

/// A named network namespace. It does not own it: [`crate::lab::Lab`] makes and removes it.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new(name: String) -> Self {
        Self { name }
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs in the namespace. `ip` execs it: the child's pid is the program's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command to its end, at most a minute, and gives what it printed and its exit code.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command("timeout")
            .arg("60")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
    }

    /// Like [`Netns::run`], but panics unless the command succeeds; gives its standard output.
    pub fn run_ok(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{program} {arguments:?} failed with {}: {stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// Calls `work` on a thread that is inside the namespace. Sockets made there stay in it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                sys::enter_network_namespace(&namespace).expect("enter the namespace");
                work()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects over TCP from inside the namespace, with [`SOON`] as limit of the connect and of
    /// each later read and write.
    pub fn tcp(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, SOON))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A UDP socket inside the namespace, connected to `to`, with [`SOON`] as limit of each read.
    pub fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.inside(|| UdpSocket::bind((any, 0)))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.connect(to)?;
        Ok(socket)
    }
}
