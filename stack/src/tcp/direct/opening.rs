//! The handshake of connections that we open (RFC 9293 sections 3.5 and 3.10.7.3).

use super::{After, Context, Direct, Flags, State, millis};
use crate::arena::{Frame, Owner};
use crate::client::End;
use crate::tcp::segment::{
    self, ACK, Numbers, PeerOptions, RST, SYN, Segment, SynOptions, TCP_HEADER_BYTES,
};

impl Direct {
    /// Sends the SYN, or the SYN-ACK of a simultaneous open, once more or for the first time.
    pub(in crate::tcp) fn send_syn(&mut self, frame: Option<Frame>, cx: &mut Context<'_, '_>) {
        let turn = &mut *cx.turn;
        let Some(frame) = frame.or_else(|| turn.egress.arena.alloc(Owner::Tx)) else {
            // As if it had been lost.
            turn.counters.tx_no_frame.increment();
            return;
        };
        let answers = self.state == State::SynReceived;
        let window = cx.resources.client_rx_bytes.min(usize::from(u16::MAX)) as u16;
        let numbers = Numbers {
            seq: self.snd_una,
            ack: if answers { self.rcv_nxt } else { 0 },
            flags: if answers { SYN | ACK } else { SYN },
            // The window of a SYN is never scaled (RFC 7323 section 2.2).
            window,
        };
        let offers = !answers || self.peer.shift.is_some();
        let options = SynOptions {
            mss: segment::local_mss(cx.resources.ip_mtu, cx.key),
            shift: offers.then_some(cx.resources.client_shift),
            sack: !answers || self.peer.sack,
        };
        segment::send_syn(frame, &self.link, cx.key, numbers, options, turn.egress);
        // Only what was sent once is timed (RFC 6298 section 3).
        if self.backoff == 0 {
            self.timed_end = self.snd_nxt;
            self.timed_at = turn.now.total_micros() as u32;
            self.flags.set(Flags::TIMING);
        } else {
            self.flags.clear(Flags::TIMING);
        }
        self.timer_from = turn.millis;
    }

    /// A segment before the handshake is complete.
    pub(super) fn receive_opening(
        &mut self,
        frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        match self.state {
            State::SynSent => self.receive_syn_sent(frame, segment, cx),
            _ => self.receive_syn_received(frame, segment, cx),
        }
    }

    /// RFC 9293 section 3.10.7.3.
    fn receive_syn_sent(
        &mut self,
        frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        let acknowledges = segment.has(ACK);
        if acknowledges && segment.ack != self.snd_nxt {
            // Of an old connection: it shall learn that this is a new one.
            if segment.has(RST) {
                cx.turn.egress.arena.free(frame);
            } else {
                cx.turn.counters.tcp_resets.increment();
                segment::send_reset(frame, segment, cx.key, cx.turn.egress);
            }
            return After::Direct;
        }
        if segment.has(RST) {
            cx.turn.egress.arena.free(frame);
            return if acknowledges {
                After::Gone(End::Refused)
            } else {
                After::Direct
            };
        }
        if !segment.has(SYN) {
            cx.turn.egress.arena.free(frame);
            return After::Direct;
        }
        self.note_syn(&frame, segment, cx);
        if acknowledges {
            self.establish(segment, cx);
            return self.greet(frame, cx);
        }
        // Both opened at once.
        self.state = State::SynReceived;
        self.backoff = 0;
        self.send_syn(Some(frame), cx);
        After::Direct
    }

    /// RFC 9293 section 3.10.7.4 in SYN-RECEIVED.
    fn receive_syn_received(
        &mut self,
        frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        let seq = segment.seq.wrapping_add(u32::from(segment.has(SYN)));
        let in_order = seq == self.rcv_nxt;
        if segment.has(RST) {
            cx.turn.egress.arena.free(frame);
            return if in_order {
                After::Gone(End::Refused)
            } else {
                After::Direct
            };
        }
        if in_order && segment.has(ACK) && segment.ack == self.snd_nxt {
            self.establish(segment, cx);
            let after = self.greet_late(cx);
            // What the segment carries besides.
            let rest = segment.len() > 0 || segment.has(segment::FIN);
            return match after {
                After::Direct if rest && !segment.has(SYN) => self.receive(frame, segment, cx),
                after => {
                    cx.turn.egress.arena.free(frame);
                    after
                }
            };
        }
        if segment.has(ACK) && segment.ack != self.snd_nxt {
            // Of another connection.
            cx.turn.counters.tcp_resets.increment();
            segment::send_reset(frame, segment, cx.key, cx.turn.egress);
        } else if in_order && segment.has(SYN) {
            // It has not heard our answer.
            self.send_syn(Some(frame), cx);
        } else {
            cx.turn.egress.arena.free(frame);
        }
        After::Direct
    }

    /// What the peer's SYN says.
    fn note_syn(&mut self, frame: &Frame, segment: &Segment, cx: &Context<'_, '_>) {
        let options = &cx.turn.egress.arena.bytes(frame)
            [segment.transport + TCP_HEADER_BYTES..segment.payload];
        self.peer = PeerOptions::read(options, segment::default_mss(cx.key));
        let path_mss = cx.resources.path_mss(cx.key, cx.turn.now);
        self.peer.mss = self.peer.mss.min(path_mss);
        self.link = segment.link;
        // Bytes that come with a SYN are not acknowledged: they will be sent again.
        self.rcv_nxt = segment.seq.wrapping_add(1);
    }

    /// The handshake is complete: `segment` acknowledged our SYN.
    fn establish(&mut self, segment: &Segment, cx: &mut Context<'_, '_>) {
        let now = cx.turn.now;
        self.state = State::Established;
        self.snd_una = self.snd_nxt;
        self.snd_wnd = if segment.has(SYN) {
            u32::from(segment.window)
        } else {
            self.peer.scale(segment.window)
        };
        self.time_acknowledgement(now);
        self.progress_at = millis(now);
        self.backoff = 0;
        cx.turn.counters.flows_established.increment();
    }
}
