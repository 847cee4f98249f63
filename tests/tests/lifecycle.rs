//! How servers end and what survives it: SIGTERM and SIGINT, SIGKILL under load, interfaces that go
//! away, and the counters that are printed meanwhile.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use interruptlet_tests::echo::{assert_serves, pattern, serve_one_by_kernel, tcp_exchange};
use interruptlet_tests::lab::{Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::report::Report;
use interruptlet_tests::server::{ECHO_PORT, Launch};
use interruptlet_tests::site::{Site, get};
use interruptlet_tests::wait;

/// Calls `work` while clients keep the echo server busy; errors of theirs are part of the test.
fn under_load<T>(lab: &Lab, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for version in VERSIONS {
            let to = lab.server_at(version, ECHO_PORT);
            let busy = |request: &mut dyn FnMut() -> std::io::Result<()>| {
                while !done.load(Ordering::Relaxed) {
                    if request().is_err() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            };
            scope.spawn(move || {
                let socket = lab.client().udp(to).expect("a UDP socket");
                socket
                    .set_read_timeout(Some(Duration::from_millis(20)))
                    .expect("set the timeout");
                busy(&mut || {
                    socket
                        .send(&[1; 500])
                        .and_then(|_| socket.recv(&mut [0; 500]))
                        .map(drop)
                });
            });
            scope.spawn(move || {
                busy(&mut || {
                    let mut stream = lab.client().tcp(to)?;
                    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
                    for _ in 0..100 {
                        stream.write_all(&[2; 3000])?;
                        stream.read_exact(&mut [0; 3000])?;
                    }
                    Ok(())
                });
            });
        }
        // Ends the clients also when `work` panics.
        let _end = SetOnDrop(&done);
        work()
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn after_sigkill_the_kernel_has_its_traffic_and_a_restart_serves() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let launch = || Launch::echo(&lab).with_flag("--shared-address");
    under_load(&lab, || {
        for round in 0..3 {
            let server = launch().start();
            std::thread::sleep(Duration::from_millis(300));
            server.kill();
            wait::until("the XDP program to go", || !lab.xdp_attached());
            for version in VERSIONS {
                // The very port that we served is the kernel's again: refused by it, then served by it.
                let at = lab.server_at(version, ECHO_PORT);
                let error = lab.client().tcp(at).expect_err("nobody serves it now");
                assert_eq!(
                    error.kind(),
                    ErrorKind::ConnectionRefused,
                    "round {round}: {error}"
                );
                let at = lab.server_at(version, 2222);
                let listener = lab.server().inside(|| TcpListener::bind(at)).expect("bind");
                std::thread::scope(|scope| {
                    scope.spawn(|| serve_one_by_kernel(&listener));
                    tcp_exchange(lab.client(), at, &pattern(round, 50_000));
                });
            }
        }
    });
    // Once more with nothing else going on, on the same addresses.
    let server = launch().start();
    assert_serves(&lab);
    server.stop();
}

#[test]
fn after_sigkill_a_restart_on_an_address_of_its_own_serves() {
    let Some(lab) = Lab::new(Options {
        queues: 2,
        ..Options::default()
    }) else {
        return;
    };
    let launch = || {
        Launch::echo(&lab)
            .with("--queues", "0,1")
            .with("--cores", "0,1")
    };
    under_load(&lab, || {
        for _ in 0..3 {
            let server = launch().start();
            assert_serves(&lab);
            server.kill();
        }
    });
    let server = launch().start();
    assert_serves(&lab);
    server.stop();
}

#[test]
fn sigterm_and_sigint_under_load_end_in_order() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    for interrupt in [false, true] {
        let server = Launch::echo(&lab).start();
        let report = under_load(&lab, || {
            assert_serves(&lab);
            std::thread::sleep(Duration::from_millis(300));
            if interrupt {
                server.interrupt()
            } else {
                server.terminate()
            }
            server.finish()
        });
        assert!(
            report.counter("rx_frames") > 0 && report.counter("tx_frames") > 0,
            "{report:?}"
        );
        assert!(!lab.xdp_attached());
    }
}

#[test]
fn sigterm_lets_a_download_finish_but_no_connection_begin() {
    let Some(site) = Site::new() else { return };
    let content = pattern(8, 20 << 20);
    site.put("large.bin", &content);
    let server = site.serve();
    let mut download = site.connect();
    download.send(get("/large.bin", ""));
    download.read_some(1);
    server.terminate();
    // The first byte of the status line is read already. The download goes on while we knock.
    let mut total = 1;
    let address = site.address();
    let knock = || TcpStream::connect_timeout(&address, Duration::from_millis(300));
    wait::until("new connections to be refused", || {
        total += download.read_some(100_000);
        site.lab().client().inside(knock).is_err()
    });
    loop {
        let count = download.read_some(usize::MAX);
        if count == 0 {
            break;
        }
        total += count;
    }
    assert!(
        total > content.len(),
        "only {total} bytes of the response arrived"
    );
    server.finish();
}

#[test]
fn sigterm_does_not_wait_for_ever_for_who_does_not_read() {
    let Some(site) = Site::new() else { return };
    site.put("large.bin", pattern(8, 50 << 20));
    let server = site.serve();
    let mut stalled = site.connect();
    stalled.send(get("/large.bin", ""));
    stalled.read_some(1);
    let mut idle = site.connect();
    idle.send(get("/small.txt", ""));
    idle.response();
    // Bounded, and every frame that the stalled client held is accounted for.
    server.stop();
}

#[test]
fn a_second_signal_ends_a_drain_at_once_and_the_counters_are_printed() {
    let Some(site) = Site::new() else { return };
    site.put("large.bin", pattern(8, 20 << 20));
    let mut server = site.serve();
    // A client that does not read on: without the second signal the drain would last its whole grace
    // and then end well.
    let mut download = site.connect();
    download.send(get("/large.bin", ""));
    download.read_some(1);
    server.terminate();
    std::thread::sleep(Duration::from_millis(1200));
    server.interrupt();
    let status = server.wait_for_end(Duration::from_secs(8));
    assert_eq!(status.code(), Some(1), "{status}");
    wait::until("the counters", || {
        server.stdout().iter().any(|line| line == "conserved yes")
    });
    let lines = server.stdout();
    let report = Report::last_in(lines.iter().map(String::as_str)).expect("a block of counters");
    report.assert_conserved();
    assert!(report.counter("flows_closed") >= 1, "{report:?}");
    let told = |line: &String| line.starts_with("error:") && line.contains("at once");
    wait::until("the reason", || server.stderr().iter().any(told));
    assert!(!site.lab().xdp_attached());
}

#[test]
fn signals_within_a_second_are_one_request() {
    let Some(site) = Site::new() else { return };
    let content = pattern(8, 5 << 20);
    site.put("large.bin", &content);
    let server = site.serve();
    let mut download = site.connect();
    download.send(get("/large.bin", ""));
    download.read_some(1);
    // As supervisors do: one to the process, one to its group, or one of each kind.
    server.terminate();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        server.terminate();
        server.interrupt();
    }
    // The download still has its grace.
    std::thread::sleep(Duration::from_millis(300));
    let mut total = 1;
    loop {
        let count = download.read_some(usize::MAX);
        if count == 0 {
            break;
        }
        total += count;
    }
    assert!(total > content.len(), "only {total} bytes arrived");
    server.finish();
}

