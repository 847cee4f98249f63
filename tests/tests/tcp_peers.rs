//! The servers with the kernel's TCP as the peer on bad links and with unusual settings: loss, reordering,
//! small windows and segments, few options, odd ends of connections.
//!
//! Nothing is compared but bytes: whatever happens on the way, what arrives is what was sent.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use interruptlet_tests::echo::{close, pattern, tcp_exchange, tcp_round_trip};
use interruptlet_tests::faults::{self, Way};
use interruptlet_tests::http::Connection;
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, VERSIONS, Version};
use interruptlet_tests::relay::{Faults, Relay};
use interruptlet_tests::report::Report;
use interruptlet_tests::server::{ECHO_PORT, HTTP_PORT, Launch};
use interruptlet_tests::site::{Site, get};
use interruptlet_tests::{tcp, wait};

/// Bodies from one that fits a segment to one that fits no window, in bytes.
const BODIES: [usize; 6] = [100, 1_400, 5_000, 30_000, 150_000, 1_000_000];

/// How long a read or a write may take. A segment that is lost again and again is repeated at ever longer
/// intervals: rarely, but then for longer than what happens soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a client that stops reading stops.
const PAUSE: Duration = Duration::from_secs(2);

/// `numgen inc` counts the packets that come to its rule: so this is the first one, and no other.
const FIRST: &str = "numgen inc mod 1000000000 < 1";

/// A connection attempt and nothing else.
const SYN: &str = "tcp flags & (syn|ack) == syn";

/// Checks what every server must have seen: connections that began without state, and segments that were
/// handled without an engine.
fn assert_direct(report: &Report) {
    if knows_direct_flows(report) {
        assert!(report.counter("cookies_accepted") > 0, "{report:#?}");
        assert!(report.counter("direct_segments") > 0, "{report:#?}");
    }
}

/// Checks that flows needed an engine at times.
fn assert_summoned(report: &Report) {
    if knows_direct_flows(report) {
        assert!(report.sum_of("summoned_") > 0, "{report:#?}");
    }
}

/// Whether the server counts direct flows at all: counters that are zero are not printed, but one of these
/// never is when TCP was served.
fn knows_direct_flows(report: &Report) -> bool {
    let names = ["cookies_sent", "direct_segments", "engine_segments"];
    names.iter().any(|name| report.counter(name) > 0)
}

/// Has both servers do their work at once, each in a network of its own that `prepare` has had before the
/// first connection, and that `inspect` gets afterwards with what `prepare` gave. That lives until the
/// server has ended. Gives the echo server's report, or `None` where what needs root is skipped.
///
/// The web server must have needed engines, for its bodies. Whether an echo server needs any is up to
/// the test.
fn both_servers<T: Send>(
    options: &Options,
    prepare: impl Fn(&Lab) -> T + Sync,
    echo: impl Fn(&Lab) + Sync,
    http: impl Fn(&Site) + Sync,
    inspect: impl Fn(&Lab, &T) + Sync,
) -> Option<Report> {
    let lab = Lab::new(options.clone())?;
    let site = site_with_bodies(options)?;
    let reports = std::thread::scope(|scope| {
        let echoing = scope.spawn(|| {
            let server = Launch::echo(&lab).start();
            let prepared = prepare(&lab);
            echo(&lab);
            inspect(&lab, &prepared);
            server.stop()
        });
        let serving = scope.spawn(|| {
            let server = site.serve();
            let prepared = prepare(site.lab());
            http(&site);
            inspect(site.lab(), &prepared);
            server.stop()
        });
        [echoing, serving].map(|thread| thread.join())
    });
    let [echo, http] = reports.map(|report| match report {
        Ok(report) => report,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    assert_direct(&echo);
    assert_direct(&http);
    assert_summoned(&http);
    Some(echo)
}

fn site_with_bodies(options: &Options) -> Option<Site> {
    let site = Site::with(options.clone())?;
    for size in BODIES {
        site.put(&format!("{size}.bin"), body(size));
    }
    Some(site)
}

/// The content of the site's file of that size.
fn body(size: usize) -> Vec<u8> {
    pattern(size as u32, size)
}

/// Three connections of each version at once: many small messages, then some larger than any window.
fn echoes(lab: &Lab, socket: tcp::Options, large: usize) {
    std::thread::scope(|scope| {
        for n in 0..6u32 {
            scope.spawn(move || {
                let to = lab.server_at(VERSIONS[n as usize % 2], ECHO_PORT);
                let stream = connect(lab, to, socket);
                for size in 1..=12 {
                    tcp_round_trip(&stream, &pattern(n, size * 60));
                }
                for seed in 0..2 {
                    tcp_round_trip(&stream, &pattern(n ^ seed, large));
                }
                close(&stream);
            });
        }
    });
}

/// One connection of each version at once, on which these bodies are asked for, one after another.
fn downloads(site: &Site, socket: tcp::Options, bodies: &[usize]) {
    let lab = site.lab();
    std::thread::scope(|scope| {
        for version in VERSIONS {
            scope.spawn(move || {
                let to = lab.server_at(version, HTTP_PORT);
                let mut connection = Connection::over(connect(lab, to, socket));
                for &size in bodies {
                    connection.send(get(&format!("/{size}.bin"), ""));
                    let response = connection.response();
                    assert!(response.body == body(size), "{version:?}, {size} bytes");
                }
                connection.finish_sending();
                connection.expect_end();
            });
        }
    });
}

fn connect(lab: &Lab, to: SocketAddr, socket: tcp::Options) -> TcpStream {
    let stream = socket
        .connect(lab.client(), to)
        .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(PATIENCE)).expect("set a timeout");
    }
    stream
}

