//! The load generator: asks a server on the client side of our own stack, checks every answer, and counts.
//!
//! * [`cli`], [`target`], [`plan`]: what is asked for.
//! * [`run`]: the main thread: starts the stack, looks at signals and processes, prints.
//! * [`course`], [`stream`], [`datagram`]: what runs on the core: the phases of a run, and the clients that open
//!   connections, ask, and look after what is late.
//! * [`echo`], [`http`], [`upload`]: our end of a conversation as it should be, without I/O; [`pattern`] has the
//!   bytes.
//! * [`sources`], [`schedule`], [`timeouts`]: our addresses; what is due when.
//! * [`record`], [`proc`], [`report`]: what is counted, what it cost the processes, and how it is told.

pub mod cli;
pub mod course;
pub mod datagram;
pub mod echo;
pub mod http;
pub mod pattern;
pub mod plan;
pub mod proc;
pub mod record;
pub mod report;
pub mod run;
pub mod schedule;
pub mod sources;
pub mod stream;
pub mod target;
pub mod timeouts;
pub mod upload;

use self::record::ErrorKind;

/// What bytes that came in amount to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answers that are complete with them, all right.
    pub answers: u32,
    /// What is wrong then.
    pub failure: Option<ErrorKind>,
    /// The last of the answers was the last of the connection.
    pub close: bool,
}

impl Outcome {
    fn failure(kind: ErrorKind) -> Self {
        Self {
            failure: Some(kind),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests;
