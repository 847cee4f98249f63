//! The programs on the AF_XDP port alone: they do what they are compared for, account for every frame, and
//! refuse what cannot work.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::process::Output;

use interruptlet_tests::echo::{close, pattern, tcp_exchange, tcp_round_trip, udp_round_trip};
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::server::{ECHO_PORT, Launch, binary};

const PORT: u16 = 9000;

fn kernel_address() -> Options {
    Options {
        kernel_address: true,
        ..Options::default()
    }
}

fn reflect(lab: &Lab, version: Version) -> Launch<'_> {
    Launch::bare(lab, "ilet-reflect")
        .with("--interface", SERVER_IF)
        .with("--address", lab.server_ip(version).to_string())
        .with("--port", PORT.to_string())
}

fn plain(lab: &Lab, version: Version, sockets: usize) -> Launch<'_> {
    Launch::bare(lab, "plain-smoltcp")
        .with("--interface", SERVER_IF)
        .with("--address", lab.server_cidr(version))
        .with("--port", PORT.to_string())
        .with("--sockets", sockets.to_string())
}

/// The link address of the server's interface, as on a command line.
fn server_link(lab: &Lab) -> String {
    let link = lab.link_address(lab.server(), SERVER_IF);
    link.map(|byte| format!("{byte:02x}")).join(":")
}

/// Runs `ilet-send` on the client's side, for half a second.
fn send(lab: &Lab, version: Version, target: SocketAddr) -> Output {
    let link = server_link(lab);
    let program = binary("ilet-send");
    lab.client().run(
        program.to_str().expect("a path in UTF-8"),
        &[
            "--interface",
            CLIENT_IF,
            "--source",
            &lab.spare_ip(version).to_string(),
            "--target",
            &target.to_string(),
            "--peer-link",
            &link,
            "--in-flight",
            "32",
            "--size",
            "64",
            "--duration",
            "0.5",
            "--json",
        ],
    )
}

/// A number in a line of JSON.
fn number(json: &str, key: &str) -> f64 {
    let (_, rest) = json
        .split_once(&format!("\"{key}\":"))
        .unwrap_or_else(|| panic!("no {key} in {json}"));
    let end = rest.find([',', '}']).expect("an end of the number");
    rest[..end].parse().expect("a number")
}

#[test]
fn the_reflector_reflects_its_port_and_leaves_the_rest_to_the_kernel() {
    let Some(lab) = Lab::new(kernel_address()) else {
        return;
    };
    for (version, room, poll) in [(Version::V4, 1472, "busy"), (Version::V6, 1452, "sleep")] {
        let server = reflect(&lab, version).with("--poll", poll).start();
        let to = lab.server_at(version, PORT);
        let socket = lab.client().udp(to).expect("a UDP socket");
        let sizes = [0, 1, 2, 64, 999, room];
        for size in sizes {
            udp_round_trip(&socket, &pattern(7, size));
        }
        lab.client()
            .run_ok("ping", &["-c", "1", "-W", "5", &to.ip().to_string()]);
        let report = server.stop();
        assert_eq!(report.xdp("redirect_port"), sizes.len() as u64);
        assert_eq!(report.counter("rx_frames"), sizes.len() as u64);
        assert_eq!(report.counter("tx_frames"), sizes.len() as u64);
        assert!(!lab.xdp_attached());
    }
}

#[test]
fn the_sender_gets_back_what_the_reflector_reflects() {
    let Some(lab) = Lab::new(kernel_address()) else {
        return;
    };
    for version in VERSIONS {
        let server = reflect(&lab, version).start();
        let output = send(&lab, version, lab.server_at(version, PORT));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let json = String::from_utf8_lossy(&output.stdout);
        let requests = number(&json, "requests");
        assert!(requests >= 32.0, "{json}");
        assert!(number(&json, "seconds") >= 0.5, "{json}");
        assert!(json.contains("\"mode\":\"copy\""), "{json}");
        let report = server.stop();
        assert!(
            report.counter("tx_frames") as f64 >= requests,
            "{json} {report:?}"
        );
        assert_eq!(
            report.counter("tx_frames"),
            report.counter("rx_frames"),
            "{report:?}"
        );
    }
}

