//! Interruptlet: a userspace TCP/IP server stack over AF_XDP.
//!
//! Short handlers, *interruptlets*, are registered for a port and run inside the poll loop of a pinned
//! core; what they defer is served by ordinary threads, the *slow path*. See ARCHITECTURE.md for the
//! way of a packet and the reasons behind it.

pub mod arena;
pub mod clock;
pub mod config;
mod device;
mod egress;
pub mod flow;
mod icmp;
pub mod interruptlet;
mod neighbour;
pub mod pool;
pub mod port;
mod runtime;
pub mod service;
pub mod sim;
mod tcp;
pub mod telemetry;
pub mod testing;
pub mod timer;
mod udp;
pub mod wire;
mod worker;

pub use config::{Cidr, Config, Limits, Mode, Poll};
pub use runtime::{Builder, Facts, Report, RunError, Stack, StartError};
pub use service::{DatagramFactory, DatagramService, StreamFactory, StreamService};
/// Time as the loop sees it: microseconds since an arbitrary start, monotonic.
pub use smoltcp::time::{Duration, Instant};
