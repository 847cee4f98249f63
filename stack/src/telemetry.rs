//! What a core counts, readable from other threads while it runs.
//!
//! Each counter has one writer, its core, so counting is a plain load and store, without a locked
//! instruction. Readers see each counter whole and up to date within a turn of the loop, but not all
//! counters at the same instant.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::arena::{FrameCount, Owner};
use crate::wire::Reject;
use crate::{Duration, Instant};

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    #[inline]
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Counts `amount`.
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        // One writer: no read-modify-write instruction is needed.
        self.0
            .store(self.0.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
    }

    /// Says how many there are now, of what comes and goes.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why an engine was summoned to a connection that had none. One counter each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Summon {
    /// A segment is not the next one, or only in part.
    OutOfOrder,
    /// A request is not whole yet.
    PartialRequest,
    /// A request is the slow path's.
    Deferred,
    /// The service's handler is with the slow path, for overrunning its budget.
    Demoted,
    /// A reply is larger than what the peer's window and a new connection's congestion window allow.
    LargeReply,
    /// What was sent is not acknowledged in time.
    Timeout,
    /// Three acknowledgements in a row acknowledged nothing new.
    DuplicateAcks,
    /// The connection, or all together, may not hold more frames.
    HeldFrames,
    /// No frame is free to send in.
    NoFrame,
    /// The client left bytes, or waits for room.
    Client,
    /// Every segment is to be handled by an engine.
    Asked,
}

impl Summon {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 11] = [
        Self::OutOfOrder,
        Self::PartialRequest,
        Self::Deferred,
        Self::Demoted,
        Self::LargeReply,
        Self::Timeout,
        Self::DuplicateAcks,
        Self::HeldFrames,
        Self::NoFrame,
        Self::Client,
        Self::Asked,
    ];

    /// The counter's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfOrder => "summoned_out_of_order",
            Self::PartialRequest => "summoned_partial_request",
            Self::Deferred => "summoned_deferred",
            Self::Demoted => "summoned_demoted",
            Self::LargeReply => "summoned_large_reply",
            Self::Timeout => "summoned_timeout",
            Self::DuplicateAcks => "summoned_duplicate_acks",
            Self::HeldFrames => "summoned_held_frames",
            Self::NoFrame => "summoned_no_frame",
            Self::Client => "summoned_client",
            Self::Asked => "summoned_asked",
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one core.
        #[derive(Debug)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
            /// Frames dropped, by [`Reject`].
            rejects: [Counter; Reject::ALL.len()],
            /// Engines summoned, by [`Summon`].
            summons: [Counter; Summon::ALL.len()],
            frames: [AtomicU32; Owner::ALL.len()],
            frames_total: AtomicU32,
            /// Odd while the core writes where the frames are: a reader that saw it odd, or changed, reads
            /// again.
            frames_version: AtomicU32,
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $($name: Counter::default(),)+
                    rejects: std::array::from_fn(|_| Counter::default()),
                    summons: std::array::from_fn(|_| Counter::default()),
                    frames: std::array::from_fn(|_| AtomicU32::default()),
                    frames_total: AtomicU32::default(),
                    frames_version: AtomicU32::default(),
                }
            }
        }

        impl Counters {
            /// Names and values of all counters, those that are zero too.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                let named = [$((stringify!($name), self.$name.get()),)+];
                let rejects = Reject::ALL
                    .iter()
                    .map(|reject| (reject.name(), self.rejects[*reject as usize].get()));
                let summons = Summon::ALL
                    .iter()
                    .map(|reason| (reason.name(), self.summons[*reason as usize].get()));
                named.into_iter().chain(summons).chain(rejects).collect()
            }
        }
    };
}