/// Sets a number under `/proc/sys/net/ipv4` for the client's kernel, which holds for IPv6 as well.
fn set_client(lab: &Lab, name: &str, value: u32) {
    let path = format!("/proc/sys/net/ipv4/{name}");
    let write = || std::fs::write(&path, value.to_string());
    lab.client().inside(write).expect("set a number");
}

fn get_client(lab: &Lab, name: &str) -> u32 {
    let path = format!("/proc/sys/net/ipv4/{name}");
    let text = lab.client().inside(|| std::fs::read_to_string(&path));
    let number = text.expect("read a number").trim().parse();
    number.expect("a number")
}

/// Has the client's kernel take each segment as it comes, rather than merge those that come at once.
fn do_not_merge(lab: &Lab) {
    let arguments = ["-K", CLIENT_IF, "gro", "off"];
    lab.client().run_ok("ethtool", &arguments);
}

fn random_loss(lab: &Lab, ways: &[Way], percent: u32) {
    for &way in ways {
        faults::lose(lab, way, &format!("numgen random mod 100 < {percent}"));
        // One for certain, so that each way has lost something.
        faults::lose(lab, way, "numgen inc mod 1000000000 == 9");
    }
}

/// Checks that something was lost, and has nothing lost any more.
fn end_of_loss(lab: &Lab, ways: &[Way]) {
    for &way in ways {
        assert!(faults::lost(lab, way) > 0, "nothing was lost {way}");
    }
    faults::heal(lab);
}

/// Loses segments while echo messages of up to `large` bytes and these bodies are on their way, each body on
/// connections of its own: an engine repeats what is lost after a second or more, so that all wait at once.
fn lossy(ways: &[Way], percent: u32, large: usize, bodies: &[usize]) {
    let echo = both_servers(
        &Options::default(),
        |lab| {
            // All segments behind a hole together would be one duplicate acknowledgment.
            do_not_merge(lab);
            random_loss(lab, ways, percent);
        },
        |lab| echoes(lab, tcp::Options::default(), large),
        |site| {
            std::thread::scope(|scope| {
                for body in bodies.chunks(1) {
                    scope.spawn(|| downloads(site, tcp::Options::default(), body));
                }
            });
        },
        |lab, _| end_of_loss(lab, ways),
    );
    echo.iter().for_each(assert_summoned);
}

#[test]
fn one_percent_is_lost() {
    lossy(&Way::BOTH, 1, 60_000, &BODIES);
}

#[test]
fn five_percent_are_lost() {
    lossy(&Way::BOTH, 5, 20_000, &BODIES[..4]);
}

#[test]
fn ten_percent_of_what_clients_send_are_lost() {
    lossy(&[Way::ToServer], 10, 40_000, &BODIES);
}

#[test]
fn ten_percent_of_what_servers_send_are_lost() {
    lossy(&[Way::ToClient], 10, 5_000, &BODIES[..4]);
}

