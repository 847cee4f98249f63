//! What the program decides about single frames, without an interface: BPF_PROG_TEST_RUN.

#![allow(unsafe_code)]

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::libbpf_sys::{self, XDP_PASS, XDP_REDIRECT};
use libbpf_rs::{MapCore, MapFlags};

use super::frames::*;
use super::in_namespace;
use super::socket::XdpSocket;
use crate::AttachError;
use crate::counters::{Counters, Outcome};
use crate::load::Loaded;
use crate::rules::{PortRule, Protocol, RuleError, Rules};

/// An Ethernet header: BPF_PROG_TEST_RUN takes nothing shorter.
const SHORTEST: usize = 14;

/// The loaded program with rules of each kind, and a socket for the queue that frames come from here.
struct Bench {
    loaded: Loaded,
    _socket: XdpSocket,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            loaded: Loaded::new(&rules()).unwrap(),
            _socket: XdpSocket::bind("lo"),
        };
        let socket = bench._socket.as_fd().as_raw_fd().to_ne_bytes();
        bench
            .loaded
            .xsks
            .update(&0u32.to_ne_bytes(), &socket, MapFlags::ANY)
            .unwrap();
        bench
    }

    fn counters(&self) -> Counters {
        Counters::read(&self.loaded.counters).unwrap()
    }

    /// Run the program on a frame. The frame has to be counted once, under the outcome that fits the
    /// verdict, and to be as it was.
    fn run(&self, frame: &[u8]) -> Outcome {
        let before = self.counters();
        let mut after_run = vec![0; frame.len()];
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            data_out: after_run.as_mut_ptr().cast(),
            data_size_out: after_run.len() as u32,
            ..Default::default()
        };
        let program = self.loaded.program.as_raw_fd();
        // SAFETY: the options point to `frame` and `after_run`, with their sizes; both outlive the call.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &mut options) };
        assert_eq!(result, 0, "BPF_PROG_TEST_RUN");
        assert_eq!(after_run, frame, "the program changed the frame");

        let after = self.counters();
        let counted: Vec<Outcome> = Outcome::ALL
            .into_iter()
            .filter(|&outcome| after.get(outcome) != before.get(outcome))
            .collect();
        let [outcome] = counted[..] else {
            panic!("counted under {counted:?}: {frame:02x?}");
        };
        assert_eq!(after.get(outcome), before.get(outcome) + 1);
        let verdict = if outcome.is_redirect() {
            XDP_REDIRECT
        } else {
            XDP_PASS
        };
        assert_eq!(options.retval, verdict, "{outcome:?}: {frame:02x?}");
        outcome
    }

    #[track_caller]
    fn expect(&self, outcome: Outcome, frames: &[Vec<u8>]) {
        for frame in frames {
            assert_eq!(self.run(frame), outcome, "{frame:02x?}");
        }
    }
}

/// Own: 10.9.0.1, 10.8.0.0/16, fd00:9::1, fd00:8::/64. Shared: TCP 80 and UDP 53 of 192.0.2.1 and of
/// 2001:db8::1.
fn rules() -> Rules {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let own = [
        ("10.9.0.1", 32),
        ("10.8.0.0", 16),
        ("fd00:9::1", 128),
        ("fd00:8::", 64),
    ];
    let shared = ["192.0.2.1", "2001:db8::1"];
    Rules {
        own: own.iter().map(|&(text, bits)| (ip(text), bits)).collect(),
        ports: shared
            .into_iter()
            .flat_map(|text| {
                [(Protocol::Tcp, 80), (Protocol::Udp, 53)].map(|(protocol, port)| PortRule {
                    address: ip(text),
                    protocol,
                    port,
                })
            })
            .collect(),
    }
}

fn v4(to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV4, &ipv4(to, protocol, 0, 0, payload))
}

fn v6(to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(IPV6, &ipv6(to, next, payload))
}

