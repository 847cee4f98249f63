//! The I/O shared arena: the UMEM of one queue, cut into frames of one size.
//!
//! A [`Frame`] is a move-only handle to one UMEM chunk; whoever holds it has the chunk's bytes to
//! itself. Handles are made once, at start, and afterwards only change hands: between the free pool,
//! the rings of the [`crate::port`], the worker and, by [`Loan`], slow-path threads. The arena knows
//! the [`Owner`] of every frame, so that [`Arena::count`] can say at any time where all of them are.
//!
//! A frame is good only with the arena that made it: every other one panics rather than take it.
//!
//! The free pool is last-in first-out: recently used frames are still in the cache.

mod loan;
mod memory;

pub use loan::Loan;
pub(crate) use memory::{ArenaId, FrameMemory};

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

/// Who holds a frame. Exactly one at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Owner {
    /// The free pool.
    Free,
    /// The FILL ring: the kernel may write a packet into it.
    Fill,
    /// Received and being handled by the worker.
    Rx,
    /// Queued for sending, on the TX ring, or sent and not yet reported on the COMPLETION ring.
    Tx,
    /// A flow, until its bytes are acknowledged.
    Flow,
    /// A slow-path thread.
    Loan,
}

impl Owner {
    /// All owners, in the order of [`FrameCount::by_owner`].
    pub const ALL: [Self; 6] = [
        Self::Free,
        Self::Fill,
        Self::Rx,
        Self::Tx,
        Self::Flow,
        Self::Loan,
    ];

    /// The name that counters are printed with.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Fill => "fill",
            Self::Rx => "rx",
            Self::Tx => "tx",
            Self::Flow => "flow",
            Self::Loan => "loan",
        }
    }
}

/// How many frames each owner holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameCount {
    /// Frames by owner, in the order of [`Owner::ALL`].
    pub by_owner: [u32; Owner::ALL.len()],
    /// Frames in the arena.
    pub total: u32,
}

impl FrameCount {
    /// Frames that `owner` holds.
    pub fn of(&self, owner: Owner) -> u32 {
        self.by_owner[owner as usize]
    }

    /// Whether every frame has exactly one owner.
    pub fn is_conserved(&self) -> bool {
        self.by_owner.iter().sum::<u32>() == self.total
    }
}

/// A handle to one frame. Not `Clone`: holding it is owning the frame's bytes.
///
/// Dropping a handle loses the frame for good (the count shows it with its last owner); give it back
/// with [`Arena::free`] instead.
#[derive(Debug)]
#[must_use = "a frame must be handed on or freed"]
pub struct Frame {
    index: u32,
    /// Bytes in use from the start of the frame's data area.
    len: u16,
    /// Which memory the frame belongs to, so that a handle is never used with another arena's.
    arena: ArenaId,
}

impl Frame {
    /// The frame's number in its arena.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Bytes in use.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }
}

/// The frames of one queue, their memory and their owners.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<FrameMemory>,
    free: Vec<Frame>,
    owners: Vec<Owner>,
    by_owner: [u32; Owner::ALL.len()],
    /// Handles that are with the kernel: parked here while the frame is on a ring, so that a ring
    /// entry (an index from shared memory) can only ever yield a handle that was really given.
    parked: Vec<Option<Frame>>,
    /// Whether a flow may have to send the frame's bytes once more, by frame number.
    held: Vec<bool>,
    loans_home: Receiver<Frame>,
    loans_out: Sender<Frame>,
    loans_max: u32,
}

impl Arena {
    /// An arena over anonymous memory: `frames` frames of `frame_size` bytes each, at most `loans_max`
    /// of which may be lent at a time.
    pub fn anonymous(frames: u32, frame_size: u16, loans_max: u32) -> Self {
        Self::new(FrameMemory::anonymous(frames, frame_size), loans_max)
    }