#[test]
fn counters_are_printed_while_it_serves() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).with("--stats-interval", "1").start();
    let latest = || Report::last_in(server.stdout().iter().map(String::as_str));
    wait::until("the first block", || latest().is_some());
    assert_serves(&lab);
    wait::until("a block that has the requests", || {
        latest().is_some_and(|report| report.counter("udp_requests") == 2)
    });
    let blocks = || {
        server
            .stdout()
            .iter()
            .filter(|line| *line == "conserved yes")
            .count()
    };
    wait::until("more blocks", || blocks() >= 3);
    server.stop();
}

#[test]
fn an_interface_set_down_and_up_resumes_or_ends_clearly() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let mut server = Launch::echo(&lab).start();
    assert_serves(&lab);
    lab.ip_in(lab.server(), &["link", "set", SERVER_IF, "down"]);
    // Long enough for the server to notice, busy or asleep.
    std::thread::sleep(Duration::from_secs(2));
    lab.ip_in(lab.server(), &["link", "set", SERVER_IF, "up"]);
    let probe = lab
        .client()
        .udp(lab.server_at(Version::V4, ECHO_PORT))
        .expect("a UDP socket");
    probe
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("set the timeout");
    let ended = wait::expect_soon("service again, or an end", || {
        if let Some(status) = server.exit_status() {
            return Some(Some(status));
        }
        probe
            .send(b"back?")
            .and_then(|_| probe.recv(&mut [0; 16]))
            .is_ok()
            .then_some(None)
    });
    match ended {
        None => {
            assert_serves(&lab);
            server.stop();
        }
        Some(status) => assert_ended_clearly(&server.stderr(), status.code()),
    }
}

#[test]
fn a_stop_with_the_interface_down_takes_back_what_was_not_sent() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let at = lab.server_at(Version::V4, ECHO_PORT);
    let open: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = lab.client().tcp(at).expect("a connection");
            stream.write_all(&[1; 100]).expect("a request");
            stream.read_exact(&mut [0; 100]).expect("its answer");
            stream
        })
        .collect();
    lab.ip_in(lab.server(), &["link", "set", SERVER_IF, "down"]);
    // The server closes its connections, which takes frames that do not leave.
    let report = server.stop();
    assert!(report.counter("tx_unsent") >= 8, "{report:?}");
    assert_eq!(report.counter("tx_stuck"), 0, "{report:?}");
    drop(open);
}

#[test]
fn an_interface_that_is_deleted_ends_the_server_clearly() {
    for poll in ["busy", "adaptive", "sleep"] {
        let Some(lab) = Lab::new(Options::default()) else {
            return;
        };
        let mut server = Launch::echo(&lab).with("--poll", poll).start();
        assert_serves(&lab);
        lab.ip_in(lab.server(), &["link", "delete", SERVER_IF]);
        let status = server.wait_for_end(Duration::from_secs(30));
        wait::until("the error", || {
            server
                .stderr()
                .iter()
                .any(|line| line.starts_with("error:"))
        });
        assert_ended_clearly(&server.stderr(), status.code());
    }
}

fn assert_ended_clearly(stderr: &[String], code: Option<i32>) {
    assert!(code.is_some_and(|code| code != 0), "exit code {code:?}");
    let clear = |line: &&String| line.starts_with("error:") && line.contains(SERVER_IF);
    assert_eq!(stderr.iter().filter(clear).count(), 1, "{stderr:?}");
}
