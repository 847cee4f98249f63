//! One frame into the parser: no panic, no access beyond the frame, offsets in order.
#![no_main]

use std::net::IpAddr;

use interruptlet::Cidr;
use interruptlet::wire::{Local, Packet, TransportKind, parse};
use libfuzzer_sys::fuzz_target;
use smoltcp::wire::EthernetAddress;

/// A byte that the parser must not touch lies behind the frame.
const GUARD: u8 = 0xa5;

fuzz_target!(|data: &[u8]| {
    let cidr = |address: IpAddr, prefix| Cidr { address, prefix };
    let addresses = [
        cidr(IpAddr::from([192, 0, 2, 1]), 24),
        cidr(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]), 64),
    ];
    let sources = [cidr(IpAddr::from([10, 9, 1, 0]), 24)];
    let local = Local::new(
        EthernetAddress([2, 0, 0, 0, 0, 1]),
        &addresses,
        &sources,
        1500,
    );
    let len = data.len();
    let mut buffer = data.to_vec();
    buffer.resize(len + 64, GUARD);
    let result = parse(&mut buffer, len, &local);
    assert!(buffer[len..].iter().all(|byte| *byte == GUARD));
    match result {
        Ok(Packet::Neighbour { len: now }) => assert!(now <= len),
        Ok(Packet::Ip(packet)) => {
            assert!(packet.ip < packet.transport && packet.transport <= packet.end);
            assert!(packet.end <= len);
            assert!(local.has(&packet.key.local));
            // Of a quoted segment, nobody says that its peer was no address of ours.
            let is_quoted = matches!(packet.kind, TransportKind::TooBig(_));
            assert!(is_quoted || !local.has(&packet.key.peer));
            assert_ne!(packet.key.local, packet.key.peer);
            assert_eq!(packet.key.local.is_ipv4(), packet.key.peer.is_ipv4());
            match packet.kind {
                TransportKind::Tcp { payload, .. } => {
                    assert!(packet.transport + 20 <= payload && payload <= packet.end);
                }
                TransportKind::Udp { payload_end } => {
                    assert!(packet.transport + 8 <= payload_end && payload_end <= packet.end);
                }
                TransportKind::EchoRequest => assert!(packet.transport + 8 <= packet.end),
                TransportKind::TooBig(_) => {
                    let quoted = if packet.key.local.is_ipv4() { 20 } else { 40 };
                    assert!(packet.transport + 8 + quoted + 8 <= packet.end);
                    assert!(packet.key.local_port != 0 && packet.key.peer_port != 0);
                }
            }
        }
        Err(_) => {}
    }
});