    pub(crate) fn new(memory: FrameMemory, loans_max: u32) -> Self {
        let frames = memory.frames();
        let arena = memory.id();
        // Reversed, so that the first pops give the lowest addresses.
        let free = (0..frames)
            .rev()
            .map(|index| Frame {
                index,
                len: 0,
                arena,
            })
            .collect();
        let mut by_owner = [0; Owner::ALL.len()];
        by_owner[Owner::Free as usize] = frames;
        // Room for every frame: a loan's way home never blocks.
        let (loans_out, loans_home) = crossbeam_channel::bounded(frames as usize);
        Self {
            memory: Arc::new(memory),
            free,
            owners: vec![Owner::Free; frames as usize],
            by_owner,
            parked: (0..frames).map(|_| None).collect(),
            held: vec![false; frames as usize],
            loans_home,
            loans_out,
            loans_max,
        }
    }

    pub(crate) fn id(&self) -> ArenaId {
        self.memory.id()
    }

    /// Usable bytes per frame.
    pub fn frame_capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Takes a free frame for `owner`; `None` when there is none left (a caller counts that).
    #[inline]
    pub fn alloc(&mut self, owner: Owner) -> Option<Frame> {
        let mut frame = self.free.pop()?;
        frame.len = 0;
        self.set_owner(&frame, owner);
        Some(frame)
    }

