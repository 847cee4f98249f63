//! Arbitrary and damaged frames into a worker with live connections: no panic, no reply to what is damaged,
//! no frame lost, and service as before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::handlers::{Echo, Lines};
use common::packets::*;
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};
use proptest::prelude::*;

/// A worker with a connection of each version, one that has a request deferred, one half-open and one that
/// the worker has closed.
fn busy_worker() -> (Sim, [Raw; 2]) {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    let mut config = SimConfig {
        streams: vec![service],
        datagrams: vec![datagram(Echo)],
        ..SimConfig::default()
    };
    config.limits.frames = 64;
    let mut sim = Sim::new(config);
    let mut live = BOTH.map(|version| Raw::open(&mut sim, version, 5000));
    for raw in &mut live {
        // Half a request is there, half of the reply before it is not acknowledged.
        raw.send(&mut sim, ACK, b"content 3000\nreply hal");
    }
    Raw::open(&mut sim, Version::V4, 5001).send(&mut sim, ACK, b"defer reply x\n");
    Raw::new(Version::V4, 5002).syn(&mut sim);
    Raw::open(&mut sim, Version::V6, 5003).send(&mut sim, ACK, b"close\n");
    sent(&sim);
    (sim, live)
}

/// One valid frame of each kind, for the connections of `live`.
fn valid_frames(live: &[Raw; 2]) -> Vec<Vec<u8>> {
    let mut frames = vec![arp_request(SERVER_V4), neighbour_solicitation(SERVER_V6)];
    for raw in live {
        frames.push(udp(raw.ends, (5000, PORT), b"datagram"));
        frames.push(udp(raw.ends, (5000, CLOSED_PORT), b"datagram"));
        frames.push(echo_request(raw.ends, 1, 2, b"ping"));
        frames.push(raw.segment(ACK | PSH, b"f\nplace more\n").frame(raw.ends));
        frames.push(raw.segment(FIN | ACK, b"").frame(raw.ends));
        let syn = Segment {
            source_port: 5999,
            ack: 0,
            options: vec![2, 4, 5, 0xb4, 1, 3, 3, 7, 4, 2, 0, 0],
            ..raw.segment(SYN, b"")
        };
        frames.push(syn.frame(raw.ends));
    }
    frames
}

/// Whether a frame certainly has a wrong checksum; IPv6 extension headers are not looked into.
fn is_damaged(frame: &[u8]) -> bool {
    let Some(packet) = frame.get(14..) else {
        return false;
    };
    let (protocol, transport, pseudo): (u8, &[u8], Vec<u8>) = match frame[12..14] {
        [0x08, 0x00] => {
            let header_len = usize::from(packet.first().map_or(0, |byte| byte & 0x0f)) * 4;
            let Some(header) = packet.get(..header_len).filter(|_| header_len >= 20) else {
                return false;
            };
            if checksum(&[header]) != 0 {
                return true;
            }
            let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let Some(transport) = packet.get(header_len..end) else {
                return false;
            };
            let len = (transport.len() as u16).to_be_bytes();
            let pseudo = [&packet[12..20], &[0, packet[9]], &len].concat();
            (packet[9], transport, pseudo)
        }
        [0x86, 0xdd] if packet.len() >= 40 => {
            let end = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            let Some(transport) = packet.get(40..end) else {
                return false;
            };
            let len = (transport.len() as u16).to_be_bytes();
            let pseudo = [&packet[8..40], &[0, packet[6]], &len].concat();
            (packet[6], transport, pseudo)
        }
        _ => return false,
    };
    match protocol {
        ICMP => checksum(&[transport]) != 0,
        ICMPV6 | TCP => checksum(&[&pseudo, transport]) != 0,
        // The datagram may be shorter than the packet, and have no checksum.
        UDP if transport.len() >= 8 && transport[6..8] != [0, 0] => {
            usize::from(u16::from_be_bytes([transport[4], transport[5]])) == transport.len()
                && checksum(&[&pseudo, transport]) != 0
        }
        _ => false,
    }
}

/// Every frame that the worker sends is well-formed.
fn check_answers(answers: &[Vec<u8>]) {
    for answer in answers.iter().filter(|answer| !is_arp(answer)) {
        dissect(answer);
    }
}

/// After whatever was injected: the slow path finishes, frames are home, and everything is still served.
fn assert_still_serves(sim: &mut Sim) {
    assert!(sim.frames().is_conserved());
    for _ in 0..3 {
        sim.run_jobs(64);
        sim.turn();
    }
    // For the rate limit of errors.
    sim.advance(Duration::from_secs(1));
    assert_at_rest(sim);
    check_answers(&sent(sim));
    for version in BOTH {
        let mut raw = Raw::open(sim, version, 6001);
        assert_eq!(raw.request(sim, b"reply alive\n"), b"<alive>\n");
        raw.send(sim, RST, b"");
        let ends = (version.client(), version.server());
        assert_eq!(exchange(sim, &udp(ends, (6001, PORT), b"x")).len(), 1);
    }
    assert_at_rest(sim);
}

/// What is done to a valid frame.
#[derive(Debug, Clone)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Set { at: usize, value: u8 },
    Cut { to: usize },
    Pad { by: usize },
    Splice { at: usize, bytes: Vec<u8> },
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        // Headers more often than payload.
        (12..80usize, any::<u8>()).prop_map(|(at, value)| Damage::Set { at, value }),
        any::<usize>().prop_map(|to| Damage::Cut { to }),
        (0..2000usize).prop_map(|by| Damage::Pad { by }),
        (12..80usize, prop::collection::vec(any::<u8>(), 0..16))
            .prop_map(|(at, bytes)| Damage::Splice { at, bytes }),
    ]
}

