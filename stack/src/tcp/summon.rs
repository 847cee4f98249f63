//! Summoning an engine: making one that stands where a direct flow stands.
//!
//! smoltcp has no door into the middle of a connection, so it is led there: a made-up handshake, with the peer's
//! options, that begins so that the engine then expects the flow's next byte. What the engine sends meanwhile
//! goes nowhere. Its receiving side has the wire's sequence numbers then; its sending side has its own, which
//! differ from the wire's by a constant, the *shift* ([`Translation`](crate::device::Translation)).
//!
//! What the flow has in flight is given to the engine as bytes to send, and it is let to send them into nowhere,
//! too: they are in flight for the engine then, as they are on the wire. If they are lost, the engine is made to
//! notice at once.

use smoltcp::iface::Interface;
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};

use super::direct::{Direct, State};
use super::engine::Engine;
use super::segment::{self, ACK, FIN, Numbers, SYN, SynOptions};
use super::{Resources, receive_shift};
use crate::egress::Egress;
use crate::telemetry::Summon;
use crate::wire::{FlowKey, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, LinkHeader};
use crate::{Duration, Instant};

/// Longer than any segment of a handshake.
const SEGMENT_BYTES_MAX: usize = 128;
/// An engine's first retransmission timeout: smoltcp's, which cannot be set.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(1);

/// Leads `engine` to where `direct` is, and gives it the bytes in flight; `reason` says whether they are lost.
/// Returns the shift: what is to be added to the engine's own sequence numbers.
pub(super) fn lead(
    engine: &mut Engine,
    resources: &mut Resources,
    direct: &Direct,
    key: &FlowKey,
    reason: Summon,
    egress: &Egress,
    now: Instant,
) -> Option<u32> {
    let mss = direct.mss();
    let Resources {
        interface,
        ip_mtu,
        held,
        ..
    } = resources;
    if !engine.listen(key.local_addr()) {
        return None;
    }
    engine.socket().set_timeout(None);
    let rx_bytes = engine.socket().recv_capacity();
    let mut stage = Stage {
        engine,
        interface,
        device: Nowhere {
            received: None,
            ip_mtu: *ip_mtu,
            seq: None,
        },
        key: reversed(key),
        now,
    };
    let ended = direct.state.has_ended();
    // The made-up SYN, and a FIN if the peer has sent one, end where the flow expects the next byte.
    let first = direct.rcv_nxt.wrapping_sub(1 + u32::from(ended));
    let window = direct.peer_window();
    stage.syn(
        first,
        SynOptions {
            mss: direct.peer.mss,
            shift: direct.peer.shift,
            sack: direct.peer.sack,
        },
    );
    let isn = stage.egress()?;
    let numbers = |offset: u32, ack: u32, flags: u8| Numbers {
        seq: first.wrapping_add(offset),
        ack: isn.wrapping_add(ack),
        flags: ACK | flags,
        window,
    };
    stage.ingress(numbers(1, 1, 0));
    if receive_shift(rx_bytes) > 0 {
        // The window of its SYN-ACK was not scaled, but smoltcp remembers it as if it were. A probe has it say its
        // window anew; so long ago that it counts for no limit.
        stage.now = now - ENGINE_TIMEOUT * 2;
        stage.ingress(numbers(0, 1, 0));
        stage.now = now;
    }
    match direct.state {
        State::CloseWait | State::LastAck => {
            stage.ingress(numbers(1, 1, FIN));
            // It was acknowledged long ago.
            stage.egress();
        }
        State::FinWait2 => {
            stage.engine.socket().close();
            stage.egress();
            stage.ingress(numbers(1, 2, 0));
        }
        _ => {}
    }
    for sent in held.sent(&direct.held) {
        // The first frame may be acknowledged in part.
        let known = direct.snd_una.wrapping_sub(sent.seq) as i32;
        let skipped = (known.max(0) as usize).min(sent.len);
        let bytes = egress
            .arena
            .held_bytes(sent.frame, &egress.queue)
            .and_then(|bytes| bytes.get(sent.start + skipped..sent.start + sent.len));
        debug_assert!(bytes.is_some(), "a held frame is not where it should be");
        let taken = stage
            .engine
            .socket()
            .send_slice(bytes.unwrap_or_default())
            .unwrap_or(0);
        debug_assert_eq!(taken, sent.len - skipped);
    }
    if matches!(
        direct.state,
        State::FinWait1 | State::LastAck | State::Closing
    ) {
        stage.engine.socket().close();
    }
    if reason == Summon::Timeout {
        stage.time_out(direct.rtt.timeout());
    } else {
        stage.send_all(now);
    }
    // As for an engine that hears of them itself: in a window of less than a segment they would mislead it.
    let misleading = direct.snd_wnd > 0 && (direct.snd_wnd as usize) < mss;
    if reason == Summon::DuplicateAcks && !misleading {
        for _ in 0..3 {
            stage.ingress(numbers(1, 1, 0));
        }
    }
    if direct.state == State::Closing {
        stage.ingress(numbers(1, 1, FIN));
    }
    let acknowledged = if direct.state == State::FinWait2 {
        2
    } else {
        1
    };
    Some(direct.snd_una.wrapping_sub(isn.wrapping_add(acknowledged)))
}

