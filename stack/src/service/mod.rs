//! Services: the registration for a port ([`StreamService`], [`DatagramService`]), the place where its handler runs
//! (`handler`), and the handler's run-time budget (`budget`).

mod budget;
mod handler;

use std::sync::Arc;

pub(crate) use budget::{Budget, News};
pub(crate) use handler::Handler;

use crate::Duration;
use crate::interruptlet::{DatagramInterruptlet, StreamInterruptlet};
use crate::pool::SlowPath;

/// Makes the interruptlet of one worker, given the worker's number (from 0).
pub type StreamFactory = Box<dyn Fn(usize) -> Box<dyn StreamInterruptlet> + Send>;
/// Makes the datagram interruptlet of one worker, given the worker's number (from 0).
pub type DatagramFactory = Box<dyn Fn(usize) -> Box<dyn DatagramInterruptlet> + Send>;

/// A service on a TCP port.
pub struct StreamService {
    /// Makes one handler per worker.
    pub interruptlet: StreamFactory,
    /// Serves what the handlers defer. Without one, deferring closes the connection.
    pub slow: Option<Arc<dyn SlowPath>>,
    /// How long a request may take to become whole, from its first byte.
    pub request_timeout: Duration,
    /// How long a connection may do nothing between requests, at most 12 days; `None`: forever.
    pub idle_timeout: Option<Duration>,
    /// How long a peer may be silent before it is asked whether it is still there (RFC 9293 section 3.8.4), and how
    /// long again between two questions, at most 75 s; after nine without an answer the connection is reset. `None`:
    /// never.
    pub keep_alive: Option<Duration>,
}

/// A service on a UDP port.
pub struct DatagramService {
    /// Makes one handler per worker.
    pub interruptlet: DatagramFactory,
    /// Serves what the handlers defer. Without one, deferring ignores the datagram.
    pub slow: Option<Arc<dyn SlowPath>>,
}