#[test]
fn segments_overtake_each_other_and_arrive_twice() {
    let relayed = Options {
        relay: true,
        ..Options::default()
    };
    let faults = Faults {
        delayed_percent: 10,
        doubled_percent: 5,
        seed: 0x1234_5678,
    };
    let echo = both_servers(
        &relayed,
        |lab| Relay::start(lab, faults),
        |lab| echoes(lab, tcp::Options::default(), 60_000),
        |site| downloads(site, tcp::Options::default(), &BODIES),
        |_, relay| assert!(relay.overtaken() > 0 && relay.doubled() > 0, "{relay:?}"),
    );
    echo.iter().for_each(assert_summoned);
}

#[test]
fn the_first_packets_of_a_handshake_may_be_lost() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let only_ack = "tcp flags == ack";
    for (way, lost) in [
        (Way::ToServer, SYN),
        (Way::ToClient, "tcp flags & (syn|ack) == syn|ack"),
        // The client takes the connection for open; what it sends next says so to the server.
        (Way::ToServer, only_ack),
    ] {
        // One of each version: nothing else is a connection of its own.
        for version in ["ip", "ip6"] {
            faults::lose(
                &lab,
                way,
                &format!("meta protocol {version} {lost} {FIRST}"),
            );
        }
        std::thread::scope(|scope| {
            for version in VERSIONS {
                let to = lab.server_at(version, ECHO_PORT);
                let lab = &lab;
                scope.spawn(move || tcp_exchange(lab.client(), to, &pattern(1, 3_000)));
            }
        });
        assert_eq!(faults::lost(&lab, way), 2, "{lost}");
        faults::heal(&lab);
    }
    // Neither data nor an acknowledgment: the client's end is the first that the server hears.
    faults::lose(&lab, Way::ToServer, &format!("{only_ack} {FIRST}"));
    let to = lab.server_at(Version::V4, ECHO_PORT);
    close(&lab.client().tcp(to).expect("connect"));
    assert_eq!(faults::lost(&lab, Way::ToServer), 1);
    let report = server.stop();
    assert_direct(&report);
    assert_eq!(report.counter("flows_established"), 7, "{report:?}");
}

#[test]
fn small_windows_are_kept_to() {
    let usual = tcp::Options::default();
    let buffer = |bytes| tcp::Options {
        receive_buffer: Some(bytes),
        ..usual
    };
    let routed = |lab: &Lab, work: &dyn Fn()| {
        let route = ["window", "100"];
        with_route(lab, &route, || within_window(lab, 100, work));
    };
    // The kernel reserves twice what it is asked for, and 2,304 bytes at least, of which half are window.
    // It forgets a clamp (TCP_WINDOW_CLAMP, or the window of a route) when segments of more than 128 bytes come.
    both_servers(
        &Options::default(),
        |_| (),
        |lab| {
            within_window(lab, 16_384, &|| echoes(lab, buffer(8_192), 60_000));
            within_window(lab, 1_152, &|| echoes(lab, buffer(1), 20_000));
            routed(lab, &|| echoes(lab, usual, 5_000));
        },
        |site| {
            let lab = site.lab();
            within_window(lab, 16_384, &|| downloads(site, buffer(8_192), &BODIES));
            within_window(lab, 1_152, &|| downloads(site, buffer(1), &BODIES[..5]));
            routed(lab, &|| downloads(site, usual, &BODIES[..4]));
        },
        |_, ()| (),
    );
}

/// Works while clients never announce more than `window` bytes, and checks that they did not.
fn within_window(lab: &Lab, window: usize, work: &dyn Fn()) {
    // A scale would make more of the number.
    let scaled = format!("{SYN} tcp option window count > 0");
    let wider = format!("tcp flags & (syn|rst) == 0 tcp window > {window}");
    for matching in [scaled, wider] {
        faults::count(lab, Way::ToServer, &matching);
    }
    work();
    let wider = faults::counted(lab, Way::ToServer);
    assert_eq!(wider, 0, "windows of more than {window} bytes");
    faults::heal(lab);
}