/// Has an engine take in a made-up segment of its peer; what it sends in answer goes nowhere. `key` is the flow's.
pub(super) fn tell(
    engine: &mut Engine,
    resources: &mut Resources,
    key: &FlowKey,
    numbers: Numbers,
    now: Instant,
) {
    let mut stage = Stage {
        engine,
        interface: &mut resources.interface,
        device: Nowhere {
            received: None,
            ip_mtu: resources.ip_mtu,
            seq: None,
        },
        key: reversed(key),
        now,
    };
    stage.ingress(numbers);
}

/// The ends as the peer sees them.
fn reversed(key: &FlowKey) -> FlowKey {
    FlowKey {
        peer: key.local,
        local: key.peer,
        peer_port: key.local_port,
        local_port: key.peer_port,
    }
}

/// Where the made-up handshake is played.
struct Stage<'a> {
    engine: &'a mut Engine,
    interface: &'a mut Interface,
    device: Nowhere,
    /// From the peer to us.
    key: FlowKey,
    now: Instant,
}

impl Stage<'_> {
    fn syn(&mut self, seq: u32, options: SynOptions) {
        let mut packet = [0; SEGMENT_BYTES_MAX];
        let link = LinkHeader::default();
        let offset = segment::payload_offset(&link, &self.key);
        let options_len = options.write(&mut packet[offset..]);
        let numbers = Numbers {
            seq,
            ack: 0,
            flags: SYN,
            window: u16::MAX,
        };
        let len = segment::write_headers(&mut packet, &link, &self.key, numbers, options_len, 0);
        self.take_in(packet, len);
    }

    fn ingress(&mut self, numbers: Numbers) {
        let mut packet = [0; SEGMENT_BYTES_MAX];
        let link = LinkHeader::default();
        let len = segment::write_headers(&mut packet, &link, &self.key, numbers, 0, 0);
        self.take_in(packet, len);
    }

    fn take_in(&mut self, packet: [u8; SEGMENT_BYTES_MAX], len: usize) {
        self.device.received = Some((packet, len));
        self.engine
            .ingress(self.interface, &mut self.device, self.now);
    }

    /// Makes the engine's timeout due now, and the next at least twice as long as `timeout`, the flow's (RFC 6298
    /// section 5.5): it sends, and waits in vain, as often as it takes for its own to be so long. If its first one
    /// is, it may simply send.
    fn time_out(&mut self, timeout: Duration) {
        let mut times = 0;
        while ENGINE_TIMEOUT * (1 << times) < timeout * 2 && times < 6 {
            times += 1;
        }
        let mut at = self.now - ENGINE_TIMEOUT * ((1 << times) - 1);
        for time in 0..times {
            self.send_all(at);
            at += ENGINE_TIMEOUT * (1 << time);
        }
    }

    /// Lets the engine send what it was given, at this time and as far as its congestion window goes. Its first one
    /// is 2,048 bytes, and cannot be set: what is in flight beyond is sent once more as the acknowledgements come,
    /// unless they acknowledge it, too.
    fn send_all(&mut self, at: Instant) {
        let now = std::mem::replace(&mut self.now, at);
        while self.egress().is_some() {}
        self.now = now;
    }

    /// Lets the engine send one segment; returns its sequence number.
    fn egress(&mut self) -> Option<u32> {
        self.device.seq = None;
        self.engine
            .egress_once(self.interface, &mut self.device, self.now);
        self.device.seq
    }
}

/// A device that gives one packet, and keeps only the sequence number of what it is given.
struct Nowhere {
    received: Option<([u8; SEGMENT_BYTES_MAX], usize)>,
    ip_mtu: usize,
    seq: Option<u32>,
}

impl phy::Device for Nowhere {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sent<'_>)> {
        let (packet, len) = self.received.take()?;
        Some((Received { packet, len }, Sent { seq: &mut self.seq }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sent<'_>> {
        Some(Sent { seq: &mut self.seq })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.ip_mtu;
        // Nobody looks at what is made up.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

struct Received {
    packet: [u8; SEGMENT_BYTES_MAX],
    len: usize,
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.packet[..self.len])
    }
}

struct Sent<'a> {
    seq: &'a mut Option<u32>,
}

impl phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut short = [0; SEGMENT_BYTES_MAX];
        // Nothing longer is sent before there are bytes to send.
        let mut long = vec![0; if len > short.len() { len } else { 0 }];
        let packet = if long.is_empty() {
            &mut short[..len]
        } else {
            &mut long[..]
        };
        let result = f(packet);
        let at = if packet[0] >> 4 == 4 {
            IPV4_HEADER_BYTES
        } else {
            IPV6_HEADER_BYTES
        };
        *self.seq = packet
            .get(at + 4..at + 8)
            .map(|seq| u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]));
        result
    }
}