/// A frame that is taken, of each kind.
fn taken() -> Vec<Vec<u8>> {
    let group = "ff02::1:ff00:1";
    let chain = extension(
        HOP_BY_HOP,
        0,
        DESTINATION,
        &extension(DESTINATION, 2, TCP, &tcp(80)),
    );
    vec![
        v4("10.9.0.1", TCP, &tcp(80)),
        v4("192.0.2.1", TCP, &tcp(80)),
        ethernet(IPV4, &ipv4("192.0.2.1", UDP, 10, 0, &udp(53))),
        v6("fd00:9::1", UDP, &udp(53)),
        v6("2001:db8::1", TCP, &tcp(80)),
        v6("2001:db8::1", HOP_BY_HOP, &chain),
        v6(group, ICMPV6, &icmpv6(SOLICITATION, "fd00:9::1")),
        ethernet(ARP, &arp(1, "10.9.0.1")),
        tagged(
            &[(PROVIDER_VLAN, 0), (VLAN, 0xe000)],
            IPV4,
            &ipv4("10.9.0.1", TCP, 0, 0, &tcp(80)),
        ),
    ]
}

#[test]
fn own_addresses_are_taken_whole() {
    in_namespace(|_| {
        let bench = Bench::new();
        let to_own = |to: &str| {
            [
                v4(to, TCP, &tcp(9999)),
                v4(to, UDP, &udp(9999)),
                v4(to, ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]),
                v4(to, 200, &[]),
                ethernet(IPV4, &ipv4(to, UDP, 10, 0, &udp(1))),
                // First, middle and last fragment.
                ethernet(IPV4, &ipv4(to, UDP, 0, 0x2000, &udp(1))),
                ethernet(IPV4, &ipv4(to, UDP, 0, 0x2001, &[0; 8])),
                ethernet(IPV4, &ipv4(to, UDP, 0, 0x0002, &[0; 3])),
            ]
        };
        for to in ["10.9.0.1", "10.8.0.0", "10.8.255.255"] {
            bench.expect(Outcome::RedirectOwn, &to_own(to));
        }
        for to in ["fd00:9::1", "fd00:8::", "fd00:8::ffff:ffff:ffff:ffff"] {
            bench.expect(
                Outcome::RedirectOwn,
                &[
                    v6(to, TCP, &tcp(9999)),
                    v6(to, NO_NEXT_HEADER, &[]),
                    v6(to, FRAGMENT, &fragment_header(1, UDP, &udp(1))),
                    v6(to, FRAGMENT, &fragment_header(8, UDP, &[0; 8])),
                    v6(to, ICMPV6, &icmpv6(128, "::")),
                    v6(to, ICMPV6, &icmpv6(SOLICITATION, to)),
                    v6(to, ICMPV6, &icmpv6(ADVERTISEMENT, "fd00::5")),
                    v6(to, HOP_BY_HOP, &extension(HOP_BY_HOP, 0, ESP, &[0; 8])),
                ],
            );
        }
        bench.expect(
            Outcome::PassNotOurs,
            &[
                v4("10.9.0.2", TCP, &tcp(80)),
                v4("10.7.255.255", UDP, &udp(53)),
                v6("fd00:9::2", TCP, &tcp(80)),
                v6("fd00:8:0:1::", UDP, &udp(53)),
            ],
        );
    });
}

