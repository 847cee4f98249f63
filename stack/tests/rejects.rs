//! Every reason to drop a frame: provoked, counted once, answered with nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::packets::*;
use common::*;
use interruptlet::sim::Sim;
use interruptlet::wire::Reject;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const V4: Ends = (IpAddr::V4(CLIENT_V4), IpAddr::V4(SERVER_V4));
const V6: Ends = (IpAddr::V6(CLIENT_V6), IpAddr::V6(SERVER_V6));
const PORTS: (u16, u16) = (5000, PORT);

/// A valid frame with one byte changed, the IPv4 checksum made right again.
fn with(mut frame: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    frame[at] = value;
    fix_ipv4_checksum(&mut frame);
    frame
}

/// A valid frame with one bit flipped.
fn flipped(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    frame[at] ^= 0x10;
    frame
}

/// A datagram of a source that must not be answered.
fn from(source: &str) -> Vec<u8> {
    let source: IpAddr = source.parse().unwrap();
    let destination = if source.is_ipv4() {
        SERVER_V4.into()
    } else {
        SERVER_V6.into()
    };
    udp((source, destination), PORTS, b"x")
}

fn segment(flags: u8) -> Segment {
    Segment {
        source_port: 5000,
        destination_port: PORT,
        flags,
        window: 1000,
        ..Segment::default()
    }
}

/// A datagram behind IPv6 extension headers.
fn extended(next_header: u8, headers: &[u8]) -> Vec<u8> {
    let payload = [headers, &udp_datagram(V6, PORTS, b"x")].concat();
    ipv6(CLIENT_V6, SERVER_V6, next_header, &payload)
}

/// A datagram behind IPv4 options.
fn with_options(options: &[u8]) -> Vec<u8> {
    let datagram = udp_datagram(V4, PORTS, b"x");
    ipv4(CLIENT_V4, SERVER_V4, options, UDP, &datagram)
}

