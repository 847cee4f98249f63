//! What is answered without a connection: ARP and neighbour discovery, ping, UDP, port unreachable; and
//! what must not be answered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::handlers::{DeferDatagrams, Echo, SlowDatagrams, Takes, Timed};
use common::packets::*;
use common::*;
use interruptlet::Duration;
use interruptlet::interruptlet::{DatagramInterruptlet, DatagramReply, DatagramRequest};
use interruptlet::sim::{Sim, SimConfig};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

fn ends(version: Version) -> Ends {
    (version.client(), version.server())
}

/// The one packet that answers `frame`, addressed back.
fn answer_to(sim: &mut Sim, frame: &[u8], version: Version) -> Packet {
    let answers = exchange(sim, frame);
    assert_eq!(answers.len(), 1, "{answers:?}");
    let packet = dissect(&answers[0]);
    assert_eq!(packet.link_source, SERVER_LINK);
    assert_eq!(packet.link_destination, CLIENT_LINK);
    assert_eq!(packet.source, version.server());
    assert_eq!(packet.destination, version.client());
    packet
}

#[test]
fn arp_requests_for_us_are_answered() {
    let mut sim = Sim::new(echo_config());
    let answers = exchange(&mut sim, &arp_request(SERVER_V4));
    assert_eq!(answers.len(), 1);
    let reply = &answers[0];
    assert_eq!(reply[..6], CLIENT_LINK);
    assert_eq!(reply[6..14], [2, 0, 0, 0, 0, 1, 8, 6]);
    assert_eq!(
        reply[20..22],
        [0, 2],
        "a reply (RFC 826), sender and target swapped"
    );
    assert_eq!(reply[22..28], SERVER_LINK);
    assert_eq!(reply[28..32], SERVER_V4.octets());
    assert_eq!(reply[32..38], CLIENT_LINK);
    assert_eq!(reply[38..42], CLIENT_V4.octets());

    assert!(exchange(&mut sim, &arp_request(Ipv4Addr::new(192, 0, 2, 77))).is_empty());
    assert_eq!(counter(&sim, "neighbour_messages"), 1);
    assert_eq!(counter(&sim, "drop_neighbour"), 1);
    assert_at_rest(&mut sim);
}

#[test]
fn arp_is_answered_whoever_asks() {
    // Outside of our prefix (a /32 has nothing else), and probing for a duplicate (RFC 5227).
    let mut sim = Sim::new(echo_config());
    for sender in [Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::UNSPECIFIED] {
        let answers = exchange(&mut sim, &arp_request_from(sender, SERVER_V4));
        assert_eq!(answers.len(), 1, "{sender}");
        assert_eq!(answers[0][..6], CLIENT_LINK);
        assert_eq!(answers[0][28..32], SERVER_V4.octets());
        assert_eq!(answers[0][38..42], sender.octets());
    }
    // Nobody else has our address.
    assert!(exchange(&mut sim, &arp_request_from(SERVER_V4, SERVER_V4)).is_empty());
    assert_at_rest(&mut sim);
}

/// A neighbour advertisement for our IPv6 address with our link address.
fn assert_advertisement(packet: &Packet) {
    assert_eq!(packet.protocol, ICMPV6);
    assert_eq!(packet.hop_limit, 255);
    let message = &packet.transport;
    assert_eq!(message[0], 136);
    assert_ne!(message[4] & 0x40, 0, "solicited");
    assert_eq!(message[8..24], SERVER_V6.octets());
    assert_eq!(message[24..26], [2, 1], "target link address option");
    assert_eq!(message[26..32], SERVER_LINK);
}

#[test]
fn neighbours_are_answered_on_their_link_local_address() {
    // Routers, and the kernel's probes of known neighbours, ask from it.
    let sender: Ipv6Addr = "fe80::9".parse().unwrap();
    let mut sim = Sim::new(echo_config());
    let answers = exchange(&mut sim, &neighbour_solicitation_from(sender, SERVER_V6));
    assert_eq!(answers.len(), 1);
    let packet = dissect(&answers[0]);
    assert_eq!(packet.link_destination, CLIENT_LINK);
    assert_eq!(packet.destination, sender);
    assert_advertisement(&packet);
    assert_at_rest(&mut sim);
}

