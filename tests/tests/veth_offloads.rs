//! A veth peer that leaves checksums to a card that is not there, as veth does unless told otherwise.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use std::net::TcpStream;
use std::time::Duration;

use interruptlet_tests::echo::assert_serves;
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, VERSIONS};
use interruptlet_tests::server::{ECHO_PORT, Launch};
use interruptlet_tests::wait;

#[test]
fn the_log_names_the_peer_and_the_command_that_mends_it() {
    let Some(lab) = Lab::new(Options {
        leaves_checksums: true,
        ..Options::default()
    }) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    for version in VERSIONS {
        // Pings are summed in software: all seems well.
        let address = lab.server_ip(version).to_string();
        lab.client()
            .run_ok("ping", &["-n", "-c", "1", "-w", "10", &address]);
        let to = lab.server_at(version, ECHO_PORT);
        let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(500));
        assert!(lab.client().inside(connect).is_err());
    }
    let told = |line: &String| line.starts_with("warn:") && line.contains("ethtool -K");
    wait::until("the warning", || server.stderr().iter().any(told));
    let link = lab
        .client()
        .run_ok("cat", &[&format!("/sys/class/net/{CLIENT_IF}/address")]);
    let warnings: Vec<String> = server.stderr().into_iter().filter(told).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(link.trim()), "{warnings:?}");
    assert!(warnings[0].contains("tx off"), "{warnings:?}");

    lab.client()
        .run_ok("ethtool", &["-K", CLIENT_IF, "tx", "off"]);
    assert_serves(&lab);
    let report = server.stop();
    assert!(report.counter("drop_checksum_left") >= 2, "{report:#?}");
    assert_eq!(report.counter("drop_tcp_checksum"), 0, "{report:#?}");
}
