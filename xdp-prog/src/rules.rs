//! Which packets are ours, as the caller says it and as the keys of the program's maps.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Which packets the program takes from the kernel. All that no rule names stays with the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Addresses that are ours alone, as (address, prefix length in bits): 0–32 for IPv4, 0–128 for
    /// IPv6. Bits behind the prefix do not count. Whatever is sent to them is taken: any protocol,
    /// fragments, ARP and neighbour solicitations.
    pub own: Vec<(IpAddr, u8)>,
    /// Single ports of addresses that the kernel uses too. Only their whole packets are taken:
    /// fragments, ARP, ND and ICMP stay with the kernel.
    pub ports: Vec<PortRule>,
}

/// One port of an address shared with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRule {
    /// The destination address; not the unspecified one. An IPv4-mapped IPv6 address means IPv4.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination port, 1–65535.
    pub port: u16,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Protocol {
    /// The number in the IP header (IANA, "Assigned Internet Protocol Numbers").
    fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// A rule that can never be put to the program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// The prefix is longer than the address.
    #[error("{address}/{bits} is not a prefix: give a length of 0 to {max}")]
    PrefixTooLong {
        /// The address of the rule.
        address: IpAddr,
        /// The length given, in bits.
        bits: u8,
        /// The longest possible, in bits.
        max: u8,
    },
    /// A port rule has to name one address.
    #[error(
        "{protocol} port {port} is asked for on {address}, which stands for no one address: name each"
    )]
    UnspecifiedAddress {
        /// The address of the rule.
        address: IpAddr,
        /// The protocol of the rule.
        protocol: Protocol,
        /// The port of the rule.
        port: u16,
    },
    /// Nothing is ever sent to port 0.
    #[error("{protocol} port 0 of {address} is asked for: give a port of 1 to 65535")]
    PortZero {
        /// The address of the rule.
        address: IpAddr,
        /// The protocol of the rule.
        protocol: Protocol,
    },
    /// More rules of one kind than the program's map holds.
    #[error("{count} {what} are asked for, and the XDP program holds {max}: ask for fewer")]
    TooMany {
        /// The kind: "own IPv4 prefixes", "own IPv6 prefixes" or "ports".
        what: &'static str,
        /// How many different ones there are.
        count: usize,
        /// How many the map holds.
        max: usize,
    },
}

/// `struct own4_key`: prefix length in host byte order, then the address.
pub(crate) type Own4Key = [u8; 8];
/// `struct own6_key`: as for IPv4.
pub(crate) type Own6Key = [u8; 20];
/// `struct port_key`: address, port in network byte order, protocol, family.
pub(crate) type PortKey = [u8; 20];

/// The rules as map keys, each once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) own4: Vec<Own4Key>,
    pub(crate) own6: Vec<Own6Key>,
    pub(crate) ports: Vec<PortKey>,
}

impl Keys {
    /// Check the rules and write them as keys.
    pub(crate) fn encode(rules: &Rules) -> Result<Keys, RuleError> {
        let mut keys = Keys::default();
        for &(address, bits) in &rules.own {
            match canonical_prefix(address, bits)? {
                (IpAddr::V4(address), bits) => keys.own4.push(own4_key(address, bits)),
                (IpAddr::V6(address), bits) => keys.own6.push(own6_key(address, bits)),
            }
        }
        for rule in &rules.ports {
            keys.ports.push(port_key(rule)?);
        }
        keys.own4.sort_unstable();
        keys.own4.dedup();
        keys.own6.sort_unstable();
        keys.own6.dedup();
        keys.ports.sort_unstable();
        keys.ports.dedup();
        Ok(keys)
    }
}

/// The prefix with a possible length. One inside ::ffff:0:0/96 is an IPv4 prefix: such addresses never
/// are on the wire as IPv6.
fn canonical_prefix(address: IpAddr, bits: u8) -> Result<(IpAddr, u8), RuleError> {
    let max = if address.is_ipv4() { 32 } else { 128 };
    if bits > max {
        return Err(RuleError::PrefixTooLong { address, bits, max });
    }
    Ok(match (address, address.to_canonical()) {
        (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if bits >= 96 => (mapped, bits - 96),
        _ => (address, bits),
    })
}

fn own4_key(address: Ipv4Addr, bits: u8) -> Own4Key {
    // A shift by the whole width, for a prefix of no bits, is not a shift: it leaves nothing.
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    let mut key = [0; 8];
    key[..4].copy_from_slice(&u32::from(bits).to_ne_bytes());
    key[4..].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
    key
}

fn own6_key(address: Ipv6Addr, bits: u8) -> Own6Key {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(bits).to_ne_bytes());
    key[4..].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
    key
}

