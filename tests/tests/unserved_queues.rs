//! A server of some queues of its interface only: what it does for addresses of its own when questions and pings
//! arrive on the others.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, VERSIONS, Version};
use interruptlet_tests::packet::{self, BROADCAST, Seen};
use interruptlet_tests::raw::RawLink;
use interruptlet_tests::server::{ECHO_PORT, Launch};

/// A lab whose server has two queues, and whose client sends to the first of them only.
fn lab() -> Option<Lab> {
    let lab = Lab::new(Options {
        queues: 2,
        ..Options::default()
    })?;
    // veth puts what comes out of transmit queue N of one end into receive queue N of the other.
    lab.client()
        .run_ok("ethtool", &["-L", CLIENT_IF, "tx", "1"]);
    Some(lab)
}

fn connects(lab: &Lab, to: SocketAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(1500));
    lab.client().inside(connect).is_ok()
}

#[test]
fn neighbours_and_pings_are_answered_on_a_queue_without_a_worker() {
    let Some(lab) = lab() else { return };
    let server = Launch::echo(&lab).with("--queues", "1").start();
    for version in VERSIONS {
        let address = lab.server_ip(version).to_string();
        lab.client().run_ok(
            "ping",
            &["-n", "-c", "3", "-i", "0.2", "-w", "10", &address],
        );
        let at = lab.server_at(version, ECHO_PORT);
        assert!(!connects(&lab, at), "nobody serves {at} on queue 0");
    }
    let warned = |line: &String| line.starts_with("warn:") && line.contains("queue 0");
    assert!(server.stderr().iter().any(warned), "{:?}", server.stderr());
    let report = server.stop();
    // One question and three pings of each version; more questions if the kernel asks again.
    assert!(report.counter("unserved_queue_answers") >= 8, "{report:#?}");
    assert_eq!(report.counter("rx_frames"), 0, "{report:#?}");
    assert!(report.xdp("pass_no_socket") >= 8, "{report:#?}");
}

#[test]
fn only_questions_about_our_addresses_are_answered_there() {
    let Some(lab) = lab() else { return };
    let server = Launch::echo(&lab).with("--queues", "1").start();
    let mut link = RawLink::open(&lab);
    let from = lab.link_address(lab.client(), CLIENT_IF);
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6} is not of version 4"),
    };
    let client = address(lab.client_ip(Version::V4));
    let spare = address(lab.spare_ip(Version::V4));
    let ours = address(lab.server_ip(Version::V4));
    let request = packet::arp_request(from, client, spare);
    link.send(&packet::ethernet(BROADCAST, from, packet::ARP, &request));
    // In a VLAN that is not ours: its tag is in front of the question.
    let request = packet::arp_request(from, client, ours);
    let mut tagged = vec![0, 5, 0x08, 0x06];
    tagged.extend_from_slice(&request);
    link.send(&packet::ethernet(BROADCAST, from, 0x8100, &tagged));
    let answer = link.receive(Duration::from_millis(500), |frame| {
        let is_answer = packet::get_u16(frame, 12) == packet::ARP
            || Seen::parse(frame).is_some_and(|seen| !seen.is_housekeeping());
        is_answer.then(|| frame.to_vec())
    });
    assert_eq!(answer, None);
    link.send(&packet::ethernet(BROADCAST, from, packet::ARP, &request));
    let answer = link.expect("an answer without a tag around the question", |frame| {
        packet::get_u16(frame, 12) == packet::ARP
    });
    assert_eq!(answer[20..22], [0, 2]);
    let report = server.stop();
    assert_eq!(report.counter("unserved_queue_answers"), 1, "{report:#?}");
}

#[test]
fn where_all_queues_are_served_the_workers_answer() {
    let Some(lab) = lab() else { return };
    let server = Launch::echo(&lab)
        .with("--queues", "0,1")
        .with("--cores", "0,1")
        .start();
    for version in VERSIONS {
        let address = lab.server_ip(version).to_string();
        lab.client()
            .run_ok("ping", &["-n", "-c", "1", "-w", "10", &address]);
        assert!(connects(&lab, lab.server_at(version, ECHO_PORT)));
    }
    let report = server.stop();
    assert_eq!(report.counter("unserved_queue_answers"), 0, "{report:#?}");
    assert!(report.counter("icmp_echo_replies") >= 2, "{report:#?}");
}