/// Works while the client's routes to the server have something of their own.
fn with_route(lab: &Lab, attributes: &[&str], work: impl FnOnce()) {
    for version in VERSIONS {
        let host = lab.server_ip(version).to_string();
        let route = ["route", "add", &host, "dev", CLIENT_IF];
        lab.ip_in(lab.client(), &[&route, attributes].concat());
    }
    work();
    for version in VERSIONS {
        let host = lab.server_ip(version).to_string();
        lab.ip_in(lab.client(), &["route", "del", &host, "dev", CLIENT_IF]);
    }
}

#[test]
fn a_client_that_pauses_gets_the_rest_when_it_reads_on() {
    both_servers(
        &Options::default(),
        |_| (),
        |lab| {
            let to = lab.server_at(Version::V4, ECHO_PORT);
            let stream = connect(lab, to, tcp::Options::default());
            let payload = pattern(1, 1_000_000);
            let mut received = vec![0; payload.len()];
            std::thread::scope(|scope| {
                let (mut writer, payload) = (&stream, &payload);
                scope.spawn(move || writer.write_all(payload).expect("send"));
                std::thread::sleep(PAUSE);
                (&stream).read_exact(&mut received).expect("receive");
            });
            assert!(received == payload);
            tcp_round_trip(&stream, b"still there?");
            close(&stream);
        },
        |site| {
            std::thread::scope(|scope| {
                for version in VERSIONS {
                    scope.spawn(move || {
                        let lab = site.lab();
                        let to = lab.server_at(version, HTTP_PORT);
                        let socket = tcp::Options {
                            receive_buffer: Some(20_000),
                            ..tcp::Options::default()
                        };
                        let mut connection = Connection::over(connect(lab, to, socket));
                        for (size, pause) in [(1_000_000, PAUSE), (100, Duration::ZERO)] {
                            connection.send(get(&format!("/{size}.bin"), ""));
                            std::thread::sleep(pause);
                            assert!(connection.response().body == body(size));
                        }
                    });
                }
            });
        },
        |_, ()| (),
    );
}

