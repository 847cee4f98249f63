//! Binding a queue: which mode, and waiting for a queue that somebody is just leaving.

use std::io;
use std::time::{Duration, Instant};

use super::{BindMode, XskOptions, XskPort, mtu_max};
use crate::arena::Arena;
use crate::config::Mode;

/// How long a queue that another socket is just leaving is waited for.
const BUSY_TIMEOUT_SECONDS: u64 = 3;
/// How often it is tried again meanwhile: not more often, because each try maps and registers a whole
/// UMEM.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// A socket that is bound to its queue.
#[derive(Debug)]
pub struct Bound {
    /// The socket.
    pub port: XskPort,
    /// The arena over its UMEM.
    pub arena: Arena,
    /// How it is bound.
    pub mode: BindMode,
}

/// Why a queue could not be bound. One line each: what, why, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The interface is down.
    #[error("interface {interface} is down: bring it up with `ip link set {interface} up`")]
    InterfaceDown {
        /// The interface.
        interface: String,
    },
    /// AF_XDP sockets need privileges.
    #[error("an AF_XDP socket may not be opened without CAP_NET_RAW: run as root or grant it")]
    MissingNetRaw,
    /// The memory of the frames is locked, and that is limited.
    #[error(
        "the frames of queue {queue} ({mebibytes} MiB) may not be locked in memory: run as root, grant CAP_IPC_LOCK, \
         or raise the limit (ulimit -l, LimitMEMLOCK=) to what all queues need"
    )]
    MissingIpcLock {
        /// The queue.
        queue: u32,
        /// How much it needs.
        mebibytes: u32,
    },
    /// Another socket has the queue.
    #[error(
        "queue {queue} of {interface} is in use by another AF_XDP socket, also after {seconds} seconds: stop \
         what uses it or choose another queue"
    )]
    QueueBusy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// How long it was tried.
        seconds: u64,
    },
    /// The driver has no zero-copy, and nothing else was allowed.
    #[error(
        "the driver of {interface} cannot bind queue {queue} in zero-copy mode ({source}): use --mode auto or copy"
    )]
    NoZeroCopy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Any other refusal of the kernel to open or bind an AF_XDP socket.
    #[error(
        "an AF_XDP socket cannot be bound to queue {queue} of {interface} ({source}): the kernel log (`dmesg`) may say why"
    )]
    Refused {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Binds a queue: zero-copy first, copy where `mode` allows it; [`Bound::mode`] says which it is. A queue that
/// somebody is just leaving (teardown is asynchronous) is waited for, for seconds at most.
///
/// # Errors
///
/// See [`BindError`]; nothing is left open.
pub fn bind(options: &XskOptions, mode: Mode) -> Result<Bound, BindError> {
    let mut bind_mode = match mode {
        Mode::Auto | Mode::ZeroCopy => BindMode::ZeroCopy,
        Mode::Copy => BindMode::Copy,
    };
    let queue = options.queue;
    let interface = options.interface.clone();
    let until = Instant::now() + Duration::from_secs(BUSY_TIMEOUT_SECONDS);
    let mut said = false;
    loop {
        let error = match XskPort::open(options, bind_mode) {
            Ok((port, arena)) => {
                warn_of_large_packets(options, bind_mode);
                return Ok(Bound {
                    port,
                    arena,
                    mode: bind_mode,
                });
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EBUSY) if Instant::now() < until => {
                if !said {
                    log::warn!("queue {queue} of {interface} is busy: waiting for it");
                    said = true;
                }
                std::thread::sleep(BUSY_RETRY);
            }
            Some(libc::EBUSY) => {
                return Err(BindError::QueueBusy {
                    interface,
                    queue,
                    seconds: BUSY_TIMEOUT_SECONDS,
                });
            }
            Some(libc::EPERM | libc::EACCES) => return Err(BindError::MissingNetRaw),
            // What locked memory beyond the limit is answered with.
            Some(libc::ENOBUFS) => {
                return Err(BindError::MissingIpcLock {
                    queue,
                    mebibytes: options.locked_mebibytes(bind_mode),
                });
            }
            Some(libc::ENETDOWN) => return Err(BindError::InterfaceDown { interface }),
            _ if bind_mode == BindMode::ZeroCopy && mode == Mode::Auto => {
                log::info!("queue {queue} of {interface}: no zero-copy ({error}), using copy mode");
                bind_mode = BindMode::Copy;
            }
            _ if bind_mode == BindMode::ZeroCopy => {
                return Err(BindError::NoZeroCopy {
                    interface,
                    queue,
                    source: error,
                });
            }
            _ => {
                return Err(BindError::Refused {
                    interface,
                    queue,
                    source: error,
                });
            }
        }
    }
}

/// Says if a packet of the interface's MTU may be too large for what a driver makes of a chunk.
fn warn_of_large_packets(options: &XskOptions, mode: BindMode) {
    let max = mtu_max(options.chunk_bytes(mode), mode);
    if options.mtu > max {
        let XskOptions {
            interface,
            queue,
            mtu,
            ..
        } = options;
        log::warn!(
            "queue {queue} of {interface} is in zero-copy mode, where a driver may not receive packets of more than {max} \
             bytes, and the MTU is {mtu}: if long packets are lost, set it with `ip link set {interface} mtu {max}`, \
             or use copy mode"
        );
    }
}