counters! {
    /// Frames received.
    rx_frames,
    /// Bytes received, link headers included.
    rx_bytes,
    /// Frames sent.
    tx_frames,
    /// Bytes sent, link headers included.
    tx_bytes,
    /// System calls that told the kernel to send.
    tx_kicks,
    /// Times that no frame came back from the kernel for 50 ms although some were out and there was a link.
    tx_stalls,
    /// Frames that the kernel had not sent, or not reported as sent, when the socket was closed.
    tx_unsent,
    /// Whether the queue sends nothing, whatever the kernel is told, now: 1 if so.
    tx_stuck,
    /// Turns of the loop in which something was received.
    rx_batches,
    /// Times that the core went to sleep.
    sleeps,
    /// Workers that ended by themselves: they panicked, or their queue broke.
    workers_lost,
    /// Requests that a stream interruptlet answered on the core.
    tcp_requests,
    /// Requests that a datagram interruptlet answered on the core.
    udp_requests,
    /// Requests handed to the slow path.
    deferred,
    /// Deferred requests whose bytes had to be copied instead of lent.
    deferred_copied,
    /// Requests that the slow path had no room for.
    deferred_refused,
    /// Deferred requests that the slow path dropped without an answer.
    deferred_abandoned,
    /// Response bodies that failed while they were produced; their connections were reset.
    bodies_failed,
    /// Replies of the slow path whose connection or frame was gone.
    replies_lost,
    /// Datagram replies cut to what one datagram may hold.
    udp_replies_cut,
    /// Times that a frame took longer than the budget of its handler, whose next calls are measured for that.
    handlers_suspected,
    /// Measured handler calls that ran, or waited for something, longer than their budget.
    handler_overruns,
    /// Measured handler calls that took longer than their budget because their core was taken away meanwhile. Nobody
    /// is charged for them.
    handler_preemptions,
    /// Calls of a handler that panicked; their connections were reset, their datagrams dropped.
    handler_panics,
    /// Times that a handler was moved to the slow path for overrunning its budget or for panicking.
    services_demoted,
    /// Times that a handler came back from there, to be tried again.
    services_returned,
    /// Connections begun by a peer: its handshake was completed.
    flows_opened,
    /// SYNs answered, without remembering them.
    cookies_sent,
    /// Handshakes completed by an acknowledgement that returned a cookie of ours.
    cookies_accepted,
    /// Acknowledgements that belong to no connection and return no cookie of ours.
    cookies_refused,
    /// The same from peers whose SYN was answered lately: ignored, since something before them is missing.
    cookies_early,
    /// Segments of a connection that were handled without an engine.
    direct_segments,
    /// Segments of a connection that were handled by an engine.
    engine_segments,
    /// Engines that a connection could do without again.
    dismissed,
    /// Times that an engine was needed and as many as may be were there.
    engines_refused,
    /// Connections without an engine, now.
    flows_direct,
    /// Connections with an engine, now.
    flows_engine,
    /// Connections in TIME-WAIT, now.
    flows_time_wait,
    /// Segments outside of the window, or old ones, answered with what is expected (RFC 9293 section 3.10.7.4).
    segments_unacceptable,
    /// Challenges sent because of a segment that may be forged (RFC 5961).
    challenges,
    /// Keep-alive probes sent.
    keep_alive_probes,
    /// Connections reset because the peer did not answer keep-alive probes.
    keep_alive_timeouts,
    /// Connections begun by a client of ours (RFC 4022, tcpActiveOpens).
    active_opens,
    /// Datagrams that a client of ours was given.
    client_datagrams,
    /// Connections that are over.
    flows_closed,
    /// Connections that reached the established state.
    flows_established,
    /// Connection attempts ignored because the flow table is full or the core drains.
    flows_refused,
    /// Connections closed because a request did not become whole in time.
    request_timeouts,
    /// Connections closed because nothing happened on them.
    idle_timeouts,
    /// Connections reset because the peer did not take what it asked for.
    stall_timeouts,
    /// Connections reset because something that the peer had sent before what came did not come.
    gap_timeouts,
    /// TIME-WAIT entries dropped early to make room.
    time_wait_evicted,
    /// TIME-WAIT entries that gave way to a new connection of the same ends.
    time_wait_reused,
    /// Segments for connections in TIME-WAIT that got no answer because another one got one a moment ago.
    time_wait_unanswered,
    /// Times that a connection's segments became smaller because a link on their way is narrower than ours.
    path_mtu_lowered,
    /// ICMP messages about TCP segments that were too big which changed nothing: no such segment is in flight, the
    /// connection's are smaller already, or what the message says cannot be.
    icmp_too_big_ignored,
    /// ICMP echo requests answered.
    icmp_echo_replies,
    /// ICMP port unreachable messages sent.
    icmp_unreachables,
    /// ICMP errors not sent because of the rate limit.
    icmp_rate_limited,
    /// TCP resets sent to segments that belong to no flow.
    tcp_resets,
    /// ARP requests and neighbour solicitations answered.
    neighbour_messages,
    /// ARP requests, neighbour solicitations and echo requests answered that arrived on a queue without a worker
    /// (and count as nothing else).
    unserved_queue_answers,
    /// ARP requests and neighbour solicitations sent, to find a next hop.
    neighbours_asked,
    /// ARP packets and neighbour advertisements that told a next hop's link address.
    neighbours_learned,
    /// Frames that could not be sent because no frame was free.
    tx_no_frame,
    /// Frames that a simulated link dropped because as many bytes as may be were on their way (see
    /// [`port::pipe`](crate::port::pipe)).
    link_overflows,
    /// Ring entries from the kernel that name no frame it was given.
    ring_errors,
}

