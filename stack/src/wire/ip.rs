//! Writing IP headers.

use super::checksum::Sum;
use super::{Address, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES};

/// Protocol number of ICMP (IANA).
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP (IANA).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (IANA).
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6 (IANA).
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Hop limit of what we send (IANA's recommended default).
const HOP_LIMIT: u8 = 64;

/// Bytes of the header of a packet between addresses of the version of `address`.
#[inline]
pub fn header_bytes(address: &Address) -> usize {
    if address.is_ipv4() {
        IPV4_HEADER_BYTES
    } else {
        IPV6_HEADER_BYTES
    }
}

/// Writes the IP header of `packet`, which is header and payload and no longer than 65,535 bytes;
/// returns the header's length. IPv4 packets carry "don't fragment" and, being atomic, no
/// identification (RFC 6864 section 4.1).
///
/// # Panics
///
/// If `packet` is shorter than the header.
#[inline]
pub fn write_header(
    packet: &mut [u8],
    source: &Address,
    destination: &Address,
    protocol: u8,
) -> usize {
    let len = packet.len();
    if source.is_ipv4() {
        let [.., a, b, c, d] = *source.octets();
        let [.., e, f, g, h] = *destination.octets();
        // As words, which can be summed before they are written: reading back what was just written in parts
        // would have the processor wait.
        let mut words = [
            0x4500_0000 | len as u32,
            0x0000_4000,
            u32::from(HOP_LIMIT) << 24 | u32::from(protocol) << 16,
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        ];
        let field = Sum::default().plus_words(&words).finish();
        words[2] |= u32::from(u16::from_be_bytes(field));
        write_words(packet, &words);
        IPV4_HEADER_BYTES
    } else {
        let [payload_high, payload_low] = ((len - IPV6_HEADER_BYTES) as u16).to_be_bytes();
        let mut header = [0; IPV6_HEADER_BYTES];
        header[..8].copy_from_slice(&[
            0x60,
            0,
            0,
            0,
            payload_high,
            payload_low,
            protocol,
            HOP_LIMIT,
        ]);
        header[8..24].copy_from_slice(source.octets());
        header[24..].copy_from_slice(destination.octets());
        packet[..IPV6_HEADER_BYTES].copy_from_slice(&header);
        IPV6_HEADER_BYTES
    }
}

/// Writes words, given in host order, to the start of `bytes`.
///
/// # Panics
///
/// If `bytes` is shorter.
#[inline]
pub(crate) fn write_words<const N: usize>(bytes: &mut [u8], words: &[u32; N]) {
    for (place, word) in bytes[..4 * N].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn ipv4_packets_are_not_to_be_fragmented_on_their_way() {
        let [source, destination] =
            [[192, 0, 2, 1], [192, 0, 2, 2]].map(|octets| Address::from(IpAddr::from(octets)));
        for len in [20, 40, 576, 1500] {
            let mut packet = vec![0xff; len];
            write_header(&mut packet, &source, &destination, PROTOCOL_TCP);
            // "Don't fragment", no fragment, and no identification.
            assert_eq!(packet[4..8], [0, 0, 0x40, 0]);
        }
    }
}
