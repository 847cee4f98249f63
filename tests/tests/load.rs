//! The load generator against our servers and the kernel's: what is right is found right, what is wrong is
//! counted by kind and told in a line, and nothing is left attached.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::netns::Netns;
use interruptlet_tests::server::{ECHO_PORT, Launch, binary};
use serde_json::Value;

/// How a run ended.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: Vec<String>,
}

impl Run {
    /// The result, which has to be there.
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn errors(&self, kind: &str) -> u64 {
        let count = self.json()["errors"][kind].as_u64();
        count.unwrap_or_else(|| panic!("no {kind}: {self:?}"))
    }

    /// Checks that everything was right, and that something was.
    fn assert_right(&self) -> Value {
        let json = self.json();
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(json["errors_total"], 0, "{self:?}");
        assert!(json["requests"].as_u64().unwrap() > 0, "{self:?}");
        assert_eq!(self.stderr, Vec::<String>::new(), "{self:?}");
        json
    }

    /// Checks that it failed with one line that has each of `words` in it.
    fn assert_fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let [line] = self.stderr.as_slice() else {
            panic!("not one line: {self:?}")
        };
        assert!(line.starts_with("error: "), "{line}");
        for word in words {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
    }
}

/// Which end of the wire the generator is on.
#[derive(Clone, Copy)]
enum Side {
    /// Against a server of ours.
    Client,
    /// Against a kernel's server on the client's side.
    Server,
}

impl Side {
    fn of(self, lab: &Lab) -> (&Netns, &'static str) {
        match self {
            Self::Client => (lab.client(), CLIENT_IF),
            Self::Server => (lab.server(), SERVER_IF),
        }
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Runs the generator through `wrapper`, and checks that it leaves nothing attached.
fn run_through(wrapper: &str, lab: &Lab, side: Side, version: Version, options: &str) -> Run {
    let (namespace, interface) = side.of(lab);
    let program = binary("ilet-load");
    let program = program.to_str().expect("a path in UTF-8");
    let sources = lab.spare_prefix(version);
    let network = format!("--interface {interface} --sources {sources} --json");
    let arguments = [
        words(wrapper),
        vec![program],
        words(&network),
        words(options),
    ]
    .concat();
    let output = namespace.run(arguments[0], &arguments[1..]);
    assert!(!lab.xdp_attached_to(namespace, interface));
    let stderr = String::from_utf8_lossy(&output.stderr);
    Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        // The run before may just be leaving the queue.
        stderr: stderr
            .lines()
            .filter(|line| !line.ends_with("is busy: waiting for it"))
            .map(str::to_owned)
            .collect(),
    }
}

fn run(lab: &Lab, side: Side, version: Version, options: &str) -> Run {
    run_through("env", lab, side, version, options)
}

/// Options of a run that is short.
const SHORT: &str = "--duration 0.4 --warmup 0.1";

fn echo_url(lab: &Lab, protocol: &str, version: Version) -> String {
    let at = lab.server_at(version, ECHO_PORT);
    format!("--target {protocol}-echo://{at}")
}

#[test]
fn our_echo_server_over_everything() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let pid = server.pid();
    for version in VERSIONS {
        let run = |protocol, options: &str| {
            let url = echo_url(&lab, protocol, version);
            run(
                &lab,
                Side::Client,
                version,
                &format!("{url} {SHORT} {options}"),
            )
        };
        let json = run("tcp", &format!("--server-pid {pid} --seed 7")).assert_right();
        assert_eq!(
            (&json["mode"], &json["xdp"]),
            (&"copy".into(), &"native".into())
        );
        assert_eq!(json["parameters"]["seed"], 7);
        assert_eq!(json["connections"]["open_at_end"], 64);
        assert_eq!(json["server"]["pids"][0], pid);
        assert!(json["server"]["resident_bytes_max"].as_u64().unwrap() > 1_000_000);
        assert!(json["generator"]["cpu_s"].as_f64().unwrap() > 0.0);

        run("tcp", "--depth 8 --size 3000 --connections 3").assert_right();
        let json = run("tcp", "--idle 300 --connections 2 --poll sleep").assert_right();
        assert_eq!(json["connections"]["open_at_end"], 302);
        let json = run("tcp", "--rate 500 --connections 4").assert_right();
        // What was due, whether it was answered in the interval or just after it.
        let rate = json["requests_per_second"].as_f64().unwrap();
        assert!((400.0..600.0).contains(&rate), "{json}");
        run("udp", "--size 1400 --poll sleep").assert_right();
        let json = run("udp", "--rate 500").assert_right();
        assert_eq!(json["offered_per_second"], 500.0);
    }
    server.stop();
}

