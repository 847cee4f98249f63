//! An AF_XDP socket on one queue (`Documentation/networking/af_xdp.rst` of the kernel).
//!
//! The only module that touches the rings. Ring entries come from memory shared with the kernel and
//! are checked in every build: an entry yields a frame only if that frame's handle was parked for the
//! ring.
//!
//! [`bind`] opens a socket in the best mode there is. An XDP program has to redirect packets to the socket:
//! [`Attachment`](crate::Attachment) puts both together.
#![allow(unsafe_code)]

mod bind;
mod kick;
#[cfg(test)]
mod privileged;

pub use bind::{BindError, Bound, WhyCopy, bind};

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt::socket_cookie;
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use self::kick::{Cure, Look, Watch, Way};
use super::Port;
use crate::arena::{Arena, ArenaId, Frame, FrameMemory, Owner};
use crate::config::{LARGE_CHUNK_BYTES, Limits, SMALL_CHUNK_BYTES};
use crate::telemetry::Counters;
use crate::wire::LINK_HEADER_BYTES_MAX;
use crate::{Duration, Instant};

/// Linux names that the libc crate lacks on some targets: asm-generic/socket.h.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;

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
    /// Bytes of an IP packet at most, itself at most [`MTU_MAX`](crate::config::MTU_MAX): decides on the size of the
    /// frames.
    pub mtu: usize,
    /// Entries of each ring, a power of two.
    pub ring_entries: u32,
    /// Frames kept on the FILL ring, at most `ring_entries`.
    pub fill_target: u32,
    /// Why zero-copy need not be tried, if that is known before.
    pub no_zero_copy: Option<WhyCopy>,
    /// The name of the driver, if known, for error messages.
    pub driver: Option<String>,
    /// Loans at most (see [`Arena::lend`]).
    pub loans_max: u32,
    /// Ask for busy polling on this socket in copy mode. In zero-copy mode it never is asked for: there the kernel
    /// then leaves out the driver's wakeup when it is told of frames to send, and what is polled instead is the
    /// receive side, which need not be what sends.
    pub busy_poll: bool,
}

impl XskOptions {
    /// Options by `limits`, with frames that hold packets of `mtu` bytes (at most
    /// [`MTU_MAX`](crate::config::MTU_MAX)), and busy polling in copy mode.
    pub fn new(interface: impl Into<String>, queue: u32, mtu: usize, limits: &Limits) -> Self {
        Self {
            interface: interface.into(),
            queue,
            frames: limits.frames,
            mtu,
            ring_entries: limits.ring_entries,
            fill_target: limits.fill_target,
            no_zero_copy: None,
            driver: None,
            loans_max: limits.loans,
            busy_poll: true,
        }
    }

    /// Bytes of a UMEM chunk in `mode`: 2,048 or 4,096.
    pub fn chunk_bytes(&self, mode: BindMode) -> u32 {
        match mode {
            // Drivers such as igb, igc and ixgbe program their receive buffers in whole KiB: of a chunk of 2,048
            // bytes they would use 1,024.
            BindMode::ZeroCopy => LARGE_CHUNK_BYTES,
            BindMode::Copy if self.mtu <= mtu_max(SMALL_CHUNK_BYTES, mode) => SMALL_CHUNK_BYTES,
            BindMode::Copy => LARGE_CHUNK_BYTES,
        }
    }

    /// Bytes of memory that are locked in `mode`.
    pub(crate) fn locked_bytes(&self, mode: BindMode) -> u64 {
        u64::from(self.frames) * u64::from(self.chunk_bytes(mode))
    }
}

/// The largest MTU, in bytes, of which a packet is known to fit into a chunk of `chunk_bytes` in `mode`, with two
/// VLAN tags. In zero-copy mode a driver may use no more than whole KiB of it.
pub(crate) const fn mtu_max(chunk_bytes: u32, mode: BindMode) -> usize {
    const KIB: u32 = 1024;
    let usable = usable_bytes(chunk_bytes);
    let received = match mode {
        BindMode::ZeroCopy => usable / KIB * KIB,
        BindMode::Copy => usable,
    };
    received as usize - LINK_HEADER_BYTES_MAX
}

