//! Where the unconsumed bytes of a connection can be seen as one slice.

use crate::arena::{Frame, FrameMemory};

/// The segment at hand, and the place of the bytes that no handler has consumed yet.
#[derive(Debug, Default)]
pub(in crate::tcp) struct Window {
    /// The segment's frame, until it is lent or freed.
    frame: Option<Frame>,
    place: Place,
    start: usize,
    end: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not known: only the engine has them.
    #[default]
    Engine,
    /// In the segment's frame: they came with it, all of them.
    Frame,
    /// In the core's scratch buffer, copied there from the engine.
    Scratch,
}

impl Window {
    /// A segment whose bytes from `start` to `end` are the unconsumed bytes.
    pub(super) fn in_frame(frame: Frame, start: usize, end: usize) -> Self {
        Self {
            frame: Some(frame),
            place: Place::Frame,
            start,
            end,
        }
    }

    /// A segment that is only a part of the unconsumed bytes, or none of them.
    pub(super) fn apart(frame: Frame) -> Self {
        Self {
            frame: Some(frame),
            ..Self::default()
        }
    }

    /// Whether this is the place of all `available` unconsumed bytes.
    pub(super) fn holds(&self, available: usize) -> bool {
        self.place != Place::Engine && self.end - self.start == available
    }

    /// The unconsumed bytes were copied to the start of the scratch buffer.
    pub(super) fn set_scratch(&mut self, len: usize) {
        self.place = Place::Scratch;
        self.start = 0;
        self.end = len;
    }

    /// The place is not what it was any more.
    pub(super) fn forget(&mut self) {
        self.place = Place::Engine;
    }

    /// `count` bytes were consumed.
    pub(super) fn advance(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Where the unconsumed bytes are in the frame, if they are.
    pub(super) fn frame_range(&self) -> Option<std::ops::Range<usize>> {
        (self.place == Place::Frame).then_some(self.start..self.end)
    }

    /// The unconsumed bytes and the room behind them.
    pub(super) fn buffer<'a>(
        &'a mut self,
        memory: &'a FrameMemory,
        scratch: &'a mut [u8],
    ) -> &'a mut [u8] {
        match (&mut self.frame, self.place) {
            (Some(frame), Place::Frame) => &mut memory.frame_mut(frame)[self.start..],
            _ => &mut scratch[self.start..],
        }
    }

    /// Takes the frame away: what was seen in it has to be seen elsewhere.
    pub(super) fn take_frame(&mut self) -> Option<Frame> {
        if self.place == Place::Frame {
            self.forget();
        }
        self.frame.take()
    }

    /// Gives back a frame that [`take_frame`](Self::take_frame) took, with the unconsumed bytes in `range`.
    pub(super) fn restore(&mut self, frame: Frame, range: std::ops::Range<usize>) {
        *self = Self::in_frame(frame, range.start, range.end);
    }
}