#[test]
fn what_is_lost_on_the_way_is_no_error_over_tcp() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let url = echo_url(&lab, "tcp", Version::V4);
    let faults = "--loss 0.02 --reorder 0.05 --fault-seed 3 --timeout 50 --duration 2";
    run(&lab, Side::Client, Version::V4, &format!("{url} {faults}")).assert_right();
    server.stop();
}

#[test]
fn our_web_server_over_everything() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let root = lab.directory().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("small"), b"hello, world").unwrap();
    let large: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(root.join("large"), &large).unwrap();
    let server = Launch::httpd(&lab, &root).start();
    for version in VERSIONS {
        let host = match lab.server_at(version, 80) {
            SocketAddr::V4(at) => at.ip().to_string(),
            SocketAddr::V6(at) => format!("[{}]", at.ip()),
        };
        let run = |scheme: &str, path: &str, options: &str| {
            let options = format!("--target {scheme}://{host}/{path} {SHORT} {options}");
            run(&lab, Side::Client, version, &options)
        };
        let file = |name: &str| format!("--body-file {}", root.join(name).display());
        run("http", "small", &file("small")).assert_right();
        let few = format!("{} --connections 2", file("large"));
        run("http", "large", &few).assert_right();
        run("http", "small", "--depth 4").assert_right();
        let json = run("http-connection", "small", "--idle 10").assert_right();
        let opened = json["connections"]["opened"].as_u64().unwrap();
        assert!(opened > json["requests"].as_u64().unwrap(), "{json}");
        run("http-connection", "small", "--rate 300").assert_right();
        run("http-download", "large", "--connections 2").assert_right();

        let slow = run("http-download", "large", "--slow 100000 --connections 20").json();
        assert_eq!(
            (&slow["errors_total"], &slow["unfinished"]),
            (&0.into(), &20.into())
        );
        let rate = slow["bytes_per_second"].as_f64().unwrap();
        assert!(rate < 4_000_000.0, "{slow}");

        let wrong = run("http", "none", "");
        wrong.assert_fails(1, &["bad_status"]);
        assert!(wrong.errors("bad_status") > 0);
        run("http", "small", &file("large")).assert_fails(1, &["bad_length"]);
        std::fs::write(root.join("other"), b"hello, worlD").unwrap();
        run("http", "small", &file("other")).assert_fails(1, &["bad_body"]);
    }
    server.stop();
}

/// A server of the kernel's, in the test's own process.
struct KernelServer {
    at: SocketAddr,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl KernelServer {
    /// Serves every connection with `serve`, which gets a flag that says that it is over.
    fn start(lab: &Lab, serve: fn(TcpStream, &AtomicBool)) -> Self {
        let ip = lab.client_ip(Version::V4);
        let listener = lab.client().inside(|| TcpListener::bind((ip, 0)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    sleep(Duration::from_millis(1));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let limit = Some(Duration::from_secs(10));
                stream.set_read_timeout(limit).unwrap();
                stream.set_write_timeout(limit).unwrap();
                stream.set_nodelay(true).unwrap();
                let flag = Arc::clone(&flag);
                std::thread::spawn(move || serve(stream, &flag));
            }
        });
        // The way back to the generator's addresses.
        let route = lab.spare_prefix(Version::V4);
        lab.ip_in(
            lab.client(),
            &["route", "replace", &route, "dev", CLIENT_IF],
        );
        Self {
            at,
            ends,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("--target tcp-echo://{}", self.at)
    }
}

impl Drop for KernelServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Echoes until the connection ends; `change` may change what is echoed, and says whether to go on.
fn echo(mut stream: TcpStream, mut change: impl FnMut(&mut [u8], u32) -> bool) {
    let mut buffer = [0; 4096];
    for turn in 0.. {
        let Ok(len @ 1..) = stream.read(&mut buffer) else {
            return;
        };
        if !change(&mut buffer[..len], turn) || stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

fn serve_well(stream: TcpStream, _ends: &AtomicBool) {
    echo(stream, |_, _| true);
}

fn serve_changed(stream: TcpStream, _ends: &AtomicBool) {
    echo(stream, |bytes, turn| {
        bytes[0] ^= u8::from(turn == 20);
        true
    });
}

fn serve_and_close(stream: TcpStream, _ends: &AtomicBool) {
    echo(stream, |_, turn| turn < 20);
}

fn serve_and_stall(stream: TcpStream, ends: &AtomicBool) {
    echo(stream, |_, turn| {
        while turn >= 20 && !ends.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10));
        }
        true
    });
}

