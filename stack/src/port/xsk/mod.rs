//! An AF_XDP socket on one queue (`Documentation/networking/af_xdp.rst` of the kernel).
//!
//! The only module that touches the rings. Ring entries come from memory shared with the kernel and
//! are checked in every build: an entry yields a frame only if that frame's handle was parked for the
//! ring.
//!
//! [`bind`] opens a socket in the best mode there is. What then arrives is what an XDP program redirects to the
//! socket: [`Attachment`](crate::Attachment) puts both together.
#![allow(unsafe_code)]

mod bind;

pub use bind::{BindError, Bound, bind};

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::Port;
use crate::arena::{Arena, ArenaId, Frame, FrameMemory, Owner};
use crate::config::{LARGE_CHUNK_BYTES, Limits, SMALL_CHUNK_BYTES};
use crate::telemetry::Counters;
use crate::wire::LINK_HEADER_BYTES_MAX;
use crate::{Duration, Instant};

/// Frames handed over per ring operation.
const BATCH: usize = 64;

/// How a socket is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// The NIC reads and writes the frames themselves.
    ZeroCopy,
    /// The kernel copies between its buffers and the frames.
    Copy,
}

/// What to open.
#[derive(Debug, Clone)]
pub struct XskOptions {
    /// Name of the interface.
    pub interface: String,
    /// Queue of the interface.
    pub queue: u32,
    /// Frames in the UMEM.
    pub frames: u32,
    /// Bytes per UMEM chunk: 2,048 or 4,096.
    pub chunk_bytes: u32,
    /// Entries of each ring, a power of two.
    pub ring_entries: u32,
    /// Frames kept on the FILL ring, at most `ring_entries`.
    pub fill_target: u32,
    /// Loans at most (see [`Arena::lend`]).
    pub loans_max: u32,
    /// Ask for busy polling on this socket.
    pub busy_poll: bool,
}

impl XskOptions {
    /// What `limits` say, with frames that hold packets of `mtu` bytes (at most
    /// [`MTU_MAX`](crate::config::MTU_MAX)), and busy polling.
    pub fn new(interface: impl Into<String>, queue: u32, mtu: usize, limits: &Limits) -> Self {
        let chunk_bytes = if mtu + LINK_HEADER_BYTES_MAX <= usable_bytes(SMALL_CHUNK_BYTES) as usize
        {
            SMALL_CHUNK_BYTES
        } else {
            LARGE_CHUNK_BYTES
        };
        Self {
            interface: interface.into(),
            queue,
            frames: limits.frames,
            chunk_bytes,
            ring_entries: limits.ring_entries,
            fill_target: limits.fill_target,
            loans_max: limits.loans,
            busy_poll: true,
        }
    }
}

/// An open and bound socket.
///
/// It closes with the last reference to its UMEM, not with this: the first socket's descriptor is the
/// one that the UMEM was registered with, and libxdp closes it with the UMEM. The arena refers to the
/// UMEM, and so does each of its loans.
#[derive(Debug)]
pub struct XskPort {
    // Fields drop in order: the queues before the UMEM, as libxdp wants it.
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    umem: Umem,
    /// The arena over that UMEM. A ring entry of any other arena's frame would have the kernel write
    /// into memory that somebody else holds.
    arena: ArenaId,
    /// The descriptor of each frame, by frame number.
    descriptors: Vec<FrameDesc>,
    chunk_bytes: usize,
    /// Frames on the FILL ring now, and how many there should be.
    filled: u32,
    fill_target: u32,
    /// Frames on the TX ring or not yet reported on the COMPLETION ring.
    sending: u32,
    ring_entries: u32,
    /// Frames that the kernel sends per call.
    tx_budget: u32,
    /// The kernel has not yet been told of everything on the TX ring.
    kick_due: bool,
    /// It was told, and said to be told again.
    kick_again: bool,
    scratch: [FrameDesc; BATCH],
}

/// XDP programs may move the start of a packet within this many bytes in front of it.
const XDP_PACKET_HEADROOM: u32 = 256;

/// Bytes of a chunk that a packet may use.
pub(crate) const fn usable_bytes(chunk_bytes: u32) -> u32 {
    chunk_bytes - XDP_PACKET_HEADROOM
}

impl XskPort {
    /// Opens and binds a socket, with an arena over its UMEM and its FILL ring full.
    ///
    /// # Errors
    ///
    /// As the kernel says: EBUSY if another socket has the queue, EOPNOTSUPP if the mode is not
    /// supported, EINVAL for a queue that does not exist, ENETDOWN if the interface is down. [`bind`] deals with
    /// them.
    pub fn open(options: &XskOptions, mode: BindMode) -> io::Result<(Self, Arena)> {
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(options.chunk_bytes).map_err(io::Error::other)?)
            .fill_queue_size(QueueSize::new(options.ring_entries).map_err(io::Error::other)?)
            .comp_queue_size(QueueSize::new(options.ring_entries).map_err(io::Error::other)?)
            .build()
            .map_err(io::Error::other)?;
        let frames = NonZeroU32::new(options.frames)
            .ok_or_else(|| io::Error::other("an arena needs frames"))?;
        let (umem, mut descriptors) =
            Umem::new(umem_config, frames, false).map_err(|error| os_error(&error))?;

