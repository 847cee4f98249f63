//! The Internet checksum (RFC 1071), wide enough to be cheap.

use super::Address;

/// An unfinished one's complement sum, in the machine's byte order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds `bytes`, padded with a zero byte if their number is odd. Only the last addition may be odd.
    #[inline]
    #[must_use]
    pub fn plus(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_ne_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]);
            sum = add(sum, word);
        }
        // At most 7 bytes are left, padded with zeros.
        let rest = words.remainder();
        let mut word = 0;
        if let [a, b, c, d, ..] = *rest {
            word = u64::from(u32::from_ne_bytes([a, b, c, d]));
        }
        let at = rest.len() & 4;
        let last = match rest[at..] {
            [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
            [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
            [a] => u32::from_ne_bytes([a, 0, 0, 0]),
            _ => 0,
        };
        Self(add(sum, word + u64::from(last)))
    }

    /// Adds a 16-bit field given in host order.
    #[inline]
    #[must_use]
    pub fn plus_u16(self, value: u16) -> Self {
        Self(add(self.0, u64::from(value.to_be())))
    }

    /// Adds 32-bit words given in host order.
    #[inline]
    #[must_use]
    pub fn plus_words<const N: usize>(self, words: &[u32; N]) -> Self {
        // As many as a header has do not overflow.
        let sum = words.iter().map(|word| u64::from(word.to_be())).sum();
        Self(add(self.0, sum))
    }

    /// Adds the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1);
    /// `length` is that of the transport header and its payload, at most 65,535 bytes.
    #[inline]
    #[must_use]
    pub fn pseudo_header(
        source: &Address,
        destination: &Address,
        protocol: u8,
        length: u16,
    ) -> Self {
        // The IPv4 and the IPv6 pseudo-header sum to the same but for the addresses. The mapped prefix
        // of an IPv4 address adds 0xffff, which is zero in one's complement.
        Self::default()
            .plus(source.octets())
            .plus(destination.octets())
            .plus_u16(u16::from(protocol))
            .plus_u16(length)
    }

    /// The folded sum: `0xffff` (as a field: all ones) where data with a right checksum was summed.
    #[inline]
    fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        // Below 2^33, then below 2^18, and then the carry of that.
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum + (sum >> 16)) as u16
    }

    /// Whether the summed data, its checksum field included, is intact.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// Whether `field` is the sum itself, not its complement: what a sender writes that leaves the rest of a
    /// checksum to its card, if the pseudo-header was summed.
    pub fn is_left_in(self, field: [u8; 2]) -> bool {
        // All ones is another way to write zero.
        let normal = |sum: u16| if sum == 0xffff { 0 } else { sum };
        normal(u16::from_ne_bytes(field)) == normal(self.fold())
    }

    /// The checksum field for the summed data, as the two bytes to write.
    #[inline]
    pub fn finish(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// As [`finish`](Self::finish), never zero: for UDP, where zero means "none" (RFC 768).
    #[inline]
    pub fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            field => field,
        }
    }
}

/// One's complement addition: what is carried out at the top comes in at the bottom.
#[inline]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The checksum field of data in which one 32-bit word, at an even offset, changed from `before` to `after`
/// (RFC 1624, equation 3); fields in host order.
#[inline]
pub fn updated(field: u16, before: u32, after: u32) -> u16 {
    let halves = |word: u32| (word >> 16) + (word & 0xffff);
    let mut sum = u32::from(!field) + halves(!before) + halves(after);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, IpProtocol, UdpPacket};

    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn words_are_bytes(words in any::<[u32; 5]>()) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let sum = Sum::default().plus_words(&words);
            prop_assert_eq!(sum.finish(), Sum::default().plus(&bytes).finish());
        }

        #[test]
        fn agrees_with_the_rfc(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(Sum::default().plus(&bytes).finish(), by_the_book(&bytes).to_be_bytes());
        }

        #[test]
        fn an_updated_field_is_that_of_the_changed_data(
            bytes in prop::collection::vec(any::<u8>(), 4..200), after in any::<u32>(), place in any::<prop::sample::Index>(),
        ) {
            let mut bytes = bytes;
            let at = place.index((bytes.len() - 4) / 2 + 1) * 2;
            let old = u16::from_be_bytes(Sum::default().plus(&bytes).finish());
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            bytes[at..at + 4].copy_from_slice(&after.to_be_bytes());
            let field = updated(old, u32::from_be_bytes(word), after).to_be_bytes();
            // Valid data may have either zero, all ones or all zeros, as its field.
            let sum = Sum::default().plus(&field).plus(&bytes);
            prop_assert!(sum.is_valid() || bytes.iter().all(|byte| *byte == 0));
        }

        #[test]
        fn agrees_with_smoltcp_on_udp(
            source in any::<[u8; 4]>(), destination in any::<[u8; 4]>(),
            source6 in any::<[u8; 16]>(), destination6 in any::<[u8; 16]>(), v6 in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let (source, destination) = if v6 {
                (IpAddr::V6(Ipv6Addr::from(source6)), IpAddr::V6(Ipv6Addr::from(destination6)))
            } else {
                (IpAddr::V4(Ipv4Addr::from(source)), IpAddr::V4(Ipv4Addr::from(destination)))
            };
            let mut bytes = vec![0; 8 + payload.len()];
            bytes[8..].copy_from_slice(&payload);
            let mut packet = UdpPacket::new_unchecked(&mut bytes[..]);
            packet.set_src_port(1);
            packet.set_dst_port(2);
            packet.set_len(8 + payload.len() as u16);
            packet.fill_checksum(&IpAddress::from(source), &IpAddress::from(destination));
            let filled = packet.checksum().to_be_bytes();
            packet.set_checksum(0);
            let sum = Sum::pseudo_header(&source.into(), &destination.into(),
                u8::from(IpProtocol::Udp), bytes.len() as u16);
            prop_assert_eq!(sum.plus(&bytes).finish_udp(), filled);
            bytes[6..8].copy_from_slice(&filled);
            prop_assert!(sum.plus(&bytes).is_valid());
        }
    }
}