fn port_key(rule: &PortRule) -> Result<PortKey, RuleError> {
    let &PortRule {
        address,
        protocol,
        port,
    } = rule;
    let canonical = address.to_canonical();
    if canonical.is_unspecified() {
        return Err(RuleError::UnspecifiedAddress {
            address,
            protocol,
            port,
        });
    }
    if port == 0 {
        return Err(RuleError::PortZero { address, protocol });
    }
    let (octets, family) = match canonical {
        IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 4),
        IpAddr::V6(address) => (address.octets(), 6),
    };
    let mut key = [0; 20];
    key[..16].copy_from_slice(&octets);
    key[16..18].copy_from_slice(&port.to_be_bytes());
    key[18] = protocol.number();
    key[19] = family;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn own(prefixes: &[(&str, u8)]) -> Result<Keys, RuleError> {
        Keys::encode(&Rules {
            own: prefixes
                .iter()
                .map(|&(text, bits)| (ip(text), bits))
                .collect(),
            ports: Vec::new(),
        })
    }

    fn port(address: &str, protocol: Protocol, port: u16) -> Result<Keys, RuleError> {
        Keys::encode(&Rules {
            own: Vec::new(),
            ports: vec![PortRule {
                address: ip(address),
                protocol,
                port,
            }],
        })
    }

    #[test]
    fn ipv4_prefixes_lose_the_bits_behind_them() {
        let keys = own(&[("10.1.2.3", 32), ("10.1.2.3", 20), ("10.1.2.3", 0)]).unwrap();
        let bits = |bits: u32, address: [u8; 4]| {
            let mut key = [0; 8];
            key[..4].copy_from_slice(&bits.to_ne_bytes());
            key[4..].copy_from_slice(&address);
            key
        };
        let mut expected = vec![
            bits(0, [0; 4]),
            bits(20, [10, 1, 0, 0]),
            bits(32, [10, 1, 2, 3]),
        ];
        expected.sort_unstable();
        assert_eq!(keys.own4, expected);
        assert!(keys.own6.is_empty() && keys.ports.is_empty());
    }

    #[test]
    fn ipv6_prefixes_lose_the_bits_behind_them() {
        let keys = own(&[("fd00::ff", 127)]).unwrap();
        assert_eq!(keys.own6[0][..4], 127u32.to_ne_bytes());
        assert_eq!(
            keys.own6[0][4..],
            [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe]
        );
        assert_eq!(own(&[("fd00::1", 0)]).unwrap().own6, [[0; 20]]);
    }

    #[test]
    fn the_same_prefix_twice_is_one_key() {
        assert_eq!(
            own(&[("10.0.0.1", 24), ("10.0.0.2", 24)])
                .unwrap()
                .own4
                .len(),
            1
        );
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(own(&[("::ffff:10.0.0.1", 128)]), own(&[("10.0.0.1", 32)]));
        assert_eq!(own(&[("::ffff:10.0.0.1", 96)]), own(&[("0.0.0.0", 0)]));
        // Wider than the mapped range: a prefix of IPv6 after all.
        assert_eq!(own(&[("::ffff:10.0.0.1", 64)]).unwrap().own6.len(), 1);
        assert_eq!(
            port("::ffff:10.0.0.1", Protocol::Udp, 7),
            port("10.0.0.1", Protocol::Udp, 7)
        );
    }

    #[test]
    fn port_keys_are_as_on_the_wire() {
        let keys = port("192.0.2.1", Protocol::Tcp, 0x1234).unwrap();
        assert_eq!(
            keys.ports,
            [[
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x12, 0x34, 6, 4
            ]]
        );
        let keys = port("fd00::1", Protocol::Udp, 53).unwrap();
        assert_eq!(
            keys.ports,
            [[
                0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 53, 17, 6
            ]]
        );
    }

    #[test]
    fn impossible_rules_are_refused() {
        for (text, bits, max) in [("10.0.0.1", 33, 32), ("fd00::1", 129, 128)] {
            let address = ip(text);
            assert_eq!(
                own(&[(text, bits)]),
                Err(RuleError::PrefixTooLong { address, bits, max })
            );
        }
        for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(matches!(
                port(text, Protocol::Tcp, 80),
                Err(RuleError::UnspecifiedAddress { .. })
            ));
        }
        assert!(matches!(
            port("10.0.0.1", Protocol::Tcp, 0),
            Err(RuleError::PortZero { .. })
        ));
    }
}
