//! Binding a queue: which mode, and waiting for a queue that somebody is just leaving.

use std::time::{Duration, Instant};

use super::StartError;
use crate::arena::Arena;
use crate::config::{Config, LARGE_CHUNK_BYTES, Mode, SMALL_CHUNK_BYTES};
use crate::port::xsk::{BindMode, XskOptions, XskPort, usable_bytes};
use crate::wire::LINK_HEADER_BYTES_MAX;

/// How long a queue that another socket is just leaving is waited for.
const BUSY_TIMEOUT_SECONDS: u64 = 3;
/// How often it is tried again meanwhile: not more often, because each try maps and registers a whole
/// UMEM.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// A socket that is bound to its queue.
pub(super) struct Bound {
    pub(super) port: XskPort,
    pub(super) arena: Arena,
    pub(super) mode: BindMode,
}

/// Binds a queue: zero-copy first, copy where that is allowed. A queue that somebody is just leaving
/// (teardown is asynchronous) is waited for.
pub(super) fn bind(config: &Config, queue: u32, mtu: usize) -> Result<Bound, StartError> {
    let frame_bytes = (mtu + LINK_HEADER_BYTES_MAX) as u32;
    let chunk_bytes = if frame_bytes <= usable_bytes(SMALL_CHUNK_BYTES) {
        SMALL_CHUNK_BYTES
    } else {
        LARGE_CHUNK_BYTES
    };
    let mut mode = match config.mode {
        Mode::Auto | Mode::ZeroCopy => BindMode::ZeroCopy,
        Mode::Copy => BindMode::Copy,
    };
    let interface = config.interface.clone();
    let until = Instant::now() + Duration::from_secs(BUSY_TIMEOUT_SECONDS);
    let mut said = false;
    loop {
        let options = XskOptions {
            interface: interface.clone(),
            queue,
            frames: config.limits.frames,
            chunk_bytes,
            ring_entries: config.limits.ring_entries,
            fill_target: config.limits.fill_target,
            loans_max: config.limits.loans,
            bind: mode,
            busy_poll: true,
        };
        let error = match XskPort::open(&options) {
            Ok((port, arena)) => return Ok(Bound { port, arena, mode }),
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
                return Err(StartError::QueueBusy {
                    interface,
                    queue,
                    seconds: BUSY_TIMEOUT_SECONDS,
                });
            }
            Some(libc::EPERM | libc::EACCES) => return Err(StartError::MissingNetRaw),
            // What locked memory beyond the limit is answered with.
            Some(libc::ENOBUFS) => {
                return Err(StartError::MissingIpcLock {
                    queue,
                    mebibytes: config.limits.frames.saturating_mul(chunk_bytes) >> 20,
                });
            }
            Some(libc::ENETDOWN) => return Err(StartError::InterfaceDown { interface }),
            _ if mode == BindMode::ZeroCopy && config.mode == Mode::Auto => {
                log::info!("queue {queue} of {interface}: no zero-copy ({error}), using copy mode");
                mode = BindMode::Copy;
            }
            _ if mode == BindMode::ZeroCopy => {
                return Err(StartError::NoZeroCopy {
                    interface,
                    queue,
                    source: error,
                });
            }
            _ => {
                return Err(StartError::Bind {
                    interface,
                    queue,
                    source: error,
                });
            }
        }
    }
}