        let capacity = usable_bytes(options.chunk_bytes) as usize;
        let areas = descriptors
            .iter_mut()
            .map(|descriptor| area_of(&umem, descriptor, capacity))
            .collect();
        // SAFETY: each area is the data segment of one UMEM chunk: `capacity` bytes of zeroed mapped
        // memory, disjoint from the others, valid while a clone of `umem` lives. Nobody else accesses
        // them: this module uses the UMEM's own accessors only to set lengths, and hands a chunk to
        // the kernel only after its handle was parked.
        let memory = unsafe { FrameMemory::from_areas(areas, capacity, Box::new(umem.clone())) };

        let bind_flags = BindFlags::XDP_USE_NEED_WAKEUP
            | match mode {
                BindMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
                BindMode::Copy => BindFlags::XDP_COPY,
            };
        let ring = QueueSize::new(options.ring_entries).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .bind_flags(bind_flags)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .build();
        let interface: Interface = options.interface.parse().map_err(io::Error::other)?;
        // SAFETY: the UMEM is new, so this is its first and only socket, and libxdp is told not to load
        // a program of its own: the conditions that `Socket::new` states.
        let (tx, rx, rings) = unsafe { Socket::new(config, &umem, &interface, options.queue) }
            .map_err(|error| os_error(&error))?;
        let (fill, completion) =
            rings.ok_or_else(|| io::Error::other("the first socket of a UMEM has its rings"))?;