#[test]
fn a_window_whose_opening_is_lost_is_found_by_asking() {
    let Some(site) = site_with_bodies(&Options::default()) else {
        return;
    };
    let lab = site.lab();
    let server = site.serve();
    let mut stream = connect(lab, site.address(), tcp::Options::default());
    let request = get("/1000000.bin", "Connection: close\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    let closed = "tcp window 0 tcp flags & (syn|rst) == 0";
    faults::count(lab, Way::ToServer, closed);
    wait::until("a closed window", || {
        faults::counted(lab, Way::ToServer) > 0
    });
    // All that the client says of its window while it reads what it has is lost.
    faults::lose(lab, Way::ToServer, "");
    let mut received = Vec::new();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("set the read timeout");
    let error = stream.read_to_end(&mut received).expect_err("a pause");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    assert!(received.len() < 1_000_000, "{} bytes", received.len());
    faults::heal(lab);
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("set the read timeout");
    stream.read_to_end(&mut received).expect("the rest");
    assert!(received.ends_with(&body(1_000_000)));
    let report = server.stop();
    assert_direct(&report);
    assert_summoned(&report);
}

#[test]
fn small_segments_are_kept_to() {
    let segment = |bytes| tcp::Options {
        largest_segment: Some(bytes),
        ..tcp::Options::default()
    };
    let routed = |lab: &Lab, work: &dyn Fn()| {
        let route = ["advmss", "536"];
        with_route(lab, &route, || within_segments(lab, [536; 2], work));
    };
    // What holds for a peer that says nothing (RFC 9293, 3.7.1).
    let unsaid = |lab: &Lab, work: &dyn Fn()| {
        faults::strip_option(lab, "maxseg");
        within_segments(lab, [536, 1_220], work);
    };
    let usual = tcp::Options::default();
    both_servers(
        &Options::default(),
        // What is merged is larger than what came.
        do_not_merge,
        |lab| {
            within_segments(lab, [536; 2], &|| echoes(lab, segment(536), 60_000));
            // The least that the kernel takes.
            within_segments(lab, [88; 2], &|| echoes(lab, segment(88), 20_000));
            routed(lab, &|| echoes(lab, usual, 60_000));
            unsaid(lab, &|| echoes(lab, usual, 60_000));
        },
        |site| {
            let lab = site.lab();
            within_segments(lab, [536; 2], &|| downloads(site, segment(536), &BODIES));
            within_segments(lab, [88; 2], &|| downloads(site, segment(88), &BODIES[..5]));
            routed(lab, &|| downloads(site, usual, &BODIES));
            unsaid(lab, &|| downloads(site, usual, &BODIES));
        },
        |_, ()| (),
    );
}

/// Works while the server is to send segments of at most `most` bytes over IPv4 and over IPv6, and checks
/// that it sent none longer.
fn within_segments(lab: &Lab, most: [usize; 2], work: &dyn Fn()) {
    for (version, headers, most) in [("ip", 20 + 20, most[0]), ("ip6", 40 + 20, most[1])] {
        let length = most + headers;
        let longer = format!("meta protocol {version} meta length > {length}");
        faults::count(lab, Way::ToClient, &longer);
    }
    work();
    let longer = faults::counted(lab, Way::ToClient);
    assert_eq!(longer, 0, "segments of more than {most:?} bytes");
    faults::heal(lab);
}

#[test]
fn peers_without_the_usual_options_are_served() {
    // What a peer of another time, or one behind a firewall that strips options, is like.
    let settings: [&[(&str, u32)]; 5] = [
        &[("tcp_sack", 0)],
        &[("tcp_window_scaling", 0)],
        &[("tcp_timestamps", 0)],
        &[("tcp_ecn", 1)],
        &[
            ("tcp_sack", 0),
            ("tcp_window_scaling", 0),
            ("tcp_timestamps", 0),
            ("tcp_ecn", 1),
        ],
    ];
    let with_each = |lab: &Lab, work: &dyn Fn()| {
        for setting in settings {
            let usual = setting.iter().map(|&(name, value)| {
                let usual = get_client(lab, name);
                assert_ne!(usual, value, "{name} is so anyway");
                set_client(lab, name, value);
                (name, usual)
            });
            let usual: Vec<_> = usual.collect();
            work();
            for (name, usual) in usual {
                set_client(lab, name, usual);
            }
        }
    };
    both_servers(
        &Options::default(),
        |_| (),
        |lab| with_each(lab, &|| echoes(lab, tcp::Options::default(), 100_000)),
        |site| {
            with_each(site.lab(), &|| {
                downloads(site, tcp::Options::default(), &BODIES)
            })
        },
        |_, ()| (),
    );
}

#[test]
fn peers_without_the_usual_options_bear_loss() {
    let echo = both_servers(
        &Options::default(),
        |lab| {
            for name in ["tcp_sack", "tcp_window_scaling", "tcp_timestamps"] {
                set_client(lab, name, 0);
            }
            set_client(lab, "tcp_ecn", 1);
            do_not_merge(lab);
            random_loss(lab, &Way::BOTH, 2);
        },
        |lab| echoes(lab, tcp::Options::default(), 20_000),
        |site| downloads(site, tcp::Options::default(), &BODIES[..4]),
        |lab, ()| end_of_loss(lab, &Way::BOTH),
    );
    echo.iter().for_each(assert_summoned);
}

#[test]
fn a_half_closed_connection_gets_its_whole_reply() {
    both_servers(
        &Options::default(),
        |_| (),
        |lab| {
            for version in VERSIONS {
                for (size, held_back) in [(1, true), (1_000, true), (1_000, false), (50_000, false)]
                {
                    let to = lab.server_at(version, ECHO_PORT);
                    let mut stream = connect(lab, to, tcp::Options::default());
                    let received = last_words(&mut stream, &pattern(3, size), held_back);
                    assert!(received == pattern(3, size), "{size} bytes, {held_back}");
                }
            }
        },
        |site| {
            for version in VERSIONS {
                for held_back in [true, false] {
                    // The first to ask for a file has the slow path read it: the second time it is there.
                    for size in BODIES.into_iter().chain(BODIES) {
                        let to = site.lab().server_at(version, HTTP_PORT);
                        let mut stream = connect(site.lab(), to, tcp::Options::default());
                        let request = get(&format!("/{size}.bin"), "");
                        let received = last_words(&mut stream, request.as_bytes(), held_back);
                        assert!(received.ends_with(&body(size)), "{size} bytes, {held_back}");
                    }
                }
            }
            // Nobody has asked for these.
            for n in 0..10 {
                let name = format!("cold{n}.bin");
                site.put(&name, pattern(n, 2_000));
                let mut stream = connect(site.lab(), site.address(), tcp::Options::default());
                let request = get(&format!("/{name}"), "");
                let received = last_words(&mut stream, request.as_bytes(), n % 2 == 0);
                assert!(received.ends_with(&pattern(n, 2_000)), "deferred {n}");
            }
        },
        |_, ()| (),
    );
}

/// Sends bytes and at once the end, in the same segment if `held_back`, and gives all that comes then.
fn last_words(stream: &mut TcpStream, words: &[u8], held_back: bool) -> Vec<u8> {
    if held_back {
        tcp::hold_back(stream);
    }
    stream.write_all(words).expect("send");
    stream.shutdown(Shutdown::Write).expect("half-close");
    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .expect("a reply and its end");
    received
}

#[test]
fn a_reset_in_the_middle_of_a_body_is_no_others_business() {
    both_servers(
        &Options::default(),
        |_| (),
        |lab| {
            for version in VERSIONS {
                let to = lab.server_at(version, ECHO_PORT);
                let kept = connect(lab, to, tcp::Options::default());
                for n in 0..20 {
                    let mut doomed = connect(lab, to, tcp::Options::default());
                    doomed.write_all(&pattern(n, 20_000)).expect("send");
                    doomed.read_exact(&mut [0; 10]).expect("receive");
                    tcp::reset(doomed);
                    tcp_round_trip(&kept, &pattern(n, 3_000));
                }
                close(&kept);
            }
        },
        |site| {
            for version in VERSIONS {
                let to = site.lab().server_at(version, HTTP_PORT);
                let open = || connect(site.lab(), to, tcp::Options::default());
                let mut kept = Connection::over(open());
                for n in 0..20 {
                    let mut doomed = open();
                    let request = get("/1000000.bin", "");
                    doomed.write_all(request.as_bytes()).expect("send");
                    // Some resets come while the body is only begun, some when windows are full.
                    let some = if n % 2 == 0 { 10 } else { 200_000 };
                    doomed.read_exact(&mut vec![0; some]).expect("receive");
                    tcp::reset(doomed);
                    let size = BODIES[n % BODIES.len()];
                    kept.send(get(&format!("/{size}.bin"), ""));
                    assert!(kept.response().body == body(size), "{size} bytes");
                }
            }
        },
        |_, ()| (),
    );
}

#[test]
fn a_port_is_used_again_at_once() {
    let Some(site) = site_with_bodies(&Options::default()) else {
        return;
    };
    let lab = site.lab();
    let server = site.serve();
    for version in VERSIONS {
        let to = lab.server_at(version, HTTP_PORT);
        faults::count(lab, Way::ToServer, SYN);

        // The server closes first, and is the one that remembers the connection.
        for round in 0..5 {
            let mut connection = Connection::over(connect_from(lab, REUSED_PORT, to));
            connection.send(get("/5000.bin", "Connection: close\r\n"));
            assert!(connection.response().body == body(5_000), "{round}");
            connection.expect_end();
        }
        // The client gives up, half of the time in the middle of a body.
        for round in 0..6 {
            let mut stream = connect_from(lab, REUSED_PORT, to);
            let size = [100, 1_000_000][round % 2];
            let request = get(&format!("/{size}.bin"), "");
            stream.write_all(request.as_bytes()).expect("send");
            stream.read_exact(&mut [0; 100]).expect("receive");
            tcp::reset(stream);
        }
        // The server does not hear that the client has given up.
        let mut stale = Connection::over(connect_from(lab, REUSED_PORT, to));
        stale.send(get("/100.bin", ""));
        assert!(stale.response().body == body(100));
        let first_reset = format!("tcp flags & rst == rst {FIRST}");
        faults::lose(lab, Way::ToServer, &first_reset);
        tcp::reset(stale.into_stream());
        let mut connection = Connection::over(connect_from(lab, REUSED_PORT, to));
        connection.send(get("/100.bin", "Connection: close\r\n"));
        assert!(connection.response().body == body(100));
        connection.expect_end();
        assert_eq!(faults::lost(lab, Way::ToServer), 1);

        // The kernel asks again after a second. No connection took a third time.
        let attempts = faults::counted(lab, Way::ToServer);
        assert!(attempts <= 2 * 13, "{attempts} attempts");
        faults::heal(lab);
    }
    assert_direct(&server.stop());
}

/// The port that connections of one client come from, one after another.
const REUSED_PORT: u16 = 20_000;

/// Connects from the given port as soon as the client's own kernel lets it.
fn connect_from(lab: &Lab, port: u16, to: SocketAddr) -> TcpStream {
    let socket = tcp::Options {
        source_port: Some(port),
        ..tcp::Options::default()
    };
    let connected = wait::expect_soon("a port that is free", || {
        match socket.connect(lab.client(), to) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
            result => Some(result),
        }
    });
    connected.unwrap_or_else(|error| panic!("connect from port {port} to {to}: {error}"))
}

