//! Interruptlet: a userspace TCP/IP server stack over AF_XDP.
//!
//! Short handlers, *interruptlets*, are registered for a port and run inside the poll loop of a pinned
//! core; what they defer is served by ordinary threads, the *slow path*. See ARCHITECTURE.md for the
//! way of a packet and the reasons behind it.
//!
//! A handler for a TCP port, and what it does with a request:
//!
//! ```
//! use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
//! use interruptlet::{Instant, testing};
//!
//! /// Answers each line with the line.
//! struct LineEcho;
//!
//! impl StreamInterruptlet for LineEcho {
//!     fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
//!         match request.bytes().iter().position(|byte| *byte == b'\n') {
//!             // The reply is the request itself, where it is.
//!             Some(end) => request.reply_in_place(end + 1).send(end + 1),
//!             None if request.is_full() => request.close(),
//!             None => request.need_more(),
//!         }
//!     }
//! }
//!
//! let info = testing::request_info(Instant::ZERO);
//! assert_eq!(
//!     testing::handle(&mut LineEcho, b"one\ntwo", &info),
//!     testing::Called::Reply { consumed: 4, bytes: b"one\n".to_vec(), close: false },
//! );
//! assert_eq!(testing::handle(&mut LineEcho, b"two", &info), testing::Called::NeedMore);
//! ```
//!
//! A server registers it and starts:
//!
//! ```no_run
//! # use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
//! # struct LineEcho;
//! # impl StreamInterruptlet for LineEcho {
//! #     fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply { request.close() }
//! # }
//! use interruptlet::{Config, Duration, Stack, StreamService};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::new("eth1");
//! config.addresses = vec!["192.0.2.10/24".parse()?];
//! let mut stack = Stack::builder(config)
//!     .stream(7, StreamService {
//!         interruptlet: Box::new(|_worker| Box::new(LineEcho)),
//!         slow: None,
//!         request_timeout: Duration::from_secs(10),
//!         idle_timeout: None,
//!         keep_alive: None,
//!     })
//!     .start()?;
//! while stack.check().is_ok() {
//!     std::thread::sleep(std::time::Duration::from_millis(100));
//! }
//! let report = stack.shutdown(std::time::Duration::from_secs(10));
//! # Ok(())
//! # }
//! ```

pub mod arena;
pub mod client;
pub mod clock;
pub mod config;
mod device;
mod egress;
pub mod flow;
mod icmp;
pub mod interruptlet;
mod neighbour;
mod panics;
pub mod pool;
pub mod port;
mod runtime;
pub mod service;
pub mod sim;
mod tcp;
pub mod telemetry;
pub mod testing;
pub mod timer;
mod token_bucket;
mod udp;
pub mod wire;
mod worker;

pub use config::{Cidr, Config, Limits, Mode, Poll};
pub use interruptlet_xdp::Capability;
pub use runtime::{
    Attachment, Builder, Facts, MissingCapability, QueueFacts, Report, RunError, Stack, StartError,
};
pub use service::{DatagramFactory, DatagramService, StreamFactory, StreamService};
/// Time as the loop sees it: microseconds since an arbitrary start, monotonic.
pub use smoltcp::time::{Duration, Instant};
