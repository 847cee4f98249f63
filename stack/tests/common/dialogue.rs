//! A client whose every segment is written down, in conversation with a worker under the eyes of an oracle:
//! for tests of what may depend on which segment comes when, and on its numbers.

use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};

use super::oracle::Oracle;
use super::packets::{ACK, FIN, PSH, RST, SYN, Segment, TCP, try_dissect};
use super::{PORT, Version, assert_at_rest};

/// What a client sends.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: &'static str,
    /// All bytes of its side.
    pub stream: Vec<u8>,
    /// What it sends after its SYN, in this order.
    pub sends: Vec<Send>,
    /// All bytes of the answer.
    pub answer: Vec<u8>,
    /// Whether the worker resets the connection.
    pub resets: bool,
}

/// One segment.
#[derive(Debug, Clone)]
pub enum Send {
    /// The SYN again.
    Syn,
    /// An acknowledgement without data.
    Ack,
    /// These bytes of the stream. The last one may be of a FIN behind the stream.
    Data(usize, usize),
    /// The same with options that mean nothing.
    WithOptions(usize, usize),
    /// An acknowledgement, and from now on this window.
    Window(u16),
    /// A probe of whether the worker is there: the number before the next one.
    KeepAlive,
}

/// What the client does with what it gets, before everything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Each segment acknowledges everything before it.
    Prompt,
    /// Nothing is acknowledged but the SYN.
    Lazy,
    /// Everything behind the SYN-ACK is lost.
    Deaf,
}

/// See [`Attention`].
pub const ATTENTIONS: [Attention; 3] = [Attention::Prompt, Attention::Lazy, Attention::Deaf];

/// What the client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub bytes: Vec<u8>,
    pub fin: bool,
    pub reset: bool,
    /// The worker's initial sequence number.
    pub isn: u32,
}

/// How a plan is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub version: Version,
    /// The client's port.
    pub port: u16,
    pub attention: Attention,
    /// The client's initial sequence number.
    pub isn: u32,
    /// Bit n: the client's segment n, beginning with its SYN, is handled by an engine. The bits that are left
    /// count for what it sends at the end.
    pub engines: u64,
}

impl Way {
    /// A prompt client, and no engines.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            port: 5000,
            attention: Attention::Prompt,
            isn: 1000,
            engines: 0,
        }
    }
}

struct Dialogue<'a> {
    sim: Sim,
    oracle: Oracle,
    plan: &'a Plan,
    way: Way,
    window: u16,
    /// Segments that were sent.
    sent: u32,
    /// Of the stream and its FIN.
    acknowledged: usize,
    peer_isn: Option<u32>,
    /// The worker's bytes that came, by place.
    bytes: Vec<Option<u8>>,
    fin: Option<usize>,
    reset: bool,
    /// Bytes, and the FIN, that are acknowledged from now on; and those that were.
    ack: usize,
    ack_sent: usize,
}

/// Has a dialogue and requires it to end well: the client's bytes and its FIN are acknowledged, or the connection
/// is reset, and nothing of it is left.
pub fn converse(config: SimConfig, plan: &Plan, way: Way) -> Heard {
    let oracle = Oracle::new("worker", config.mtu);
    converse_with(Sim::new(config), oracle, plan, way)
}

/// As [`converse`], with a worker that something happened to already, under the eyes of `oracle`.
pub fn converse_with(sim: Sim, oracle: Oracle, plan: &Plan, way: Way) -> Heard {
    let mut dialogue = Dialogue {
        sim,
        oracle,
        plan,
        way,
        window: u16::MAX,
        sent: 0,
        acknowledged: 0,
        peer_isn: None,
        bytes: Vec::new(),
        fin: None,
        reset: false,
        ack: 0,
        ack_sent: 0,
    };
    dialogue.send(&Send::Syn);
    if dialogue.peer_isn.is_none() {
        // A worker that has answered this SYN already may leave it at that for a second.
        dialogue.sim.advance(Duration::from_millis(1100));
        dialogue.settle();
    }
    assert!(dialogue.peer_isn.is_some(), "no SYN-ACK");
    for send in &plan.sends {
        dialogue.send(send);
    }
    dialogue.finish()
}