#[test]
fn shared_addresses_lose_the_listed_ports_only() {
    in_namespace(|_| {
        let bench = Bench::new();
        let chain = extension(
            HOP_BY_HOP,
            1,
            ROUTING,
            &extension(
                ROUTING,
                0,
                AUTHENTICATION,
                &extension(
                    AUTHENTICATION,
                    3,
                    DESTINATION,
                    &extension(DESTINATION, 255, UDP, &udp(53)),
                ),
            ),
        );
        bench.expect(
            Outcome::RedirectPort,
            &[
                v4("192.0.2.1", TCP, &tcp(80)),
                v4("192.0.2.1", UDP, &udp(53)),
                ethernet(IPV4, &ipv4("192.0.2.1", TCP, 1, 0, &tcp(80))),
                ethernet(IPV4, &ipv4("192.0.2.1", TCP, 10, 0, &tcp(80))),
                // "Don't fragment" is not a fragment; bytes that pad the frame are not the packet.
                ethernet(IPV4, &ipv4("192.0.2.1", TCP, 0, 0x4000, &tcp(80))),
                [v4("192.0.2.1", UDP, &udp(53)), vec![0; 18]].concat(),
                v6("2001:db8::1", TCP, &tcp(80)),
                v6("2001:db8::1", UDP, &udp(53)),
                v6("2001:db8::1", HOP_BY_HOP, &chain),
            ],
        );
        bench.expect(
            Outcome::PassNotOurs,
            &[
                v4("192.0.2.1", TCP, &tcp(53)),
                v4("192.0.2.1", UDP, &udp(80)),
                v4("192.0.2.2", TCP, &tcp(80)),
                v6("2001:db8::1", TCP, &tcp(53)),
                v6("2001:db8::2", TCP, &tcp(80)),
                // An IPv4 rule is not one for the mapped IPv6 address.
                v6("::ffff:192.0.2.1", TCP, &tcp(80)),
            ],
        );
        bench.expect(
            Outcome::PassFragment,
            &[
                ethernet(IPV4, &ipv4("192.0.2.1", UDP, 0, 0x2000, &udp(53))),
                ethernet(IPV4, &ipv4("192.0.2.1", UDP, 0, 0x0001, &udp(53))),
                v6("2001:db8::1", FRAGMENT, &fragment_header(0, UDP, &udp(53))),
                v6("2001:db8::1", FRAGMENT, &fragment_header(1, UDP, &udp(53))),
                v6(
                    "2001:db8::1",
                    DESTINATION,
                    &extension(DESTINATION, 0, FRAGMENT, &fragment_header(8, UDP, &udp(53))),
                ),
            ],
        );
        let mut waypoint = extension(ROUTING, 0, TCP, &tcp(80));
        waypoint[3] = 1;
        bench.expect(
            Outcome::PassProtocol,
            &[
                v4("192.0.2.1", ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]),
                v4("192.0.2.1", 200, &[]),
                v6("2001:db8::1", ICMPV6, &icmpv6(128, "::")),
                v6("2001:db8::1", NO_NEXT_HEADER, &[]),
                v6("2001:db8::1", ESP, &[0; 16]),
                v6("2001:db8::1", ROUTING, &waypoint),
            ],
        );
    });
}

#[test]
fn eight_extension_headers_are_followed_and_no_more() {
    in_namespace(|_| {
        let bench = Bench::new();
        let chain = |headers: usize| {
            let mut payload = extension(DESTINATION, 0, TCP, &tcp(80));
            for _ in 1..headers {
                payload = extension(DESTINATION, 0, DESTINATION, &payload);
            }
            v6("2001:db8::1", DESTINATION, &payload)
        };
        bench.expect(Outcome::RedirectPort, &[chain(1), chain(8)]);
        bench.expect(Outcome::PassMalformed, &[chain(9), chain(40)]);
    });
}