#[test]
fn a_flood_is_answered_and_leaves_the_server_in_order() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for (version, poll) in [(Version::V4, "busy"), (Version::V6, "sleep")] {
        let to = lab.server_at(version, ECHO_PORT);
        let program = binary("ilet-flood");
        let output = lab.client().run(
            program.to_str().expect("a path in UTF-8"),
            &[
                "--interface",
                CLIENT_IF,
                "--sources",
                &lab.spare_prefix(version),
                "--target",
                &to.to_string(),
                "--peer-link",
                &server_link(&lab),
                "--count",
                "2000",
                "--rate",
                "20000",
                "--poll",
                poll,
                "--json",
            ],
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let json = String::from_utf8_lossy(&output.stdout);
        assert_eq!(number(&json, "sent"), 2000.0, "{json}");
        assert!(number(&json, "seconds") >= 0.09, "{json}");
        // Some may be lost if one end had no processor for a while.
        assert!(number(&json, "syn_acks") > 1000.0, "{json}");
        assert_eq!(number(&json, "resets"), 0.0, "{json}");
        tcp_exchange(lab.client(), to, b"still there");
    }
    server.stop();
}

#[test]
fn a_sender_that_nobody_answers_says_so() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let output = send(&lab, Version::V4, lab.server_at(Version::V4, PORT));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(number(&stdout, "requests") == 0.0, "{stdout}");
    assert!(number(&stdout, "lost") >= 32.0, "{stdout}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: nothing came back"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn plain_smoltcp_echoes_and_listens_again() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    for (version, poll) in [(Version::V4, "busy"), (Version::V6, "adaptive")] {
        let server = plain(&lab, version, 2).with("--poll", poll).start();
        let to = lab.server_at(version, PORT);
        // More than there are sockets, one after another.
        for seed in 0..5 {
            tcp_exchange(lab.client(), to, &pattern(seed, 10_000));
        }
        let both = [(); 2].map(|()| lab.client().tcp(to).expect("connect"));
        for stream in &both {
            tcp_round_trip(stream, &pattern(9, 300_000));
        }
        // A third finds no socket that listens.
        assert!(lab.client().tcp(to).is_err());
        for stream in &both {
            close(stream);
        }
        tcp_exchange(lab.client(), to, b"again");
        let report = server.stop();
        assert!(report.xdp("redirect_own") > 0, "{report:?}");
        assert!(!lab.xdp_attached());
    }
}

#[test]
fn what_cannot_work_is_refused_in_a_line() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let spare = lab.spare_ip(Version::V4).to_string();
    let send = |source: &str, size: &str| {
        Launch::bare(&lab, "ilet-send")
            .with("--interface", SERVER_IF)
            .with("--source", source)
            .with("--target", "10.0.0.1:9")
            .with("--peer-link", "02:00:00:00:00:02")
            .with("--in-flight", "1")
            .with("--size", size)
            .with("--duration", "1")
    };
    let flood = |sources: &str| {
        Launch::bare(&lab, "ilet-flood")
            .with("--interface", SERVER_IF)
            .with("--sources", sources)
            .with("--target", "10.0.0.1:9")
            .with("--peer-link", "02:00:00:00:00:02")
    };
    for (launch, code, word) in [
        // It needs the kernel's address.
        (reflect(&lab, Version::V4), 1, "does not have"),
        (
            plain(&lab, Version::V4, 1).with("--core", "4000"),
            1,
            "4000",
        ),
        (
            plain(&lab, Version::V4, 1).with("--queue", "5"),
            1,
            "queue 5",
        ),
        (
            plain(&lab, Version::V4, 1).with("--mode", "zero-copy"),
            1,
            "zero-copy",
        ),
        (send(&spare, "1473"), 2, "1472"),
        (send("fd00::1", "64"), 2, "IP version"),
        (flood("fd00:1::/64"), 2, "IP version"),
    ] {
        let refusal = launch.refuse();
        assert_eq!(refusal.code, Some(code), "{refusal:?}");
        let [line] = refusal.stderr.as_slice() else {
            panic!("not one line: {refusal:?}")
        };
        assert!(line.starts_with("error: ") && line.contains(word), "{line}");
        assert!(refusal.stdout.is_empty(), "{refusal:?}");
        assert!(!lab.xdp_attached());
    }
}

#[test]
fn a_wrong_command_line_has_an_exit_code_of_its_own() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    for launch in [
        reflect(&lab, Version::V4).with("--poll", "never"),
        plain(&lab, Version::V4, 0),
        Launch::bare(&lab, "ilet-send"),
        Launch::bare(&lab, "ilet-flood"),
        Launch::bare(&lab, "ilet-memory")
            .with("--server", "kernel")
            .with("--connections", "1")
            .with("--requests", "1"),
    ] {
        let refusal = launch.refuse();
        assert_eq!(refusal.code, Some(2), "{refusal:?}");
        assert!(refusal.stderr[0].starts_with("error: "), "{refusal:?}");
    }
}
