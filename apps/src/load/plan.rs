//! What the client is to do, in the units that it works with.

use interruptlet::Cidr;

use super::target::Target;

/// What to do; times are nanoseconds.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to ask.
    pub target: Target,
    /// Busy connections, or datagrams in flight.
    pub connections: u32,
    /// Further connections that do one request each.
    pub idle: u32,
    /// Requests outstanding per connection.
    pub depth: u32,
    /// Bytes of a message to be echoed, or of an upload.
    pub size: u32,
    /// New connections per second.
    pub open_rate: f64,
    /// Requests per second of an open loop.
    pub rate: Option<f64>,
    /// How long to measure.
    pub duration: u64,
    /// How long to warm up.
    pub warmup: u64,
    /// How long to wait for an answer.
    pub timeout: u64,
    /// Bytes per second that a connection reads.
    pub slow: Option<u64>,
    /// Our addresses.
    pub sources: Cidr,
    /// Decides patterns, addresses and ports.
    pub seed: u64,
    /// What HTTP bodies must be.
    pub body: Option<Vec<u8>>,
}

impl Plan {
    /// Connections that are open at once.
    pub fn slots(&self) -> usize {
        self.connections as usize + self.idle as usize
    }
}
