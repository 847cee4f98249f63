//! A frame lent to another thread: readable there, and sent home when dropped.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{Frame, FrameMemory};

/// The bytes of a request, still in the frame that they came in.
///
/// Dropping the loan sends the frame home to its core. The rings are never touched from here.
///
/// A loan keeps the memory of its whole queue, also when the core is gone. It does not keep the queue.
#[derive(Debug)]
pub struct Loan {
    /// `None` only while dropping.
    frame: Option<Frame>,
    range: Range<usize>,
    memory: Arc<FrameMemory>,
    home: Sender<Frame>,
}

impl Loan {
    pub(super) fn new(
        frame: Frame,
        range: Range<usize>,
        memory: Arc<FrameMemory>,
        home: Sender<Frame>,
    ) -> Self {
        let end = range.end.min(memory.capacity());
        let start = range.start.min(end);
        Self {
            frame: Some(frame),
            range: start..end,
            memory,
            home,
        }
    }

    /// The lent bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.frame {
            Some(frame) => &self.memory.frame(frame)[self.range.clone()],
            None => &[],
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            // The channel holds every frame of the arena, so it cannot be full; it is closed only when
            // the core and its arena are gone, and then nobody misses the frame.
            let _ = self.home.try_send(frame);
        }
    }
}