/// Accepts, and reads, and that is all.
fn serve_nothing(stream: TcpStream, ends: &AtomicBool) {
    echo(stream, |_, _| {
        while !ends.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(10));
        }
        false
    });
}

#[test]
fn the_kernel_s_servers_good_and_bad() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let run = |server: &KernelServer, options: &str| {
        let options = format!("{} --connections 8 {options}", server.url());
        run(&lab, Side::Server, Version::V4, &options)
    };
    let honest = KernelServer::start(&lab, serve_well);
    let json = run(&honest, SHORT).assert_right();
    assert_eq!(json["connections"]["open_at_end"], 8);
    run(&honest, &format!("{SHORT} --idle 50 --depth 3")).assert_right();

    let changing = KernelServer::start(&lab, serve_changed);
    let wrong = run(&changing, SHORT);
    wrong.assert_fails(1, &["corrupt"]);
    assert_eq!(wrong.errors("corrupt"), wrong.json()["errors_total"]);

    let closing = KernelServer::start(&lab, serve_and_close);
    let wrong = run(&closing, SHORT);
    // A close with something unread is a reset.
    wrong.assert_fails(1, &["closed_early"]);
    assert!(wrong.errors("closed_early") > 0);

    let stalling = KernelServer::start(&lab, serve_and_stall);
    let wrong = run(&stalling, "--timeout 0.2 --duration 1");
    wrong.assert_fails(1, &["timeout"]);
    assert!(wrong.errors("timeout") >= 8);

    let silent = KernelServer::start(&lab, serve_nothing);
    let wrong = run(&silent, "--timeout 0.3 --warmup 0 --duration 10");
    wrong.assert_fails(1, &["nothing came from", &silent.at.to_string(), "0.3 s"]);
    assert!(wrong.errors("timeout") >= 8);
}

#[test]
fn datagrams_of_the_kernel_s() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let ip = lab.client_ip(Version::V4);
    let socket = lab.client().inside(|| UdpSocket::bind((ip, 0)).unwrap());
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let at = socket.local_addr().unwrap();
    let route = lab.spare_prefix(Version::V4);
    lab.ip_in(lab.client(), &["route", "add", &route, "dev", CLIENT_IF]);
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2048];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((len, peer)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], peer);
                }
            }
        });
        let url = format!("--target udp-echo://{at} {SHORT}");
        let result = std::panic::catch_unwind(|| {
            run(&lab, Side::Server, Version::V4, &url).assert_right();
            let large = run(
                &lab,
                Side::Server,
                Version::V4,
                &format!("{url} --size 2000"),
            );
            large.assert_fails(1, &["2000 bytes", SERVER_IF, "MTU"]);
        });
        ends.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn nobody_there() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        let run = |target: String| {
            let options = format!("--target {target} {SHORT} --timeout 0.2");
            run(&lab, Side::Client, version, &options)
        };
        let at = lab.server_at(version, 9);
        let refused = run(format!("tcp-echo://{at}"));
        refused.assert_fails(1, &["connection refused", &at.to_string()]);
        assert_eq!(refused.stdout, "", "nothing was measured");
        run(format!("http://{at}/")).assert_fails(1, &["connection refused"]);

        let nobody = SocketAddr::new(lab.spare_ip(version), 7);
        let unreachable = run(format!("tcp-echo://{nobody}"));
        let what = if version == Version::V4 {
            "ARP"
        } else {
            "neighbour discovery"
        };
        unreachable.assert_fails(1, &["no answer to", what, &nobody.ip().to_string()]);
        run(format!("udp-echo://{nobody}")).assert_fails(1, &["no answer to"]);
    }
    let silent = lab.server_at(Version::V4, 9);
    let options = format!("--target udp-echo://{silent} --timeout 0.2");
    let silent = run(&lab, Side::Client, Version::V4, &options);
    silent.assert_fails(1, &["nothing came from"]);
    server.stop();
}

