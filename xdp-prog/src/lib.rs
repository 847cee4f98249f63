//! The XDP program that decides which packets are ours, and its loader.
//!
//! [`Program::attach`] loads the program (`bpf/ilet.bpf.c`), fills its maps from [`Rules`] and attaches
//! it. From then on the frames that the rules name go to the AF_XDP socket that is registered for their
//! receive queue; all others, and all frames of a queue without a socket, go to the kernel as ever.
//!
//! The program hangs on a link that only this process holds: when the process ends, however it ends,
//! the kernel detaches it and has its traffic back.
//!
//! What the program cannot see: the interface's own link address (a frame for another host, received
//! in promiscuous mode, is taken if its IP address is ours), and VLAN tags that the driver keeps beside the
//! frame (where VLANs are used, turn that off: `ethtool -K IF rxvlan off`; `ethtool -K PEER txvlan off`
//! for veth).

mod attach;
mod capability;
mod counters;
mod error;
mod load;
mod log;
#[cfg(test)]
mod privileged;
mod rules;
mod skel;
mod sys;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};

use attach::{Attached, Target};
use load::Loaded;

pub use attach::AttachMode;
pub use capability::{Capabilities, Capability};
pub use counters::{Counters, Outcome};
pub use error::{AttachError, MapError, RegisterError};
pub use rules::{PortRule, Protocol, RuleError, Rules};
pub use sys::{
    interface_driver, interface_hardware_type, interface_has_link, interface_has_zero_copy,
    interface_mtu, interface_queues_max, interface_spread,
};

/// The program, loaded and attached to an interface. Dropping it detaches it.
///
/// First [`attach`](Program::attach), then [`register`](Program::register) a socket for each queue. In
/// the end [`detach`](Program::detach) before the sockets close: whatever arrives in between is the
/// kernel's.
#[derive(Debug)]
pub struct Program {
    loaded: Loaded,
    attached: Attached,
}

impl Program {
    /// Load the program, fill its maps, and attach it to an interface of the calling thread's network
    /// namespace: natively, else in generic mode.
    ///
    /// Needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON. The interface may be down.
    ///
    /// # Errors
    /// See [`AttachError`]; in any case nothing is left behind.
    pub fn attach(interface: &str, rules: &Rules) -> Result<Program, AttachError> {
        let target = Target::find(interface)?;
        let loaded = Loaded::new(rules)?;
        let attached = target.attach(loaded.program.as_fd())?;
        Ok(Program { loaded, attached })
    }

    /// Where in the kernel the program runs.
    pub fn mode(&self) -> AttachMode {
        self.attached.mode
    }

    /// Why the program does not run natively: what the driver answered. None if it does.
    pub fn native_refusal(&self) -> Option<&io::Error> {
        self.attached.native_refusal.as_ref()
    }

    /// Whether the program still is on its interface: not if that was deleted, even if another of the
    /// same name has been made.
    pub fn is_attached(&self) -> bool {
        self.attached.has_interface()
    }

    /// The number of receive queues that sockets can be registered for, from 0.
    pub fn queues_max(&self) -> u32 {
        self.loaded.xsks.max_entries()
    }

    /// Send our frames of this receive queue to this AF_XDP socket, instead of to the one before. The
    /// kernel forgets a socket that is closed.
    ///
    /// The socket has to be bound to this interface and queue by now: the kernel accepts any, but drops
    /// the frames for one that is bound elsewhere or not at all.
    ///
    /// # Errors
    /// The queue is not below [`queues_max`](Program::queues_max), or this is no AF_XDP socket.
    pub fn register(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), RegisterError> {
        let queues = self.queues_max();
        if queue >= queues {
            return Err(RegisterError::QueueOutOfRange { queue, queues });
        }
        self.loaded
            .xsks
            .update(
                &queue.to_ne_bytes(),
                &socket.as_raw_fd().to_ne_bytes(),
                MapFlags::ANY,
            )
            .map_err(|source| RegisterError::NotAccepted { queue, source })
    }

    /// Leave the frames of this receive queue to the kernel again. Does nothing if they are.
    ///
    /// # Errors
    /// The system call failed.
    pub fn unregister(&self, queue: u32) -> Result<(), MapError> {
        unregister(&self.loaded.xsks, queue)
    }

    /// A way to [`unregister`](Program::unregister) this receive queue for another thread, which need not have the
    /// program.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn registration(&self, queue: u32) -> Result<Registration, MapError> {
        let xsks = MapHandle::try_from(&self.loaded.xsks)
            .map_err(|source| MapError::new("xsks", source))?;
        Ok(Registration { xsks, queue })
    }

    /// Frames by outcome since the program was loaded.
    ///
    /// # Errors
    /// The system call failed.
    pub fn counters(&self) -> Result<Counters, MapError> {
        Counters::read(&self.loaded.counters)
    }

    /// Detach now. Dropping does it too, but cannot say if it failed.
    ///
    /// # Errors
    /// The system call failed. The program is detached all the same, unless a child process has a
    /// descriptor of the link.
    pub fn detach(self) -> io::Result<()> {
        self.attached.detach()
    }
}

/// The place of one receive queue among those whose frames go to a socket.
#[derive(Debug)]
pub struct Registration {
    xsks: MapHandle,
    queue: u32,
}

impl Registration {
    /// Leave the frames of the queue to the kernel again. Does nothing if they are.
    ///
    /// # Errors
    /// The system call failed.
    pub fn end(&self) -> Result<(), MapError> {
        unregister(&self.xsks, self.queue)
    }
}

fn unregister(xsks: &MapHandle, queue: u32) -> Result<(), MapError> {
    if queue >= xsks.max_entries() {
        return Ok(());
    }
    match xsks.delete(&queue.to_ne_bytes()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(MapError::new("xsks", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thread attaches, another may own the program from then on.
    #[test]
    fn programs_and_errors_move_between_threads() {
        fn is_send<T: Send + 'static>() {}
        is_send::<Program>();
        is_send::<Registration>();
        is_send::<AttachError>();
        is_send::<RegisterError>();
    }
}
