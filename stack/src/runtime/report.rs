//! What a stack says about itself: how it is attached, what was counted, where the frames are.

use interruptlet_xdp::{AttachMode, Program};

use crate::arena::{Arena, FrameCount};
use crate::port::xsk::{BindMode, Bound, WhyCopy, XskStatistics};
use crate::telemetry::Counters;

/// How the stack is attached, for its user to see.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The XDP program runs in the driver, not in the kernel's generic path.
    pub native: bool,
    /// Why not, if not.
    pub native_refusal: Option<String>,
    /// How each queue is bound.
    pub queues: Vec<QueueFacts>,
}

/// How a queue is bound.
#[derive(Debug, Clone)]
pub struct QueueFacts {
    /// The queue.
    pub queue: u32,
    /// Its mode.
    pub mode: BindMode,
    /// Why it is not in zero-copy mode, if it is not.
    pub why_copy: Option<WhyCopy>,
}

impl Facts {
    /// Those of `program` and of `queues` with their sockets.
    pub(super) fn new(program: &Program, queues: &[u32], bound: &[Bound]) -> Self {
        Self {
            native: program.mode() == AttachMode::Native,
            native_refusal: program.native_refusal().map(ToString::to_string),
            queues: queues
                .iter()
                .zip(bound)
                .map(|(queue, bound)| QueueFacts {
                    queue: *queue,
                    mode: bound.mode,
                    why_copy: bound.why_copy.clone(),
                })
                .collect(),
        }
    }

    /// Whether all queues are in zero-copy mode.
    pub fn is_zero_copy(&self) -> bool {
        self.queues
            .iter()
            .all(|queue| queue.mode == BindMode::ZeroCopy)
    }
}

impl std::fmt::Display for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.native, &self.native_refusal) {
            (true, _) => f.write_str("XDP native")?,
            (false, None) => f.write_str("XDP generic")?,
            (false, Some(refusal)) => write!(f, "XDP generic (native: {refusal})")?,
        }
        for queue in &self.queues {
            let mode = match queue.mode {
                BindMode::ZeroCopy => "zero-copy",
                BindMode::Copy => "copy",
            };
            write!(f, ", queue {} {mode}", queue.queue)?;
            if let Some(why) = &queue.why_copy {
                write!(f, " ({why})")?;
            }
        }
        Ok(())
    }
}

/// What was counted, and where the frames are.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Names and values of all counters, summed over the workers.
    pub counters: Vec<(&'static str, u64)>,
    /// Names and values of the kernel's counters, in packets: the XDP program's, then, beginning with
    /// `xsk_`, those of the sockets, summed over the queues: packets that were lost, but for `xsk_fill_waits`, how often
    /// a driver in zero-copy mode found no frame to receive into ahead of time. Those that could not be read are missing.
    pub xdp: Vec<(&'static str, u64)>,
    /// Frames by owner, by queue.
    pub frames: Vec<(u32, FrameCount)>,
    /// While running: whether every frame has an owner. After a stop: whether every frame is where it
    /// belongs. A request that a slow-path handler still keeps then has its frame on loan, which is not
    /// where it belongs, unless threads had to be left behind (see below): then loans are let pass, for
    /// they may be theirs.
    pub conserved: bool,
    /// Queues whose worker ended by itself, because it panicked or the queue broke. Their traffic is left to the kernel; the
    /// frames of a worker that panicked are not accounted for.
    pub queues_lost: Vec<u32>,
    /// After a stop: whether the grace was cut short while connections were not finished, which were reset then.
    pub cut_short: bool,
    /// After a stop: queues whose core was still in a handler when the time was over. The core's thread is left behind and ends
    /// when its handler does. Until then, or until the process ends, it keeps the queue's memory and its socket, so nobody else
    /// can serve the queue; the traffic is the kernel's. Its frames are not accounted for.
    pub queues_left: Vec<u32>,
    /// After a stop: threads of the slow path that were still in a handler when the time was over. They
    /// are left behind and end when their handler does. Until then, if they hold requests in frames, the
    /// memory of their queues stays.
    pub slow_threads_left: usize,
}

/// The workers' counters, summed.
pub(super) fn sum_counters<'a>(
    workers: impl Iterator<Item = &'a Counters>,
) -> Vec<(&'static str, u64)> {
    let mut sums = Vec::new();
    for counters in workers {
        add(&mut sums, counters.snapshot());
    }
    sums
}