#[test]
fn neighbour_messages_go_where_their_target_is() {
    in_namespace(|_| {
        let bench = Bench::new();
        let group = "ff02::1:ff00:1";
        bench.expect(
            Outcome::RedirectArp,
            &[
                ethernet(ARP, &arp(1, "10.9.0.1")),
                ethernet(ARP, &arp(2, "10.9.0.1")),
                ethernet(ARP, &arp(1, "10.8.3.4")),
                [ethernet(ARP, &arp(1, "10.9.0.1")), vec![0; 18]].concat(),
            ],
        );
        bench.expect(
            Outcome::RedirectNd,
            &[
                v6(group, ICMPV6, &icmpv6(SOLICITATION, "fd00:9::1")),
                v6(group, ICMPV6, &icmpv6(SOLICITATION, "fd00:8::1")),
                v6("fe80::1", ICMPV6, &icmpv6(SOLICITATION, "fd00:9::1")),
                // With a source link-layer address option.
                v6(
                    group,
                    ICMPV6,
                    &[
                        icmpv6(SOLICITATION, "fd00:9::1"),
                        vec![1, 1, 2, 0, 0, 0, 0, 2],
                    ]
                    .concat(),
                ),
            ],
        );
        bench.expect(
            Outcome::PassNotOurs,
            &[
                ethernet(ARP, &arp(1, "10.9.0.2")),
                ethernet(ARP, &arp(2, "192.0.2.1")),
                v6(group, ICMPV6, &icmpv6(SOLICITATION, "fd00:9::2")),
                v6(group, ICMPV6, &icmpv6(SOLICITATION, "2001:db8::1")),
            ],
        );
        bench.expect(
            Outcome::PassProtocol,
            &[
                v6("ff02::1", ICMPV6, &icmpv6(ADVERTISEMENT, "fd00:9::1")),
                v6("ff02::1", ICMPV6, &icmpv6(ROUTER_ADVERTISEMENT, "::")),
            ],
        );
        // RFC 6980, section 5: fragmented neighbour messages are to be ignored.
        let nd = icmpv6(SOLICITATION, "fd00:9::1");
        bench.expect(
            Outcome::PassFragment,
            &[v6(group, FRAGMENT, &fragment_header(0, ICMPV6, &nd))],
        );
        // Another operation (RARP's), hardware, protocol, and length of each.
        let changed = [(7, 3), (1, 6), (2, 9), (4, 8), (5, 16)].map(|(position, value)| {
            let mut packet = arp(1, "10.9.0.1");
            packet[position] = value;
            ethernet(ARP, &packet)
        });
        bench.expect(Outcome::PassEthertype, &changed);
    });
}

#[test]
fn only_frames_outside_vlans_are_taken() {
    in_namespace(|_| {
        let bench = Bench::new();
        let packet = ipv4("10.9.0.1", TCP, 0, 0, &tcp(80));
        // Three bits of priority and "drop eligible" are not the identifier.
        for tags in [
            &[][..],
            &[(VLAN, 0)],
            &[(VLAN, 0xf000)],
            &[(PROVIDER_VLAN, 0xf000), (VLAN, 0)],
        ] {
            bench.expect(Outcome::RedirectOwn, &[tagged(tags, IPV4, &packet)]);
        }
        for tags in [
            &[(VLAN, 1)][..],
            &[(VLAN, 0x0fff)],
            &[(PROVIDER_VLAN, 0), (VLAN, 100)],
            &[(PROVIDER_VLAN, 100), (VLAN, 0)],
            &[(VLAN, 0), (VLAN, 0), (VLAN, 0)],
        ] {
            bench.expect(Outcome::PassVlan, &[tagged(tags, IPV4, &packet)]);
        }
        let packet = arp(1, "10.9.0.1");
        bench.expect(Outcome::RedirectArp, &[tagged(&[(VLAN, 0)], ARP, &packet)]);
        bench.expect(Outcome::PassVlan, &[tagged(&[(VLAN, 7)], ARP, &packet)]);
    });
}

#[test]
fn other_ethertypes_are_the_kernels() {
    in_namespace(|_| {
        let bench = Bench::new();
        let packet = ipv4("10.9.0.1", TCP, 0, 0, &tcp(80));
        // A length (802.3), LLDP, RARP, MPLS.
        for ethertype in [0x0040, 0x88cc, 0x8035, 0x8847] {
            bench.expect(Outcome::PassEthertype, &[ethernet(ethertype, &packet)]);
        }
        bench.expect(Outcome::PassEthertype, &[ethernet(0x88cc, &[])]);
    });
}

