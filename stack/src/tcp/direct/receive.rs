//! What a segment means to a direct flow (RFC 9293 section 3.10.7.4, RFC 5961).

use super::{After, Context, Direct, Done, Flags, INITIAL_WINDOW_SEGMENTS, State, millis};
use crate::Instant;
use crate::arena::Frame;
use crate::client::End;
use crate::tcp::segment::{self, ACK, FIN, Numbers, RST, SYN, Segment, is_before};
use crate::telemetry::Summon;

/// Acknowledgements of nothing new that make a segment lost (RFC 5681 section 3.2).
const DUP_ACKS: u8 = 3;

/// How far behind an acknowledgement may be (RFC 5961 section 5.2: the largest window that the peer ever had;
/// no window of ours is larger in direct flight).
pub(in crate::tcp) const ACK_AGE_MAX: u32 = 1 << 16;

impl Direct {
    /// Takes a segment of this flow in.
    #[inline]
    pub(in crate::tcp) fn receive(
        &mut self,
        frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        if self.flags.has(Flags::ABORTED) {
            cx.turn.egress.arena.free(frame);
            return After::Direct;
        }
        if self.state.is_opening() {
            return self.receive_opening(frame, segment, cx);
        }
        if segment.has(RST | SYN) {
            return self.receive_odd(frame, segment, cx);
        }
        if segment.seq != self.rcv_nxt {
            return self.receive_out_of_order(frame, segment, cx);
        }
        self.heard(cx.turn.now);
        let acked = segment.ack.wrapping_sub(self.snd_una);
        if acked <= self.in_flight() {
            self.link = segment.link;
            match self.acknowledge(segment, acked, cx) {
                Acknowledged::GoOn => {}
                end => return self.end_of_acknowledging(end, frame, cx),
            }
        } else if !is_before(segment.ack, self.snd_una)
            || self.snd_una.wrapping_sub(segment.ack) > ACK_AGE_MAX
        {
            // Of something that was never sent, or of another age (RFC 5961 section 5.2).
            self.challenge(frame, cx);
            return After::Direct;
        }
        if segment.len() == 0 && !segment.has(FIN) {
            cx.turn.egress.arena.free(frame);
            return After::Direct;
        }
        match self.state {
            State::Established if !self.closes() => self.serve(frame, segment, cx),
            // It has said that nothing more would come.
            State::CloseWait | State::Closing | State::LastAck => {
                cx.turn.egress.arena.free(frame);
                self.flags.set(Flags::ACK_DUE);
                After::Direct
            }
            _ => self.discard(frame, segment, cx),
        }
    }

    /// The peer is there.
    #[inline]
    fn heard(&mut self, now: Instant) {
        if self.probes > 0 {
            self.probes = 0;
            self.timer_from = millis(now);
        }
    }

    /// Takes an acknowledgement in of `acked` numbers that were in flight.
    #[inline(always)]
    fn acknowledge(
        &mut self,
        segment: &Segment,
        acked: u32,
        cx: &mut Context<'_, '_>,
    ) -> Acknowledged {
        let window = self.peer.scale(segment.window);
        let same_window = std::mem::replace(&mut self.snd_wnd, window) == window;
        if acked == 0 {
            // Of a lone FIN the timer takes care.
            let duplicate =
                !self.held.is_empty() && same_window && segment.len() == 0 && !segment.has(FIN);
            if duplicate {
                self.dup_acks = self.dup_acks.saturating_add(1);
                if self.dup_acks == DUP_ACKS {
                    return Acknowledged::NothingThrice;
                }
            }
            return Acknowledged::GoOn;
        }
        let turn = &mut *cx.turn;
        cx.resources
            .held
            .acknowledge(&mut self.held, segment.ack, &mut turn.egress.arena);
        self.snd_una = segment.ack;
        self.dup_acks = 0;
        self.backoff = 0;
        self.time_acknowledgement(turn.now);
        let now = turn.millis;
        // RFC 6298 section 5.3.
        self.timer_from = now;
        self.progress_at = now;
        if self.snd_una != self.snd_nxt {
            return Acknowledged::GoOn;
        }
        // A whole flight has arrived: the next may be twice as large (RFC 5681 section 3.1).
        self.flight_max = (self.flight_max * 2).min(INITIAL_WINDOW_SEGMENTS);
        match self.state {
            State::FinWait1 => self.state = State::FinWait2,
            State::Closing | State::LastAck => return Acknowledged::OurFin,
            _ => {}
        }
        Acknowledged::GoOn
    }

    /// What an acknowledgement that is not like others comes to; `frame` is that of its segment.
    fn end_of_acknowledging(
        &mut self,
        end: Acknowledged,
        frame: Frame,
        cx: &mut Context<'_, '_>,
    ) -> After {
        if end == Acknowledged::NothingThrice {
            return After::engine(Summon::DuplicateAcks, Some(frame), Done::Nothing);
        }
        cx.turn.egress.arena.free(frame);
        match (end, self.state) {
            (Acknowledged::GoOn, _) => After::Direct,
            (_, State::LastAck) => After::Gone(End::Closed),
            _ => After::TimeWait(self.closed(cx.resources)),
        }
    }

    /// Takes the round trip's time, if the segment that it is taken of was just acknowledged.
    #[inline]
    pub(super) fn time_acknowledgement(&mut self, now: Instant) {
        if self.flags.has(Flags::TIMING) && !is_before(self.snd_una, self.timed_end) {
            self.flags.clear(Flags::TIMING);
            let micros = (now.total_micros() as u32).wrapping_sub(self.timed_at);
            self.rtt.sample(micros);
        }
    }

