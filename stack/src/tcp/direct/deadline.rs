//! What a direct flow waits for, how long, and what happens then; and what it does at the end of a turn.

use super::{After, Context, Direct, Done, Flags, Millis, Side, State, millis};
use crate::arena::Owner;
use crate::client::End;
use crate::tcp::rtt::MIN_MILLIS;
use crate::tcp::segment::{self, ACK, Numbers, is_before};
use crate::tcp::{HANDSHAKE_TIMEOUT, LINGER_TIMEOUT, Resources};
use crate::telemetry::Summon;
use crate::{Duration, Instant};

/// The first SYN is repeated after this time, the next after twice as much, and so on (RFC 6298 section 2.1).
const SYN_TIMEOUT: Duration = Duration::from_secs(1);
/// Probes without an answer until a peer is given up, and the time between two of them, if that is not longer
/// than the time before the first. Linux's defaults are 9 and 75 s.
const KEEP_ALIVE_PROBES: u8 = 9;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// When to look for a frame again.
const RETRY_MILLIS: Millis = 2;
/// The longest timeout, backed off (RFC 6298 section 2.5).
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The longest time that is waited for anything: twelve days.
const WAIT_MAX_MILLIS: u64 = 1 << 30;

/// What a flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The answer to a SYN.
    Handshake,
    /// An acknowledgement.
    Acknowledgement,
    /// The peer's FIN.
    Close,
    /// The next request, until the idle timeout.
    Idle,
    /// Any word of a peer that may be gone.
    KeepAlive,
}

impl Direct {
    /// What the next deadline is about, and when it is; besides a frame to send in.
    fn waiting(&self, resources: &Resources) -> Option<(Waiting, Millis)> {
        let after = |from: Millis, time: Duration| {
            // More could not be told from a time that has passed.
            let millis = time.total_millis().min(WAIT_MAX_MILLIS);
            from.wrapping_add(millis as u32)
        };
        if self.state.is_opening() {
            let wait = SYN_TIMEOUT * (1 << self.backoff.min(6));
            let again = after(self.timer_from, wait);
            let end = after(self.progress_at, HANDSHAKE_TIMEOUT);
            let at = if (end.wrapping_sub(again) as i32) < 0 {
                end
            } else {
                again
            };
            return Some((Waiting::Handshake, at));
        }
        if self.in_flight() > 0 {
            // Backed off only while there is no engine to be had.
            let wait = self.rtt.timeout() * (1 << self.backoff.min(6));
            let wait = wait.min(TIMEOUT_MAX);
            return Some((Waiting::Acknowledgement, after(self.timer_from, wait)));
        }
        if self.state == State::FinWait2 {
            return Some((Waiting::Close, after(self.progress_at, LINGER_TIMEOUT)));
        }
        let Side::Service(service) = self.side else {
            return None;
        };
        let service = &resources.ports[usize::from(service)];
        let idle = service
            .idle_timeout
            .map(|time| (Waiting::Idle, after(self.progress_at, time)));
        // With nothing in flight, the retransmission timer's start is when the peer was last asked, or heard after
        // it was asked.
        let keep_alive = service.keep_alive.map(|time| {
            let heard = if (self.timer_from.wrapping_sub(self.progress_at) as i32) > 0 {
                self.timer_from
            } else {
                self.progress_at
            };
            let wait = if self.probes == 0 {
                time
            } else {
                time.min(KEEP_ALIVE_INTERVAL)
            };
            (Waiting::KeepAlive, after(heard, wait))
        });
        match (idle, keep_alive) {
            (Some(idle), Some(keep_alive)) => {
                let first = (idle.1.wrapping_sub(keep_alive.1) as i32) <= 0;
                Some(if first { idle } else { keep_alive })
            }
            (idle, keep_alive) => idle.or(keep_alive),
        }
    }

    /// When the flow wants to be looked at again.
    #[inline]
    pub(in crate::tcp) fn deadline(&self, resources: &Resources, now: Millis) -> Option<Millis> {
        let waits = self.flags.any(Flags::FIN_DUE | Flags::ACK_DUE);
        let next = self.waiting(resources).map(|(_, at)| at);
        if waits && !self.flags.has(Flags::TOUCHED) {
            // There was no frame to send in.
            let retry = now.wrapping_add(RETRY_MILLIS);
            return Some(next.filter(|at| is_before(*at, retry)).unwrap_or(retry));
        }
        next
    }