#[test]
fn probes_of_idle_connections_are_answered() {
    both_servers(
        &Options::default(),
        |_| (),
        |lab| {
            let streams = VERSIONS.map(|version| {
                let to = lab.server_at(version, ECHO_PORT);
                let stream = connect(lab, to, tcp::Options::default());
                tcp_round_trip(&stream, &pattern(1, 500));
                stream
            });
            while_probed(lab, &[&streams[0], &streams[1]]);
            for stream in &streams {
                tcp_round_trip(stream, &pattern(2, 50_000));
                close(stream);
            }
        },
        |site| {
            let mut connections = VERSIONS.map(|version| {
                let to = site.lab().server_at(version, HTTP_PORT);
                let stream = connect(site.lab(), to, tcp::Options::default());
                let mut connection = Connection::over(stream);
                // Whether what came last was an engine's or not.
                connection.send(get("/150000.bin", ""));
                assert!(connection.response().body == body(150_000));
                connection
            });
            let streams = [&connections[0], &connections[1]].map(Connection::stream);
            while_probed(site.lab(), &streams);
            for connection in &mut connections {
                connection.send(get("/30000.bin", ""));
                assert!(connection.response().body == body(30_000));
            }
        },
        |_, ()| (),
    );
}

/// Waits while the client's kernel probes each of these connections some times.
fn while_probed(lab: &Lab, streams: &[&TcpStream]) {
    streams.iter().copied().for_each(tcp::probe_when_idle);
    faults::count(lab, Way::ToServer, "");
    std::thread::sleep(Duration::from_secs(5));
    let probes = faults::counted(lab, Way::ToServer);
    assert!(probes >= 3 * streams.len() as u64, "{probes} probes");
    for stream in streams {
        let error = stream.take_error().expect("SO_ERROR");
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn thousands_of_short_connections_leave_nothing_behind() {
    const COUNT: usize = 2_000;
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let Some(site) = Site::new() else { return };
    let reports = std::thread::scope(|scope| {
        let echoing = scope.spawn(|| {
            let server = Launch::echo(&lab).start();
            for n in 0..COUNT {
                let to = lab.server_at(VERSIONS[n % 2], ECHO_PORT);
                tcp_exchange(lab.client(), to, &pattern(n as u32, 1 + n % 1_400));
            }
            server.stop()
        });
        let serving = scope.spawn(|| {
            let server = site.serve();
            for n in 0..COUNT {
                let to = site.lab().server_at(VERSIONS[n % 2], HTTP_PORT);
                let mut connection = Connection::open(site.lab().client(), to);
                // Either side closes first by turns.
                if n % 4 < 2 {
                    connection.send(get("/small.txt", "Connection: close\r\n"));
                } else {
                    connection.send(get("/small.txt", ""));
                }
                assert_eq!(connection.response().body, Site::SMALL.as_bytes());
                connection.finish_sending();
                connection.expect_end();
            }
            server.stop()
        });
        [echoing, serving].map(|thread| thread.join().expect("a thread"))
    });
    let [echo, http] = reports;
    for report in [&echo, &http] {
        assert_direct(report);
        for name in ["flows_opened", "flows_established"] {
            assert_eq!(report.counter(name), COUNT as u64, "{name}: {report:#?}");
        }
    }
    assert_eq!(echo.counter("flows_closed"), COUNT as u64, "{echo:#?}");
    // The others may be remembered, because the server closed first.
    let closed = http.counter("flows_closed");
    assert!(closed >= COUNT as u64 / 2, "{http:#?}");
}