#[test]
fn a_server_that_dies() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let url = echo_url(&lab, "tcp", Version::V4);
    for watched in [false, true] {
        let server = Launch::echo(&lab).start();
        let pid = server.pid();
        let options = if watched {
            format!("{url} --duration 20 --server-pid {pid}")
        } else {
            format!("{url} --duration 20 --timeout 0.5")
        };
        let run = std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(Duration::from_secs(3));
                server.kill();
            });
            run(&lab, Side::Client, Version::V4, &options)
        });
        let pid = pid.to_string();
        if watched {
            run.assert_fails(1, &["process", &pid, "died"]);
        } else {
            run.assert_fails(1, &["nothing came from", "were answered before"]);
        }
        let json = run.json();
        assert!(json["requests"].as_u64().unwrap() > 0, "{json}");
        assert!(json["seconds"].as_f64().unwrap() < 15.0, "{json}");
    }
    let gone = run(
        &lab,
        Side::Client,
        Version::V4,
        &format!("{url} --server-pid 4194305"),
    );
    gone.assert_fails(1, &["4194305", "not there"]);
}

#[test]
fn signals_end_a_run_with_the_result_so_far() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let url = echo_url(&lab, "tcp", Version::V4);
    for signal in ["INT", "TERM"] {
        // In the foreground it signals the program once, and not again with its group.
        let wrapper = format!("timeout --foreground --preserve-status --signal {signal} 3");
        let options = format!("{url} --duration 30");
        let run = run_through(&wrapper, &lab, Side::Client, Version::V4, &options);
        run.assert_fails(1, &["signal"]);
        let json = run.json();
        assert_eq!(json["errors_total"], 0, "{json}");
        assert!(json["requests"].as_u64().unwrap() > 0, "{json}");
        assert!(json["seconds"].as_f64().unwrap() < 10.0, "{json}");
    }
    server.stop();
}

#[test]
fn misuse_and_what_cannot_be_started() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let url = echo_url(&lab, "tcp", Version::V4);
    let run = |options: &str| run(&lab, Side::Client, Version::V4, options);
    for (options, word) in [
        (format!("{url} --body-file x"), "--body-file"),
        (echo_url(&lab, "udp", Version::V4) + " --idle 1", "--idle"),
        (echo_url(&lab, "tcp", Version::V6), "different IP versions"),
        (
            format!("{url} --idle 16000000 --connections 1000000"),
            "larger prefix",
        ),
    ] {
        run(&options).assert_fails(2, &[word]);
    }
    for options in [
        "",
        "--target tcp-echo://here:7",
        "--target ftp://10.0.0.2/",
        "--target tcp-echo://10.0.0.2:7 --rate -1",
        "--target tcp-echo://10.0.0.2:7 --unheard-of",
    ] {
        let run = run(options);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{run:?}");
    }
    let body = "--target http://10.0.0.2/ --body-file /not/there";
    run(body).assert_fails(1, &["/not/there"]);
    run(&format!("{url} --core 4000")).assert_fails(1, &["core", "4000"]);
    run(&format!("{url} --queue 7")).assert_fails(1, &["queue", "7"]);
    // The kernel has an address among the sources.
    let program = binary("ilet-load");
    let program = program.to_str().expect("a path in UTF-8");
    let taken = match lab.client_ip(Version::V4) {
        std::net::IpAddr::V4(ip) => format!("{ip}/30"),
        std::net::IpAddr::V6(_) => panic!("not IPv4"),
    };
    let target = "tcp-echo://10.255.255.1:7";
    let arguments = [
        "--interface",
        CLIENT_IF,
        "--sources",
        &taken,
        "--target",
        target,
    ];
    let output = lab.client().run(program, &arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the kernel has"), "{stderr}");
    assert!(!lab.xdp_attached_to(lab.client(), CLIENT_IF));
}