/// See [`Report::xdp`].
pub(super) fn kernel_counters<'a>(
    program: Option<&Program>,
    sockets: impl Iterator<Item = &'a XskStatistics>,
) -> Vec<(&'static str, u64)> {
    let mut counters: Vec<(&'static str, u64)> = program
        .and_then(|program| program.counters().ok())
        .map(|counters| counters.iter().collect())
        .unwrap_or_default();
    let mut sums = Vec::new();
    for statistics in sockets {
        match statistics.read() {
            Ok(values) => add(&mut sums, values),
            Err(error) => log::debug!("reading a socket's statistics: {error}"),
        }
    }
    counters.append(&mut sums);
    counters
}

/// Adds `values`, which have the same names in the same order each time.
fn add(sums: &mut Vec<(&'static str, u64)>, values: impl IntoIterator<Item = (&'static str, u64)>) {
    for (index, (name, value)) in values.into_iter().enumerate() {
        match sums.get_mut(index) {
            Some((_, sum)) => *sum += value,
            None => sums.push((name, value)),
        }
    }
}

/// Where the frames of stopped workers are, by queue, and whether they belong there: see
/// [`Report::conserved`].
pub(super) fn final_frames(
    arenas: &mut [(u32, Arena)],
    slow_threads_left: usize,
) -> (Vec<(u32, FrameCount)>, bool) {
    let mut frames = Vec::new();
    let mut conserved = true;
    for (queue, arena) in arenas {
        arena.collect_loans();
        conserved &= if slow_threads_left == 0 {
            arena.is_at_rest()
        } else {
            arena.is_at_rest_but_for_loans()
        };
        frames.push((*queue, arena.count()));
    }
    (frames, conserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Owner;

    #[test]
    fn the_facts_say_how_each_queue_is_bound_and_why() {
        let queue = |queue, mode, why_copy| QueueFacts {
            queue,
            mode,
            why_copy,
        };
        let driver = Some("veth".to_owned());
        let mut facts = Facts {
            native: true,
            native_refusal: None,
            queues: vec![
                queue(0, BindMode::ZeroCopy, None),
                queue(1, BindMode::Copy, Some(WhyCopy::Driver { driver })),
            ],
        };
        assert_eq!(
            facts.to_string(),
            "XDP native, queue 0 zero-copy, queue 1 copy (veth has no zero-copy in this kernel)"
        );
        assert!(!facts.is_zero_copy());
        facts.queues.pop();
        assert!(facts.is_zero_copy());
    }

    #[test]
    fn counters_are_summed_by_name() {
        let mut sums = Vec::new();
        add(&mut sums, [("a", 1), ("b", 2)]);
        add(&mut sums, [("a", 10), ("b", 0)]);
        assert_eq!(sums, [("a", 11), ("b", 2)]);
    }

    #[test]
    fn loans_pass_only_if_threads_were_left_behind() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        let frame = arena.alloc(Owner::Rx).unwrap();
        let loan = arena.lend(frame, 0..0).unwrap();
        let mut arenas = [(3, arena)];
        assert!(!final_frames(&mut arenas, 0).1);
        let (frames, conserved) = final_frames(&mut arenas, 1);
        assert!(conserved);
        assert_eq!((frames[0].0, frames[0].1.of(Owner::Loan)), (3, 1));
        drop(loan);
        assert!(final_frames(&mut arenas, 0).1);
    }

    #[test]
    fn a_frame_that_nobody_gave_back_is_never_let_pass() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        let _lost = arena.alloc(Owner::Rx).unwrap();
        assert!(!final_frames(&mut [(0, arena)], 1).1);
    }
}
