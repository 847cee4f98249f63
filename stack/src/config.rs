//! Limits and their relations, and the checked configuration of a stack.

use std::net::IpAddr;
use std::str::FromStr;

use crate::Duration;
use crate::port::faulty::Faults;
use crate::port::xsk;

/// Bytes of an engine's receive buffer: also the largest window that is announced.
pub const ENGINE_RX_BYTES: usize = 16 * 1024;
/// Bytes of an engine's send buffer: what can be in flight to one peer.
pub const ENGINE_TX_BYTES: usize = 64 * 1024;
/// Room behind a request that is not in its frame any more, for a reply in place.
pub(crate) const SCRATCH_ROOM_BYTES: usize = 2 * 1024;

/// Addresses at most: smoltcp's compile-time table (`iface-max-addr-count-8`).
pub const ADDRESSES_MAX: usize = smoltcp::config::IFACE_MAX_ADDR_COUNT;

/// Source prefixes at most: each is asked in turn for each packet.
pub const SOURCES_MAX: usize = 8;

/// The smallest MTU that IPv6 allows (RFC 8200 section 5), and the largest that a frame holds.
pub const MTU_MIN: usize = 1280;
/// See [`MTU_MIN`]. Two 802.1Q tags may be in front of the packet.
pub const MTU_MAX: usize =
    xsk::usable_bytes(LARGE_CHUNK_BYTES) as usize - crate::wire::LINK_HEADER_BYTES_MAX;

/// UMEM chunk sizes: the kernel wants powers of two, at most a page.
pub(crate) const SMALL_CHUNK_BYTES: u32 = 2048;
pub(crate) const LARGE_CHUNK_BYTES: u32 = 4096;

const _: () = {
    assert!(ADDRESSES_MAX == 8);
    // A whole segment of the largest MTU fits the window, or senders would stall.
    assert!(ENGINE_RX_BYTES >= 2 * MTU_MAX);
    // A window beyond 16 bits would have to be scaled.
    assert!(ENGINE_RX_BYTES <= 65_535);
    assert!(MTU_MAX <= u16::MAX as usize);
};

/// How a socket is bound to its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Zero-copy if the driver can, else copy.
    #[default]
    Auto,
    /// Zero-copy or nothing.
    ZeroCopy,
    /// Copy, even if the driver could do better.
    Copy,
}

/// What a core does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Poll {
    /// Looks again at once: lowest latency, one core always busy.
    Busy,
    /// Looks again for a while, then sleeps until something arrives.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

/// An address and the length of its prefix in bits, as in `192.0.2.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix, 0 to 32 or 128.
    pub prefix: u8,
}

/// Not an address with a prefix length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address with a prefix length, such as 192.0.2.1/24 or 2001:db8::1/64")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return Err(error());
        }
        Ok(Self { address, prefix })
    }
}