/// An open and bound socket. It closes when this is dropped, even if others still have frames of its UMEM.
#[derive(Debug)]
pub struct XskPort {
    interface: String,
    queue: u32,
    mode: BindMode,
    // Fields drop in order: the queues, with which libxdp unmaps the rings, before what closes the socket.
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    closer: Closer,
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
    /// The kernel stopped before the end of the TX ring, and goes on when it is told again.
    kick_again: bool,
    /// The watch over the frames that are out: whether they come back.
    watch: Watch,
    /// The socket's busy-poll options are taken back, for [`Way::SendUnpolled`].
    unpolled: bool,
    /// Frames that came back since `watch` looked.
    back: u32,
    scratch: [FrameDesc; BATCH],
}

/// Closes the socket, even if others still have its UMEM.
///
/// libxdp makes the first socket's descriptor the UMEM's and closes it with that, so the arena and its loans would
/// keep the socket open and bound to its queue. They need the memory only: on drop another file takes the
/// descriptor's place, which is what libxdp then closes.
#[derive(Debug)]
struct Closer {
    /// Keeps the descriptor's number from being used for something else.
    umem: Umem,
    socket: RawFd,
    /// Tells the socket from any other that may ever have its number.
    cookie: u64,
    stand_in: OwnedFd,
}

