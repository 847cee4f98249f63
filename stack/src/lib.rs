//! Interruptlet: a userspace TCP/IP server stack over AF_XDP.
//!
//! Short handlers, *interruptlets*, are registered for a port and run inside the poll loop of a pinned
//! core; what they defer is served by ordinary threads, the *slow path*. See ARCHITECTURE.md for the
//! way of a packet and the reasons behind it.

pub mod arena;
pub mod flow;
pub mod interruptlet;
mod mailbox;
pub mod pool;
pub mod testing;
pub mod wire;

/// Time as the loop sees it: microseconds since an arbitrary start, monotonic.
pub use smoltcp::time::{Duration, Instant};
