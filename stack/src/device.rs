//! The queue as smoltcp sees it: one packet in, packets out into frames of the arena.

use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};

use crate::Instant;
use crate::egress::Egress;
use crate::telemetry::Counters;
use crate::wire::{IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, LinkHeader, checksum};

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

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
    /// Between the engine's sequence numbers and the wire's.
    pub(crate) translation: &'a mut Translation,
}

/// Between the sequence numbers of an engine and those of the wire.
///
/// An engine that was summoned in the middle of a connection has numbers of its own for what it sends: *egress*
/// adds the shift, *ingress* subtracts it from what is acknowledged. What it receives has the wire's numbers.
///
/// After a retransmission timeout smoltcp begins anew at the oldest byte, and its acknowledgements without data
/// carry that old sequence number. A peer that has the data takes them for old segments and ignores what
/// they acknowledge (RFC 9293 section 3.10.7.4, first step): two peers that both retransmit what the other
/// has would wait for each other for ever. So such an acknowledgement is given the number behind everything
/// sent, as section 3.4 has it (SND.NXT; SND.MAX of BSD's TCP).
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Translation {
    /// What is to be added to the engine's numbers to have the wire's, modulo 2^32.
    pub(crate) shift: u32,
    /// The number behind everything that the connection ever sent, on the wire.
    pub(crate) snd_max: u32,
    /// The last acknowledgement number that was sent.
    pub(crate) acknowledged: u32,
    /// The end of the peer's window, on the wire.
    pub(crate) window_end: u32,
}

impl Translation {
    /// Makes a segment that the engine is about to send, whose TCP header begins `tcp`, one of the wire's.
    fn egress(&mut self, tcp: &mut [u8]) {
        let engines = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let flags = tcp[13];
        let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
        let len = payload as u32 + u32::from(flags & FIN != 0);
        let mut seq = engines.wrapping_add(self.shift);
        let behind = self.snd_max.wrapping_sub(seq.wrapping_add(len)) as i32;
        if flags & RST != 0 {
            // Its number is what makes it valid, wherever that is.
        } else if behind < 0 {
            self.snd_max = seq.wrapping_add(len);
        } else if behind > 0 && len == 0 {
            // Not beyond the window, though, if that has shrunk or a probe was sent behind it: a peer drops what is
            // there, acknowledgements included.
            let beyond = self.snd_max.wrapping_sub(self.window_end) as i32;
            let most = if beyond > 0 {
                self.window_end
            } else {
                self.snd_max
            };
            if (most.wrapping_sub(seq) as i32) > 0 {
                seq = most;
            }
        }
        if flags & ACK != 0 {
            self.acknowledged = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        }
        if seq != engines {
            tcp[4..8].copy_from_slice(&seq.to_be_bytes());
            let old = u16::from_be_bytes([tcp[16], tcp[17]]);
            let field = checksum::updated(old, engines, seq);
            tcp[16..18].copy_from_slice(&field.to_be_bytes());
        }
    }

    /// Makes a received segment, whose TCP header begins `tcp`, one of the engine's. Its checksum was verified
    /// and is wrong from now on.
    pub(crate) fn ingress(&self, tcp: &mut [u8]) {
        let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        tcp[8..12].copy_from_slice(&ack.wrapping_sub(self.shift).to_be_bytes());
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
            translation: self.translation,
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
    translation: &'a mut Translation,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.egress.packet(self.link, len, self.counters) {
            Some(mut frame) => {
                let end = frame.len();
                let packet = &mut self.egress.arena.buffer_mut(&mut frame)[end - len..end];
                let result = f(packet);
                // smoltcp writes neither IP options nor extension headers.
                let header = if packet[0] >> 4 == 4 {
                    IPV4_HEADER_BYTES
                } else {
                    IPV6_HEADER_BYTES
                };
                self.translation.egress(&mut packet[header..]);
                self.egress.queue.push(frame);
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

    /// An engine's segment with a right checksum, as it is on the wire; its sequence number there.
    fn sent(translation: &mut Translation, seq: u32, flags: u8, payload: &[u8]) -> u32 {
        let ends = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|octets| Address::from(IpAddr::from(octets)));
        let mut tcp = vec![0; 20];
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = flags;
        tcp.extend_from_slice(payload);
        let sum = || Sum::pseudo_header(&ends[0], &ends[1], 6, (20 + payload.len()) as u16);
        let field = sum().plus(&tcp).finish();
        tcp[16..18].copy_from_slice(&field);
        translation.egress(&mut tcp);
        assert!(sum().plus(&tcp).is_valid());
        u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
    }

    #[test]
    fn the_shift_is_added_to_what_is_sent_and_taken_from_what_is_acknowledged() {
        for (engines, wire) in [
            (7, 9),
            (u32::MAX - 1, 3),
            (5, u32::MAX - 3),
            (0x7fff_fffe, 0x8000_0001),
        ] {
            let mut translation = Translation {
                shift: wire.wrapping_sub(engines),
                snd_max: wire,
                acknowledged: 0,
                window_end: wire.wrapping_add(1000),
            };
            for offset in 0..6 {
                let at = sent(&mut translation, engines.wrapping_add(offset), ACK, b"x");
                assert_eq!(at, wire.wrapping_add(offset));
                let mut tcp = [0; 20];
                tcp[8..12].copy_from_slice(&at.to_be_bytes());
                translation.ingress(&mut tcp);
                assert_eq!(tcp[8..12], engines.wrapping_add(offset).to_be_bytes());
            }
            assert_eq!(translation.snd_max, wire.wrapping_add(6));
        }
    }

    #[test]
    fn acknowledgements_carry_the_number_behind_everything_sent() {
        for (start, shift) in [(7, 0), (u32::MAX - 1, 100), (0x7fff_fffe, 0x7fff_ffff)] {
            let at = |offset: u32| u32::wrapping_add(start, offset);
            let wire = |offset| at(offset).wrapping_add(shift);
            let mut translation = Translation {
                shift,
                snd_max: wire(1),
                acknowledged: 0,
                window_end: wire(1000),
            };
            // Two segments, and then the first one again: that one stays where it is.
            for (seq, payload) in [(1, "abc"), (4, "defg"), (1, "abc")] {
                let on_the_wire = sent(&mut translation, at(seq), ACK, payload.as_bytes());
                assert_eq!(on_the_wire, wire(seq));
            }
            assert_eq!(sent(&mut translation, at(4), ACK, b""), wire(8));
            assert_eq!(sent(&mut translation, at(8), ACK, b""), wire(8));
            // A reset's number is what makes it valid.
            assert_eq!(sent(&mut translation, at(4), ACK | RST, b""), wire(4));
            // FIN counts.
            assert_eq!(sent(&mut translation, at(8), ACK | FIN, b""), wire(8));
            assert_eq!(sent(&mut translation, at(8), ACK, b""), wire(9));
            // The window's end is the limit, but not for the engine's own number.
            translation.window_end = wire(6);
            assert_eq!(sent(&mut translation, at(4), ACK, b""), wire(6));
            assert_eq!(sent(&mut translation, at(7), ACK, b""), wire(7));
        }
    }
}
