//! Segments of a direct flow.

use super::{After, Context, Direct, Flags, State, initial_window};
use crate::arena::{Frame, Owner};
use crate::client::End;
use crate::tcp::Resources;
use crate::tcp::Turn;
use crate::tcp::engine::USER_TIMEOUT;
use crate::tcp::held::Held;
use crate::tcp::segment::{self, ACK, FIN, Numbers, PSH, RST};
use crate::telemetry::Summon;
use crate::wire::FlowKey;

/// What every segment of one event has in common.
pub(super) struct Sender<'a, 'turn> {
    pub(super) key: &'a FlowKey,
    pub(super) mss: usize,
    pub(super) window: u16,
    pub(super) held: &'a mut Held,
    pub(super) turn: &'a mut Turn<'turn>,
}

impl Direct {
    /// The largest segment that may be sent.
    #[inline]
    pub(in crate::tcp) fn mss(&self) -> usize {
        usize::from(self.peer.mss)
    }

    /// Whether `len` bytes may be sent now, as direct flows do; if not, why. `frames` are at hand already.
    #[inline(always)]
    pub(super) fn fits(
        &self,
        len: usize,
        frames: usize,
        resources: &Resources,
        turn: &Turn<'_>,
    ) -> Result<(), Summon> {
        if len == 0 {
            return Ok(());
        }
        let mss = usize::from(self.peer.mss);
        let congestion = initial_window(mss as u32).min(u32::from(self.flight_max) * mss as u32);
        let limit = self.snd_wnd.min(congestion);
        if len as u64 + u64::from(self.in_flight()) > u64::from(limit) {
            return Err(Summon::LargeReply);
        }
        let count = len.div_ceil(mss);
        if !resources.held.has_room(&self.held, count) {
            return Err(Summon::HeldFrames);
        }
        if count > frames + turn.egress.arena.free_frames() {
            return Err(Summon::NoFrame);
        }
        Ok(())
    }

    /// Sends the bytes of `pieces`, which [fit](Self::fits), in as many segments as they take, the first of
    /// them in `frame` if there is one; and FIN with the last, if told.
    pub(super) fn send(
        &mut self,
        mut frame: Option<Frame>,
        pieces: [&[u8]; 2],
        fin: bool,
        sender: &mut Sender<'_, '_>,
    ) {
        let mut left = pieces[0].len() + pieces[1].len();
        let offset = segment::payload_offset(&self.link, sender.key);
        let mut sent = 0;
        loop {
            let size = left.min(sender.mss);
            let arena = &mut sender.turn.egress.arena;
            let Some(mut carrier) = frame.take().or_else(|| arena.alloc(Owner::Tx)) else {
                // Frames for bytes were counted beforehand; a lone FIN can wait.
                debug_assert!(left == 0);
                sender.turn.counters.tx_no_frame.increment();
                self.flags.set(Flags::FIN_DUE);
                return;
            };
            copy(
                pieces,
                sent,
                &mut arena.buffer_mut(&mut carrier)[offset..offset + size],
            );
            sent += size;
            left -= size;
            self.transmit(carrier, size, left == 0, fin && left == 0, sender);
            if left == 0 {
                return;
            }
        }
    }

    /// Sends a segment whose `len` bytes of payload are in place in its frame.
    #[inline(always)]
    pub(super) fn transmit(
        &mut self,
        mut frame: Frame,
        len: usize,
        push: bool,
        fin: bool,
        sender: &mut Sender<'_, '_>,
    ) {
        let mut flags = ACK;
        if push && len > 0 {
            flags |= PSH;
        }
        if fin {
            flags |= FIN;
        }
        let numbers = Numbers {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags,
            window: sender.window,
        };
        let turn = &mut *sender.turn;
        let arena = &mut turn.egress.arena;
        let buffer = arena.buffer_mut(&mut frame);
        let end = segment::write_headers(buffer, &self.link, sender.key, numbers, 0, len);
        arena.set_len(&mut frame, end);
        if len > 0 {
            let start = end - len;
            sender
                .held
                .push(&mut self.held, &frame, self.snd_nxt, start, len, arena);
        }
        // RFC 6298 section 5.1.
        if self.in_flight() == 0 {
            self.timer_from = turn.millis;
        }
        self.snd_nxt = self.snd_nxt.wrapping_add(len as u32 + u32::from(fin));
        if !self.flags.has(Flags::TIMING) {
            self.flags.set(Flags::TIMING);
            self.timed_end = self.snd_nxt;
            self.timed_at = turn.now.total_micros() as u32;
        }
        self.flags.clear(Flags::ACK_DUE);
        if fin {
            self.note_fin_sent();
        }
        turn.egress.send(frame);
    }