#[test]
fn who_tries_out_our_address_is_told_with_all_nodes() {
    let mut sim = Sim::new(echo_config());
    let probe = neighbour_solicitation_from(Ipv6Addr::UNSPECIFIED, SERVER_V6);
    let answers = exchange(&mut sim, &probe);
    assert_eq!(answers.len(), 1);
    let packet = dissect(&answers[0]);
    assert_eq!(packet.link_destination, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(packet.destination, "ff02::1".parse::<Ipv6Addr>().unwrap());
    assert_eq!(packet.transport[0], 136);
    assert_eq!(packet.transport[4] & 0x40, 0, "not solicited");
    assert_at_rest(&mut sim);
}

#[test]
fn neighbour_solicitations_for_us_are_answered() {
    let mut sim = Sim::new(echo_config());
    let packet = answer_to(&mut sim, &neighbour_solicitation(SERVER_V6), Version::V6);
    assert_advertisement(&packet);
    let other = "2001:db8::77".parse().unwrap();
    assert!(exchange(&mut sim, &neighbour_solicitation(other)).is_empty());
    assert_at_rest(&mut sim);
}

/// How a neighbour that knows us checks that we are still there (RFC 4861 section 7.3.3).
#[test]
fn unicast_neighbour_solicitations_are_answered() {
    let mut sim = Sim::new(echo_config());
    let group = neighbour_solicitation(SERVER_V6);
    let ends = (CLIENT_V6.into(), SERVER_V6.into());
    let message = icmp_message(ends, 135, 0, &group[14 + 40 + 4..]);
    let mut frame = ip(ends, ICMPV6, &message);
    frame[14 + 7] = 255;
    let packet = answer_to(&mut sim, &frame, Version::V6);
    assert_advertisement(&packet);
    assert_at_rest(&mut sim);
}

#[test]
fn pings_are_answered_with_their_id_number_and_payload() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        for payload in [&b""[..], b"odd", &pattern(1400)] {
            let request = echo_request(ends(version), 0xbeef, 77, payload);
            let packet = answer_to(&mut sim, &request, version);
            let (protocol, kind) = match version {
                Version::V4 => (ICMP, 0),
                Version::V6 => (ICMPV6, 129),
            };
            assert_eq!(packet.protocol, protocol);
            assert_eq!(packet.transport[..2], [kind, 0]);
            assert_eq!(packet.transport[4..8], [0xbe, 0xef, 0, 77]);
            assert_eq!(&packet.transport[8..], payload);
        }
        assert_eq!(counter(&sim, "icmp_echo_replies"), 3);
        assert_at_rest(&mut sim);
    }
}

#[test]
fn datagrams_are_echoed_from_empty_to_the_mtu() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        let largest = 1500 - version.ip_header_bytes() - 8;
        for len in [0, 1, 2, 63, 64, 65, 1000, largest - 1, largest] {
            let payload = pattern(len);
            let frame = udp(ends(version), (5000, PORT), &payload);
            let packet = answer_to(&mut sim, &frame, version);
            assert_eq!(packet.ports(), (PORT, 5000));
            assert_eq!(packet.udp_payload(), payload);
        }
        assert_at_rest(&mut sim);
    }
}

#[test]
fn link_padding_is_not_payload() {
    let mut sim = Sim::new(echo_config());
    let mut frame = udp(ends(Version::V4), (5000, PORT), b"x");
    frame.resize(60, 0xee);
    let packet = answer_to(&mut sim, &frame, Version::V4);
    assert_eq!(packet.udp_payload(), b"x");
}

#[test]
fn a_datagram_shorter_than_its_packet_is_cut_to_its_own_length() {
    let mut sim = Sim::new(echo_config());
    for version in BOTH {
        let mut datagram = udp_datagram(ends(version), (5000, PORT), b"abc");
        datagram.extend(b"not part of it");
        let packet = answer_to(&mut sim, &ip(ends(version), UDP, &datagram), version);
        assert_eq!(packet.udp_payload(), b"abc");
    }
}

