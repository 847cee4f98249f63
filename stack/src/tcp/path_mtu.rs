//! Path MTU discovery (RFC 1191, RFC 8201): what routers say of segments of ours that were too big for a link, and a
//! memory of it for connections that begin later.
//!
//! Anybody can send such a message. It counts only if it quotes a segment that is in flight on a connection of ours
//! (RFC 5927 section 4.1), and nobody can make segments smaller than every path has to carry.

use ahash::RandomState;

use super::segment::TCP_HEADER_BYTES;
use super::{Call, Done, Flow, Tcp, Turn};
use crate::telemetry::Summon;
use crate::wire::{Address, FlowKey, TooBig, ip};
use crate::{Duration, Instant};

/// How long a path's MTU is believed (RFC 8201 section 4, RFC 1191 section 6.3).
const LIFETIME: Duration = Duration::from_secs(600);
/// Paths that are remembered at most, in sets of a few: a path has its place in one of them.
const ENTRIES: usize = 1024;
const WAYS: usize = 4;
/// The MTU below which a path's is not believed, IPv4: what every host has to take (RFC 791 section 3.1), and the MSS
/// of 536 follows from. Links may be as narrow as 68 bytes, but are not.
const FLOOR_V4: u16 = 576;
/// The same for IPv6: the MTU of every link (RFC 8200 section 5).
const FLOOR_V6: u16 = 1280;
/// The least MTU of an IPv4 link (RFC 791 section 3.2).
const LINK_MTU_MIN_V4: u16 = 68;
/// MTUs of links as they are (RFC 1191 section 7.1): for routers that do not say theirs.
const PLATEAUS: [u16; 9] = [8166, 4352, 2002, 1492, 1006, 508, 296, 68, 0];

/// MTUs of paths that are smaller than our link's, by the address that they lead to.
#[derive(Debug)]
pub(super) struct PathMtu {
    entries: Box<[Entry]>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    peer: Address,
    mtu: u16,
    /// When it is forgotten. One that is over is free.
    until: Instant,
}

impl PathMtu {
    /// Returns an empty memory. `seed` decides which paths compete for a place.
    pub(super) fn new(seed: u64) -> Self {
        let nobody = Entry {
            peer: std::net::IpAddr::from([0; 16]).into(),
            mtu: 0,
            until: Instant::ZERO,
        };
        Self {
            entries: vec![nobody; ENTRIES].into_boxed_slice(),
            hasher: RandomState::with_seeds(seed, !seed, seed, !seed),
        }
    }

    /// Remembers that packets to `peer` may have `mtu` bytes, unless less is known. If there is no room, the path of its
    /// set that is forgotten first gives way.
    pub(super) fn lower(&mut self, peer: &Address, mtu: u16, now: Instant) {
        let known = self.mtu(peer, now).unwrap_or(u16::MAX);
        let set = self.set(peer);
        let place = set
            .iter()
            .position(|entry| entry.peer == *peer)
            .or_else(|| (0..WAYS).min_by_key(|way| set[*way].until));
        if let Some(place) = place {
            set[place] = Entry {
                peer: *peer,
                mtu: mtu.min(known),
                until: now + LIFETIME,
            };
        }
    }

    /// Returns the bytes that a packet to `peer` may have, if the path is known to be narrower than our link.
    pub(super) fn mtu(&self, peer: &Address, now: Instant) -> Option<u16> {
        let start = self.set_start(peer);
        self.entries[start..start + WAYS]
            .iter()
            .find(|entry| entry.peer == *peer && now < entry.until)
            .map(|entry| entry.mtu)
    }

    fn set(&mut self, peer: &Address) -> &mut [Entry] {
        let start = self.set_start(peer);
        &mut self.entries[start..start + WAYS]
    }

    fn set_start(&self, peer: &Address) -> usize {
        self.hasher.hash_one(peer) as usize % (ENTRIES / WAYS) * WAYS
    }
}

/// Returns the bytes of payload that a segment between the ends of `key` may have in packets of `mtu` bytes.
pub(super) fn mss(mtu: u16, key: &FlowKey) -> u16 {
    mtu.saturating_sub((ip::header_bytes(&key.local) + TCP_HEADER_BYTES) as u16)
}

/// Returns the MTU that follows from what a router says, or `None` if it cannot be true: the packet would have passed, or
/// no such link may be.
fn believed(said: &TooBig, is_ipv4: bool) -> Option<u16> {
    let floor = if is_ipv4 { FLOOR_V4 } else { FLOOR_V6 };
    let mtu = match said.mtu {
        // RFC 1191 section 5: the largest of the usual ones that the packet is too big for.
        0 if is_ipv4 => *PLATEAUS.iter().find(|mtu| **mtu < said.len)?,
        mtu if is_ipv4 && mtu < LINK_MTU_MIN_V4 => return None,
        // RFC 8201 section 4: such a message must be discarded.
        mtu if !is_ipv4 && mtu < FLOOR_V6 => return None,
        mtu => mtu,
    };
    (mtu < said.len).then_some(mtu.max(floor))
}

