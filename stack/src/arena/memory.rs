//! The memory behind the frames. The only `unsafe` of the arena is here.
#![allow(unsafe_code)]

use std::any::Any;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Frame;

/// Tells one arena's memory, frames and port from another's. Never used twice in a process: what is
/// checked against it is what makes access to frames sound. Not zero, so that an optional frame is as
/// small as a frame.
pub(crate) type ArenaId = NonZeroU32;

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

#[allow(clippy::expect_used)] // after 2^32 arenas, made at start only: better than an id used twice
fn new_id() -> ArenaId {
    NEXT_ID
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |id| id.checked_add(1))
        .ok()
        .and_then(ArenaId::new)
        .expect("fewer than 2^32 arenas in a process")
}

/// The data areas of all frames of an arena.
pub(crate) struct FrameMemory {
    /// Start of each frame's data area, by frame number.
    areas: Vec<NonNull<u8>>,
    /// Bytes per data area.
    capacity: usize,
    id: ArenaId,
    /// Keeps the areas mapped: an anonymous allocation or the UMEM.
    _backing: Box<dyn Any + Send + Sync>,
}

// SAFETY: the areas are plain memory, valid for as long as `_backing` (itself Send + Sync) lives.
// Access goes through `frame` and `frame_mut`, which need a shared or exclusive borrow of the one
// handle of that frame, so threads cannot race on a frame's bytes. Kept by: `Frame` not being Clone,
// `Frame` carrying the memory's id, and `Arena::new` making one handle per area.
unsafe impl Send for FrameMemory {}
// SAFETY: as above.
unsafe impl Sync for FrameMemory {}

impl std::fmt::Debug for FrameMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameMemory")
            .field("frames", &self.areas.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl FrameMemory {
    /// Zeroed memory that only this process sees.
    pub(crate) fn anonymous(frames: u32, frame_size: u16) -> Self {
        let size = usize::from(frame_size);
        let mut backing = vec![0u8; frames as usize * size];
        let areas = backing
            .chunks_exact_mut(size)
            .map(|chunk| NonNull::from(chunk).cast())
            .collect();
        // SAFETY: the chunks are disjoint, `size` bytes each, initialised, and live as long as the
        // vector, whose buffer does not move and is not touched again except through the areas.
        unsafe { Self::from_areas(areas, size, Box::new(backing)) }
    }

    /// Memory that somebody else mapped.
    ///
    /// # Safety
    ///
    /// Each area must be `capacity` initialised bytes, disjoint from the others, valid until `backing`
    /// is dropped, and accessed by nobody else, except by the kernel while the frame's handle is
    /// parked for a ring.
    pub(crate) unsafe fn from_areas(
        areas: Vec<NonNull<u8>>,
        capacity: usize,
        backing: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            areas,
            capacity: capacity.min(usize::from(u16::MAX)),
            id: new_id(),
            _backing: backing,
        }
    }

    pub(crate) fn frames(&self) -> u32 {
        self.areas.len() as u32
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn id(&self) -> ArenaId {
        self.id
    }

    /// The whole data area of `frame`.
    pub(crate) fn frame<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let area = self.area(frame);
        // SAFETY: `area` is valid for `capacity` initialised bytes (`from_areas`). The shared borrow of
        // the only handle excludes writers for as long as the slice lives.
        unsafe { std::slice::from_raw_parts(area.as_ptr(), self.capacity) }
    }

    /// The whole data area of `frame`, writable.
    #[allow(clippy::mut_from_ref)] // the exclusive borrow is that of the handle
    pub(crate) fn frame_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let area = self.area(frame);
        // SAFETY: as in `frame`; the exclusive borrow of the only handle excludes all other access.
        unsafe { std::slice::from_raw_parts_mut(area.as_ptr(), self.capacity) }
    }

    /// Panics unless `frame` is one of this memory's.
    #[inline]
    pub(crate) fn check(&self, frame: &Frame) {
        assert_eq!(frame.arena, self.id, "a frame was used with another arena");
    }

    fn area(&self, frame: &Frame) -> NonNull<u8> {
        self.check(frame);
        self.areas[frame.index as usize]
    }
}