#[test]
fn a_datagram_without_checksum_is_fine_over_ipv4_only() {
    let mut sim = Sim::new(echo_config());
    for (version, answers) in [(Version::V4, 1), (Version::V6, 0)] {
        let mut datagram = udp_datagram(ends(version), (5000, PORT), b"abc");
        datagram[6..8].fill(0);
        let frame = ip(ends(version), UDP, &datagram);
        assert_eq!(exchange(&mut sim, &frame).len(), answers, "{version:?}");
    }
    assert_eq!(counter(&sim, "drop_udp_checksum"), 1);
}

#[test]
fn closed_udp_ports_are_reported_at_a_limited_rate() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        let payload = pattern(1400);
        let frame = udp(ends(version), (5000, CLOSED_PORT), &payload);
        let packet = answer_to(&mut sim, &frame, version);
        let (protocol, head, size) = match version {
            Version::V4 => (ICMP, [3, 3], 576),
            Version::V6 => (ICMPV6, [1, 4], 1280),
        };
        assert_eq!(packet.protocol, protocol);
        assert_eq!(packet.transport[..2], head);
        assert_eq!(packet.transport[4..8], [0; 4]);
        let quoted = &packet.transport[8..];
        assert_eq!(quoted.len(), size - version.ip_header_bytes() - 8);
        assert_eq!(quoted, &frame[14..14 + quoted.len()]);

        // The rest of the burst, then nothing, until time has passed.
        let mut sent = 1;
        for _ in 0..200 {
            sent += exchange(&mut sim, &frame).len() as u64;
        }
        assert_eq!(sent, counter(&sim, "icmp_unreachables"));
        assert_eq!(sent + counter(&sim, "icmp_rate_limited"), 201);
        assert!((10..100).contains(&sent), "a burst of {sent}");
        sim.advance(Duration::from_millis(10));
        assert_eq!(exchange(&mut sim, &frame).len(), 1);
        assert_at_rest(&mut sim);
    }
}

#[test]
fn tags_are_answered_with_the_same_tags() {
    let mut sim = Sim::new(echo_config());
    // Priority 5, VID 0 (IEEE 802.1Q: a priority tag, of no VLAN).
    let tag = 5 << 13;
    for version in BOTH {
        let frame = tagged(&udp(ends(version), (5000, PORT), b"tagged"), tag);
        let packet = answer_to(&mut sim, &frame, version);
        assert_eq!(packet.tags, [tag]);
        assert_eq!(packet.udp_payload(), b"tagged");

        let frame = tagged(&echo_request(ends(version), 1, 2, b"tagged"), tag);
        let packet = answer_to(&mut sim, &frame, version);
        assert_eq!(packet.tags, [tag]);
        assert_eq!(&packet.transport[8..], b"tagged");

        let frame = tagged(&udp(ends(version), (5000, CLOSED_PORT), b"tagged"), tag);
        let packet = answer_to(&mut sim, &frame, version);
        assert_eq!(packet.tags, [tag]);
    }
    assert_eq!(
        exchange(&mut sim, &tagged(&arp_request(SERVER_V4), tag)).len(),
        1
    );
    assert_at_rest(&mut sim);
}

#[test]
fn ipv4_options_are_taken_out() {
    let mut sim = Sim::new(echo_config());
    // No-operation, a router alert (RFC 2113), end of list.
    let options = [1, 148, 4, 0, 0, 0, 0, 0];
    let datagram = udp_datagram(ends(Version::V4), (5000, PORT), b"options");
    let frame = ipv4(CLIENT_V4, SERVER_V4, &options, UDP, &datagram);
    let packet = answer_to(&mut sim, &frame, Version::V4);
    assert_eq!(packet.udp_payload(), b"options");

    let ping = icmp_message(ends(Version::V4), 8, 0, b"\0\x01\0\x02payload");
    let frame = ipv4(CLIENT_V4, SERVER_V4, &options, ICMP, &ping);
    let packet = answer_to(&mut sim, &frame, Version::V4);
    assert_eq!(&packet.transport[4..], b"\0\x01\0\x02payload");
}