        let mut arena = Arena::new(memory, options.loans_max);
        let mut port = Self {
            rx,
            tx,
            fill,
            completion,
            umem,
            arena: arena.id(),
            descriptors,
            chunk_bytes: options.chunk_bytes as usize,
            filled: 0,
            fill_target: options.fill_target.min(options.ring_entries),
            sending: 0,
            ring_entries: options.ring_entries,
            tx_budget: 0,
            kick_due: false,
            kick_again: false,
            scratch: [FrameDesc::default(); BATCH],
        };
        port.tx_budget = port.raise_tx_budget();
        if options.busy_poll {
            port.prefer_busy_poll();
        }
        // A packet that finds the FILL ring empty is dropped: it is full before anybody may know the
        // socket.
        port.refill(&mut arena);
        Ok((port, arena))
    }

    /// The socket, for the XSKMAP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the socket that `self.rx` keeps open, and the result
        // borrows `self`.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Asks the kernel to run this queue's NAPI from our own system calls only
    /// (`Documentation/networking/napi.rst`). Kernels and devices without it just do not.
    fn prefer_busy_poll(&self) {
        // Linux names that the libc crate lacks on some targets: asm-generic/socket.h.
        const SO_PREFER_BUSY_POLL: libc::c_int = 69;
        const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
        const BUSY_POLL_MICROS: libc::c_int = 20;
        for (name, value) in [
            (SO_PREFER_BUSY_POLL, 1),
            (libc::SO_BUSY_POLL, BUSY_POLL_MICROS),
            (SO_BUSY_POLL_BUDGET, BATCH as libc::c_int),
        ] {
            self.set_option(libc::SOL_SOCKET, name, value);
        }
    }

    /// Has the kernel send a whole ring per call in copy mode, where it otherwise stops after 32 frames
    /// (`Documentation/networking/af_xdp.rst`, since Linux 6.17). Returns how many it sends.
    fn raise_tx_budget(&self) -> u32 {
        // linux/if_xdp.h; the libc crate lacks it.
        const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
        const TX_BATCH_SIZE: u32 = 32;
        let wanted = self.ring_entries as libc::c_int;
        if self.set_option(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, wanted) {
            self.ring_entries
        } else {
            TX_BATCH_SIZE
        }
    }

    /// Sets a socket option; returns whether the kernel has it.
    fn set_option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> bool {
        // SAFETY: the descriptor is open (see `fd`), and the option value is a c_int that lives
        // until the call returns.
        let result = unsafe {
            libc::setsockopt(
                self.rx.fd().as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result != 0 {
            log::debug!("socket option {name}: {}", io::Error::last_os_error());
        }
        result == 0
    }

    /// Panics unless `arena` is the one over this socket's UMEM.
    #[inline]
    fn check(&self, arena: &Arena) {
        assert_eq!(self.arena, arena.id(), "a port was used with another arena");
    }

    /// Reads the kernel's counters of the socket from another thread.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub(crate) fn statistics(&self) -> io::Result<XskStatistics> {
        let socket = self.fd().try_clone_to_owned()?;
        Ok(XskStatistics { socket })
    }

    fn refill(&mut self, arena: &mut Arena) {
        // Half a batch is worth the ring operation; a starving ring is refilled at once.
        let missing = self.fill_target.saturating_sub(self.filled);
        if missing < BATCH as u32 / 2 && self.filled > BATCH as u32 {
            return;
        }
        let mut missing = missing as usize;
        while missing > 0 {
            let mut count = 0;
            while count < missing.min(BATCH) {
                let Some(frame) = arena.alloc(Owner::Fill) else {
                    break;
                };
                let index = arena.park(frame, Owner::Fill);
                self.scratch[count] = self.descriptors[index as usize];
                count += 1;
            }
            if count == 0 {
                return;
            }
            // SAFETY: the descriptors are of this UMEM, and their handles were parked just now, so
            // nobody touches the frames until the kernel returns them on the RX ring.
            let produced = unsafe { self.fill.produce(&self.scratch[..count]) };
            if produced == 0 {
                // No room: `filled` counted wrong only if the kernel did; take the frames back.
                for descriptor in &self.scratch[..count] {
                    let index = descriptor.addr() / self.chunk_bytes;
                    if let Some(frame) = arena.unpark(index as u32, Owner::Fill) {
                        arena.free(frame);
                    }
                }
                return;
            }
            self.filled += count as u32;
            missing -= count;
        }
        if self.fill.needs_wakeup() {
            let fd = self.rx.fd_mut();
            // The kernel asks for a receive call to go on filling; a failure shows in the next one.
            let _ = self.fill.wakeup(fd, 0);
        }
    }

    fn kick(&mut self, counters: &Counters) -> io::Result<()> {
        counters.tx_kicks.increment();
        self.kick_due = false;
        self.kick_again = false;
        // SAFETY: a zero-length send on an open descriptor.
        let result = unsafe {
            libc::sendto(
                self.tx.fd().as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // Copy mode sends a bounded batch per call and then says "again"; the others pass as well.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {
                self.kick_due = true;
                self.kick_again = true;
                Ok(())
            }
            // It may come up again, which is no reason to stay awake, and the runtime watches whether it
            // is gone.
            Some(libc::ENETDOWN) => {
                self.kick_due = true;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// The data area of one frame. Leaves the descriptor's length at zero.
fn area_of(umem: &Umem, descriptor: &mut FrameDesc, capacity: usize) -> NonNull<u8> {
    // SAFETY: the descriptor is of this UMEM and new: no ring and no other slice refers to it.
    let mut data = unsafe { umem.data_mut(descriptor) };
    data.cursor().set_pos(capacity);
    let area = NonNull::from(data.contents_mut()).cast();
    data.cursor().set_pos(0);
    area
}

/// The operating system's error inside one of xsk-rs.
fn os_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(code) = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return io::Error::from_raw_os_error(code);
        }
        cause = current.source();
    }
    io::Error::other(error.to_string())
}

/// The kernel's counters of one socket.
///
/// Holds the socket open: to be dropped with the port.
#[derive(Debug)]
pub(crate) struct XskStatistics {
    socket: OwnedFd,
}

impl XskStatistics {
    /// Names and values, of what never became a frame that the stack received or sent.
    ///
    /// # Errors
    ///
    /// As the kernel says; none is known for an open socket.
    pub(crate) fn read(&self) -> io::Result<[(&'static str, u64); 5]> {
        let mut counted = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        // Kernels before 5.9 know the first three only and leave the others at zero.
        let mut len = size_of::<libc::xdp_statistics>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes of the structure,
        // which outlives the call and may hold any bytes.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_STATISTICS,
                (&raw mut counted).cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok([
            // For any other reason, such as a packet that is too large for a frame. In copy mode those
            // that found the FILL ring empty are among them.
            ("xsk_rx_dropped", counted.rx_dropped),
            // The core did not look often enough.
            ("xsk_rx_ring_full", counted.rx_ring_full),
            // The core did not refill often enough, or had no frames left to refill with.
            ("xsk_fill_ring_empty", counted.rx_fill_ring_empty_descs),
            // Entries of ours that the kernel did not accept: a defect.
            ("xsk_rx_invalid", counted.rx_invalid_descs),
            ("xsk_tx_invalid", counted.tx_invalid_descs),
        ])
    }
}

impl Port for XskPort {
    fn receive(
        &mut self,
        arena: &mut Arena,
        batch: &mut Vec<Frame>,
        budget: usize,
        _now: Instant,
        counters: &Counters,
    ) {
        self.check(arena);
        let budget = budget.min(BATCH);
        // SAFETY: the RX ring yields frames of this socket's UMEM.
        let count = unsafe { self.rx.consume(&mut self.scratch[..budget]) };
        let (mut received, mut bytes) = (0, 0);
        for descriptor in &self.scratch[..count] {
            let index = (descriptor.addr() / self.chunk_bytes) as u32;
            self.filled = self.filled.saturating_sub(1);
            let Some(mut frame) = arena.unpark(index, Owner::Fill) else {
                counters.ring_errors.increment();
                continue;
            };
            arena.hand_over(&frame, Owner::Rx);
            // No program of ours moves the start of a packet.
            let expected = self.descriptors[index as usize].addr();
            if descriptor.addr() != expected || descriptor.has_more_frames() {
                counters.ring_errors.increment();
                arena.free(frame);
                continue;
            }
            let len = descriptor.lengths().data();
            arena.set_len(&mut frame, len);
            received += 1;
            bytes += len as u64;
            batch.push(frame);
        }
        counters.rx_frames.add(received);
        counters.rx_bytes.add(bytes);
        self.refill(arena);
    }

    fn transmit(
        &mut self,
        arena: &mut Arena,
        queue: &mut Vec<Frame>,
        _now: Instant,
        counters: &Counters,
    ) -> io::Result<()> {
        self.check(arena);
        let room = (self.ring_entries - self.sending.min(self.ring_entries)) as usize;
        let mut taken = queue.len().min(room);
        let (mut sent, mut bytes) = (0, 0);
        while taken > 0 {
            let count = taken.min(BATCH);
            let mut batch_bytes = 0;
            for (slot, frame) in queue.drain(..count).enumerate() {
                let len = frame.len();
                batch_bytes += len as u64;
                let index = arena.park(frame, Owner::Tx) as usize;
                let descriptor = &mut self.descriptors[index];
                // SAFETY: the descriptor is of this UMEM, and its handle was parked just now: no other
                // slice of the frame exists. Only the length is set.
                unsafe { self.umem.data_mut(descriptor) }
                    .cursor()
                    .set_pos(len);
                self.scratch[slot] = *descriptor;
            }
            // SAFETY: the frames are of this UMEM and parked: nobody touches them until the kernel
            // returns them on the COMPLETION ring. There is room: `sending` counts what is out.
            let produced = unsafe { self.tx.produce(&self.scratch[..count]) };
            if produced == 0 {
                counters.ring_errors.increment();
                for descriptor in &self.scratch[..count] {
                    let index = (descriptor.addr() / self.chunk_bytes) as u32;
                    if let Some(frame) = arena.unpark(index, Owner::Tx) {
                        arena.sent(frame);
                    }
                }
                break;
            }
            self.sending += count as u32;
            sent += count;
            bytes += batch_bytes;
            taken -= count;
        }
        counters.tx_frames.add(sent as u64);
        counters.tx_bytes.add(bytes);
        if (sent > 0 || self.kick_due) && self.tx.needs_wakeup() {
            // An older kernel stops after some frames and has to be told again: what a turn received has to go
            // out in the same turn, or more and more frames would wait for being sent.
            for _ in 0..=self.sending / self.tx_budget {
                self.kick(counters)?;
                if !self.kick_again {
                    break;
                }
            }
        }
        self.reap(arena, counters);
        Ok(())
    }

    fn has_backlog(&self) -> bool {
        // Without the wish to be woken, the driver goes on by itself.
        self.kick_again && self.tx.needs_wakeup()
    }

    fn busy_poll(&mut self) {
        // SAFETY: a zero-length receive on an open descriptor.
        unsafe {
            libc::recvfrom(
                self.rx.fd().as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
        }
    }

    fn wait(&mut self, wake: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: timeout.secs() as i64,
            tv_nsec: i64::from(timeout.micros() as u32) * 1000,
        };
        let socket = PollFd::from_borrowed_fd(self.fd(), PollFlags::IN);
        let polled = match wake {
            Some(wake) => {
                let mut fds = [socket, PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                poll(&mut fds, Some(&timeout)).map(|_| fds[0].revents())
            }
            None => {
                let mut fds = [socket];
                poll(&mut fds, Some(&timeout)).map(|_| fds[0].revents())
            }
        };
        match polled {
            Ok(events) if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) => {
                Err(io::Error::other("the queue's socket reports an error"))
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn reap(&mut self, arena: &mut Arena, counters: &Counters) {
        self.check(arena);
        while self.sending > 0 {
            // SAFETY: the COMPLETION ring yields frames of this socket's UMEM.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            for descriptor in &self.scratch[..count] {
                self.sending = self.sending.saturating_sub(1);
                let index = (descriptor.addr() / self.chunk_bytes) as u32;
                match arena.unpark(index, Owner::Tx) {
                    Some(frame) => arena.sent(frame),
                    None => counters.ring_errors.increment(),
                }
            }
            if count < BATCH {
                return;
            }
        }
    }
}
