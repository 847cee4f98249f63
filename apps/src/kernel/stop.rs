//! How a loop is told to end: by a descriptor, so that it cannot miss it while it goes to sleep.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::fd::{AsFd, BorrowedFd};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// Becomes readable when the loop has to end.
#[derive(Debug)]
pub struct Stop {
    told: UnixStream,
}

impl Stop {
    /// To be told by SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When the system has no descriptor left, or does not let us watch for signals.
    pub fn by_signal() -> io::Result<Self> {
        let (told, tell) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            pipe::register(signal, tell.try_clone()?)?;
        }
        Ok(Self { told })
    }

    /// To be told by dropping what comes with it.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn by_drop() -> io::Result<(Self, Stopper)> {
        let (told, tell) = UnixStream::pair()?;
        Ok((Self { told }, Stopper { _tell: tell }))
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}

/// Ends a loop when it is dropped.
#[derive(Debug)]
pub struct Stopper {
    _tell: UnixStream,
}
