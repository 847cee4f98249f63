//! Direct flows: TCP in the common case, on the frames themselves, without an engine.
//!
//! A direct flow is a hundred bytes of numbers and a list of the frames that it sent and that were not
//! acknowledged yet. It can do what is in order: take requests and acknowledgements in, reply, close.
//! Everything else it leaves to an engine, which is [summoned](After::Engine) for it.
//!
//! * [`opening`]: the handshake of connections that we open.
//! * [`receive`]: what a segment means.
//! * [`serve`]: requests and handlers, bytes and clients.
//! * [`send`]: segments out.
//! * [`deadline`]: what the flow waits for, and how long.

mod deadline;
mod opening;
mod receive;
mod send;
mod serve;

pub(super) use self::deadline::instant_of;
pub(super) use self::receive::{ACK_AGE_MAX, Screened, screen};
use super::held::HeldList;
use super::rtt::Rtt;
use super::segment::PeerOptions;
use super::time_wait::Closed;
use super::{Resources, Turn};
use crate::arena::Frame;
use crate::client::End;
use crate::flow::FlowId;
use crate::interruptlet::StreamOutcome;
use crate::telemetry::Summon;
use crate::wire::{FlowKey, LinkHeader};
use crate::{Duration, Instant};

/// A time in milliseconds of the loop's clock, modulo 2^32: to be compared with times near it.
pub(super) type Millis = u32;

/// The loop's time in [`Millis`].
#[inline]
pub(super) fn millis(now: Instant) -> Millis {
    now.total_millis() as u32
}

/// A deadline in [`Millis`], rounded up.
pub(super) fn millis_up(deadline: Instant) -> Millis {
    millis(deadline + Duration::from_micros(999))
}

/// Bytes that may be in flight on a direct flow, in segments of `mss` bytes: what may be sent without knowing
/// the path (RFC 6928 section 2). More needs congestion control, which is the engine's.
#[inline]
fn initial_window(mss: u32) -> u32 {
    (u32::from(INITIAL_WINDOW_SEGMENTS) * mss).min((2 * mss).max(14_600))
}

const INITIAL_WINDOW_SEGMENTS: u8 = 10;

/// A flow without an engine. Small, because idle connections are many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direct {
    pub(super) side: Side,
    /// In front of what is sent: the way that the peer's last segment came.
    pub(super) link: LinkHeader,
    pub(super) state: State,
    /// Sequence numbers and window as in RFC 9293 section 3.3.1. The window is in bytes, scaled.
    pub(super) rcv_nxt: u32,
    pub(super) snd_una: u32,
    pub(super) snd_nxt: u32,
    pub(super) snd_wnd: u32,
    pub(super) peer: PeerOptions,
    pub(super) held: HeldList,
    pub(super) rtt: Rtt,
    /// The number behind the segment whose round trip is being timed, and when it was sent, in microseconds
    /// modulo 2^32; of meaning with [`Flags::TIMING`].
    timed_end: u32,
    timed_at: u32,
    /// The last time that either side got something done.
    pub(super) progress_at: Millis,
    /// Since when the retransmission timer runs.
    timer_from: Millis,
    /// The deadline that the timing wheel has; of meaning with [`Flags::ARMED`].
    pub(super) armed: Millis,
    /// When a challenge was sent last, in quarters of a second.
    pub(super) challenged_at: u16,
    /// Times that the SYN was sent again.
    backoff: u8,
    /// Acknowledgements in a row that acknowledged nothing new (RFC 5681 section 2).
    dup_acks: u8,
    /// Segments that may be in flight: an initial window, but fewer after a loss (RFC 5681 sections 3.1 and 4.1).
    flight_max: u8,
    /// Keep-alive probes since the peer was heard.
    probes: u8,
    pub(super) flags: Flags,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Of one of the core's services, by its place in the list.
    Service(u16),
    /// Of the client, who calls it so.
    Client(u64),
}

/// The states of RFC 9293 section 3.3.2 that a flow can be in. LISTEN and SYN-RECEIVED of passive opens are
/// nobody's state here (the handshake is stateless), TIME-WAIT has a table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    SynSent,
    /// Of a simultaneous open.
    SynReceived,
    Established,
    /// Only of a client's connection: a service answers a FIN with its own.
    CloseWait,
    FinWait1,
    FinWait2,
    Closing,
    LastAck,
}

impl State {
    /// Our FIN is sent.
    pub(super) fn is_closing(self) -> bool {
        !matches!(
            self,
            Self::SynSent | Self::SynReceived | Self::Established | Self::CloseWait
        )
    }

    /// The peer's FIN is received.
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::CloseWait | Self::Closing | Self::LastAck)
    }

    fn is_opening(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }
}

/// Yes or no, eight times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Flags(u8);

impl Flags {
    /// It is on the core's list of flows to look after at the end of the turn.
    pub(super) const TOUCHED: Self = Self(1);
    /// What was received is to be acknowledged.
    pub(super) const ACK_DUE: Self = Self(2);
    /// Our side is to be closed, as soon as there is a frame for the FIN.
    pub(super) const FIN_DUE: Self = Self(4);
    /// A segment's round trip is being timed.
    pub(super) const TIMING: Self = Self(8);
    /// The timing wheel has a deadline.
    pub(super) const ARMED: Self = Self(16);
    /// The client gave more than there was room for, before the handshake was complete.
    pub(super) const WANTS_ROOM: Self = Self(32);
    /// It was reset by the client in its turn, who hears of that at the end of the core's.
    pub(super) const ABORTED: Self = Self(64);
    /// The core counts it among those that only wait for their peer's FIN.
    pub(super) const FINISHED: Self = Self(128);