    /// Whether the timer that the flow has fires no later than the retransmission timer could, which is what it
    /// waits for: no need to look closer.
    #[inline]
    pub(in crate::tcp) fn is_due_later(&self, now: Millis) -> bool {
        let left = self.armed.wrapping_sub(now) as i32;
        let waits = self.flags.any(Flags::FIN_DUE | Flags::ACK_DUE);
        self.timer_from == now
            && left <= MIN_MILLIS as i32
            && self.in_flight() > 0
            && !waits
            && !self.state.is_opening()
    }

    /// Acts on a deadline that has passed.
    pub(in crate::tcp) fn expire(&mut self, cx: &mut Context<'_, '_>) -> After {
        if self.flags.has(Flags::ABORTED) {
            return After::Direct;
        }
        let now = cx.turn.millis;
        if self.flags.any(Flags::FIN_DUE | Flags::ACK_DUE) && !self.flags.has(Flags::TOUCHED) {
            match self.flush(cx) {
                After::Direct => {}
                after => return after,
            }
        }
        let Some((waiting, at)) = self.waiting(cx.resources) else {
            return After::Direct;
        };
        // A timer that was set for a deadline that has moved since.
        if (now.wrapping_sub(at) as i32) < 0 {
            return After::Direct;
        }
        match waiting {
            Waiting::Handshake => {
                if now.wrapping_sub(self.progress_at) as u64 >= HANDSHAKE_TIMEOUT.total_millis() {
                    return After::Gone(End::ConnectTimeout);
                }
                self.backoff = self.backoff.saturating_add(1);
                self.send_syn(None, cx);
                After::Direct
            }
            Waiting::Acknowledgement => After::engine(Summon::Timeout, None, Done::Nothing),
            Waiting::Close => {
                self.send_reset(None, cx);
                After::Gone(End::Unanswered)
            }
            Waiting::Idle => {
                cx.turn.counters.idle_timeouts.increment();
                self.close(cx);
                After::Direct
            }
            Waiting::KeepAlive => self.probe(cx),
        }
    }

    /// What is left to do at the end of a turn: an acknowledgement of everything that it brought, a FIN.
    pub(in crate::tcp) fn flush(&mut self, cx: &mut Context<'_, '_>) -> After {
        if self.flags.has(Flags::ABORTED) {
            return After::Gone(End::Aborted);
        }
        let idle = self.state == State::Established && self.in_flight() == 0;
        let drains = cx.resources.draining && matches!(self.side, Side::Service(_));
        if self.flags.has(Flags::FIN_DUE) || (drains && idle) {
            self.close(cx);
        }
        if self.flags.has(Flags::ACK_DUE) {
            match cx.turn.egress.arena.alloc(Owner::Tx) {
                Some(frame) => self.send_acknowledgement(frame, cx),
                None => cx.turn.counters.tx_no_frame.increment(),
            }
        }
        After::Direct
    }

    /// Asks a silent peer whether it is there, with a number from before the window (RFC 9293 section 3.8.4).
    fn probe(&mut self, cx: &mut Context<'_, '_>) -> After {
        if self.probes >= KEEP_ALIVE_PROBES {
            cx.turn.counters.keep_alive_timeouts.increment();
            self.send_reset(None, cx);
            return After::Gone(End::Unanswered);
        }
        self.timer_from = cx.turn.millis;
        if let Some(frame) = cx.turn.egress.arena.alloc(Owner::Tx) {
            self.probes += 1;
            cx.turn.counters.keep_alive_probes.increment();
            let numbers = Numbers {
                seq: self.snd_nxt.wrapping_sub(1),
                ack: self.rcv_nxt,
                flags: ACK,
                window: cx.resources.window(self),
            };
            segment::send_bare(frame, &self.link, cx.key, numbers, cx.turn.egress);
        }
        After::Direct
    }
}

/// A deadline as the timing wheel wants it.
#[inline]
pub(in crate::tcp) fn instant_of(at: Millis, now: Instant) -> Instant {
    let left = at.wrapping_sub(millis(now)) as i32;
    now + Duration::from_millis(left.max(0) as u64)
}
