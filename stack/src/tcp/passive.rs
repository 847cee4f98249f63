//! Segments for no flow: SYNs, what completes a handshake, and what is left of connections that are over.

use super::direct::Direct;
use super::handshake::Completion;
use super::segment::{
    self, ACK, Numbers, PeerOptions, RST, SYN, Segment, SynOptions, TCP_HEADER_BYTES, is_before,
};
use super::time_wait::{Found, Reopening};
use super::{Flow, Tcp, Turn, receive_shift};
use crate::Instant;
use crate::arena::Frame;
use crate::config::ENGINE_RX_BYTES;
use crate::wire::{FlowKey, Reject};

/// A new connection of the same ends may begin while the last one is in TIME-WAIT; our sequence numbers begin so far
/// behind those of segments that may still be under way (RFC 1122 section 4.2.2.13).
const REUSE_DISTANCE: u32 = 1 << 17;

impl Tcp {
    /// A segment for no flow: it may begin one, or be a late one of one that is over.
    pub(super) fn receive_unknown(
        &mut self,
        frame: Frame,
        key: &FlowKey,
        segment: &Segment,
        turn: &mut Turn<'_>,
    ) {
        if let Some(found) = self.time_wait.find(key) {
            self.receive_in_time_wait(found, frame, key, segment, turn);
            return;
        }
        let Some(service) = self.service(key) else {
            refuse(frame, key, segment, turn);
            return;
        };
        if !segment.is_plain() {
            drop_odd(frame, turn);
            return;
        }
        if segment.is_syn() {
            self.answer_syn(frame, key, segment, turn);
            return;
        }
        if segment.flags & (SYN | RST | ACK) != ACK {
            refuse(frame, key, segment, turn);
            return;
        }
        match self.completion(key, segment, turn.now) {
            Completion::Complete(peer) => {
                if self.accept(service, peer, frame, key, segment, turn) {
                    turn.counters.cookies_accepted.increment();
                }
            }
            Completion::Early => {
                turn.counters.cookies_early.increment();
                turn.egress.arena.free(frame);
            }
            Completion::Refused => {
                turn.counters.cookies_refused.increment();
                refuse(frame, key, segment, turn);
            }
        }
    }

    /// The service of a port, by its place in the list.
    fn service(&self, key: &FlowKey) -> Option<u16> {
        let ports = &self.resources.ports;
        let index = ports
            .iter()
            .position(|service| service.port == key.local_port)?;
        // There are as many ports at most.
        Some(index as u16)
    }

    /// Answers a SYN on its own frame, with a cookie and without remembering it.
    fn answer_syn(&mut self, frame: Frame, key: &FlowKey, segment: &Segment, turn: &mut Turn<'_>) {
        if self.resources.draining || !self.flows.has_room() {
            turn.counters.flows_refused.increment();
            turn.egress.arena.free(frame);
            return;
        }
        let peer = self.options(&frame, key, segment, turn);
        let local_mss = segment::local_mss(self.resources.ip_mtu, key);
        let isn = self
            .handshake
            .cookie(key, segment.seq, peer, local_mss, turn.now);
        turn.counters.cookies_sent.increment();
        self.send_syn_ack(frame, key, segment, peer, isn, turn);
    }

    /// Answers a SYN on its own frame.
    fn send_syn_ack(
        &self,
        frame: Frame,
        key: &FlowKey,
        segment: &Segment,
        peer: PeerOptions,
        isn: u32,
        turn: &mut Turn<'_>,
    ) {
        let numbers = Numbers {
            seq: isn,
            ack: segment.seq.wrapping_add(1),
            flags: SYN | ACK,
            window: ENGINE_RX_BYTES as u16,
        };
        let options = SynOptions {
            mss: segment::local_mss(self.resources.ip_mtu, key),
            shift: peer.shift.map(|_| receive_shift(ENGINE_RX_BYTES)),
            sack: peer.sack,
        };
        segment::send_syn(frame, &segment.link, key, numbers, options, turn.egress);
    }

    /// The options of a SYN.
    fn options(
        &self,
        frame: &Frame,
        key: &FlowKey,
        segment: &Segment,
        turn: &Turn<'_>,
    ) -> PeerOptions {
        let options =
            &turn.egress.arena.bytes(frame)[segment.transport + TCP_HEADER_BYTES..segment.payload];
        PeerOptions::read(options, segment::default_mss(key))
    }

    /// Whether a segment's acknowledgement completes a handshake.
    fn completion(&mut self, key: &FlowKey, segment: &Segment, now: Instant) -> Completion {
        self.handshake.complete(
            key,
            segment.seq.wrapping_sub(1),
            segment.ack.wrapping_sub(1),
            segment::local_mss(self.resources.ip_mtu, key),
            now,
        )
    }

