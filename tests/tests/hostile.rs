//! Frames that no honest peer sends, straight onto the link: none is answered, each is counted by
//! reason, and the server serves on.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use interruptlet_tests::echo::{assert_serves, udp_round_trip};
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::packet::{self, Fragment, Seen, Segment};
use interruptlet_tests::raw::RawLink;
use interruptlet_tests::report::Report;
use interruptlet_tests::server::{ECHO_PORT, Launch};

/// How often each frame is sent.
const TIMES: u64 = 3;

/// What the last, honest datagram of a test carries.
const SENTINEL: &[u8] = b"sentinel";

/// Who sends what to whom.
struct Ends {
    client_link: [u8; 6],
    server_link: [u8; 6],
    lab: Lab,
}

impl Ends {
    fn new() -> Option<Self> {
        let lab = Lab::new(Options::default())?;
        let client_link = lab.link_address(lab.client(), CLIENT_IF);
        let server_link = lab.link_address(lab.server(), SERVER_IF);
        Some(Self {
            client_link,
            server_link,
            lab,
        })
    }

    fn client(&self, version: Version) -> (IpAddr, u16) {
        (self.lab.client_ip(version), 4242)
    }

    fn server(&self, version: Version) -> (IpAddr, u16) {
        (self.lab.server_ip(version), ECHO_PORT)
    }

    fn client4(&self) -> Ipv4Addr {
        let IpAddr::V4(address) = self.lab.client_ip(Version::V4) else {
            unreachable!()
        };
        address
    }

    fn server4(&self) -> Ipv4Addr {
        let IpAddr::V4(address) = self.lab.server_ip(Version::V4) else {
            unreachable!()
        };
        address
    }

    fn server6(&self) -> Ipv6Addr {
        let IpAddr::V6(address) = self.lab.server_ip(Version::V6) else {
            unreachable!()
        };
        address
    }

    fn client6(&self) -> Ipv6Addr {
        let IpAddr::V6(address) = self.lab.client_ip(Version::V6) else {
            unreachable!()
        };
        address
    }

    /// A frame from the client's link address to the server's.
    fn frame(&self, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        packet::ethernet(self.server_link, self.client_link, ethertype, packet)
    }

    /// A frame with an IP packet between any two addresses.
    fn ip(&self, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (ethertype, packet) = packet::ip(from, to, protocol, payload);
        self.frame(ethertype, &packet)
    }

    /// A right UDP request to the echo port.
    fn udp(&self, version: Version) -> Vec<u8> {
        let (from, to) = (self.client(version), self.server(version));
        self.ip(
            from.0,
            to.0,
            packet::UDP,
            &packet::udp(from, to, b"request"),
        )
    }
}

/// A frame with the names of the counters of which it must increase one.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

/// Sends each frame some times to an echo server and checks that nothing comes back, that the
/// counters show each, and that the server still serves.
fn nothing_comes_back(ends: &Ends, cases: &[Case]) {
    let lab = &ends.lab;
    let server = Launch::echo(lab).start();
    // Neighbours get known before the hostile frames, so that a wrong reply would not wait for them.
    assert_serves(lab);

    let mut link = RawLink::open(lab);
    for (_, frame, _) in cases {
        for _ in 0..TIMES {
            link.send(frame);
        }
    }
    // The queue is served in order: when this is back, the frames before it have been dealt with.
    for version in VERSIONS {
        udp_round_trip(
            &lab.client()
                .udp(lab.server_at(version, ECHO_PORT))
                .expect("a UDP socket"),
            SENTINEL,
        );
    }
    let reply = link.receive(Duration::from_millis(200), |frame| {
        let seen = Seen::parse(frame)?;
        let expected = seen.is_housekeeping() || seen.payload.ends_with(SENTINEL);
        (frame[6..12] == ends.server_link && !expected).then(|| format!("{seen:?}"))
    });
    assert_eq!(reply, None, "a reply to a hostile frame");

    assert_serves(lab);
    let report = server.stop();
    for names in groups(cases) {
        let sent = TIMES * cases.iter().filter(|(_, _, n)| *n == names).count() as u64;
        let counted: u64 = names.iter().map(|name| count(&report, name)).sum();
        let kinds: Vec<_> = cases
            .iter()
            .filter(|(_, _, n)| *n == names)
            .map(|(kind, _, _)| kind)
            .collect();
        assert!(
            counted >= sent,
            "{kinds:?}: {counted} of {sent} counted by {names:?}: {report:#?}"
        );
    }
}