    fn note_fin_sent(&mut self) {
        self.flags.clear(Flags::FIN_DUE);
        self.state = if self.state.has_ended() {
            State::LastAck
        } else {
            State::FinWait1
        };
    }

    /// Closes our side, with nothing more to send.
    pub(super) fn close(&mut self, cx: &mut Context<'_, '_>) {
        self.progress_at = cx.turn.millis;
        let mut sender = sender(self, cx.key, cx.resources, cx.turn);
        self.send(None, [&[], &[]], true, &mut sender);
    }

    /// Sends the oldest segment in flight once more, where no engine can be had for that (RFC 6298 sections 5.4
    /// to 5.6).
    pub(in crate::tcp) fn retransmit(&mut self, cx: &mut Context<'_, '_>) -> After {
        let now = cx.turn.millis;
        if u64::from(now.wrapping_sub(self.progress_at)) >= USER_TIMEOUT.total_millis() {
            self.send_reset(None, cx);
            return After::Gone(End::Unanswered);
        }
        self.backoff = self.backoff.saturating_add(1);
        self.timer_from = now;
        self.flags.clear(Flags::TIMING);
        let Some(mut frame) = cx.turn.egress.arena.alloc(Owner::Tx) else {
            cx.turn.counters.tx_no_frame.increment();
            return After::Direct;
        };
        let mut numbers = Numbers {
            seq: self.snd_una,
            ack: self.rcv_nxt,
            flags: ACK,
            window: cx.resources.window(self),
        };
        let egress = &mut *cx.turn.egress;
        let offset = segment::payload_offset(&self.link, cx.key);
        let mut len = 0;
        if let Some(sent) = cx.resources.held.sent(&self.held).next() {
            numbers.seq = sent.seq;
            // Through a buffer: the arena does not lend two frames at once.
            let replies = &mut cx.resources.replies;
            replies.clear();
            if let Some(bytes) = egress.arena.held_bytes(sent.frame, &egress.queue) {
                replies.extend_from_slice(&bytes[sent.start..sent.start + sent.len]);
            }
            len = replies.len();
            let buffer = egress.arena.buffer_mut(&mut frame);
            buffer[offset..offset + len].copy_from_slice(replies);
        }
        let end = numbers.seq.wrapping_add(len as u32);
        if self.state.is_closing() && end.wrapping_add(1) == self.snd_nxt {
            numbers.flags |= FIN;
        }
        let buffer = egress.arena.buffer_mut(&mut frame);
        let end = segment::write_headers(buffer, &self.link, cx.key, numbers, 0, len);
        egress.arena.set_len(&mut frame, end);
        egress.send(frame);
        After::Direct
    }

    /// Resets the connection, in `frame` if there is one.
    pub(in crate::tcp) fn send_reset(&mut self, frame: Option<Frame>, cx: &mut Context<'_, '_>) {
        let Some(frame) = frame.or_else(|| cx.turn.egress.arena.alloc(Owner::Tx)) else {
            cx.turn.counters.tx_no_frame.increment();
            return;
        };
        let numbers = Numbers {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: RST | ACK,
            window: 0,
        };
        segment::send_bare(frame, &self.link, cx.key, numbers, cx.turn.egress);
    }
}

/// What sends the segments of `direct` in this event.
pub(super) fn sender<'a, 'turn>(
    direct: &Direct,
    key: &'a FlowKey,
    resources: &'a mut Resources,
    turn: &'a mut Turn<'turn>,
) -> Sender<'a, 'turn> {
    Sender {
        key,
        mss: usize::from(direct.peer.mss),
        window: resources.window(direct),
        held: &mut resources.held,
        turn,
    }
}

/// Copies to `to` what lies from byte `from` on in the two pieces, one behind the other.
fn copy(pieces: [&[u8]; 2], from: usize, to: &mut [u8]) {
    let [first, second] = pieces;
    let of_first = &first[from.min(first.len())..];
    let split = of_first.len().min(to.len());
    to[..split].copy_from_slice(&of_first[..split]);
    let from = (from + split).saturating_sub(first.len());
    let rest = to.len() - split;
    to[split..].copy_from_slice(&second[from..from + rest]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn two_pieces_are_copied_as_one(first in prop::collection::vec(any::<u8>(), 0..40),
                                        second in prop::collection::vec(any::<u8>(), 0..40),
                                        from in 0usize..80, len in 0usize..80) {
            let whole = [&first[..], &second[..]].concat();
            let from = from.min(whole.len());
            let len = len.min(whole.len() - from);
            let mut to = vec![0; len];
            copy([&first, &second], from, &mut to);
            prop_assert_eq!(&to[..], &whole[from..from + len]);
        }
    }
}