    /// Begins the flow whose handshake `segment` completes, and hands the segment to it. Returns whether there was
    /// room for it.
    fn accept(
        &mut self,
        service: u16,
        mut peer: PeerOptions,
        frame: Frame,
        key: &FlowKey,
        segment: &Segment,
        turn: &mut Turn<'_>,
    ) -> bool {
        let said = peer;
        peer.mss = peer.mss.min(self.resources.path_mss(key, turn.now));
        let direct = Direct::accepted(
            service,
            peer,
            segment.link,
            segment.seq,
            segment.ack,
            turn.now,
        );
        let inserted = if self.resources.draining {
            None
        } else {
            self.flows.insert(*key, Flow::Direct(direct)).ok()
        };
        let Some(id) = inserted else {
            // It will send again, and there may be room then.
            turn.counters.flows_refused.increment();
            turn.egress.arena.free(frame);
            return false;
        };
        self.handshake.use_up(key, said, turn.now);
        turn.counters.flows_opened.increment();
        turn.counters.flows_established.increment();
        self.dispatch(id, frame, segment, turn);
        true
    }

    /// A segment of a connection in TIME-WAIT (RFC 9293 section 3.10.7.4), or of a new one of the same ends.
    fn receive_in_time_wait(
        &mut self,
        found: Found,
        frame: Frame,
        key: &FlowKey,
        segment: &Segment,
        turn: &mut Turn<'_>,
    ) {
        let Found {
            id,
            closed,
            reopening,
        } = found;
        // RFC 1337: a reset does not end TIME-WAIT.
        if segment.has(RST) {
            turn.egress.arena.free(frame);
            return;
        }
        if let Some(service) = self.service(key) {
            if segment.is_syn() && !is_before(segment.seq, closed.rcv_nxt) {
                let reopening = Reopening {
                    peer_isn: segment.seq,
                    isn: closed.snd_nxt.wrapping_add(REUSE_DISTANCE),
                    peer: self.options(&frame, key, segment, turn),
                };
                if self.time_wait.reopen(id, reopening, turn.now) {
                    self.send_syn_ack(frame, key, segment, reopening.peer, reopening.isn, turn);
                } else {
                    turn.counters.time_wait_unanswered.increment();
                    turn.egress.arena.free(frame);
                }
                return;
            }
            if let Some(Reopening {
                peer_isn,
                isn,
                peer,
            }) = reopening
                && segment.flags & (SYN | ACK) == ACK
                && segment.ack == isn.wrapping_add(1)
            {
                if segment.seq == peer_isn.wrapping_add(1) {
                    if self.accept(service, peer, frame, key, segment, turn) {
                        self.time_wait.remove(id);
                        turn.counters.time_wait_reused.increment();
                    }
                } else {
                    turn.counters.cookies_early.increment();
                    turn.egress.arena.free(frame);
                }
                return;
            }
        }
        let is_old_fin = segment.flags & (segment::FIN | SYN | ACK) == segment::FIN | ACK
            && segment.seq.wrapping_add(segment.seq_len()) == closed.rcv_nxt;
        if is_old_fin {
            self.time_wait.restart(id, turn.now);
        } else if segment.seq == closed.rcv_nxt && segment.seq_len() == 0 {
            // In order, and nothing in it.
            turn.egress.arena.free(frame);
            return;
        }
        if !self.time_wait.may_acknowledge(id, turn.now) {
            turn.counters.time_wait_unanswered.increment();
            turn.egress.arena.free(frame);
            return;
        }
        let numbers = Numbers {
            seq: closed.snd_nxt,
            ack: closed.rcv_nxt,
            flags: ACK,
            window: closed.window,
        };
        segment::send_bare(frame, &segment.link, key, numbers, turn.egress);
    }
}

/// Drops a segment whose flags can be nobody's.
#[cold]
pub(super) fn drop_odd(frame: Frame, turn: &mut Turn<'_>) {
    turn.counters.reject(Reject::TcpHeader);
    turn.egress.arena.free(frame);
}

/// Answers a segment that belongs to no connection, as RFC 9293 section 3.10.7.1 says.
fn refuse(frame: Frame, key: &FlowKey, segment: &Segment, turn: &mut Turn<'_>) {
    if segment.has(RST) {
        turn.egress.arena.free(frame);
        return;
    }
    turn.counters.tcp_resets.increment();
    segment::send_reset(frame, segment, key, turn.egress);
}