impl Counters {
    #[inline]
    pub(crate) fn reject(&self, reject: Reject) {
        self.rejects[reject as usize].increment();
    }

    #[inline]
    pub(crate) fn count_summon(&self, reason: Summon) {
        self.summons[reason as usize].increment();
    }

    /// Engines summoned for `reason`.
    pub fn summoned(&self, reason: Summon) -> u64 {
        self.summons[reason as usize].get()
    }

    /// Frames dropped for `reason`.
    pub fn rejected(&self, reason: Reject) -> u64 {
        self.rejects[reason as usize].get()
    }

    /// Publishes where the frames are.
    pub(crate) fn publish_frames(&self, count: &FrameCount) {
        let version = self.frames_version.load(Ordering::Relaxed);
        self.frames_version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // No store below may be seen before the odd version.
        fence(Ordering::Release);
        for (shared, frames) in self.frames.iter().zip(count.by_owner) {
            shared.store(frames, Ordering::Relaxed);
        }
        self.frames_total.store(count.total, Ordering::Relaxed);
        self.frames_version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// Where the frames were when the core last published it.
    pub fn frames(&self) -> FrameCount {
        loop {
            let before = self.frames_version.load(Ordering::Acquire);
            let mut count = FrameCount {
                total: self.frames_total.load(Ordering::Relaxed),
                ..FrameCount::default()
            };
            for (frames, shared) in count.by_owner.iter_mut().zip(&self.frames) {
                *frames = shared.load(Ordering::Relaxed);
            }
            // No load above may be done after this one.
            fence(Ordering::Acquire);
            let after = self.frames_version.load(Ordering::Relaxed);
            if before == after && before.is_multiple_of(2) {
                return count;
            }
            std::hint::spin_loop();
        }
    }
}

/// Lets one event per period through to the log: what a peer can provoke must not flood it.
#[derive(Debug)]
pub(crate) struct RateLimit {
    next_at: Instant,
    period: Duration,
}

impl RateLimit {
    /// One event a second.
    pub(crate) fn new(now: Instant) -> Self {
        Self::every(Duration::from_secs(1), now)
    }

    pub(crate) fn every(period: Duration, now: Instant) -> Self {
        Self {
            next_at: now,
            period,
        }
    }

    /// Whether an event at `now` may be logged.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        if now < self.next_at {
            return false;
        }
        self.next_at = now + self.period;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_count_is_read_whole() {
        let counters = Counters::default();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut moved = 0;
                while !stop.load(Ordering::Relaxed) {
                    moved = (moved + 7) % 100;
                    let mut count = FrameCount {
                        total: 100,
                        ..FrameCount::default()
                    };
                    count.by_owner[0] = moved;
                    count.by_owner[5] = 100 - moved;
                    counters.publish_frames(&count);
                }
            });
            for _ in 0..200_000 {
                assert!(counters.frames().is_conserved());
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn one_event_a_second() {
        let at = Instant::from_millis;
        let mut limit = RateLimit::new(at(5000));
        let allowed: Vec<bool> = [5000, 5001, 5999, 6000, 6001]
            .into_iter()
            .map(|millis: i64| limit.allows(at(millis)))
            .collect();
        assert_eq!(allowed, [true, false, false, true, false]);
    }
}
