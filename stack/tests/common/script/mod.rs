//! Scripted segments: what a peer sends and what must come back, line by line, as text.
//!
//! A script is read by [`parse::parse`] and played by [`play::play`] against a simulated worker on virtual time. One
//! statement a line, `#` begins a comment. First come settings:
//!
//! ```text
//! ip 6                  # IP version: 4 unless told
//! side client           # we open the connection: server unless told
//! service echo          # what our port runs: lines unless told (see `common::handlers`), with a slow path
//! port 9                # our port, 7 unless told; only 7 is served
//! mtu 1500              # bytes of an IP packet
//! seed 3                # of the simulation
//! idle-timeout 5s       # of the service, as are request-timeout and keep-alive
//! limit flows 1         # time-wait, engines, held-frames, held-per-flow
//! takes 1000            # bytes that our client takes of what it is shown, once
//! stays-open            # our client does not answer the end of the peer's side with its own
//! only direct           # or: only engine
//! ```
//!
//! Then steps, in order:
//!
//! ```text
//! > ACK seq=1 ack=1 "reply x\n"      # the peer sends this; the worker takes its turns at once
//! >& ACK seq=1 ack=1 "reply x\n"     # it arrives together with the next one
//! < ACK seq=1 ack=9 "<x>\n"          # the next segment that we sent is this
//! <+ ACK seq=1 ack=9 content=0..3000 # the next segments, one or more, carry this
//! times 1..9 < ACK seq=1 ack=9       # so many segments like this come next
//! ?< ACK seq=1 ack=9                 # if the next segment is this, it may be
//! within 900ms..1100ms < ...         # it comes so long after the step before
//! too-big mtu=1280 seq=1 len=1500    # a router says that our packet of 1,500 bytes, with our number 1, was too big
//! nothing                            # nothing more was sent
//! wait 1s                            # time passes; timers run on the way
//! at 5s                              # time passes until so long after the start
//! jobs                               # the slow path does what was deferred
//! drain                              # no new connections, idle ones are closed
//! engine-only on                     # or off: from now on
//! peer-isn 4294967295                # the peer's initial sequence number (1000), for a connection anew;
//! peer-isn +64                       # so much beyond the old one
//! peer-port 5001                     # another connection of the peer (5000 is the first)
//! flows 1                            # also engines, time-wait: how many there are
//! counter cookies_sent 1             # what was counted
//! open                               # our client opens its connection; also: send "x", close, abort
//! event connected                    # also: received "x", ended, closed Refused: what our client was told
//! no event                           # and nothing more
//! ```
//!
//! A segment is written as its flags (`SYN|ACK`; also FIN, RST, PSH, URG, ECE, CWR, or `none`), then any of
//! `seq=`, `ack=` (relative to the initial sequence number of the one that they count the bytes of, which
//! is 0 while we have sent no SYN; negative numbers are before it), `win=` (65535), `urgent=`, options
//! (`mss=`, `wscale=`, `sack` for SACK-permitted, `blocks=10-20,30-40`, `option=1e04abcd`), and data:
//! `"text"` with `\n`, `\\`, `\"`; `x*100` for so many letters; `content=0..100` for a part of what the lines
//! service calls content; any of them one after another.
//!
//! Of a segment that we sent, flags, sequence number, acknowledgement number and data are always compared
//! (`len=5` or `len=0..5` in place of data: only its length), and the options of a SYN (those that are named if
//! the line ends with `...`); a window or other options if they are named; PSH, and that a reset acknowledges
//! something, only if they are named. `ack=9..17` is any number from 9 to 17. With `<+`, acknowledgements without
//! data may come in between, and the FIN may come behind the data.
//!
//! Every segment that we send must be expected: one that was not is an error before the next `>` and at the
//! end. Every one must fit the MTU and the peer's MSS (of 64 at least).
//!
//! Scripts are played twice, with direct flows and with an engine for every flow ([`Mode`]). A step that
//! begins with `direct:` or `engine:` is for one of them.

pub mod parse;
pub mod play;

use interruptlet::Duration;

use super::{PORT, Version};

/// How connections are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Direct,
    Engine,
}

/// Both, as scripts are played.
pub const MODES: [Mode; 2] = [Mode::Direct, Mode::Engine];

/// A script, read.
#[derive(Debug, Clone)]
pub struct Script {
    pub settings: Settings,
    pub steps: Vec<Step>,
}

/// A statement that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// From 1.
    pub line: usize,
    pub what: String,
}

/// What the worker is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    pub version: Version,
    pub client: bool,
    pub echo: bool,
    pub port: u16,
    pub mtu: usize,
    pub seed: u64,
    pub idle_timeout: Option<Duration>,
    pub request_timeout: Duration,
    pub keep_alive: Option<Duration>,
    pub limits: Vec<(Limit, u64)>,
    pub takes: Option<usize>,
    pub stays_open: bool,
    pub only: Option<Mode>,
}

/// A bound that a script may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Flows,
    TimeWait,
    Engines,
    HeldFrames,
    HeldPerFlow,
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Step {
    /// From 1.
    pub line: usize,
    /// In which mode alone it is taken.
    pub only: Option<Mode>,
    pub act: Act,
}

#[derive(Debug, Clone)]
pub enum Act {
    Inject {
        segment: Described,
        /// The next one arrives in the same turn.
        batched: bool,
    },
    Expect {
        segment: Described,
        how: How,
    },
    /// An ICMP message that quotes a segment of ours.
    TooBig {
        mtu: u16,
        seq: u32,
        len: u16,
    },
    Nothing,
    Wait(Duration),
    At(Duration),
    Jobs,
    Drain,
    EngineOnly(bool),
    PeerIsn(Isn),
    PeerPort(u16),
    Flows(usize),
    Engines(usize),
    TimeWait(usize),
    Counter(String, u64),
    Open,
    Send(Vec<u8>),
    Close,
    Abort,
    Event(Told),
    NoEvent,
}

/// Which of the segments that we sent, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Next,
    Optional,
    /// One or more, with the data of one.
    Several,
    /// As many of the same.
    Times(usize, usize),
    /// This long after the step before.
    Within(Duration, Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isn {
    Is(u32),
    Beyond(u32),
}

/// What our client is told, as scripts write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Connected,
    Received(Vec<u8>),
    Ended,
    /// The name of an [`End`](interruptlet::client::End).
    Closed(String),
}

/// A segment as scripts write it: numbers are relative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// Of the acknowledgement numbers that are right: how many come after `ack`.
    pub ack_span: u32,
    pub window: Option<u16>,
    pub urgent: u16,
    pub options: Options,
    /// A SYN may have other options too.
    pub loose: bool,
    pub data: Data,
}

/// TCP options, in no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    /// Relative numbers of the side whose bytes they are.
    pub blocks: Vec<(u32, u32)>,
    /// Other ones, as they are in the header.
    pub raw: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Bytes(Vec<u8>),
    /// From so many to so many, whatever they are.
    Any(usize, usize),
}

impl Default for Data {
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

impl Data {
    /// How many at most.
    fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Any(_, most) => *most,
        }
    }

    fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Bytes(these) => these == bytes,
            Self::Any(least, most) => (*least..=*most).contains(&bytes.len()),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: Version::V4,
            client: false,
            echo: false,
            port: PORT,
            mtu: 1500,
            seed: 1,
            idle_timeout: None,
            request_timeout: Duration::from_secs(10),
            keep_alive: None,
            limits: Vec::new(),
            takes: None,
            stays_open: false,
            only: None,
        }
    }
}