    #[inline]
    pub(super) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }

    /// Whether one of some flags is set.
    #[inline]
    pub(super) fn any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    #[inline]
    pub(super) fn set(&mut self, flag: Self) {
        self.0 |= flag.0;
    }

    #[inline]
    pub(super) fn clear(&mut self, flag: Self) {
        self.0 &= !flag.0;
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What an event of a direct flow happens with: which flow it is, what it shares, and the turn.
pub(super) struct Context<'a, 'turn> {
    pub(super) id: FlowId,
    pub(super) key: &'a FlowKey,
    pub(super) resources: &'a mut Resources,
    pub(super) turn: &'a mut Turn<'turn>,
}

/// What becomes of a direct flow after an event.
#[derive(Debug)]
#[must_use]
pub(super) enum After {
    /// It stays one.
    Direct,
    /// It needs an engine.
    Engine(Call),
    /// It is over, and what is left of it is for the TIME-WAIT table.
    TimeWait(Closed),
    /// It is over.
    Gone(End),
}

/// Why an engine is needed, and for what.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) reason: Summon,
    /// The segment that caused it, to be handed to the engine.
    pub(super) frame: Option<Frame>,
    pub(super) done: Done,
}

/// What was done already with the segment that an engine is summoned for.
#[derive(Debug)]
pub(super) enum Done {
    Nothing,
    /// Its first `consumed` bytes were handled; the replies to them are in [`Resources::replies`]. Then the
    /// handler was called once more, if there is an outcome.
    Handled {
        consumed: usize,
        outcome: Option<StreamOutcome>,
    },
    /// The client took so many bytes; what it asks for is in [`Resources::actions`].
    Acted {
        taken: usize,
    },
}

impl After {
    fn engine(reason: Summon, frame: Option<Frame>, done: Done) -> Self {
        Self::Engine(Call {
            reason,
            frame,
            done,
        })
    }
}

impl Direct {
    /// One whose handshake a peer has just completed, with a segment numbered `rcv_nxt` that acknowledges
    /// `snd_nxt`.
    pub(super) fn accepted(
        service: u16,
        peer: PeerOptions,
        link: LinkHeader,
        rcv_nxt: u32,
        snd_nxt: u32,
        now: Instant,
    ) -> Self {
        let mut direct = Self::new(Side::Service(service), State::Established, link, now);
        direct.peer = peer;
        direct.rcv_nxt = rcv_nxt;
        direct.snd_una = snd_nxt;
        direct.snd_nxt = snd_nxt;
        direct
    }

    /// One that the client opens, with this initial sequence number.
    pub(super) fn opening(token: u64, link: LinkHeader, isn: u32, now: Instant) -> Self {
        let mut direct = Self::new(Side::Client(token), State::SynSent, link, now);
        direct.snd_una = isn;
        direct.snd_nxt = isn.wrapping_add(1);
        direct
    }

    fn new(side: Side, state: State, link: LinkHeader, now: Instant) -> Self {
        Self {
            side,
            link,
            state,
            rcv_nxt: 0,
            snd_una: 0,
            snd_nxt: 0,
            snd_wnd: 0,
            peer: PeerOptions {
                mss: super::segment::MSS_MIN,
                shift: None,
                sack: false,
            },
            held: HeldList::default(),
            rtt: Rtt::default(),
            timed_end: 0,
            timed_at: 0,
            progress_at: millis(now),
            timer_from: millis(now),
            armed: 0,
            // Not the time now, or the first challenge would be one too many.
            challenged_at: quarter_seconds(now).wrapping_sub(1),
            backoff: 0,
            dup_acks: 0,
            flight_max: INITIAL_WINDOW_SEGMENTS,
            probes: 0,
            flags: Flags::default(),
        }
    }

    /// The handshake is not complete.
    pub(super) fn is_opening(&self) -> bool {
        self.state.is_opening()
    }

    /// Our side is closed, or will be as soon as there is a frame for the FIN.
    pub(super) fn closes(&self) -> bool {
        self.state.is_closing() || self.flags.has(Flags::FIN_DUE)
    }

    /// The peer's window as it is in a header.
    pub(super) fn peer_window(&self) -> u16 {
        let shifted = self.snd_wnd >> self.peer.shift.unwrap_or(0);
        shifted.min(u32::from(u16::MAX)) as u16
    }

    /// Sequence numbers that were sent and not acknowledged.
    #[inline]
    pub(super) fn in_flight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// Whether a challenge may be sent now: at most one in a quarter of a second (RFC 5961 section 7).
    pub(super) fn may_challenge(&mut self, now: Instant) -> bool {
        let time = quarter_seconds(now);
        std::mem::replace(&mut self.challenged_at, time) != time
    }

    /// The flow stops being direct, for this reason: what only a direct flow has is over.
    pub(super) fn leave(&mut self, reason: Summon) {
        if matches!(reason, Summon::Timeout | Summon::DuplicateAcks) {
            self.flight_max = 1;
        }
        for flag in [
            Flags::TIMING,
            Flags::ACK_DUE,
            Flags::FIN_DUE,
            Flags::WANTS_ROOM,
        ] {
            self.flags.clear(flag);
        }
        self.backoff = 0;
        self.dup_acks = 0;
        self.probes = 0;
    }

    /// What TIME-WAIT has to know.
    pub(super) fn closed(&self, resources: &Resources) -> Closed {
        Closed {
            snd_nxt: self.snd_nxt,
            rcv_nxt: self.rcv_nxt,
            window: resources.window(self),
        }
    }
}

fn quarter_seconds(now: Instant) -> u16 {
    (now.total_millis() / 250) as u16
}