/// A counter of the workers, or all those of the XDP program that are named after passing or dropping.
fn count(report: &Report, name: &str) -> u64 {
    if name == "xdp" {
        report.xdp_refused()
    } else {
        report.counter(name)
    }
}

/// The distinct sets of counters.
fn groups(cases: &[Case]) -> Vec<&'static [&'static str]> {
    let mut groups: Vec<_> = cases.iter().map(|(_, _, names)| *names).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A right packet that something is then done to.
fn changed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    bytes
}

#[test]
fn frames_cut_short() {
    let Some(ends) = Ends::new() else { return };
    let mut cases: Vec<Case> = Vec::new();
    for version in VERSIONS {
        let whole = ends.udp(version);
        let ip_len = if version == Version::V4 {
            packet::IPV4_LEN
        } else {
            packet::IPV6_LEN
        };
        // Within the IP header: the XDP program cannot tell whose it is, and leaves it to the kernel.
        for keep in [0, 1, ip_len / 2, ip_len - 1] {
            let cut = whole[..packet::ETHERNET_LEN + keep].to_vec();
            cases.push((
                "cut in the IP header",
                cut,
                &["drop_truncated", "drop_ip_header", "xdp"],
            ));
        }
        // Behind it: the lengths in the headers promise more than there is.
        for keep in [0, 4, 7, 8, 10] {
            let cut = whole[..packet::ETHERNET_LEN + ip_len + keep].to_vec();
            cases.push((
                "cut in the payload",
                cut,
                &["drop_truncated", "drop_ip_header", "drop_udp_header", "xdp"],
            ));
        }
    }
    let arp = packet::arp_request(ends.client_link, ends.client4(), ends.server4());
    let cut = ends.frame(packet::ARP, &arp[..20]);
    cases.push((
        "ARP cut short",
        cut,
        &["drop_truncated", "drop_ethertype", "xdp"],
    ));
    nothing_comes_back(&ends, &cases);
}

#[test]
fn headers_that_lie_about_lengths() {
    let Some(ends) = Ends::new() else { return };
    let at = packet::ETHERNET_LEN;
    let v4 = |change: fn(&mut Vec<u8>)| {
        changed(ends.udp(Version::V4), |frame| {
            change(frame);
            packet::fix_ipv4_checksum(&mut frame[at..]);
        })
    };
    let ip_header = &["drop_ip_header", "drop_truncated", "xdp"];
    let udp_header = &["drop_udp_header", "drop_truncated"];
    let udp4 = at + packet::IPV4_LEN;
    let udp6 = at + packet::IPV6_LEN;
    let mut cases: Vec<Case> = vec![
        ("version 5", v4(|frame| frame[14] = 0x55), ip_header),
        (
            "header length 4 words",
            v4(|frame| frame[14] = 0x44),
            ip_header,
        ),
        (
            "total length below the header",
            v4(|frame| packet::put_u16(frame, 16, 19)),
            ip_header,
        ),
        (
            "total length beyond the frame",
            v4(|frame| packet::put_u16(frame, 16, 1400)),
            ip_header,
        ),
        (
            "IPv6 payload beyond the frame",
            changed(ends.udp(Version::V6), |frame| {
                packet::put_u16(frame, at + 4, 1400)
            }),
            ip_header,
        ),
        (
            "UDP length below its header",
            changed(ends.udp(Version::V4), |frame| {
                packet::put_u16(frame, udp4 + 4, 7)
            }),
            udp_header,
        ),
        (
            "UDP length beyond the packet",
            changed(ends.udp(Version::V4), |frame| {
                packet::put_u16(frame, udp4 + 4, 900)
            }),
            udp_header,
        ),
        (
            "UDP length below its header, IPv6",
            changed(ends.udp(Version::V6), |frame| {
                packet::put_u16(frame, udp6 + 4, 7)
            }),
            udp_header,
        ),
        (
            "UDP length beyond the packet, IPv6",
            changed(ends.udp(Version::V6), |frame| {
                packet::put_u16(frame, udp6 + 4, 900)
            }),
            udp_header,
        ),
    ];
    for version in VERSIONS {
        let (from, to) = (ends.client(version), ends.server(version));
        let syn = packet::tcp(
            from,
            to,
            Segment {
                flags: packet::SYN,
                ..Segment::default()
            },
        );
        for (kind, words) in [
            ("TCP header length 4 words", 0x40),
            ("TCP header beyond the segment", 0xf0),
        ] {
            let mut wrong = syn.clone();
            wrong[12] = words;
            packet::put_u16(&mut wrong, packet::TCP_CHECKSUM_AT, 0);
            let sum = packet::transport_checksum(from.0, to.0, packet::TCP, &wrong);
            packet::put_u16(&mut wrong, packet::TCP_CHECKSUM_AT, sum);
            let frame = ends.ip(from.0, to.0, packet::TCP, &wrong);
            cases.push((kind, frame, &["drop_tcp_header", "drop_truncated"]));
        }
        let frame = ends.ip(from.0, to.0, packet::TCP, &syn[..12]);
        cases.push((
            "TCP header cut short",
            frame,
            &["drop_tcp_header", "drop_truncated"],
        ));
    }
    nothing_comes_back(&ends, &cases);
}

