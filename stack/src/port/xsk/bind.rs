//! Binding a queue: which mode, and waiting for a queue that somebody is just leaving.

use std::fmt;
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
    /// The reason why it is not in zero-copy mode, if it is not.
    pub why_copy: Option<WhyCopy>,
}

/// Why a queue is not in zero-copy mode. Displayed as a phrase that names the reason and, where there is one, the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyCopy {
    /// Copy mode was asked for.
    Asked,
    /// The XDP program runs in the kernel's generic mode, behind the driver.
    GenericXdp {
        /// The MTU of the interface, in bytes.
        mtu: usize,
    },
    /// The kernel says that the driver has no zero-copy.
    Driver {
        /// The driver's name, if known.
        driver: Option<String>,
    },
    /// The queue's frames exceed the limit on locked memory.
    Memory {
        /// Size of the frames.
        mebibytes: u32,
    },
    /// The driver has zero-copy, but refused it for this queue in its present configuration.
    Refused {
        /// The driver's name, if known.
        driver: Option<String>,
        /// The MTU of the interface, in bytes.
        mtu: usize,
        /// The kernel's answer, an error number.
        errno: i32,
    },
}

impl fmt::Display for WhyCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |driver: &Option<String>| driver.clone().unwrap_or("the driver".to_owned());
        match self {
            Self::Asked => f.write_str("copy mode was asked for"),
            Self::GenericXdp { mtu } => {
                f.write_str("zero-copy needs native XDP, which the driver does not take")?;
                if *mtu > ORDINARY_MTU {
                    write!(f, "; an MTU below {mtu} may help")?;
                }
                Ok(())
            }
            Self::Driver { driver } => {
                write!(f, "{} has no zero-copy in this kernel", name(driver))
            }
            Self::Memory { mebibytes } => write!(
                f,
                "zero-copy needs {mebibytes} MiB of locked memory for each queue: raise `ulimit -l` or grant CAP_IPC_LOCK"
            ),
            Self::Refused { driver, mtu, errno } => {
                let (driver, answer) = (name(driver), answer(*errno));
                write!(f, "{driver} refused zero-copy: {answer}")?;
                match *errno {
                    libc::EBUSY => f.write_str("; something else uses the queue"),
                    _ if *mtu > ORDINARY_MTU => write!(f, "; an MTU below {mtu} may help"),
                    _ => f.write_str("; `dmesg` may say why"),
                }
            }
        }
    }
}

/// The largest ordinary MTU, in bytes. A driver that refuses a larger one may do so because of the MTU.
const ORDINARY_MTU: usize = 1500;

/// Returns the text of an error number, without the number.
fn answer(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
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
    /// Zero-copy was required, and is not available.
    #[error(
        "queue {queue} of {interface} cannot be in zero-copy mode ({why}): use --mode auto or copy"
    )]
    NoZeroCopy {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// Why not.
        why: WhyCopy,
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
    let mut why_copy = match mode {
        Mode::Copy => Some(WhyCopy::Asked),
        Mode::Auto | Mode::ZeroCopy => options.no_zero_copy.clone(),
    };
    let queue = options.queue;
    let interface = &options.interface;
    if mode == Mode::ZeroCopy
        && let Some(why) = why_copy
    {
        let interface = interface.clone();
        return Err(BindError::NoZeroCopy {
            interface,
            queue,
            why,
        });
    }
    let until = Instant::now() + Duration::from_secs(BUSY_TIMEOUT_SECONDS);
    let mut said = false;
    loop {
        let bind_mode = match why_copy {
            Some(_) => BindMode::Copy,
            None => BindMode::ZeroCopy,
        };
        let error = match XskPort::open(options, bind_mode) {
            Ok((port, arena)) => {
                warn_of_large_packets(options, bind_mode);
                return Ok(Bound {
                    port,
                    arena,
                    mode: bind_mode,
                    why_copy,
                });
            }
            Err(error) => error,
        };
        if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until {
            if !said {
                log::warn!("queue {queue} of {interface} is busy: waiting for it");
                said = true;
            }
            std::thread::sleep(BUSY_RETRY);
            continue;
        }
        match refused(error, options, mode, bind_mode) {
            Refusal::Final(error) => return Err(error),
            Refusal::TryCopy(why) => why_copy = Some(why),
        }
    }
}

/// How to go on after the kernel refused to bind a socket.
#[derive(Debug)]
enum Refusal {
    /// Try copy mode, which may work.
    TryCopy(WhyCopy),
    /// Give up: no other mode may work.
    Final(BindError),
}