impl Closer {
    /// Returns what closes the first socket of `umem`, which `rx` is a queue of.
    fn new(umem: Umem, rx: &RxQueue) -> io::Result<Self> {
        let socket = rx.fd().as_raw_fd();
        // SAFETY: the descriptor belongs to the socket that `rx` keeps open.
        let cookie = socket_cookie(unsafe { BorrowedFd::borrow_raw(socket) })?;
        Ok(Self {
            umem,
            socket,
            cookie,
            stand_in: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        // SAFETY: the number is still the UMEM's, which `self.umem` keeps open; if libxdp had closed it all the
        // same, the call fails or has another answer, and nothing else is done with the number.
        let cookie = socket_cookie(unsafe { BorrowedFd::borrow_raw(self.socket) });
        if !cookie.is_ok_and(|cookie| cookie == self.cookie) {
            log::debug!("an AF_XDP socket was closed before its port");
            return;
        }
        // SAFETY: takes two open descriptors and no pointer. Only libxdp has the second one by its number, since the
        // queues are gone, and libxdp only closes it.
        let result = unsafe { libc::dup3(self.stand_in.as_raw_fd(), self.socket, libc::O_CLOEXEC) };
        if result < 0 {
            log::debug!("closing an AF_XDP socket: {}", io::Error::last_os_error());
        }
    }
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
        let chunk_bytes = options.chunk_bytes(mode);
        let umem_config = UmemConfig::builder()
            .frame_size(FrameSize::new(chunk_bytes).map_err(io::Error::other)?)
            .fill_queue_size(QueueSize::new(options.ring_entries).map_err(io::Error::other)?)
            .comp_queue_size(QueueSize::new(options.ring_entries).map_err(io::Error::other)?)
            .build()
            .map_err(io::Error::other)?;
        let frames = NonZeroU32::new(options.frames)
            .ok_or_else(|| io::Error::other("an arena needs frames"))?;
        let (umem, mut descriptors) =
            Umem::new(umem_config, frames, false).map_err(|error| os_error(&error))?;

        let capacity = usable_bytes(chunk_bytes) as usize;
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

        let closer = Closer::new(umem, &rx)?;
        let mut arena = Arena::new(memory, options.loans_max);
        // See `XskOptions::busy_poll`.
        let busy_polling = options.busy_poll && mode == BindMode::Copy;
        let mut port = Self {
            interface: options.interface.clone(),
            queue: options.queue,
            mode,
            rx,
            tx,
            fill,
            completion,
            closer,
            arena: arena.id(),
            descriptors,
            chunk_bytes: chunk_bytes as usize,
            filled: 0,
            fill_target: options.fill_target.min(options.ring_entries),
            sending: 0,
            ring_entries: options.ring_entries,
            tx_budget: 0,
            kick_due: false,
            kick_again: false,
            watch: Watch::new(busy_polling),
            unpolled: false,
            back: 0,
            scratch: [FrameDesc::default(); BATCH],
        };
        port.tx_budget = port.raise_tx_budget();
        if busy_polling {
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

    /// Takes back what [`prefer_busy_poll`](Self::prefer_busy_poll) asked for.
    fn prefer_interrupts(&self) {
        for name in [SO_PREFER_BUSY_POLL, libc::SO_BUSY_POLL] {
            self.set_option(libc::SOL_SOCKET, name, 0);
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

    /// Closes the socket and gives `arena` back the frames that were on the TX ring, or not reported as sent:
    /// nobody else has them now. The [`XskStatistics`] of the socket are to be dropped before, since they hold it
    /// open.
    ///
    /// A driver may go on reading those frames until it has noticed that the socket is closed: nothing is to be written
    /// into them any more.
    pub(crate) fn close(self, arena: &mut Arena, counters: &Counters) {
        self.check(arena);
        drop(self);
        counters.tx_unsent.add(arena.take_back_sending().into());
    }

    /// Reads the kernel's counters of the socket from another thread.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub(crate) fn statistics(&self) -> io::Result<XskStatistics> {
        let socket = self.fd().try_clone_to_owned()?;
        Ok(XskStatistics {
            socket,
            mode: self.mode,
        })
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

    /// Sets the busy-poll options as the way of telling the kernel needs them.
    fn follow_way(&mut self) {
        let unpolled = self.watch.way() == Way::SendUnpolled;
        if std::mem::replace(&mut self.unpolled, unpolled) == unpolled {
            return;
        }
        if unpolled {
            self.prefer_interrupts();
        } else {
            self.prefer_busy_poll();
        }
    }

    /// Frames on the TX ring that the kernel has not taken.
    fn untaken(&mut self) -> u32 {
        self.ring_entries.saturating_sub(self.tx.nb_free_exact())
    }

    /// Tells the kernel of the frames on the TX ring.
    fn kick(&mut self, counters: &Counters) -> io::Result<()> {
        counters.tx_kicks.increment();
        self.kick_due = false;
        self.kick_again = false;
        let result = match self.watch.way() {
            Way::Send | Way::SendUnpolled => self.send_nothing(),
            Way::Poll if self.mode == BindMode::Copy => self.poll_and_compare(),
            Way::Poll => self.poll_for_room(),
        };
        let Err(error) = result else {
            return Ok(());
        };
        match error.raw_os_error() {
            // Copy mode sends a bounded batch per call and then says "again"; the others pass as well.
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => {
                self.kick_due = true;
                self.kick_again = true;
                Ok(())
            }
            // The interface may come up again, and the runtime watches whether it is gone. `watch` has the kernel told
            // again.
            Some(libc::ENETDOWN) => Ok(()),
            // Drivers in the middle of a reset.
            Some(libc::ENXIO | libc::EINVAL) if self.mode == BindMode::ZeroCopy => Ok(()),
            _ => Err(error),
        }
    }

    fn send_nothing(&self) -> io::Result<()> {
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
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has `poll` send in copy mode. It does not say "again" as `sendto` does; the ring shows whether the kernel
    /// stopped before its end. If the kernel took nothing, telling it again at once is of no use.
    fn poll_and_compare(&mut self) -> io::Result<()> {
        let before = self.untaken();
        self.poll_for_room()?;
        let after = self.untaken();
        self.kick_due = after > 0;
        self.kick_again = after > 0 && after < before;
        Ok(())
    }

    fn poll_for_room(&self) -> io::Result<()> {
        let mut socket = [PollFd::from_borrowed_fd(self.fd(), PollFlags::OUT)];
        poll(&mut socket, Some(&Timespec::default()))?;
        Ok(())
    }

    /// Looks at `now` whether frames that were sent come back, and does something about it if they do not. Costs a few
    /// comparisons, unless something is wrong.
    #[inline]
    fn look(&mut self, now: Instant, counters: &Counters) -> io::Result<()> {
        let back = std::mem::take(&mut self.back);
        match self.watch.look(now, self.sending, back) {
            Look::Fine => Ok(()),
            look => self.attend(look, now, counters),
        }
    }

    #[cold]
    fn attend(&mut self, look: Look, now: Instant, counters: &Counters) -> io::Result<()> {
        let (queue, interface) = (self.queue, &self.interface);
        match look {
            Look::Fine | Look::Returned => {}
            Look::Changed(kept) => log::warn!(
                "queue {queue} of {interface} stood still, and sends after the kernel was told by {}; that is kept for \
                 {} s, and then {} is tried again",
                self.watch.way(),
                kept.secs(),
                Way::USUAL,
            ),
            Look::Recovered => log::warn!("queue {queue} of {interface} sends again"),
            Look::Overdue => return self.attend_overdue(now, counters),
        }
        self.follow_way();
        counters.tx_stuck.set(self.watch.is_stuck().into());
        Ok(())
    }

    fn attend_overdue(&mut self, now: Instant, counters: &Counters) -> io::Result<()> {
        let untaken = self.untaken();
        let interface = &self.interface;
        // An interface that cannot be asked is gone, which the runtime watches.
        let has_link = || interruptlet_xdp::interface_has_link(interface).unwrap_or(false);
        match self.watch.overdue(now, self.sending, untaken, has_link) {
            Cure::Wait => {}
            Cure::Count => counters.tx_stalls.increment(),
            Cure::Stuck => {
                let warning = stuck_warning(self.queue, interface, self.sending, untaken);
                log::warn!("{warning}");
            }
        }
        counters.tx_stuck.set(self.watch.is_stuck().into());
        self.follow_way();
        self.kick(counters)
    }
}

/// Says that none of `sending` frames comes back, `untaken` of them still on the TX ring, and what to do.
fn stuck_warning(queue: u32, interface: &str, sending: u32, untaken: u32) -> String {
    if untaken > 0 {
        format!(
            "queue {queue} of {interface} does not send: {sending} frames are out, {untaken} of them not taken by the \
             kernel, in whichever way it is told; it is told again and again (`dmesg` may say what is wrong with the \
             driver; `ip link set {interface} down` and `up` resets it)"
        )
    } else {
        format!(
            "queue {queue} of {interface} does not report frames as sent: the driver took all {sending} that are out \
             and gives none back (a link that the other end paused, or a reset that dropped them: `dmesg` may say \
             which); frames that were dropped leave less room for others until the server is restarted"
        )
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
    mode: BindMode,
}

impl XskStatistics {
    /// Returns names and values. Each counts packets that never became a frame that the stack received or sent, but for
    /// `xsk_fill_waits`, which is no loss.
    ///
    /// # Errors
    ///
    /// As the kernel says; none is known for an open socket.
    pub(crate) fn read(&self) -> io::Result<[(&'static str, u64); 6]> {
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
        Ok(named(&counted, self.mode))
    }
}

/// The kernel's counters of a socket in `mode`, with what each means there.
fn named(counted: &libc::xdp_statistics, mode: BindMode) -> [(&'static str, u64); 6] {
    let (fill_ring_empty, fill_waits) = match mode {
        BindMode::Copy => (counted.rx_fill_ring_empty_descs, 0),
        BindMode::ZeroCopy => (0, counted.rx_fill_ring_empty_descs),
    };
    [
        // For any other reason, such as a packet that is too large for a frame. In copy mode those
        // that found the FILL ring empty are among them.
        ("xsk_rx_dropped", counted.rx_dropped),
        // The core did not look often enough.
        ("xsk_rx_ring_full", counted.rx_ring_full),
        // The core did not refill often enough, or had no frames left to refill with.
        ("xsk_fill_ring_empty", fill_ring_empty),
        // In zero-copy mode: the driver wanted frames for packets to come, and goes on with those it has. Packets that
        // are lost when it has none are in the driver's counters only (`ethtool -S`).
        ("xsk_fill_waits", fill_waits),
        // Entries of ours that the kernel did not accept: a defect.
        ("xsk_rx_invalid", counted.rx_invalid_descs),
        ("xsk_tx_invalid", counted.tx_invalid_descs),
    ]
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
        now: Instant,
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
                unsafe { self.closer.umem.data_mut(descriptor) }
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
        if sent > 0 && self.mode == BindMode::ZeroCopy {
            // The driver has to see the entries before the flag is read here: else one that goes to sleep just now
            // could miss the entries while its wish to be woken is missed here.
            fence(Ordering::SeqCst);
        }
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
        self.look(now, counters)
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
                self.back += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_for_a_stuck_queue_is_one_that_helps() {
        let untaken = stuck_warning(0, "eth0", 10, 3);
        assert!(
            untaken.contains("`ip link set eth0 down`") && !untaken.contains("restart"),
            "{untaken}"
        );
        let taken = stuck_warning(0, "eth0", 10, 0);
        assert!(
            !taken.contains("ip link set") && taken.contains("server is restarted"),
            "{taken}"
        );
    }

    fn with_mtu(mtu: usize) -> XskOptions {
        XskOptions::new("eth0", 0, mtu, &Limits::default())
    }

    #[test]
    fn chunks_are_as_small_as_copy_mode_allows_and_large_in_zero_copy_mode() {
        for (mtu, copy) in [
            (1280, 2048),
            (1500, 2048),
            (1770, 2048),
            (1771, 4096),
            (3818, 4096),
        ] {
            let options = with_mtu(mtu);
            assert_eq!(options.chunk_bytes(BindMode::Copy), copy, "{mtu}");
            assert_eq!(options.chunk_bytes(BindMode::ZeroCopy), 4096, "{mtu}");
        }
        let options = with_mtu(1500);
        assert_eq!(options.locked_bytes(BindMode::Copy), 8 << 20);
        assert_eq!(options.locked_bytes(BindMode::ZeroCopy), 16 << 20);
    }

    #[test]
    fn a_driver_that_waits_for_frames_has_lost_none() {
        let counted = libc::xdp_statistics {
            rx_dropped: 1,
            rx_invalid_descs: 2,
            tx_invalid_descs: 3,
            rx_ring_full: 4,
            rx_fill_ring_empty_descs: 5,
            tx_ring_empty_descs: 6,
        };
        let value = |mode, name| {
            let named = named(&counted, mode);
            let found = named.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| *value)
        };
        for (mode, empty, waits) in [(BindMode::Copy, 5, 0), (BindMode::ZeroCopy, 0, 5)] {
            assert_eq!(value(mode, "xsk_fill_ring_empty"), Some(empty), "{mode:?}");
            assert_eq!(value(mode, "xsk_fill_waits"), Some(waits), "{mode:?}");
            assert_eq!(value(mode, "xsk_rx_dropped"), Some(1), "{mode:?}");
            assert_eq!(value(mode, "xsk_rx_ring_full"), Some(4), "{mode:?}");
        }
    }

    #[test]
    fn a_packet_of_an_ordinary_mtu_fits_what_drivers_round_down_to() {
        for mtu in [1280, 1500, 1800] {
            let chunk_bytes = with_mtu(mtu).chunk_bytes(BindMode::ZeroCopy);
            // igb: what is behind the headroom, in whole KiB.
            let receive_buffer = (chunk_bytes as usize - 256) / 1024 * 1024;
            assert!(mtu + LINK_HEADER_BYTES_MAX <= receive_buffer, "{mtu}");
        }
        assert_eq!(mtu_max(4096, BindMode::ZeroCopy), 3050);
        assert_eq!(mtu_max(2048, BindMode::ZeroCopy), 1002);
        assert_eq!(mtu_max(4096, BindMode::Copy), crate::config::MTU_MAX);
    }
}