impl Tcp {
    /// Takes in that a router found a segment of ours too big. If it is in flight, the connection's segments become
    /// smaller, and those of connections to the same address that begin in the next ten minutes.
    pub(crate) fn packet_too_big(&mut self, key: &FlowKey, said: &TooBig, turn: &mut Turn<'_>) {
        let lowered = believed(said, key.local.is_ipv4()).and_then(|mtu| {
            let id = self.flows.find(key)?;
            let (_, Flow::Direct(direct)) = self.flows.get_mut(id)? else {
                return None;
            };
            let is_in_flight = said.seq.wrapping_sub(direct.snd_una) < direct.in_flight();
            let is_less = mss(mtu, key) < direct.peer.mss;
            if direct.is_opening() || !is_in_flight || !is_less {
                return None;
            }
            direct.peer.mss = mss(mtu, key);
            Some((id, mtu, direct.held.is_empty()))
        });
        let Some((id, mtu, nothing_held)) = lowered else {
            turn.counters.icmp_too_big_ignored.increment();
            return;
        };
        turn.counters.path_mtu_lowered.increment();
        self.resources.path_mtu.lower(&key.peer, mtu, turn.now);
        if !nothing_held {
            // What is held cannot arrive as it is: an engine cuts it anew.
            let call = Call {
                reason: Summon::Timeout,
                frame: None,
                done: Done::Nothing,
            };
            self.summon(id, call, None, turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn peer(number: u32) -> Address {
        IpAddr::V4(Ipv4Addr::from(number)).into()
    }

    fn at(secs: i64) -> Instant {
        Instant::from_secs(secs)
    }

    #[test]
    fn a_path_is_known_for_ten_minutes_and_never_gets_wider_meanwhile() {
        let mut paths = PathMtu::new(1);
        assert_eq!(paths.mtu(&peer(1), at(0)), None);
        paths.lower(&peer(1), 1400, at(0));
        paths.lower(&peer(1), 1450, at(100));
        assert_eq!(paths.mtu(&peer(1), at(699)), Some(1400));
        assert_eq!(paths.mtu(&peer(2), at(100)), None);
        assert_eq!(paths.mtu(&peer(1), at(700)), None);
        paths.lower(&peer(1), 1450, at(700));
        assert_eq!(
            paths.mtu(&peer(1), at(701)),
            Some(1450),
            "what is over is forgotten"
        );
        paths.lower(&peer(1), 1280, at(702));
        assert_eq!(paths.mtu(&peer(1), at(703)), Some(1280));
    }

    #[test]
    fn the_memory_is_bounded_and_the_oldest_give_way() {
        let mut paths = PathMtu::new(1);
        for number in 0..10_000 {
            paths.lower(&peer(number), 1400, at(number.into()));
            assert_eq!(paths.mtu(&peer(number), at(number.into())), Some(1400));
        }
        let known = (0..10_000)
            .filter(|number| paths.mtu(&peer(*number), at(9600)).is_some())
            .count();
        assert!((100..=ENTRIES).contains(&known), "{known}");
        assert_eq!(paths.entries.len(), ENTRIES);
    }

    #[test]
    fn what_routers_say() {
        let said = |mtu, len| TooBig { seq: 0, len, mtu };
        for (mtu, len, v4, v6) in [
            (1400, 1500, Some(1400), Some(1400)),
            (1500, 1500, None, None),
            (1499, 1500, Some(1499), Some(1499)),
            (65_535, 1500, None, None),
            (1280, 1500, Some(1280), Some(1280)),
            (1279, 1500, Some(1279), None),
            (500, 1500, Some(576), None),
            (68, 1500, Some(576), None),
            (67, 1500, None, None),
            // RFC 1191 section 5.
            (0, 1500, Some(1492), None),
            (0, 1492, Some(1006), None),
            (0, 1006, Some(576), None),
            (0, 9000, Some(8166), None),
            (0, 0, None, None),
        ] {
            assert_eq!(believed(&said(mtu, len), true), v4, "{mtu} of {len}");
            assert_eq!(believed(&said(mtu, len), false), v6, "{mtu} of {len}");
        }
    }

    proptest! {
        #[test]
        fn nobody_is_forced_below_the_floor(mtu in any::<u16>(), len in any::<u16>(), is_ipv4 in any::<bool>()) {
            let floor = if is_ipv4 { FLOOR_V4 } else { FLOOR_V6 };
            if let Some(mtu) = believed(&TooBig { seq: 0, len, mtu }, is_ipv4) {
                prop_assert!(mtu >= floor);
            }
        }
    }
}