impl Dialogue<'_> {
    fn segment(&self, send: &Send) -> Segment {
        let stream = &self.plan.stream;
        let (from, to) = match send {
            Send::Data(from, to) | Send::WithOptions(from, to) => (*from, *to),
            Send::KeepAlive => (self.acknowledged, self.acknowledged),
            _ => {
                let next = self.next();
                (next, next)
            }
        };
        let fin = to > stream.len() && to > from;
        let payload = stream[from.min(stream.len())..to.min(stream.len())].to_vec();
        let mut flags = match send {
            Send::Syn => SYN,
            _ if payload.is_empty() => ACK,
            _ => ACK | PSH,
        };
        if fin {
            flags |= FIN;
        }
        let number = match send {
            Send::Syn => 0,
            Send::KeepAlive => from as u32,
            _ => 1 + from as u32,
        };
        let ack = self
            .peer_isn
            .map_or(0, |isn| isn.wrapping_add(1 + self.ack as u32));
        Segment {
            source_port: self.way.port,
            destination_port: PORT,
            seq: self.way.isn.wrapping_add(number),
            ack: if flags & ACK != 0 { ack } else { 0 },
            flags,
            window: self.window,
            options: match send {
                Send::Syn => vec![2, 4, 0x05, 0xa0],
                Send::WithOptions(..) => vec![1, 1, 1, 1],
                _ => Vec::new(),
            },
            payload,
        }
    }

    /// Behind everything that was sent so far.
    fn next(&self) -> usize {
        let sent = (self.sent as usize)
            .saturating_sub(1)
            .min(self.plan.sends.len());
        let ends = self.plan.sends[..sent].iter().map(|send| match send {
            Send::Data(_, to) | Send::WithOptions(_, to) => *to,
            _ => 0,
        });
        ends.max().unwrap_or(0)
    }

    /// Sends one segment, and takes what the worker sends until it has nothing to do.
    fn send(&mut self, send: &Send) {
        if let Send::Window(window) = send {
            self.window = *window;
        }
        let segment = self.segment(send);
        let bit = self.way.engines >> self.sent.min(63) & 1;
        self.sim.set_engine_only(bit == 1);
        self.sent += 1;
        self.ack_sent = self.ack;
        let frame = segment.frame((self.way.version.client(), self.way.version.server()));
        self.oracle.delivered(&frame, self.sim.now());
        self.sim.peer().inject(&frame);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let worked = self.sim.turn();
            self.listen();
            if !worked && self.sim.run_jobs(64) == 0 {
                return;
            }
        }
    }

    /// Takes what the worker sent.
    fn listen(&mut self) {
        while let Some(frame) = self.sim.peer().take() {
            self.oracle.emitted(&frame, self.sim.now());
            let packet = try_dissect(&frame).expect("the oracle let it through");
            assert_eq!(packet.protocol, TCP);
            let segment = packet.segment();
            if segment.destination_port == self.way.port {
                self.take(&segment);
            }
        }
        let arrived = self.arrived();
        let everything_sent = self.sent as usize > self.plan.sends.len();
        if self.way.attention == Attention::Prompt || everything_sent {
            self.ack = self.ack.max(arrived);
        }
    }

    /// Bytes that came without a gap, and the FIN behind them.
    fn arrived(&self) -> usize {
        let gap = self.bytes.iter().position(Option::is_none);
        let bytes = gap.unwrap_or(self.bytes.len());
        bytes + usize::from(self.fin == Some(bytes))
    }

    fn take(&mut self, segment: &Segment) {
        if segment.flags & SYN != 0 {
            self.peer_isn = Some(segment.seq);
            return;
        }
        if segment.flags & RST != 0 {
            self.reset = true;
            return;
        }
        let acknowledged = segment.ack.wrapping_sub(self.way.isn).wrapping_sub(1) as usize;
        self.acknowledged = self.acknowledged.max(acknowledged);
        let everything_sent = self.sent as usize > self.plan.sends.len();
        if self.way.attention == Attention::Deaf && !everything_sent {
            return;
        }
        let isn = self.peer_isn.expect("a SYN-ACK came first");
        let from = segment.seq.wrapping_sub(isn).wrapping_sub(1) as usize;
        let end = from + segment.payload.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, None);
        }
        for (place, byte) in self.bytes[from..end].iter_mut().zip(&segment.payload) {
            *place = Some(*byte);
        }
        if segment.flags & FIN != 0 {
            self.fin = Some(end);
        }
    }

    /// Acknowledges what comes, and repeats what is not acknowledged, until both sides have closed.
    fn finish(mut self) -> Heard {
        let whole = self.plan.stream.len() + 1;
        self.window = u16::MAX;
        for _ in 0..200 {
            self.ack = self.arrived();
            if self.ack > self.ack_sent && !self.reset {
                self.send(&Send::Ack);
                continue;
            }
            let closed = self.fin.is_some_and(|fin| self.ack > fin);
            if self.reset || closed && self.acknowledged == whole {
                break;
            }
            self.sim.advance(Duration::from_millis(500));
            self.settle();
            // A FIN that came with old or early data may have been left to us to repeat.
            if self.acknowledged < whole && !self.reset {
                self.send(&Send::Data(self.acknowledged, whole));
            }
        }
        let history = self.oracle.history();
        assert_eq!(self.reset, self.plan.resets, "{history}");
        if !self.reset {
            assert_eq!(self.acknowledged, whole, "{history}");
            assert_eq!(self.fin.map(|fin| fin + 1), Some(self.ack), "{history}");
        }
        // TIME-WAIT and whatever else may last.
        for _ in 0..14 {
            self.sim.advance(Duration::from_secs(5));
            self.settle();
        }
        assert_eq!(self.sim.flows(), 0, "{history}");
        assert_at_rest(&mut self.sim);
        Heard {
            bytes: self.bytes.iter().map_while(|byte| *byte).collect(),
            fin: self.fin.is_some(),
            reset: self.reset,
            isn: self.peer_isn.unwrap_or_default(),
        }
    }
}
