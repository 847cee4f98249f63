//! Frames on their way out: the arena and the queue that the end of a turn sends.

use crate::arena::{Arena, Frame, Owner};
use crate::telemetry::Counters;
use crate::wire::LinkHeader;

/// What every protocol needs to send.
#[derive(Debug)]
pub(crate) struct Egress {
    pub(crate) arena: Arena,
    /// Sent in order at the end of the turn.
    pub(crate) queue: Vec<Frame>,
}

impl Egress {
    pub(crate) fn new(arena: Arena) -> Self {
        let frames = arena.count().total as usize;
        Self {
            arena,
            queue: Vec::with_capacity(frames),
        }
    }

    /// Queues a frame that is ready.
    pub(crate) fn send(&mut self, frame: Frame) {
        self.arena.hand_over(&frame, Owner::Tx);
        self.queue.push(frame);
    }

    /// Whether a frame can be had.
    pub(crate) fn has_room(&self) -> bool {
        self.arena.free_frames() > 0
    }

    /// A frame for a packet of `len` bytes behind `link`, which is written already. `None` is counted.
    pub(crate) fn packet(
        &mut self,
        link: &LinkHeader,
        len: usize,
        counters: &Counters,
    ) -> Option<Frame> {
        let link_len = link.len();
        if link_len + len > self.arena.frame_capacity() {
            counters.tx_no_frame.increment();
            return None;
        }
        let Some(mut frame) = self.arena.alloc(Owner::Tx) else {
            counters.tx_no_frame.increment();
            return None;
        };
        link.write(self.arena.buffer_mut(&mut frame));
        self.arena.set_len(&mut frame, link_len + len);
        Some(frame)
    }

    /// Sends a packet of `len` bytes that `fill` writes, behind `link`. Returns whether there was a
    /// frame for it.
    pub(crate) fn emit(
        &mut self,
        link: &LinkHeader,
        len: usize,
        counters: &Counters,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Some(mut frame) = self.packet(link, len, counters) else {
            return false;
        };
        let end = frame.len();
        fill(&mut self.arena.buffer_mut(&mut frame)[link.len()..end]);
        self.queue.push(frame);
        true
    }
}
