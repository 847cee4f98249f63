//! Our ends of connections: every host address of a prefix with every port from 1024, in an order that
//! comes back to the same pair as late as possible.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use interruptlet::Cidr;
use rand::Rng;
use rand::rngs::SmallRng;

/// The first port that is used: those below are for services, and some servers do not answer to them.
pub const FIRST_PORT: u16 = 1024;
/// Ports of an address.
pub const PORTS: u64 = (u16::MAX - FIRST_PORT) as u64 + 1;
/// Addresses used at most; of IPv6 prefixes nobody needs them all.
const HOSTS_MAX: u64 = 1 << 24;

/// The pairs of address and port in their order, each with its place in it.
///
/// The address changes with every step and the port when all addresses had their turn, so that the same
/// pair comes again only after all others.
#[derive(Debug, Clone)]
pub struct Sources {
    is_ipv4: bool,
    /// The first host address.
    base: u128,
    hosts: u64,
    start: u64,
}

impl Sources {
    /// The host addresses of `prefix`, beginning anywhere.
    pub fn new(prefix: Cidr, random: &mut SmallRng) -> Self {
        let is_ipv4 = prefix.address.is_ipv4();
        let free_bits = (if is_ipv4 { 32 } else { 128 }) - u32::from(prefix.prefix);
        let size = 1u128.checked_shl(free_bits).unwrap_or(u128::MAX);
        let network = number(prefix.address) & u128::MAX.checked_shl(free_bits).unwrap_or(0);
        // The network and broadcast address are nobody's, unless there are just two (RFC 3021); of IPv6
        // only the first, which is any router (RFC 4291 section 2.6.1).
        let (base, hosts) = match (is_ipv4, free_bits) {
            (_, 0 | 1) => (network, size),
            (true, _) => (network + 1, size - 2),
            (false, _) => (network + 1, size - 1),
        };
        let hosts = u64::try_from(hosts).unwrap_or(u64::MAX).min(HOSTS_MAX);
        Self {
            is_ipv4,
            base,
            hosts,
            start: random.random_range(0..hosts * PORTS),
        }
    }

    /// Number of addresses.
    pub fn hosts(&self) -> u64 {
        self.hosts
    }

    /// Number of pairs.
    pub fn pairs(&self) -> u64 {
        self.hosts * PORTS
    }

    /// The pair at `place`, counted from zero; after the last comes the first.
    pub fn at(&self, place: u64) -> SocketAddr {
        let place = (place % self.pairs() + self.start) % self.pairs();
        let offset = place % self.hosts;
        let port = FIRST_PORT + (place / self.hosts) as u16;
        SocketAddr::new(self.address(self.base + u128::from(offset)), port)
    }

    /// The place of a pair, if it is one of ours.
    pub fn place(&self, pair: SocketAddr) -> Option<u64> {
        let port = pair.port().checked_sub(FIRST_PORT)?;
        if pair.is_ipv4() != self.is_ipv4 {
            return None;
        }
        let host = u64::try_from(number(pair.ip()).checked_sub(self.base)?).ok()?;
        (host < self.hosts).then(|| {
            (u64::from(port) * self.hosts + host + self.pairs() - self.start) % self.pairs()
        })
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.is_ipv4 {
            IpAddr::V4(Ipv4Addr::from_bits(number as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use std::collections::HashSet;

    fn sources(prefix: &str, seed: u64) -> Sources {
        Sources::new(prefix.parse().unwrap(), &mut SmallRng::seed_from_u64(seed))
    }

    #[test]
    fn hosts_are_those_of_the_prefix() {
        for (prefix, hosts, first) in [
            ("10.9.1.0/24", 254, "10.9.1.1"),
            ("10.9.1.77/24", 254, "10.9.1.1"),
            ("10.9.0.0/16", 65_534, "10.9.0.1"),
            ("10.9.1.1/32", 1, "10.9.1.1"),
            ("10.9.1.3/31", 2, "10.9.1.2"),
            ("10.9.1.0/30", 2, "10.9.1.1"),
            ("0.0.0.0/0", HOSTS_MAX, "0.0.0.1"),
            ("fd00::/64", HOSTS_MAX, "fd00::1"),
            ("fd00::/112", 65_535, "fd00::1"),
            ("fd00::7/128", 1, "fd00::7"),
            ("::/0", HOSTS_MAX, "::1"),
        ] {
            let sources = sources(prefix, 1);
            assert_eq!(sources.hosts(), hosts, "{prefix}");
            assert_eq!(
                sources.address(sources.base),
                first.parse::<IpAddr>().unwrap()
            );
        }
    }

    #[test]
    fn every_pair_comes_once_before_the_first_comes_again() {
        let sources = sources("10.9.1.0/29", 9);
        let mut seen = HashSet::new();
        for place in 0..sources.pairs() {
            let pair = sources.at(place);
            assert!(seen.insert(pair), "{pair} at {place} again");
            assert!(pair.port() >= FIRST_PORT);
            assert!(
                pair.ip() >= IpAddr::from([10, 9, 1, 1])
                    && pair.ip() <= IpAddr::from([10, 9, 1, 6])
            );
        }
        assert_eq!(sources.at(sources.pairs()), sources.at(0));
    }

    #[test]
    fn the_seed_decides_where_it_begins() {
        let first = |seed| sources("10.9.1.0/24", seed).at(0);
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn what_is_not_ours_has_no_place() {
        let sources = sources("10.9.1.0/24", 1);
        for pair in [
            "10.9.1.0:2000",
            "10.9.1.255:2000",
            "10.9.2.1:2000",
            "10.9.0.255:2000",
            "10.9.1.1:1023",
            "[::ffff:10.9.1.1]:2000",
        ] {
            assert_eq!(sources.place(pair.parse().unwrap()), None, "{pair}");
        }
    }

    proptest! {
        #[test]
        fn pairs_have_the_place_that_they_come_from(
            network: u32,
            prefix in 8u8..=32,
            seed: u64,
            place: u64,
        ) {
            let cidr = Cidr { address: Ipv4Addr::from_bits(network).into(), prefix };
            let sources = Sources::new(cidr, &mut SmallRng::seed_from_u64(seed));
            let pair = sources.at(place);
            prop_assert!(cidr.contains(pair.ip()));
            prop_assert_eq!(sources.place(pair), Some(place % sources.pairs()));
        }
    }
}