    /// What comes after we closed is acknowledged, and dropped.
    fn discard(&mut self, frame: Frame, segment: &Segment, cx: &mut Context<'_, '_>) -> After {
        self.rcv_nxt = self.rcv_nxt.wrapping_add(segment.len() as u32);
        if !segment.has(FIN) {
            cx.turn.egress.arena.free(frame);
            self.flags.set(Flags::ACK_DUE);
            return After::Direct;
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        self.send_acknowledgement(frame, cx);
        match self.state {
            State::FinWait1 => self.state = State::Closing,
            // Our own FIN still waits for a frame.
            State::Established => self.state = State::CloseWait,
            _ => return After::TimeWait(self.closed(cx.resources)),
        }
        After::Direct
    }

    /// A reset or a SYN: neither may end a connection by a guess.
    #[cold]
    fn receive_odd(&mut self, frame: Frame, segment: &Segment, cx: &mut Context<'_, '_>) -> After {
        match screen(segment, self.rcv_nxt, cx.resources.window_bytes(self)) {
            Screened::Reset => {
                cx.turn.egress.arena.free(frame);
                After::Gone(End::Reset)
            }
            Screened::Challenge => {
                self.challenge(frame, cx);
                After::Direct
            }
            Screened::Drop | Screened::Pass => {
                cx.turn.egress.arena.free(frame);
                After::Direct
            }
        }
    }

    /// A segment that does not begin with what is expected next.
    #[cold]
    fn receive_out_of_order(
        &mut self,
        frame: Frame,
        segment: &Segment,
        cx: &mut Context<'_, '_>,
    ) -> After {
        let window = cx.resources.window_bytes(self);
        let offset = segment.seq.wrapping_sub(self.rcv_nxt);
        let end = segment.seq.wrapping_add(segment.seq_len());
        let is_ahead = !is_before(segment.seq, self.rcv_nxt);
        if is_ahead && offset < window {
            if segment.seq_len() > 0 {
                return After::engine(Summon::OutOfOrder, Some(frame), Done::Nothing);
            }
            // Something before it is missing; what it acknowledges is known all the same.
            let acked = segment.ack.wrapping_sub(self.snd_una);
            if acked <= self.in_flight() {
                // What is missing may have been sent later: its window counts, unless this one acknowledges more.
                let window = self.snd_wnd;
                let acknowledged = self.acknowledge(segment, acked, cx);
                if acked == 0 {
                    self.snd_wnd = window;
                }
                return match acknowledged {
                    // There is something missing, and that is what says so.
                    Acknowledged::NothingThrice => {
                        self.end_of_acknowledging(Acknowledged::GoOn, frame, cx)
                    }
                    end => self.end_of_acknowledging(end, frame, cx),
                };
            }
        } else if !is_ahead && is_before(self.rcv_nxt, end) {
            // A part of it is new.
            return After::engine(Summon::OutOfOrder, Some(frame), Done::Nothing);
        }
        // Not acceptable: it is answered with what is expected, and dropped. Bytes are answered whenever they
        // come, since they come as often as the peer's timers say; others could go on for ever.
        self.heard(cx.turn.now);
        cx.turn.counters.segments_unacceptable.increment();
        if segment.seq_len() > 0 {
            cx.turn.egress.arena.free(frame);
            self.flags.set(Flags::ACK_DUE);
        } else {
            self.challenge(frame, cx);
        }
        After::Direct
    }

    /// Says what is expected, in the segment's own frame, if that was not said a moment ago.
    fn challenge(&mut self, frame: Frame, cx: &mut Context<'_, '_>) {
        if self.may_challenge(cx.turn.now) {
            cx.turn.counters.challenges.increment();
            self.send_acknowledgement(frame, cx);
        } else {
            cx.turn.egress.arena.free(frame);
        }
    }

    /// Sends an acknowledgement of everything received, in a frame that is nobody's.
    pub(in crate::tcp) fn send_acknowledgement(&mut self, frame: Frame, cx: &mut Context<'_, '_>) {
        let numbers = Numbers {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: ACK,
            window: cx.resources.window(self),
        };
        segment::send_bare(frame, &self.link, cx.key, numbers, cx.turn.egress);
        self.flags.clear(Flags::ACK_DUE);
    }
}

/// What an acknowledgement says besides what is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledged {
    /// Nothing.
    GoOn,
    /// Nothing new for the third time: a segment is lost.
    NothingThrice,
    /// Our FIN has arrived after the peer's.
    OurFin,
}

/// What is to be done about a reset or a SYN on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tcp) enum Screened {
    /// Neither.
    Pass,
    /// The peer has reset the connection.
    Reset,
    /// Maybe it has: a challenge finds out.
    Challenge,
    Drop,
}

/// RFC 5961 sections 3.2 and 4.2: a reset counts where exactly the next byte is expected, elsewhere in the
/// window it is challenged, and so is every SYN.
pub(in crate::tcp) fn screen(segment: &Segment, rcv_nxt: u32, window: u32) -> Screened {
    if segment.has(RST) {
        let offset = segment.seq.wrapping_sub(rcv_nxt);
        if offset == 0 {
            Screened::Reset
        } else if offset < window {
            Screened::Challenge
        } else {
            Screened::Drop
        }
    } else if segment.has(SYN) {
        Screened::Challenge
    } else {
        Screened::Pass
    }
}