/// Decides how to go on after the kernel's answer `source` to binding in `bind_mode`, where `mode` was asked for.
fn refused(source: io::Error, options: &XskOptions, mode: Mode, bind_mode: BindMode) -> Refusal {
    let (interface, queue) = (options.interface.clone(), options.queue);
    let mebibytes = (options.locked_bytes(bind_mode) >> 20) as u32;
    let errno = source.raw_os_error();
    match errno {
        Some(libc::EPERM | libc::EACCES) => return Refusal::Final(BindError::MissingNetRaw),
        Some(libc::ENETDOWN) => return Refusal::Final(BindError::InterfaceDown { interface }),
        _ => {}
    }
    if bind_mode == BindMode::ZeroCopy {
        let driver = options.driver.clone();
        let why = match errno {
            Some(libc::ENOBUFS) => WhyCopy::Memory { mebibytes },
            Some(libc::EOPNOTSUPP) => WhyCopy::Driver { driver },
            _ => WhyCopy::Refused {
                driver,
                mtu: options.mtu,
                errno: errno.unwrap_or(libc::EINVAL),
            },
        };
        return match (mode, errno) {
            (Mode::Auto, _) => Refusal::TryCopy(why),
            (_, Some(libc::EBUSY | libc::ENOBUFS)) => {
                Refusal::Final(failure(source, interface, queue, mebibytes))
            }
            _ => Refusal::Final(BindError::NoZeroCopy {
                interface,
                queue,
                why,
            }),
        };
    }
    Refusal::Final(failure(source, interface, queue, mebibytes))
}

/// Returns the error for a refusal that has nothing to do with the mode.
fn failure(source: io::Error, interface: String, queue: u32, mebibytes: u32) -> BindError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => BindError::QueueBusy {
            interface,
            queue,
            seconds: BUSY_TIMEOUT_SECONDS,
        },
        // The kernel's answer to locked memory beyond the limit.
        Some(libc::ENOBUFS) => BindError::MissingIpcLock { queue, mebibytes },
        _ => BindError::Refused {
            interface,
            queue,
            source,
        },
    }
}

/// Warns if a packet of the interface's MTU may be larger than the part of a chunk that a driver may use.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    fn options(mtu: usize) -> XskOptions {
        XskOptions {
            driver: Some("igb".to_owned()),
            ..XskOptions::new("eth0", 2, mtu, &Limits::default())
        }
    }

    fn answered(errno: i32, mtu: usize, mode: Mode, bind_mode: BindMode) -> Refusal {
        let source = io::Error::from_raw_os_error(errno);
        refused(source, &options(mtu), mode, bind_mode)
    }

    #[test]
    fn a_refusal_of_zero_copy_is_said_in_the_same_words_in_both_modes() {
        for (errno, mtu, words) in [
            (
                libc::EOPNOTSUPP,
                1500,
                "igb has no zero-copy in this kernel",
            ),
            (
                libc::EINVAL,
                1500,
                "igb refused zero-copy: Invalid argument; `dmesg` may say why",
            ),
            (
                libc::EINVAL,
                3000,
                "igb refused zero-copy: Invalid argument; an MTU below 3000 may help",
            ),
            (
                libc::ENOMEM,
                1500,
                "igb refused zero-copy: Cannot allocate memory; `dmesg` may say why",
            ),
        ] {
            let auto = answered(errno, mtu, Mode::Auto, BindMode::ZeroCopy);
            let Refusal::TryCopy(why) = auto else {
                panic!("{auto:?}")
            };
            assert_eq!(why.to_string(), words);
            let only = answered(errno, mtu, Mode::ZeroCopy, BindMode::ZeroCopy);
            let Refusal::Final(error) = only else {
                panic!("{only:?}")
            };
            let line = error.to_string();
            assert!(
                line.contains(words) && line.contains("queue 2 of eth0"),
                "{line}"
            );
            assert!(line.ends_with(": use --mode auto or copy"), "{line}");
        }
    }

    #[test]
    fn zero_copy_is_given_up_for_lack_of_memory_where_copy_mode_may_do_with_less() {
        let auto = answered(libc::ENOBUFS, 1500, Mode::Auto, BindMode::ZeroCopy);
        assert!(
            matches!(auto, Refusal::TryCopy(WhyCopy::Memory { mebibytes: 16 })),
            "{auto:?}"
        );
        for (mode, bind_mode, needed) in [
            (Mode::ZeroCopy, BindMode::ZeroCopy, 16),
            (Mode::Auto, BindMode::Copy, 8),
        ] {
            let only = answered(libc::ENOBUFS, 1500, mode, bind_mode);
            assert!(
                matches!(
                    only,
                    Refusal::Final(BindError::MissingIpcLock { queue: 2, mebibytes }) if mebibytes == needed
                ),
                "{only:?}"
            );
        }
    }

    #[test]
    fn what_no_mode_changes_is_final() {
        for (errno, word) in [
            (libc::EPERM, "CAP_NET_RAW"),
            (libc::ENETDOWN, "eth0 is down"),
        ] {
            let Refusal::Final(error) = answered(errno, 1500, Mode::Auto, BindMode::ZeroCopy)
            else {
                panic!("{word}")
            };
            assert!(error.to_string().contains(word), "{error}");
        }
        for (errno, word) in [(libc::EBUSY, "in use"), (libc::EINVAL, "dmesg")] {
            let Refusal::Final(error) = answered(errno, 1500, Mode::Auto, BindMode::Copy) else {
                panic!("{word}")
            };
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_known_before_needs_no_try() {
        let options = XskOptions {
            no_zero_copy: Some(WhyCopy::GenericXdp { mtu: 3050 }),
            ..options(3050)
        };
        // There is no such interface: a bind that was tried would fail with another error.
        let error = bind(&options, Mode::ZeroCopy).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("zero-copy needs native XDP"), "{line}");
        assert!(line.contains("an MTU below 3050"), "{line}");
    }
}