#[test]
fn contradictory_lengths_are_malformed() {
    in_namespace(|_| {
        let bench = Bench::new();
        let changed_v4 = |change: fn(&mut Vec<u8>)| {
            ["10.9.0.1", "192.0.2.1"].map(|to| {
                let mut packet = ipv4(to, TCP, 0, 0, &tcp(80));
                change(&mut packet);
                ethernet(IPV4, &packet)
            })
        };
        let changed_v6 = |change: fn(&mut Vec<u8>)| {
            ["fd00:9::1", "2001:db8::1"].map(|to| {
                let mut packet = ipv6(to, TCP, &tcp(80));
                change(&mut packet);
                ethernet(IPV6, &packet)
            })
        };
        // Version; header shorter than a header; total length shorter than that, and past the end.
        bench.expect(
            Outcome::PassMalformed,
            &changed_v4(|packet| packet[0] = 0x65),
        );
        bench.expect(
            Outcome::PassMalformed,
            &changed_v4(|packet| packet[0] = 0x44),
        );
        bench.expect(
            Outcome::PassMalformed,
            &changed_v4(|packet| packet[0] = 0x40),
        );
        bench.expect(Outcome::PassMalformed, &changed_v4(|packet| packet[3] = 19));
        bench.expect(Outcome::PassMalformed, &changed_v4(|packet| packet[3] = 41));
        bench.expect(
            Outcome::PassMalformed,
            &changed_v4(|packet| packet[2] = 0xff),
        );
        bench.expect(
            Outcome::PassMalformed,
            &changed_v6(|packet| packet[0] = 0x45),
        );
        bench.expect(Outcome::PassMalformed, &changed_v6(|packet| packet[5] = 21));
        bench.expect(
            Outcome::PassMalformed,
            &changed_v6(|packet| packet[4] = 0xff),
        );
        // The transport header has to be inside the packet, not only inside the frame.
        bench.expect(
            Outcome::PassMalformed,
            &[
                [v4("192.0.2.1", TCP, &tcp(80)[..19]), vec![0; 40]].concat(),
                [v4("192.0.2.1", UDP, &udp(53)[..7]), vec![0; 40]].concat(),
                [v6("2001:db8::1", TCP, &tcp(80)[..19]), vec![0; 40]].concat(),
                [
                    v6("ff02::1", ICMPV6, &icmpv6(SOLICITATION, "fd00:9::1")[..23]),
                    vec![0; 9],
                ]
                .concat(),
                [v6("ff02::1", ICMPV6, &[SOLICITATION; 7]), vec![0; 40]].concat(),
                // An extension header that reaches past the packet.
                [
                    v6("2001:db8::1", HOP_BY_HOP, &[TCP, 9, 0, 0, 0, 0, 0, 0]),
                    vec![0; 200],
                ]
                .concat(),
            ],
        );
    });
}

#[test]
fn a_frame_cut_anywhere_is_the_kernels() {
    in_namespace(|_| {
        let bench = Bench::new();
        for frame in taken() {
            assert!(bench.run(&frame).is_redirect(), "{frame:02x?}");
            for length in SHORTEST..frame.len() {
                bench.expect(Outcome::PassMalformed, &[frame[..length].to_vec()]);
            }
        }
    });
}

/// Each bit of each frame changed: nothing may be counted twice or under an outcome that its verdict
/// does not fit, and `run` checks that.
#[test]
fn any_changed_bit_gives_one_outcome() {
    in_namespace(|_| {
        let bench = Bench::new();
        for frame in taken() {
            for bit in 0..frame.len() * 8 {
                let mut changed = frame.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                bench.run(&changed);
            }
        }
    });
}

#[test]
fn without_a_socket_the_kernel_has_everything() {
    in_namespace(|_| {
        let bench = Bench::new();
        bench.loaded.xsks.delete(&0u32.to_ne_bytes()).unwrap();
        bench.expect(Outcome::PassNoSocket, &taken());
        bench.expect(Outcome::PassNotOurs, &[v4("10.9.0.2", TCP, &tcp(80))]);
    });
}

#[test]
fn maps_that_would_overflow_are_refused() {
    in_namespace(|_| {
        let load = |prefixes: u32| {
            Loaded::new(&Rules {
                own: (0..prefixes)
                    .map(|n| (IpAddr::V4((0x0a00_0000 + n).into()), 32))
                    .collect(),
                ports: Vec::new(),
            })
        };
        assert!(load(256).is_ok());
        assert!(matches!(
            load(257),
            Err(AttachError::Rule(RuleError::TooMany {
                what: "own IPv4 prefixes",
                count: 257,
                max: 256,
            }))
        ));
    });
}