#[test]
fn ipv6_extension_headers_are_taken_out() {
    let mut sim = Sim::new(echo_config());
    let datagram = udp_datagram(ends(Version::V6), (5000, PORT), b"extended");
    // Hop-by-hop options (a router alert and padding), a spent routing header, an atomic fragment,
    // destination options (padding), then UDP.
    let headers = [
        [43, 0, 5, 2, 0, 0, 1, 0],
        [44, 0, 4, 0, 0, 0, 0, 0],
        [60, 0, 0, 0, 1, 2, 3, 4],
        [UDP, 0, 1, 4, 0, 0, 0, 0],
    ]
    .concat();
    let frame = ipv6(CLIENT_V6, SERVER_V6, 0, &[headers, datagram].concat());
    let packet = answer_to(&mut sim, &frame, Version::V6);
    assert_eq!(packet.udp_payload(), b"extended");
}

#[test]
fn ipv4_do_not_fragment_is_no_fragment() {
    let mut sim = Sim::new(echo_config());
    let mut frame = udp(ends(Version::V4), (5000, PORT), b"whole");
    frame[14 + 6] = 0x40;
    fix_ipv4_checksum(&mut frame);
    assert_eq!(
        answer_to(&mut sim, &frame, Version::V4).udp_payload(),
        b"whole"
    );
}

#[test]
fn at_a_shared_address_the_kernel_answers_arp_and_neighbour_discovery() {
    let mut sim = Sim::new(SimConfig {
        shared_address: true,
        ..echo_config()
    });
    assert!(exchange(&mut sim, &arp_request(SERVER_V4)).is_empty());
    assert!(exchange(&mut sim, &neighbour_solicitation(SERVER_V6)).is_empty());
    assert_eq!(counter(&sim, "drop_neighbour"), 2);
    for version in BOTH {
        let frame = udp(ends(version), (5000, PORT), b"ours");
        assert_eq!(answer_to(&mut sim, &frame, version).udp_payload(), b"ours");
    }
    assert_at_rest(&mut sim);
}

/// Nobody who sends one small packet gets a bigger or a second one sent to somebody else.
#[test]
fn replies_go_where_the_request_came_from() {
    let mut sim = Sim::new(echo_config());
    let mut frame = udp(ends(Version::V4), (5000, PORT), b"x");
    let other = [2, 0, 0, 0, 0, 9];
    frame[6..12].copy_from_slice(&other);
    let answers = exchange(&mut sim, &frame);
    assert_eq!(dissect(&answers[0]).link_destination, other);
}

/// Replies longer than a datagram may be.
struct TooLong;

impl DatagramInterruptlet for TooLong {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        match request.bytes() {
            b"bytes" => request.reply(&pattern(3000)),
            b"content" => request.reply_content(pattern(3000).into()),
            _ => {
                let mut reply = request.reply_in_place();
                let len = reply.buffer().len();
                reply.buffer().copy_from_slice(&pattern(len));
                reply.send(usize::MAX)
            }
        }
    }
}

#[test]
fn replies_are_cut_to_what_one_datagram_may_hold() {
    for version in BOTH {
        let mut sim = Sim::new(SimConfig {
            datagrams: vec![datagram(TooLong)],
            ..SimConfig::default()
        });
        let largest = 1500 - version.ip_header_bytes() - 8;
        for request in [&b"bytes"[..], b"content", b"place"] {
            let frame = udp(ends(version), (5000, PORT), request);
            let packet = answer_to(&mut sim, &frame, version);
            assert_eq!(packet.udp_payload(), pattern(largest));
        }
        assert_eq!(counter(&sim, "udp_replies_cut"), 2);
        assert_at_rest(&mut sim);
    }
}