impl Cidr {
    /// Whether `address` is in the prefix.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differing = u32::from(ours) ^ u32::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differing = u128::from(ours) ^ u128::from(other);
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }

    /// The directed broadcast address of an IPv4 prefix. A /31 has none (RFC 3021), nor has a /32.
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(v4) if self.prefix < 31 => {
                let host_bits = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Some(IpAddr::V4((u32::from(v4) | host_bits).into()))
            }
            _ => None,
        }
    }

    /// The address that stands for the prefix itself: its host bits are zeros. A /31 has none (RFC 3021), nor has
    /// a /127 (RFC 6164), a /32 or a /128.
    pub fn network(&self) -> Option<IpAddr> {
        match self.address {
            IpAddr::V4(v4) if self.prefix < 31 => {
                let host_bits = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Some(IpAddr::V4((u32::from(v4) & !host_bits).into()))
            }
            IpAddr::V6(v6) if self.prefix < 127 => {
                let host_bits = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                Some(IpAddr::V6((u128::from(v6) & !host_bits).into()))
            }
            _ => None,
        }
    }

    /// Whether the two prefixes have addresses in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) && self.prefix <= other.prefix
            || other.contains(self.address) && other.prefix <= self.prefix
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What a stack is made of. Start from [`Config::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the interface.
    pub interface: String,
    /// Our addresses: at most [`ADDRESSES_MAX`], and at least one unless there are `sources`.
    pub addresses: Vec<Cidr>,
    /// Prefixes of which every address (but for a broadcast address) is ours, for the connections that a
    /// [`Client`](crate::client::Client) opens; at most [`SOURCES_MAX`]. Nobody else may have an address in
    /// them. Network cards that filter link-layer groups need `allmulticast` for IPv6 ones.
    pub sources: Vec<Cidr>,
    /// Next hops for destinations that are not on the link of an address of ours, at most one per IP version.
    /// Answers do not need them (they go where their request came from); connections that we open do. Without
    /// one every destination is taken to be on the link.
    pub gateways: Vec<IpAddr>,
    /// Queues of the interface, one worker each.
    pub queues: Vec<u32>,
    /// The core of each worker; as many as queues.
    pub cores: Vec<usize>,
    /// How to bind the sockets.
    pub mode: Mode,
    /// What idle cores do.
    pub poll: Poll,
    /// The kernel has the addresses too; only the services' ports are taken from it.
    pub shared_address: bool,
    /// Threads of the slow path; at least one is started, for handlers that are demoted.
    pub slow_threads: usize,
    /// What is to go wrong between the queues and the stack, and the seed that decides when: for tests and
    /// measurements of lossy links. Frames are spared in neither direction.
    pub faults: Option<(Faults, u64)>,
    /// Have every connection handled by an engine, always, as far as there are engines (see [`Limits::engines`]): for
    /// comparison.
    pub engine_only: bool,
    /// Bounds.
    pub limits: Limits,
}

impl Config {
    /// A configuration for queue 0 of `interface` on core 0, without addresses.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interface: interface.into(),
            addresses: Vec::new(),
            sources: Vec::new(),
            gateways: Vec::new(),
            queues: vec![0],
            cores: vec![0],
            mode: Mode::default(),
            poll: Poll::default(),
            shared_address: false,
            slow_threads: 2,
            faults: None,
            engine_only: false,
            limits: Limits::default(),
        }
    }
}

/// Bounds of one worker (and of the pool, where it says so). Checked at start; none but `loans` may be
/// zero.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Frames in the arena: at least those of the FILL ring, the loans and `held_frames`, and 256 to work with.
    pub frames: u32,
    /// Entries of each ring, a power of two, at least 64.
    pub ring_entries: u32,
    /// Frames kept on the FILL ring, 64 to `ring_entries`: how many packets may arrive between two looks.
    pub fill_target: u32,
    /// Frames lent to the slow path at most.
    pub loans: u32,
    /// Connections at most.
    pub flows: usize,
    /// Frames that connections may hold in total until their bytes are acknowledged. Beyond, what is sent is copied
    /// into an engine's buffer instead.
    pub held_frames: u32,
    /// Frames that one connection may hold. Beyond, as for `held_frames`.
    pub held_per_flow: u8,
    /// Connections that may have an engine at a time. Beyond, what a peer sends again is dropped, and a request that
    /// was begun and takes an engine, or a client's sending, resets its connection.
    pub engines: usize,
    /// Connections in TIME-WAIT at most: the oldest make room.
    pub time_wait: usize,
    /// Bytes of the receive buffer of a connection that a client opens, at least two packets of the MTU:
    /// the largest window that its peer sees.
    pub client_rx_bytes: usize,
    /// Bytes of the send buffer of a connection that a client opens.
    pub client_tx_bytes: usize,
    /// How long a handler call may take before it counts as an overrun.
    pub handler_budget: Duration,
    /// Jobs waiting for the pool (all workers together).
    pub slow_queue: usize,
    /// Answers of the slow path to a worker that may be outstanding: those to jobs that are queued, served, or kept by a
    /// handler that has not answered, and those that the worker has not taken. Requests beyond it are refused
    /// (`deferred_refused`), chunks of bodies wait.
    pub commands: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // FILL and TX at full load, some loans, and headroom: see ARCHITECTURE.md, "Frames".
            frames: 4096,
            ring_entries: 2048,
            fill_target: 1024,
            loans: 512,
            flows: 65_536,
            // What is neither on the FILL ring nor lent, less the headroom.
            held_frames: 2048,
            // An initial window of segments of 1,460 bytes (RFC 6928), twice.
            held_per_flow: 20,
            engines: 16_384,
            time_wait: 8192,
            client_rx_bytes: ENGINE_RX_BYTES,
            client_tx_bytes: ENGINE_RX_BYTES,
            handler_budget: Duration::from_micros(50),
            slow_queue: 1024,
            commands: 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_prefixes() {
        let cidr: Cidr = "10.0.0.1/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.0.0.1/24");
        assert!("2001:db8::1/64".parse::<Cidr>().is_ok());
        for wrong in [
            "10.0.0.1",
            "10.0.0.1/33",
            "::1/129",
            "x/8",
            "10.0.0.1/-1",
            "",
        ] {
            let error = wrong.parse::<Cidr>().unwrap_err();
            assert!(error.to_string().contains("192.0.2.1/24"), "{error}");
        }
    }

    #[test]
    fn what_a_prefix_contains() {
        let cidr = |text: &str| -> Cidr { text.parse().unwrap() };
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (prefix, inside, outside) in [
            ("10.9.1.0/24", "10.9.1.255", "10.9.2.0"),
            ("10.9.1.7/32", "10.9.1.7", "10.9.1.6"),
            ("0.0.0.0/0", "255.255.255.255", "::"),
            ("fd00::/127", "fd00::1", "fd00::2"),
            ("::/0", "ffff::", "0.0.0.0"),
        ] {
            assert!(cidr(prefix).contains(ip(inside)), "{prefix} {inside}");
            assert!(!cidr(prefix).contains(ip(outside)), "{prefix} {outside}");
        }
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.9.1.0/24")));
        assert!(cidr("10.9.1.0/24").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.9.1.0/24").overlaps(&cidr("10.9.2.0/24")));
        assert_eq!(cidr("10.9.1.3/24").broadcast(), Some(ip("10.9.1.255")));
        assert_eq!(cidr("0.0.0.0/0").broadcast(), Some(ip("255.255.255.255")));
        assert_eq!(cidr("10.9.1.2/31").broadcast(), None);
        assert_eq!(cidr("fd00::/64").broadcast(), None);
        assert_eq!(cidr("10.9.1.3/24").network(), Some(ip("10.9.1.0")));
        assert_eq!(cidr("10.9.1.3/0").network(), Some(ip("0.0.0.0")));
        assert_eq!(cidr("10.9.1.2/31").network(), None);
        assert_eq!(cidr("fd00::7:1/112").network(), Some(ip("fd00::7:0")));
        assert_eq!(cidr("fd00::/127").network(), None);
    }
}
