//! The Ethernet header that leads back to a peer.

use smoltcp::wire::EthernetAddress;

use super::ETHERNET_HEADER_BYTES;

/// Bytes of an 802.1Q tag.
const TAG_BYTES: usize = 4;
/// At most two tags (802.1ad).
pub(super) const TAGS_MAX: usize = 2;
/// Bytes of the longest link header: Ethernet with two tags.
pub const LINK_HEADER_BYTES_MAX: usize = ETHERNET_HEADER_BYTES + TAGS_MAX * TAG_BYTES;

/// Shows a link address as `ip link` does: 02:00:00:00:00:01.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Colons(pub(crate) [u8; 6]);

impl std::fmt::Display for Colons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A link header, ready to be written: addressed to the peer whose frame it was made from, with that
/// frame's 802.1Q tags, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkHeader {
    bytes: [u8; LINK_HEADER_BYTES_MAX],
    len: u8,
}

impl LinkHeader {
    /// The untagged header of frames of this ethertype from `source` to `destination`.
    pub(crate) fn new(
        destination: EthernetAddress,
        source: EthernetAddress,
        ethertype: [u8; 2],
    ) -> Self {
        let mut bytes = [0; LINK_HEADER_BYTES_MAX];
        bytes[0..6].copy_from_slice(destination.as_bytes());
        bytes[6..12].copy_from_slice(source.as_bytes());
        bytes[12..ETHERNET_HEADER_BYTES].copy_from_slice(&ethertype);
        Self {
            bytes,
            len: ETHERNET_HEADER_BYTES as u8,
        }
    }

    /// The header that answers a frame that began with `header` (14, 18 or 22 bytes long).
    pub(super) fn answering(header: &[u8]) -> Self {
        let mut bytes = [0; LINK_HEADER_BYTES_MAX];
        let len = header.len().min(LINK_HEADER_BYTES_MAX);
        bytes[..len].copy_from_slice(&header[..len]);
        bytes[0..6].copy_from_slice(&header[6..12]);
        bytes[6..12].copy_from_slice(&header[0..6]);
        Self {
            bytes,
            len: len as u8,
        }
    }

    /// Bytes of the header.
    #[allow(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Writes the header to the start of `frame`.
    ///
    /// # Panics
    ///
    /// If `frame` is shorter than [`len`](Self::len).
    #[inline]
    pub fn write(&self, frame: &mut [u8]) {
        let len = self.len();
        frame[..len].copy_from_slice(&self.bytes[..len]);
    }
}