fn apply(frame: &mut Vec<u8>, damage: &Damage) {
    let len = frame.len();
    match damage {
        Damage::Flip { at, bit } if len > 0 => frame[at % len] ^= 1 << bit,
        Damage::Set { at, value } if len > 0 => frame[at % len] = *value,
        Damage::Cut { to } => frame.truncate(to % (len + 1)),
        Damage::Pad { by } => frame.resize(len + by, 0xa5),
        Damage::Splice { at, bytes } => {
            let at = (*at).min(len);
            frame.splice(at..at, bytes.iter().copied());
        }
        Damage::Flip { .. } | Damage::Set { .. } => {}
    }
}

/// A segment with right checksums for a connection of the worker, sensible or not.
#[derive(Debug, Clone)]
struct Odd {
    version: usize,
    port: u16,
    seq: i32,
    ack: i32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: usize,
    wait_millis: u64,
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![
        3 => -3..4i32,
        3 => -3000..3000i32,
        2 => -70_000..70_000i32,
        1 => any::<i32>(),
    ]
}

fn odd() -> impl Strategy<Value = Odd> {
    (
        (0..2usize, prop_oneof![4 => Just(5000), 1 => 5001..5005u16]),
        (near(), near()),
        prop_oneof![3 => Just(ACK), 1 => Just(FIN | ACK), 1 => Just(SYN), 1 => any::<u8>()],
        prop_oneof![Just(0), Just(u16::MAX), any::<u16>()],
        prop::collection::vec(any::<u8>(), 0..40),
        prop_oneof![Just(0), 1..20usize, 0..1400usize],
        prop_oneof![4 => Just(0), 1 => 0..3000u64, 1 => 0..400_000u64],
    )
        .prop_map(
            |((version, port), (seq, ack), flags, window, options, payload, wait_millis)| Odd {
                version,
                port,
                seq,
                ack,
                flags,
                window,
                options,
                payload,
                wait_millis,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn arbitrary_bytes(frames in prop::collection::vec(
        (prop::collection::vec(any::<u8>(), 0..200), any::<u8>()), 1..40,
    )) {
        let (mut sim, _) = busy_worker();
        for (mut frame, shape) in frames {
            // Most begin like a frame for us, so that something behind the link header is looked at.
            if shape >= 32 && frame.len() >= 15 {
                frame[..6].copy_from_slice(&SERVER_LINK);
                frame[6..12].copy_from_slice(&CLIENT_LINK);
                let (ethertype, first) = [(0x0800u16, 0x45), (0x86dd, 0x60), (0x0806, 0), (0x8100, 0)]
                    [usize::from(shape) % 4];
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                frame[14] = first;
            }
            let answers = exchange(&mut sim, &frame);
            check_answers(&answers);
            prop_assert!(answers.is_empty() || !is_damaged(&frame));
        }
        assert_still_serves(&mut sim);
    }

    #[test]
    fn damaged_frames(frames in prop::collection::vec(
        (any::<prop::sample::Index>(), prop::collection::vec(damage(), 1..4)), 1..40,
    )) {
        let (mut sim, live) = busy_worker();
        let valid = valid_frames(&live);
        for (which, damages) in frames {
            let mut frame = valid[which.index(valid.len())].clone();
            for damage in &damages {
                apply(&mut frame, damage);
            }
            let answers = exchange(&mut sim, &frame);
            check_answers(&answers);
            prop_assert!(
                answers.is_empty() || !is_damaged(&frame),
                "{:02x?} was answered with {:02x?}", frame, answers
            );
        }
        assert_still_serves(&mut sim);
    }

    #[test]
    fn odd_segments(segments in prop::collection::vec(odd(), 1..60)) {
        let (mut sim, live) = busy_worker();
        for odd in segments {
            let raw = &live[odd.version];
            let mut options = odd.options;
            options.truncate(options.len() / 4 * 4);
            let segment = Segment {
                source_port: odd.port,
                destination_port: PORT,
                seq: raw.seq.wrapping_add_signed(odd.seq),
                ack: raw.ack.wrapping_add_signed(odd.ack),
                flags: odd.flags,
                window: odd.window,
                options,
                payload: pattern(odd.payload),
            };
            check_answers(&exchange(&mut sim, &segment.frame(raw.ends)));
            sim.advance(Duration::from_millis(odd.wait_millis));
        }
        assert_still_serves(&mut sim);
    }
}

/// A flipped bit anywhere in what a checksum covers is noticed.
#[test]
fn no_flipped_bit_is_answered() {
    let (mut sim, live) = busy_worker();
    for frame in valid_frames(&live) {
        for bit in 14 * 8..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if is_damaged(&flipped) {
                let answers = exchange(&mut sim, &flipped);
                assert!(answers.is_empty(), "bit {bit} of {frame:02x?}");
            }
        }
    }
    // Nothing of it reached the connections: what comes next is acknowledged, soon.
    for mut raw in live {
        let mut answers = raw.send(&mut sim, ACK, b"f\n");
        sim.advance(Duration::from_millis(100));
        sim.turn();
        answers.extend(raw.received(&sim));
        let last = answers.last().unwrap();
        assert_eq!((last.ack, last.flags & RST), (raw.seq, 0));
    }
    assert_still_serves(&mut sim);
}