#[test]
fn wrong_checksums_of_each_kind() {
    let Some(ends) = Ends::new() else { return };
    let ip_wrong = changed(ends.udp(Version::V4), |frame| {
        packet::spoil_checksum(&mut frame[packet::ETHERNET_LEN..], packet::IPV4_CHECKSUM_AT);
    });
    let mut cases: Vec<Case> = vec![("IPv4 header", ip_wrong, &["drop_ip_checksum"])];
    for version in VERSIONS {
        let (from, to) = (ends.client(version), ends.server(version));
        let mut udp = packet::udp(from, to, b"wrong");
        packet::spoil_checksum(&mut udp, packet::UDP_CHECKSUM_AT);
        cases.push((
            "UDP",
            ends.ip(from.0, to.0, packet::UDP, &udp),
            &["drop_udp_checksum"],
        ));

        // To an open port, a closed one, and of no connection: neither SYN-ACK nor RST may follow.
        for (flags, port) in [
            (packet::SYN, ECHO_PORT),
            (packet::SYN, 9),
            (packet::ACK, ECHO_PORT),
        ] {
            let mut tcp = packet::tcp(
                from,
                (to.0, port),
                Segment {
                    flags,
                    ..Segment::default()
                },
            );
            packet::spoil_checksum(&mut tcp, packet::TCP_CHECKSUM_AT);
            cases.push((
                "TCP",
                ends.ip(from.0, to.0, packet::TCP, &tcp),
                &["drop_tcp_checksum"],
            ));
        }

        let (protocol, mut ping) = packet::echo_request(from.0, to.0, 7, b"wrong");
        packet::spoil_checksum(&mut ping, packet::ICMP_CHECKSUM_AT);
        cases.push((
            "ICMP",
            ends.ip(from.0, to.0, protocol, &ping),
            &["drop_icmp_checksum"],
        ));
    }
    // UDP over IPv6 must have a checksum; over IPv4 zero means none.
    let mut none = packet::udp(ends.client(Version::V6), ends.server(Version::V6), b"none");
    packet::put_u16(&mut none, packet::UDP_CHECKSUM_AT, 0);
    let frame = ends.ip(
        ends.client(Version::V6).0,
        ends.server(Version::V6).0,
        packet::UDP,
        &none,
    );
    cases.push((
        "UDP over IPv6 without",
        frame,
        &["drop_udp_checksum", "drop_udp_header"],
    ));
    nothing_comes_back(&ends, &cases);
}

