//! The queue as smoltcp sees it: one packet in, packets out into frames of the arena.

use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};

use crate::Instant;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::wire::{IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, LinkHeader, checksum};

/// A device for the length of one call into smoltcp.
pub(crate) struct Device<'a> {
    /// The packet to take in, from its IP header on.
    pub(crate) received: Option<&'a [u8]>,
    pub(crate) egress: &'a mut Egress,
    /// Written in front of every packet sent.
    pub(crate) link: &'a LinkHeader,
    /// Bytes of an IP packet at most.
    pub(crate) ip_mtu: usize,
    pub(crate) counters: &'a Counters,
    /// How far the connection's segments have come; without a connection there are none.
    pub(crate) snd_max: Option<&'a mut SndMax>,
    /// Packets that smoltcp sent through this device.
    pub(crate) sent: usize,
}

/// The sequence number behind everything that a connection ever sent (SND.MAX of BSD's TCP).
///
/// After a retransmission timeout smoltcp begins anew at the oldest byte, and its acknowledgements without data
/// carry that old sequence number. A peer that has the data takes them for old segments and ignores what
/// they acknowledge (RFC 9293 section 3.10.7.4, first step): two peers that both retransmit what the other
/// has would wait for each other for ever. So such an acknowledgement is given the number behind everything
/// sent, as section 3.4 has it (SND.NXT).
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SndMax(Option<u32>);

impl SndMax {
    /// Notes a segment that is about to be sent, whose TCP header begins `tcp`, or corrects it.
    fn note(&mut self, tcp: &mut [u8]) {
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let flags = tcp[13];
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let len = payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let end = seq.wrapping_add(len);
        let Some(max) = self.0.filter(|_| flags & SYN == 0) else {
            self.0 = Some(end);
            return;
        };
        let behind = max.wrapping_sub(end) as i32;
        if behind < 0 {
            self.0 = Some(end);
        } else if behind > 0 && len == 0 && flags & RST == 0 {
            tcp[4..8].copy_from_slice(&max.to_be_bytes());
            let old = u16::from_be_bytes([tcp[16], tcp[17]]);
            let field = checksum::updated(old, seq, max);
            tcp[16..18].copy_from_slice(&field.to_be_bytes());
        }
    }
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let packet = self.received.take()?;
        Some((RxToken { packet }, self.tx_token()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        // Without a frame smoltcp keeps the segment and is asked again.
        if !self.egress.has_room() {
            self.counters.tx_no_frame.increment();
            return None;
        }
        Some(self.tx_token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.ip_mtu;
        // `wire::parse` has verified what comes in.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = phy::Checksum::Tx;
        checksum.tcp = phy::Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl Device<'_> {
    fn tx_token(&mut self) -> TxToken<'_> {
        TxToken {
            egress: self.egress,
            link: self.link,
            counters: self.counters,
            snd_max: self.snd_max.as_deref_mut(),
            sent: &mut self.sent,
        }
    }
}

pub(crate) struct RxToken<'a> {
    packet: &'a [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.packet)
    }
}

pub(crate) struct TxToken<'a> {
    egress: &'a mut Egress,
    link: &'a LinkHeader,
    counters: &'a Counters,
    snd_max: Option<&'a mut SndMax>,
    sent: &'a mut usize,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.egress.packet(self.link, len, self.counters) {
            Some(mut frame) => {
                let end = frame.len();
                let packet = &mut self.egress.arena.buffer_mut(&mut frame)[end - len..end];
                let result = f(packet);
                if let Some(snd_max) = self.snd_max {
                    // smoltcp writes neither IP options nor extension headers.
                    let header = if packet[0] >> 4 == 4 {
                        IPV4_HEADER_BYTES
                    } else {
                        IPV6_HEADER_BYTES
                    };
                    snd_max.note(&mut packet[header..]);
                }
                self.egress.queue.push(frame);
                *self.sent += 1;
                result
            }
            // An immediate answer (a reset, a duplicate ACK) may find no free frame. smoltcp insists on
            // writing it, so it is written to nowhere: the peer will ask again.
            None => f(&mut vec![0; len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::Address;
    use crate::wire::checksum::Sum;

    const ACK: u8 = 0x10;

    /// A segment with a right checksum, as `SndMax` leaves it; its sequence number then.
    fn sent(max: &mut SndMax, seq: u32, flags: u8, payload: &[u8]) -> u32 {
        let ends = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|octets| Address::from(IpAddr::from(octets)));
        let mut tcp = vec![0; 20];
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        tcp.extend_from_slice(payload);
        let sum = || Sum::pseudo_header(&ends[0], &ends[1], 6, (20 + payload.len()) as u16);
        let field = sum().plus(&tcp).finish();
        tcp[16..18].copy_from_slice(&field);
        max.note(&mut tcp);
        assert!(sum().plus(&tcp).is_valid());
        u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
    }

    #[test]
    fn acknowledgements_carry_the_number_behind_everything_sent() {
        for start in [7, u32::MAX - 1, 0x7fff_fffe] {
            let at = |offset: u32| start.wrapping_add(offset);
            let mut max = SndMax::default();
            // SYN, two segments, and then the first one again: that one stays where it is.
            for (seq, flags, payload) in [
                (0, 0x02, ""),
                (1, ACK, "abc"),
                (4, ACK, "defg"),
                (1, ACK, "abc"),
            ] {
                assert_eq!(sent(&mut max, at(seq), flags, payload.as_bytes()), at(seq));
            }
            assert_eq!(sent(&mut max, at(4), ACK, b""), at(8));
            assert_eq!(sent(&mut max, at(8), ACK, b""), at(8));
            // A reset's number is what makes it valid.
            assert_eq!(sent(&mut max, at(4), ACK | 0x04, b""), at(4));
            // FIN counts.
            assert_eq!(sent(&mut max, at(8), ACK | 0x01, b""), at(8));
            assert_eq!(sent(&mut max, at(8), ACK, b""), at(9));
        }
    }
}
