//! TCP segments: what a received one says, and writing the headers of ours.

use crate::arena::Frame;
use crate::egress::Egress;
use crate::wire::checksum::Sum;
use crate::wire::ip::{self, PROTOCOL_TCP};
use crate::wire::{FlowKey, LinkHeader, Transport};

/// TCP flag bits (RFC 9293 section 3.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

/// Bytes of a TCP header without options.
pub(super) const TCP_HEADER_BYTES: usize = 20;
/// Bytes of the longest list of options that we send, on a SYN.
const SYN_OPTIONS_BYTES_MAX: usize = 12;
/// The largest shift of a window (RFC 7323 section 2.3).
const SHIFT_MAX: u8 = 14;
/// The least segment size that we send by: smaller ones would make a packet of nearly every byte.
/// smoltcp has the same limit.
pub(super) const MSS_MIN: u16 = 48;

/// A TCP segment whose headers are checked; offsets are from the start of the frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(super) link: LinkHeader,
    pub(super) ip: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
    pub(super) end: usize,
    pub(super) seq: u32,
    /// Meaningless without the ACK flag.
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// As it is in the header, not scaled.
    pub(super) window: u16,
}

impl Segment {
    /// The segment of `packet`, whose bytes are `frame`.
    #[inline]
    pub(super) fn read(frame: &[u8], packet: &Transport, payload: usize, flags: u8) -> Self {
        let header = &frame[packet.transport..packet.transport + TCP_HEADER_BYTES];
        Self {
            link: packet.link,
            ip: packet.ip,
            transport: packet.transport,
            payload,
            end: packet.end,
            seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            flags,
            window: u16::from_be_bytes([header[14], header[15]]),
        }
    }

    /// Bytes of the payload.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.end - self.payload
    }

    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that it takes (RFC 9293 section 3.4, SEG.LEN).
    #[inline]
    pub(super) fn seq_len(&self) -> u32 {
        self.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// Returns whether its flags can be those of a segment on a connection: it is no SYN that closes, and it acknowledges
    /// something or is a SYN or a reset (RFC 9293 section 3.10.7.4: "if the ACK bit is off, drop the segment").
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.flags & (SYN | FIN) != SYN | FIN && self.flags & (ACK | SYN | RST) != 0
    }

    /// Its first SYN, without an acknowledgement.
    pub(super) fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }
}

/// Whether sequence number `a` is before `b` (RFC 9293 section 3.4).
#[inline]
pub(super) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// What the options of a SYN say, and what is sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeerOptions {
    /// The largest segment that is sent to it, in bytes of payload: what it takes and what we have room for.
    pub(super) mss: u16,
    /// How far its windows are shifted, if it offered scaling (RFC 7323 section 2.2).
    pub(super) shift: Option<u8>,
    /// It understands selective acknowledgements (RFC 2018 section 2).
    pub(super) sack: bool,
}

impl PeerOptions {
    /// Reads the list of options of a SYN, which `wire::parse` has checked. `default_mss` is that of its IP
    /// version.
    pub(super) fn read(mut options: &[u8], default_mss: u16) -> Self {
        let mut read = Self {
            mss: default_mss,
            shift: None,
            sack: false,
        };
        while let [kind, rest @ ..] = options {
            options = match (kind, rest) {
                (0, _) => break,
                (1, rest) => rest,
                (_, [len, ..]) => {
                    let Some(option) = options.get(..usize::from(*len).max(2)) else {
                        break;
                    };
                    match *option {
                        // A zero is nobody's size: as if it were not there.
                        [2, 4, high, low] if (high, low) != (0, 0) => {
                            read.mss = u16::from_be_bytes([high, low]).max(MSS_MIN);
                        }
                        [3, 3, shift] => read.shift = Some(shift.min(SHIFT_MAX)),
                        [4, 2] => read.sack = true,
                        _ => {}
                    }
                    &options[option.len()..]
                }
                (_, []) => break,
            };
        }
        read
    }

    /// How far windows of the peer are shifted.
    #[inline]
    pub(super) fn scale(&self, window: u16) -> u32 {
        u32::from(window) << self.shift.unwrap_or(0)
    }
}

/// The largest segment of a peer that says nothing (RFC 9293 section 3.7.1).
pub(super) fn default_mss(key: &FlowKey) -> u16 {
    if key.local.is_ipv4() { 536 } else { 1220 }
}

/// The largest segment that packets of `ip_mtu` bytes have room for.
#[inline]
pub(super) fn local_mss(ip_mtu: usize, key: &FlowKey) -> u16 {
    // The MTU is at most 65,535.
    (ip_mtu - ip::header_bytes(&key.local) - TCP_HEADER_BYTES) as u16
}

/// What a SYN of ours says.
#[derive(Debug, Clone, Copy)]
pub(super) struct SynOptions {
    pub(super) mss: u16,
    pub(super) shift: Option<u8>,
    pub(super) sack: bool,
}

impl SynOptions {
    /// Writes the list; returns its length, a multiple of 4.
    pub(super) fn write(&self, to: &mut [u8]) -> usize {
        let mut list = [1; SYN_OPTIONS_BYTES_MAX];
        let [high, low] = self.mss.to_be_bytes();
        list[..4].copy_from_slice(&[2, 4, high, low]);
        let mut len = 4;
        if self.sack {
            list[len + 2..len + 4].copy_from_slice(&[4, 2]);
            len += 4;
        }
        if let Some(shift) = self.shift {
            list[len + 1..len + 4].copy_from_slice(&[3, 3, shift]);
            len += 4;
        }
        to[..len].copy_from_slice(&list[..len]);
        len
    }
}