#[test]
fn fragments_tiny_and_overlapping() {
    let Some(ends) = Ends::new() else { return };
    let (client4, server4) = (ends.client4(), ends.server4());
    let (client6, server6) = (ends.client6(), ends.server6());
    let syn = packet::tcp(
        ends.client(Version::V4),
        ends.server(Version::V4),
        Segment {
            flags: packet::SYN,
            ..Segment::default()
        },
    );
    let udp6 = packet::udp(
        ends.client(Version::V6),
        ends.server(Version::V6),
        &[b'x'; 64],
    );
    let part = |offset_units, more| Fragment {
        identification: 77,
        offset_units,
        more,
    };
    let v4 = |part, payload: &[u8]| {
        ends.frame(
            packet::IPV4,
            &packet::ipv4_fragment(client4, server4, packet::TCP, part, payload),
        )
    };
    let v6 = |part, payload: &[u8]| {
        let fragment = packet::ipv6_fragment(packet::UDP, part, payload);
        ends.frame(packet::IPV6, &packet::ipv6(client6, server6, 44, &fragment))
    };
    // One set of counters for both: the XDP program may leave fragments to the kernel, which has no
    // such address and drops them.
    let counted = &["drop_ip_fragment", "xdp"];
    let cases: Vec<Case> = vec![
        ("tiny first", v4(part(0, true), &syn[..8]), counted),
        ("tiny second", v4(part(1, false), &syn[8..]), counted),
        (
            "whole first",
            v4(part(0, true), &[&syn[..], &[0; 4]].concat()),
            counted,
        ),
        (
            "overlapping the flags",
            v4(part(1, false), &[0; 16]),
            counted,
        ),
        ("beyond 64 KiB", v4(part(8191, true), &[0; 64]), counted),
        ("IPv6 first", v6(part(0, true), &udp6[..32]), counted),
        ("IPv6 overlapping", v6(part(2, false), &udp6[16..]), counted),
    ];
    nothing_comes_back(&ends, &cases);
}

#[test]
fn unknown_protocols() {
    let Some(ends) = Ends::new() else { return };
    let mut cases: Vec<Case> = Vec::new();
    for version in VERSIONS {
        let (from, to) = (ends.client(version).0, ends.server(version).0);
        for protocol in [2, 132, 253] {
            let frame = ends.ip(from, to, protocol, &[0; 32]);
            cases.push(("IP protocol", frame, &["drop_ip_protocol", "xdp"]));
        }
    }
    // Not IP at all: the XDP program passes it to the kernel, which ignores it.
    for ethertype in [0x88cc, 0x9000, 0x0000] {
        cases.push((
            "EtherType",
            ends.frame(ethertype, &[0; 60]),
            &["drop_ethertype", "xdp"],
        ));
    }
    nothing_comes_back(&ends, &cases);
}

#[test]
fn sources_that_cannot_be() {
    let Some(ends) = Ends::new() else { return };
    let mut cases: Vec<Case> = Vec::new();
    let subnet_broadcast = {
        let [a, b, c, _] = ends.server4().octets();
        Ipv4Addr::new(a, b, c, 255)
    };
    let sources: [(Version, IpAddr); 7] = [
        (Version::V4, Ipv4Addr::BROADCAST.into()),
        (Version::V4, Ipv4Addr::new(224, 0, 0, 5).into()),
        (Version::V4, Ipv4Addr::LOCALHOST.into()),
        (Version::V4, subnet_broadcast.into()),
        (Version::V4, Ipv4Addr::UNSPECIFIED.into()),
        (
            Version::V6,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        ),
        (Version::V6, Ipv6Addr::LOCALHOST.into()),
    ];
    for (version, source) in sources {
        let to = ends.server(version);
        let counted = &["drop_ip_source"];
        let udp = packet::udp((source, 4242), to, b"spoofed");
        cases.push((
            "UDP from nowhere",
            ends.ip(source, to.0, packet::UDP, &udp),
            counted,
        ));
        let syn = packet::tcp(
            (source, 4242),
            to,
            Segment {
                flags: packet::SYN,
                ..Segment::default()
            },
        );
        cases.push((
            "SYN from nowhere",
            ends.ip(source, to.0, packet::TCP, &syn),
            counted,
        ));
        let (protocol, ping) = packet::echo_request(source, to.0, 1, b"spoofed");
        cases.push((
            "ping from nowhere",
            ends.ip(source, to.0, protocol, &ping),
            counted,
        ));
    }
    // The server's own address, and the land attack: the same port as well.
    for version in VERSIONS {
        let to = ends.server(version);
        let counted = &["drop_ip_own_source", "drop_ip_land"];
        for port in [4242, ECHO_PORT] {
            let udp = packet::udp((to.0, port), to, b"own");
            cases.push((
                "UDP from itself",
                ends.ip(to.0, to.0, packet::UDP, &udp),
                counted,
            ));
            let syn = packet::tcp(
                (to.0, port),
                to,
                Segment {
                    flags: packet::SYN,
                    ..Segment::default()
                },
            );
            cases.push((
                "SYN from itself",
                ends.ip(to.0, to.0, packet::TCP, &syn),
                counted,
            ));
        }
    }
    nothing_comes_back(&ends, &cases);
}