#[test]
fn deferred_datagrams_go_in_their_frames_and_come_back() {
    for version in BOTH {
        let mut service = datagram(DeferDatagrams);
        service.slow = Some(Arc::new(SlowDatagrams));
        let mut sim = Sim::new(SimConfig {
            datagrams: vec![service],
            ..SimConfig::default()
        });
        assert!(
            exchange(
                &mut sim,
                &tagged(&udp(ends(version), (5000, PORT), b"later"), 0)
            )
            .is_empty()
        );
        assert_eq!(counter(&sim, "deferred"), 1);
        assert_eq!(counter(&sim, "deferred_copied"), 0);
        assert_eq!(sim.frames().of(interruptlet::arena::Owner::Loan), 1);
        assert_eq!(sim.run_jobs(8), 1);
        sim.turn();
        let answers = sent(&sim);
        assert_eq!(answers.len(), 1);
        let packet = dissect(&answers[0]);
        assert_eq!(packet.tags, [0]);
        assert_eq!(packet.udp_payload(), b"slow:later");
        assert_at_rest(&mut sim);
    }
}

#[test]
fn without_room_for_it_the_handler_answers_a_deferred_datagram() {
    let mut service = datagram(DeferDatagrams);
    service.slow = Some(Arc::new(SlowDatagrams));
    let mut config = SimConfig {
        datagrams: vec![service],
        ..SimConfig::default()
    };
    config.limits.slow_queue = 2;
    config.limits.loans = 1;
    let mut sim = Sim::new(config);
    let frame = udp(ends(Version::V4), (5000, PORT), b"x");
    for _ in 0..2 {
        assert!(exchange(&mut sim, &frame).is_empty());
    }
    assert_eq!(
        counter(&sim, "deferred_copied"),
        1,
        "the second found no loan"
    );
    let packet = answer_to(&mut sim, &frame, Version::V4);
    assert_eq!(packet.udp_payload(), b"busy:x");
    assert_eq!(counter(&sim, "deferred_refused"), 1);
    assert_eq!(sim.run_jobs(8), 2);
    sim.turn();
    assert_eq!(sent(&sim).len(), 2);
    assert_at_rest(&mut sim);
}

/// Every handler call takes longer than the budget until the service is demoted; the client does not see
/// the difference.
#[test]
fn a_slow_datagram_handler_moves_to_the_slow_path() {
    let mut config = SimConfig::default();
    let (slow, _) = Timed::new(Echo, Takes::Work(Duration::from_micros(51)), &config);
    config.datagrams = vec![datagram(slow)];
    let mut sim = Sim::new(config);
    let frame = udp(ends(Version::V6), (5000, PORT), b"same");
    // The first call has it measured from then on.
    for _ in 0..17 {
        assert_eq!(exchange(&mut sim, &frame).len(), 1);
    }
    assert_eq!(counter(&sim, "handlers_suspected"), 1);
    assert_eq!(counter(&sim, "handler_overruns"), 16);
    assert_eq!(counter(&sim, "services_demoted"), 1);
    assert!(exchange(&mut sim, &frame).is_empty());
    assert_eq!(sim.run_jobs(8), 1);
    sim.turn();
    let answers = sent(&sim);
    assert_eq!(answers.len(), 1);
    assert_eq!(dissect(&answers[0]).udp_payload(), b"same");

    // The demoted handler is no excuse for a queue without bound.
    for _ in 0..40 {
        assert!(exchange(&mut sim, &frame).is_empty());
    }
    assert_eq!(counter(&sim, "deferred_refused"), 40 - 16);
    assert_eq!(sim.run_jobs(64), 16);
    assert_at_rest(&mut sim);
    assert_eq!(sent(&sim).len(), 16);
}

/// Sixty-four requests that are there together are answered with one call to the kernel.
#[test]
fn a_batch_is_sent_with_one_kick() {
    let mut sim = Sim::new(echo_config());
    for number in 0..64 {
        let ports = (5000 + number, PORT);
        sim.peer()
            .inject(&udp(ends(Version::V4), ports, b"one of many"));
    }
    assert!(sim.turn());
    assert_eq!(sent(&sim).len(), 64);
    assert_eq!(counter(&sim, "rx_batches"), 1);
    assert_eq!(counter(&sim, "tx_kicks"), 1);
    assert_at_rest(&mut sim);
}