/// The numbers of a segment of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) seq: u32,
    /// Zero without the ACK flag.
    pub(super) ack: u32,
    pub(super) flags: u8,
    /// As it goes into the header.
    pub(super) window: u16,
}

/// Where the payload of a segment of ours without options begins, behind `link`.
#[inline]
pub(super) fn payload_offset(link: &LinkHeader, key: &FlowKey) -> usize {
    link.len() + ip::header_bytes(&key.local) + TCP_HEADER_BYTES
}

/// Writes the headers of a segment from `key`'s local end to its peer into `frame`, where `options_len` bytes of
/// options and `payload_len` bytes of payload are in place already, from [`payload_offset`] on. Returns the
/// length of the whole.
#[inline(always)]
pub(super) fn write_headers(
    frame: &mut [u8],
    link: &LinkHeader,
    key: &FlowKey,
    numbers: Numbers,
    options_len: usize,
    payload_len: usize,
) -> usize {
    link.write(frame);
    let ip = link.len();
    let transport = ip + ip::header_bytes(&key.local);
    let end = transport + TCP_HEADER_BYTES + options_len + payload_len;
    ip::write_header(&mut frame[ip..end], &key.local, &key.peer, PROTOCOL_TCP);
    let offset = ((TCP_HEADER_BYTES + options_len) / 4) as u32;
    // As words: see `ip::write_header`. The last is checksum and urgent pointer.
    let mut words = [
        u32::from(key.local_port) << 16 | u32::from(key.peer_port),
        numbers.seq,
        numbers.ack,
        offset << 28 | u32::from(numbers.flags) << 16 | u32::from(numbers.window),
        0,
    ];
    let segment = &mut frame[transport..end];
    let len = segment.len() as u16;
    let field = Sum::pseudo_header(&key.local, &key.peer, PROTOCOL_TCP, len)
        .plus_words(&words)
        .plus(&segment[TCP_HEADER_BYTES..])
        .finish();
    words[4] = u32::from(u16::from_be_bytes(field)) << 16;
    ip::write_words(segment, &words);
    end
}

/// Sends a segment without payload in `frame`, which is somebody's no more.
pub(super) fn send_bare(
    mut frame: Frame,
    link: &LinkHeader,
    key: &FlowKey,
    numbers: Numbers,
    egress: &mut Egress,
) {
    let buffer = egress.arena.buffer_mut(&mut frame);
    let end = write_headers(buffer, link, key, numbers, 0, 0);
    egress.arena.set_len(&mut frame, end);
    egress.send(frame);
}

/// Sends a SYN with its options in `frame`, which is somebody's no more.
pub(super) fn send_syn(
    mut frame: Frame,
    link: &LinkHeader,
    key: &FlowKey,
    numbers: Numbers,
    options: SynOptions,
    egress: &mut Egress,
) {
    let buffer = egress.arena.buffer_mut(&mut frame);
    let options_len = options.write(&mut buffer[payload_offset(link, key)..]);
    let end = write_headers(buffer, link, key, numbers, options_len, 0);
    egress.arena.set_len(&mut frame, end);
    egress.send(frame);
}

/// Answers a segment that belongs to no connection with a reset, in its own frame (RFC 9293
/// section 3.10.7.1). Not to be called for a reset.
pub(super) fn send_reset(frame: Frame, segment: &Segment, key: &FlowKey, egress: &mut Egress) {
    let numbers = if segment.has(ACK) {
        Numbers {
            seq: segment.ack,
            ack: 0,
            flags: RST,
            window: 0,
        }
    } else {
        Numbers {
            seq: 0,
            ack: segment.seq.wrapping_add(segment.seq_len()),
            flags: RST | ACK,
            window: 0,
        }
    };
    send_bare(frame, &segment.link, key, numbers, egress);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_read_back() {
        for shift in [None, Some(0), Some(7), Some(14)] {
            for sack in [false, true] {
                let mut list = [0; SYN_OPTIONS_BYTES_MAX];
                let said = SynOptions {
                    mss: 1460,
                    shift,
                    sack,
                };
                let len = said.write(&mut list);
                assert_eq!(len % 4, 0);
                let mss = 1460;
                let read = PeerOptions::read(&list[..len], 536);
                assert_eq!(read, PeerOptions { mss, shift, sack });
            }
        }
    }

    #[test]
    fn odd_options_are_what_rfcs_say() {
        let read = |list: &[u8]| PeerOptions::read(list, 536);
        assert_eq!(read(&[]).mss, 536);
        assert_eq!(read(&[2, 4, 0, 0]).mss, 536, "zero is not a size");
        assert_eq!(read(&[2, 4, 0, 1]).mss, MSS_MIN);
        assert_eq!(read(&[3, 3, 15]).shift, Some(14), "RFC 7323 section 2.3");
        // Unknown options are skipped, by their length.
        assert_eq!(read(&[8, 4, 2, 4, 2, 4, 1, 0]).mss, 256);
        assert_eq!(read(&[0, 2, 4, 1, 0]).mss, 536, "behind the end");
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_a_panic(list in prop::collection::vec(any::<u8>(), 0..60)) {
            let read = PeerOptions::read(&list, 536);
            prop_assert!(read.mss >= MSS_MIN && read.shift.unwrap_or(0) <= SHIFT_MAX);
        }
    }
}
