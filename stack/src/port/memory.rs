//! A port over memory: what is injected is received, what is sent can be taken.
//!
//! Buffers of packets go back and forth between the two ends, so that a warm port does not allocate.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::Port;
use crate::arena::{Arena, Frame, Owner};
use crate::telemetry::Counters;
use crate::{Duration, Instant};

/// The core's end.
#[derive(Debug)]
pub struct MemoryPort {
    wire: Rc<RefCell<Wire>>,
}

/// The other end: a test, a simulation, or the wire to another stack.
#[derive(Debug, Clone)]
pub struct MemoryPeer {
    wire: Rc<RefCell<Wire>>,
}

#[derive(Debug, Default)]
struct Wire {
    to_core: VecDeque<Vec<u8>>,
    from_core: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Wire {
    fn packet(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut packet = self.spare.pop().unwrap_or_default();
        packet.clear();
        packet.extend_from_slice(bytes);
        packet
    }
}

/// Both ends of a new port.
pub fn pair() -> (MemoryPort, MemoryPeer) {
    let wire = Rc::new(RefCell::new(Wire::default()));
    (
        MemoryPort {
            wire: Rc::clone(&wire),
        },
        MemoryPeer { wire },
    )
}

impl MemoryPeer {
    /// Queues a frame for the core.
    pub fn inject(&self, frame: &[u8]) {
        let mut wire = self.wire.borrow_mut();
        let packet = wire.packet(frame);
        wire.to_core.push_back(packet);
    }

    /// The oldest frame that the core sent.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.wire.borrow_mut().from_core.pop_front()
    }

    /// Gives a taken buffer back for reuse.
    pub fn recycle(&self, packet: Vec<u8>) {
        self.wire.borrow_mut().spare.push(packet);
    }

    /// Frames that the core has not received yet.
    pub fn pending(&self) -> usize {
        self.wire.borrow().to_core.len()
    }
}

impl Port for MemoryPort {
    fn receive(
        &mut self,
        arena: &mut Arena,
        batch: &mut Vec<Frame>,
        budget: usize,
        _now: Instant,
        counters: &Counters,
    ) {
        let mut wire = self.wire.borrow_mut();
        let (mut frames, mut bytes) = (0, 0);
        for _ in 0..budget {
            if wire.to_core.is_empty() {
                break;
            }
            // Without a free frame the packet waits, as in a full RX ring.
            let Some(mut frame) = arena.alloc(Owner::Rx) else {
                break;
            };
            let Some(packet) = wire.to_core.pop_front() else {
                break;
            };
            let len = packet.len().min(arena.frame_capacity());
            arena.buffer_mut(&mut frame)[..len].copy_from_slice(&packet[..len]);
            arena.set_len(&mut frame, len);
            frames += 1;
            bytes += len as u64;
            batch.push(frame);
            wire.spare.push(packet);
        }
        counters.rx_frames.add(frames);
        counters.rx_bytes.add(bytes);
    }

    fn transmit(
        &mut self,
        arena: &mut Arena,
        queue: &mut Vec<Frame>,
        _now: Instant,
        counters: &Counters,
    ) -> io::Result<()> {
        if queue.is_empty() {
            return Ok(());
        }
        let mut wire = self.wire.borrow_mut();
        let (frames, mut bytes) = (queue.len() as u64, 0);
        for frame in queue.drain(..) {
            let packet = wire.packet(arena.bytes(&frame));
            bytes += packet.len() as u64;
            wire.from_core.push_back(packet);
            arena.sent(frame);
        }
        counters.tx_frames.add(frames);
        counters.tx_bytes.add(bytes);
        counters.tx_kicks.increment();
        Ok(())
    }

    fn wait(&mut self, _wake: Option<BorrowedFd<'_>>, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self, _arena: &mut Arena, _counters: &Counters) {}
}