/// Frames that must be dropped for `reason`.
fn cases(reason: Reject) -> Vec<Vec<u8>> {
    let datagram = |ends| udp(ends, PORTS, b"hello");
    match reason {
        Reject::Truncated => vec![
            vec![],
            vec![2; 13],
            datagram(V4)[..14].to_vec(),
            datagram(V4)[..33].to_vec(),
            datagram(V4)[..datagram(V4).len() - 1].to_vec(),
            datagram(V6)[..53].to_vec(),
            datagram(V6)[..datagram(V6).len() - 1].to_vec(),
            tagged(&datagram(V4), 0)[..16].to_vec(),
            // Longer than a frame can hold.
            udp(V4, PORTS, &[0; 4000]),
        ],
        // The MTU is 1500.
        Reject::Oversized => vec![udp(V4, PORTS, &[0; 1473]), udp(V6, PORTS, &[0; 1453])],
        Reject::Ethertype => vec![
            ethernet(0x88cc, &[0; 50]),
            ethernet(0x0042, &[0; 66]),
            // Three tags.
            tagged(&tagged(&tagged(&datagram(V4), 0), 0), 0),
        ],
        Reject::LinkSource => vec![
            {
                let mut frame = datagram(V4);
                frame[6..12].fill(0xff);
                frame
            },
            {
                let mut frame = datagram(V6);
                frame[6] |= 1;
                frame
            },
        ],
        Reject::LinkDestination => vec![
            with(datagram(V4), 5, 99),
            // Unicast in a link-layer broadcast or group.
            {
                let mut frame = datagram(V4);
                frame[..6].fill(0xff);
                frame
            },
            {
                let mut frame = Segment::frame(&segment(SYN), V6);
                frame[0] |= 1;
                frame
            },
        ],
        Reject::IpHeader => vec![
            with(datagram(V4), 14, 0x65),
            with(datagram(V4), 14, 0x44),
            // A total length shorter than the header.
            with(with(datagram(V4), 16, 0), 17, 19),
            flipped(datagram(V6), 14),
            // An extension header longer than the packet, one of no bytes, and too many of them.
            extended(0, &[UDP, 9, 1, 4, 0, 0, 0, 0]),
            ipv6(CLIENT_V6, SERVER_V6, 60, &[]),
            extended(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)),
            // An option longer than its header.
            extended(0, &[UDP, 0, 1, 9, 0, 0, 0, 0]),
            // A fragment header cut off.
            ipv6(CLIENT_V6, SERVER_V6, 44, &[UDP, 0, 0, 0]),
        ],
        Reject::IpChecksum => vec![flipped(datagram(V4), 14 + 8), flipped(datagram(V4), 14 + 1)],
        Reject::IpFragment => vec![
            // More fragments; an offset; a tiny first fragment that would hide its ports; the last one
            // of an overlapping pair.
            with(datagram(V4), 20, 0x20),
            with(datagram(V4), 21, 1),
            with(ipv4(CLIENT_V4, SERVER_V4, &[], TCP, &[0; 8]), 20, 0x20),
            with(ipv4(CLIENT_V4, SERVER_V4, &[], TCP, &[0; 40]), 21, 1),
            extended(44, &[UDP, 0, 0, 1, 0, 0, 0, 7]),
            extended(44, &[UDP, 0, 0, 8, 0, 0, 0, 7]),
        ],
        Reject::IpOption => vec![
            // Loose and strict source routes, and a list that does not add up.
            with_options(&[131, 7, 4, 10, 0, 0, 1, 0]),
            with_options(&[1, 137, 7, 4, 10, 0, 0, 1]),
            with_options(&[148, 9, 0, 0]),
            with_options(&[148, 1, 0, 0]),
            // A routing header with segments left, a destination option that says to discard.
            extended(43, &[UDP, 0, 0, 1, 0, 0, 0, 0]),
            extended(60, &[UDP, 0, 0x80, 4, 0, 0, 0, 0]),
        ],
        Reject::IpSource => [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:192.0.2.9",
        ]
        .map(from)
        .to_vec(),
        Reject::IpOwnSource => vec![
            // Ours, but to the other one of our addresses (the test has two of each version).
            udp((SERVER_V4.into(), OTHER_V4.into()), PORTS, b"x"),
            udp((SERVER_V6.into(), OTHER_V6.into()), PORTS, b"x"),
        ],
        Reject::IpLand => vec![
            udp((SERVER_V4.into(), SERVER_V4.into()), (PORT, PORT), b"x"),
            udp((SERVER_V6.into(), SERVER_V6.into()), (PORT, PORT), b"x"),
            segment(SYN).frame((SERVER_V4.into(), SERVER_V4.into())),
        ],
        Reject::IpDestination => [
            "192.0.2.77",
            "192.0.2.255",
            "255.255.255.255",
            "224.0.0.251",
        ]
        .map(|to| {
            let to: Ipv4Addr = to.parse().unwrap();
            udp((CLIENT_V4.into(), to.into()), PORTS, b"x")
        })
        .into_iter()
        // The last one contains our IPv4 address.
        .chain(["2001:db8::77", "ff02::1", "::ffff:192.0.2.1"].map(|to| {
            let to: Ipv6Addr = to.parse().unwrap();
            udp((CLIENT_V6.into(), to.into()), PORTS, b"x")
        }))
        .collect(),
        Reject::IpProtocol => vec![
            ip(V4, 47, &[0; 20]),
            ip(V4, ICMPV6, &icmp_message(V6, 128, 0, &[0; 4])),
            ip(V6, ICMP, &icmp_message(V4, 8, 0, &[0; 4])),
            ip(V6, 59, &[]),
        ],
        Reject::TcpHeader => {
            let cut = |len: usize| ip(V4, TCP, &segment(SYN).bytes(V4)[..len]);
            let options = |options: &[u8]| {
                Segment {
                    options: options.to_vec(),
                    ..segment(SYN)
                }
                .frame(V4)
            };
            let offset = |words: u8| {
                let mut bytes = segment(SYN).bytes(V4);
                bytes[12] = words << 4;
                ip(V4, TCP, &bytes)
            };
            let ports = |source_port, destination_port| {
                Segment {
                    source_port,
                    destination_port,
                    ..segment(SYN)
                }
                .frame(V6)
            };
            vec![
                cut(0),
                cut(3),
                cut(19),
                offset(4),
                offset(6),
                offset(15),
                ports(0, PORT),
                ports(5000, 0),
                // More than one of SYN, FIN and RST.
                segment(SYN | FIN).frame(V4),
                segment(SYN | RST).frame(V4),
                segment(FIN | RST | ACK).frame(V6),
                segment(0xff).frame(V4),
                // Neither a SYN nor a reset, and no acknowledgement.
                segment(0).frame(V4),
                segment(FIN).frame(V6),
                // Options that are longer than the header, or shorter than themselves.
                options(&[2, 9, 5, 180]),
                options(&[1, 1, 1, 2]),
                options(&[2, 1, 0, 0]),
            ]
        }
        Reject::TcpChecksum => [V4, V6]
            .map(|ends| {
                let frame = segment(SYN).frame(ends);
                let last = frame.len() - 1;
                flipped(frame, last)
            })
            .to_vec(),
        Reject::UdpHeader => {
            let length = |len: u8| {
                let mut bytes = udp_datagram(V4, PORTS, b"hello");
                bytes[5] = len;
                ip(V4, UDP, &bytes)
            };
            vec![
                ip(V4, UDP, &[]),
                ip(V6, UDP, &udp_datagram(V6, PORTS, b"")[..7]),
                length(0),
                length(7),
                length(14),
                udp(V4, (0, PORT), b"x"),
                udp(V6, (5000, 0), b"x"),
            ]
        }
        Reject::UdpChecksum => {
            let mut unchecked = udp_datagram(V6, PORTS, b"hello");
            unchecked[6..8].fill(0);
            vec![
                flipped(datagram(V4), 14 + 20 + 8),
                flipped(datagram(V6), 14 + 40 + 8),
                flipped(udp(V4, (5000, CLOSED_PORT), b"x"), 14 + 20 + 8),
                ip(V6, UDP, &unchecked),
            ]
        }
        Reject::ChecksumLeft => {
            // The pseudo-header's sum, not its complement, is all that is in the field.
            let left = |mut frame: Vec<u8>, ends, protocol, transport: usize, field: usize| {
                let len = frame.len() - transport;
                let sum = pseudo_header_sum(ends, protocol, len);
                frame[transport + field..][..2].copy_from_slice(&sum.to_be_bytes());
                frame
            };
            vec![
                left(segment(SYN).frame(V4), V4, TCP, 14 + 20, 16),
                left(segment(SYN).frame(V6), V6, TCP, 14 + 40, 16),
                left(datagram(V4), V4, UDP, 14 + 20, 6),
                left(datagram(V6), V6, UDP, 14 + 40, 6),
            ]
        }
        Reject::IcmpHeader => vec![
            ip(V4, ICMP, &[8, 0, 0xf7, 0xff]),
            ip(V4, ICMP, &[]),
            ip(V6, ICMPV6, &[128, 0, 0, 0]),
        ],
        Reject::IcmpChecksum => vec![
            flipped(echo_request(V4, 1, 1, b"ping"), 14 + 20 + 9),
            flipped(echo_request(V6, 1, 1, b"ping"), 14 + 40 + 9),
            {
                let mut frame = neighbour_solicitation(SERVER_V6);
                frame[14 + 40 + 4] ^= 1;
                frame
            },
        ],
        Reject::IcmpIgnored => {
            let message = |ends, kind, code| {
                ip(
                    ends,
                    icmp_protocol(ends),
                    &icmp_message(ends, kind, code, &[0; 40]),
                )
            };
            vec![
                // An echo reply, an error (never answered with an error), a timestamp request, an echo
                // request with a code.
                message(V4, 0, 0),
                message(V4, 3, 3),
                message(V4, 13, 0),
                message(V4, 8, 1),
                // "Fragmentation needed" and "packet too big" that quote nothing.
                message(V4, 3, 4),
                message(V6, 2, 0),
                message(V6, 129, 0),
                message(V6, 1, 4),
                message(V6, 128, 1),
            ]
        }
        Reject::Neighbour => vec![
            // About somebody else's address; an answer that nobody asked for; cut short.
            arp_request(Ipv4Addr::new(192, 0, 2, 77)),
            neighbour_solicitation("2001:db8::77".parse().unwrap()),
            {
                let mut frame = arp_request(SERVER_V4);
                frame[21] = 2;
                frame
            },
            arp_request(SERVER_V4)[..41].to_vec(),
            // From beyond a router; from our own address.
            {
                let mut frame = neighbour_solicitation(SERVER_V6);
                frame[14 + 7] = 64;
                frame
            },
            {
                let ends = (SERVER_V6.into(), SERVER_V6.into());
                let rest = neighbour_solicitation(SERVER_V6)[14 + 40 + 4..].to_vec();
                let mut frame = ip(ends, ICMPV6, &icmp_message(ends, 135, 0, &rest));
                frame[14 + 7] = 255;
                frame
            },
        ],
    }
}

const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

#[test]
fn every_reason_is_counted_once_and_nothing_is_sent() {
    let mut config = echo_config();
    for (address, prefix) in [(IpAddr::from(OTHER_V4), 24), (IpAddr::from(OTHER_V6), 64)] {
        config
            .addresses
            .push(interruptlet::Cidr { address, prefix });
    }
    let mut sim = Sim::new(config);
    for reason in Reject::ALL {
        let cases = cases(*reason);
        assert!(!cases.is_empty(), "no case for {}", reason.name());
        for (number, frame) in cases.iter().enumerate() {
            let before = sim.counters().snapshot();
            let answers = exchange(&mut sim, frame);
            let context = format!("{} case {number}", reason.name());
            assert!(answers.is_empty(), "{context}: answered with {answers:?}");
            for ((name, before), (_, after)) in before.into_iter().zip(sim.counters().snapshot()) {
                let expected = match name {
                    name if name == reason.name() => 1,
                    "rx_frames" | "rx_batches" => 1,
                    "rx_bytes" => continue,
                    _ => 0,
                };
                assert_eq!(after - before, expected, "{context}: {name}");
            }
        }
    }
    assert_eq!(sim.flows(), 0);
    assert_at_rest(&mut sim);
}