#[test]
fn requests_to_everybody_are_not_amplified() {
    let Some(ends) = Ends::new() else { return };
    let from = ends.client(Version::V4);
    let mut cases: Vec<Case> = Vec::new();
    let [a, b, c, _] = ends.server4().octets();
    for to in [
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(a, b, c, 255),
        Ipv4Addr::new(224, 0, 0, 1),
    ] {
        // Where such a packet goes is the XDP program's business; that nobody answers is ours.
        let to: IpAddr = to.into();
        let (protocol, ping) = packet::echo_request(from.0, to, 1, b"smurf");
        cases.push((
            "ping to all",
            ends.ip(from.0, to, protocol, &ping),
            &["drop_ip_destination", "xdp"],
        ));
        let udp = packet::udp(from, (to, ECHO_PORT), b"fraggle");
        cases.push((
            "UDP to all",
            ends.ip(from.0, to, packet::UDP, &udp),
            &["drop_ip_destination", "xdp"],
        ));
    }
    nothing_comes_back(&ends, &cases);
}

#[test]
fn a_reset_or_ack_of_no_connection_gets_at_most_a_reset() {
    let Some(ends) = Ends::new() else { return };
    let server = Launch::echo(&ends.lab).start();
    assert_serves(&ends.lab);
    let mut link = RawLink::open(&ends.lab);
    for version in VERSIONS {
        let (from, to) = (ends.client(version), ends.server(version));
        let send = |link: &mut RawLink, flags| {
            let segment = Segment {
                flags,
                sequence: 1000,
                acknowledgment: 2000,
                payload: b"",
            };
            link.send(&ends.ip(from.0, to.0, packet::TCP, &packet::tcp(from, to, segment)));
        };
        let answer = |link: &mut RawLink, limit| {
            link.receive(limit, |frame| {
                let seen = Seen::parse(frame)?;
                (seen.from == to.0 && seen.protocol == packet::TCP).then(|| seen.payload[13])
            })
        };
        // A reset is never answered; an acknowledgment out of nowhere is, with a reset (RFC 9293, 3.10.7.1).
        send(&mut link, packet::RST);
        send(&mut link, packet::RST | packet::ACK);
        assert_eq!(answer(&mut link, Duration::from_millis(200)), None);
        send(&mut link, packet::ACK);
        let flags = answer(&mut link, Duration::from_secs(10)).expect("a reset");
        assert_ne!(flags & packet::RST, 0);
    }
    assert_serves(&ends.lab);
    server.stop();
}

#[test]
fn arp_for_other_addresses_is_not_answered() {
    let Some(ends) = Ends::new() else { return };
    let server = Launch::echo(&ends.lab).start();
    let mut link = RawLink::open(&ends.lab);
    let ask = |target| {
        let request = packet::arp_request(ends.client_link, ends.client4(), target);
        packet::ethernet(packet::BROADCAST, ends.client_link, packet::ARP, &request)
    };
    let is_reply =
        |frame: &[u8]| packet::get_u16(frame, 12) == packet::ARP && packet::get_u16(frame, 20) == 2;
    let [a, b, c, _] = ends.server4().octets();
    link.send(&ask(Ipv4Addr::new(a, b, c, 99)));
    link.send(&ask(ends.server4()));
    let reply = link.expect("an ARP reply", is_reply);
    assert_eq!(
        reply[28..32],
        ends.server4().octets(),
        "the answer is about the server's address"
    );
    let more = link.receive(Duration::from_millis(200), |frame| {
        is_reply(frame).then_some(())
    });
    assert!(
        more.is_none(),
        "an answer for an address that is not the server's"
    );
    server.stop();
}