    /// Gives a frame back to the free pool.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.set_owner(&frame, Owner::Free);
        self.free.push(frame);
    }

    /// Free frames.
    pub fn free_frames(&self) -> usize {
        self.free.len()
    }

    /// Notes that `frame` is now held by `owner`.
    pub fn hand_over(&mut self, frame: &Frame, owner: Owner) {
        self.set_owner(frame, owner);
    }

    /// Parks the handle of a frame that goes to the kernel as `owner` (`Fill` or `Tx`); returns the
    /// frame's number.
    #[inline]
    pub(crate) fn park(&mut self, frame: Frame, owner: Owner) -> u32 {
        self.set_owner(&frame, owner);
        let index = frame.index;
        self.parked[index as usize] = Some(frame);
        index
    }

    /// Takes back the handle that was parked as `owner`. `None` if there is none: the number comes from
    /// memory shared with the kernel and is not trusted.
    #[inline]
    pub(crate) fn unpark(&mut self, index: u32, owner: Owner) -> Option<Frame> {
        let slot = self.parked.get_mut(index as usize)?;
        if self.owners[index as usize] != owner {
            return None;
        }
        slot.take()
    }

    /// A flow keeps the bytes of `frame`, which is about to be sent: until [`release`](Self::release) it stays
    /// with the flow once it was sent, instead of going home.
    #[inline]
    pub(crate) fn hold(&mut self, frame: &Frame) {
        self.memory.check(frame);
        self.held[frame.index as usize] = true;
    }

    /// A frame was sent, or will never be: it goes to the flow that holds it, else home.
    #[inline]
    pub(crate) fn sent(&mut self, frame: Frame) {
        if self.held[frame.index as usize] {
            self.park(frame, Owner::Flow);
        } else {
            self.free(frame);
        }
    }

    /// Takes back the frames that are parked to be sent, and returns how many: for when the queue is gone, and with
    /// it whoever could have sent them. Each goes to the flow that holds it, else home.
    pub(crate) fn take_back_sending(&mut self) -> u32 {
        let mut taken = 0;
        for index in 0..self.owners.len() as u32 {
            if let Some(frame) = self.unpark(index, Owner::Tx) {
                self.sent(frame);
                taken += 1;
            }
        }
        taken
    }

    /// The flow that held frame number `index` needs it no more: it goes home, now or when it was sent.
    #[inline]
    pub(crate) fn release(&mut self, index: u32) {
        self.held[index as usize] = false;
        if let Some(frame) = self.unpark(index, Owner::Flow) {
            self.free(frame);
        }
    }

    /// The bytes of a held frame, which is with its flow, with the kernel (who reads it too), or still in
    /// `queue`, waiting to be sent.
    pub(crate) fn held_bytes<'a>(&'a self, index: u32, queue: &'a [Frame]) -> Option<&'a [u8]> {
        let frame = self
            .parked
            .get(index as usize)?
            .as_ref()
            .or_else(|| queue.iter().find(|frame| frame.index == index))?;
        Some(self.bytes(frame))
    }

    /// The memory, for code that reads one frame while it takes others from the arena.
    pub(crate) fn memory(&self) -> Arc<FrameMemory> {
        Arc::clone(&self.memory)
    }

    /// The bytes in use.
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        &self.memory.frame(frame)[..frame.len()]
    }

    /// All bytes of the frame, whatever is in use.
    pub fn buffer_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.memory.frame_mut(frame)
    }

    /// Sets how many bytes are in use, at most [`frame_capacity`](Self::frame_capacity) (capped).
    pub fn set_len(&self, frame: &mut Frame, len: usize) {
        self.memory.check(frame);
        frame.len = len.min(self.memory.capacity()) as u16;
    }

    /// Lends `frame` to another thread, with `range` of its bytes to be seen there. Gives the frame
    /// back if too many are out already: the caller then copies.
    pub fn lend(&mut self, frame: Frame, range: std::ops::Range<usize>) -> Result<Loan, Frame> {
        if self.by_owner[Owner::Loan as usize] >= self.loans_max {
            return Err(frame);
        }
        self.set_owner(&frame, Owner::Loan);
        Ok(Loan::new(
            frame,
            range,
            Arc::clone(&self.memory),
            self.loans_out.clone(),
        ))
    }

    /// Frees the frames of loans that were dropped since the last call.
    pub fn collect_loans(&mut self) {
        while let Ok(frame) = self.loans_home.try_recv() {
            self.free(frame);
        }
    }

    /// How many frames each owner holds now.
    pub fn count(&self) -> FrameCount {
        FrameCount {
            by_owner: self.by_owner,
            total: self.owners.len() as u32,
        }
    }

    /// Whether every frame is where it belongs when nothing is under way: in the free pool or on the
    /// FILL ring, with its handle there.
    pub fn is_at_rest(&self) -> bool {
        self.is_at_rest_but_for(0, 0)
    }

    /// As [`is_at_rest`](Self::is_at_rest), with some frames still lent.
    pub(crate) fn is_at_rest_but_for_loans(&self) -> bool {
        self.is_at_rest_but_for(self.count().of(Owner::Loan), 0)
    }

    /// As [`is_at_rest`](Self::is_at_rest), with so many frames lent, and so many held by flows.
    pub(crate) fn is_at_rest_but_for(&self, lent: u32, held: u32) -> bool {
        let count = self.count();
        let parked = self.parked.iter().flatten().count() as u32;
        count.is_conserved()
            && count.of(Owner::Free) == self.free.len() as u32
            && count.of(Owner::Fill) + count.of(Owner::Flow) == parked
            && count.of(Owner::Flow) == held
            && count.of(Owner::Loan) == lent
            && count.of(Owner::Free) + parked + lent == count.total
    }

    /// The one place where a frame changes hands, and where a frame of another arena is refused.
    #[inline]
    fn set_owner(&mut self, frame: &Frame, owner: Owner) {
        self.memory.check(frame);
        let slot = &mut self.owners[frame.index as usize];
        self.by_owner[*slot as usize] -= 1;
        self.by_owner[owner as usize] += 1;
        *slot = owner;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_reused_last_in_first_out() {
        let mut arena = Arena::anonymous(4, 2048, 1);
        let first = arena.alloc(Owner::Rx).unwrap();
        let index = first.index();
        arena.free(first);
        assert_eq!(arena.alloc(Owner::Tx).unwrap().index(), index);
    }

    #[test]
    fn every_frame_has_one_owner_and_the_sum_is_the_arena() {
        let mut arena = Arena::anonymous(4, 2048, 4);
        let a = arena.alloc(Owner::Rx).unwrap();
        let b = arena.alloc(Owner::Tx).unwrap();
        let index = arena.park(b, Owner::Tx);
        let count = arena.count();
        assert_eq!(
            (
                count.of(Owner::Free),
                count.of(Owner::Rx),
                count.of(Owner::Tx)
            ),
            (2, 1, 1)
        );
        assert!(count.is_conserved());

        let loan = arena.lend(a, 0..0).unwrap();
        assert_eq!(arena.count().of(Owner::Loan), 1);
        drop(loan);
        arena.collect_loans();
        let b = arena.unpark(index, Owner::Tx).unwrap();
        arena.free(b);
        assert_eq!(arena.count().of(Owner::Free), 4);
    }

    #[test]
    fn an_index_from_shared_memory_yields_only_what_was_parked() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        let frame = arena.alloc(Owner::Rx).unwrap();
        let index = arena.park(frame, Owner::Fill);
        assert!(arena.unpark(99, Owner::Fill).is_none());
        assert!(arena.unpark(index, Owner::Tx).is_none());
        assert!(arena.unpark(index, Owner::Fill).is_some());
        assert!(arena.unpark(index, Owner::Fill).is_none());
    }

    #[test]
    fn loans_are_capped_and_readable_from_another_thread() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        let mut frame = arena.alloc(Owner::Rx).unwrap();
        arena.buffer_mut(&mut frame)[..5].copy_from_slice(b"hello");
        arena.set_len(&mut frame, 5);
        let other = arena.alloc(Owner::Rx).unwrap();
        let loan = arena.lend(frame, 1..4).unwrap();
        let refused = arena.lend(other, 0..0).unwrap_err();
        arena.free(refused);
        std::thread::spawn(move || assert_eq!(loan.bytes(), b"ell"))
            .join()
            .unwrap();
        arena.collect_loans();
        assert_eq!(arena.free_frames(), 2);
    }

    #[test]
    fn at_rest_is_with_every_frame_at_home() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        assert!(arena.is_at_rest());
        let frame = arena.alloc(Owner::Rx).unwrap();
        assert!(!arena.is_at_rest_but_for_loans());
        let loan = arena.lend(frame, 0..0).unwrap();
        assert!(!arena.is_at_rest() && arena.is_at_rest_but_for_loans());
        drop(loan);
        arena.collect_loans();
        assert!(arena.is_at_rest());
    }

    /// A method that is given a frame.
    type Taking = fn(&mut Arena, Frame);

    #[test]
    fn a_frame_is_refused_by_every_method_of_another_arena() {
        let methods: [(&str, Taking); 7] = [
            ("bytes", |b, frame| drop(b.bytes(&frame).to_vec())),
            ("buffer_mut", |b, mut frame| b.buffer_mut(&mut frame)[0] = 1),
            ("set_len", |b, mut frame| b.set_len(&mut frame, 1)),
            ("free", |b, frame| b.free(frame)),
            ("hand_over", |b, frame| b.hand_over(&frame, Owner::Tx)),
            ("park", |b, frame| _ = b.park(frame, Owner::Tx)),
            ("lend", |b, frame| drop(b.lend(frame, 0..0))),
        ];
        for (name, method) in methods {
            let mut a = Arena::anonymous(1, 2048, 1);
            let mut b = Arena::anonymous(1, 2048, 1);
            let frame = a.alloc(Owner::Rx).unwrap();
            let before = b.count();
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                method(&mut b, frame);
            }));
            assert!(refused.is_err(), "{name} took it");
            assert_eq!((b.count(), b.free_frames()), (before, 1), "{name}");
        }
    }

    #[test]
    fn a_held_frame_stays_with_its_flow_until_it_is_released() {
        let mut arena = Arena::anonymous(2, 2048, 1);
        for released_first in [false, true] {
            let mut frame = arena.alloc(Owner::Tx).unwrap();
            arena.buffer_mut(&mut frame)[..3].copy_from_slice(b"abc");
            arena.set_len(&mut frame, 3);
            let index = frame.index();
            arena.hold(&frame);
            let queue = [frame];
            assert_eq!(arena.held_bytes(index, &queue), Some(&b"abc"[..]));
            let [frame] = queue;
            arena.park(frame, Owner::Tx);
            assert_eq!(arena.held_bytes(index, &[]), Some(&b"abc"[..]));
            if released_first {
                arena.release(index);
                assert_eq!(arena.count().of(Owner::Tx), 1, "the kernel has it");
            }
            let frame = arena.unpark(index, Owner::Tx).unwrap();
            arena.sent(frame);
            if !released_first {
                assert_eq!(arena.count().of(Owner::Flow), 1);
                assert_eq!(arena.held_bytes(index, &[]), Some(&b"abc"[..]));
                assert!(!arena.is_at_rest());
                arena.release(index);
            }
            assert!(arena.is_at_rest());
        }
    }

    #[test]
    fn an_optional_frame_is_as_small_as_a_frame() {
        assert_eq!(size_of::<Option<Frame>>(), size_of::<Frame>());
    }
}
