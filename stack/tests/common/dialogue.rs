//! Clients whose every segment is written down, in conversation with a worker under the eyes of an oracle:
//! for tests of what may depend on which segment comes when, and on its numbers.

use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};
use interruptlet::telemetry::Summon;

use super::oracle::Oracle;
use super::packets::{ACK, FIN, PSH, RST, SYN, Segment, TCP, try_dissect};
use super::{PORT, Version, assert_at_rest};

/// Bytes of a segment that repeats what was lost: as many as any MTU allows.
const REPEATED: usize = 1200;

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
    /// A reset, so far from the number that is expected next (RFC 5961 section 3.2).
    Reset(i32),
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
    /// The largest segment that the client takes.
    pub mss: u16,
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
            mss: 1440,
            engines: 0,
        }
    }
}

/// How segments of clients were handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handled {
    pub direct: u64,
    pub by_engine: u64,
    /// Engines that were summoned because the way says so, and those that were dismissed.
    pub asked: u64,
    pub dismissed: u64,
    /// Challenges sent.
    pub challenges: u64,
    /// Connections that are over.
    pub closed: u64,
    /// Payload bytes of the largest segment that the worker sent.
    pub largest: usize,
}

impl Handled {
    fn read(sim: &Sim) -> Self {
        let counters = sim.counters();
        Self {
            direct: counters.direct_segments.get(),
            by_engine: counters.engine_segments.get(),
            asked: counters.summoned(Summon::Asked),
            dismissed: counters.dismissed.get(),
            challenges: counters.challenges.get(),
            closed: counters.flows_closed.get(),
            largest: 0,
        }
    }
}

/// The worker, and who watches it.
struct Stage {
    sim: Sim,
    oracle: Oracle,
}

struct Dialogue<'a> {
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
    /// The worker has reset the connection, or knows of none; the client has.
    reset: bool,
    has_reset: bool,
    /// Bytes, and the FIN, that are acknowledged from now on; and those that were.
    ack: usize,
    ack_sent: usize,
    /// Payload bytes of the largest segment that came.
    largest: usize,
}

/// Has a dialogue and requires it to end well: the client's bytes and its FIN are acknowledged, or the connection
/// is reset, and nothing of it is left.
pub fn converse(config: SimConfig, plan: &Plan, way: Way) -> Heard {
    let oracle = Oracle::new("worker", config.mtu);
    converse_with(Sim::new(config), oracle, plan, way)
}

/// As [`converse`]; says how the client's segments were handled, too.
pub fn converse_counted(config: SimConfig, plan: &Plan, way: Way) -> (Heard, Handled) {
    let oracle = Oracle::new("worker", config.mtu);
    let (mut heard, handled) = carry_out(Sim::new(config), oracle, &[(plan, way)]);
    (heard.remove(0), handled)
}

/// As [`converse`], with a worker that something happened to already, under the eyes of `oracle`.
pub fn converse_with(sim: Sim, oracle: Oracle, plan: &Plan, way: Way) -> Heard {
    carry_out(sim, oracle, &[(plan, way)]).0.remove(0)
}

/// Several dialogues at a time, whose clients have ports of their own and take turns in sending.
pub fn converse_together(config: SimConfig, plans: &[(&Plan, Way)]) -> Vec<Heard> {
    let oracle = Oracle::new("worker", config.mtu);
    carry_out(Sim::new(config), oracle, plans).0
}

fn carry_out(sim: Sim, oracle: Oracle, plans: &[(&Plan, Way)]) -> (Vec<Heard>, Handled) {
    let mut stage = Stage { sim, oracle };
    let mut all: Vec<Dialogue<'_>> = plans
        .iter()
        .map(|(plan, way)| Dialogue::new(plan, *way))
        .collect();
    for which in 0..all.len() {
        stage.send(&mut all, which, &Send::Syn);
        if all[which].peer_isn.is_none() {
            // A worker that has answered this SYN already may leave it at that for a second.
            stage.sim.advance(Duration::from_millis(1100));
            stage.settle(&mut all);
        }
        assert!(all[which].peer_isn.is_some(), "no SYN-ACK");
    }
    let longest = plans.iter().map(|(plan, _)| plan.sends.len()).max();
    for number in 0..longest.unwrap_or(0) {
        for (which, (plan, _)) in plans.iter().enumerate() {
            if let Some(send) = plan.sends.get(number)
                && !all[which].reset
                && !all[which].has_reset
            {
                stage.send(&mut all, which, send);
            }
        }
    }
    stage.finish(&mut all);
    let mut handled = Handled::read(&stage.sim);
    let largest = all.iter().map(|dialogue| dialogue.largest);
    handled.largest = largest.max().unwrap_or(0);
    (all.iter().map(Dialogue::heard).collect(), handled)
}

impl Stage {
    /// Sends one segment, and takes what the worker sends until it has nothing to do.
    fn send(&mut self, all: &mut [Dialogue<'_>], which: usize, send: &Send) {
        let dialogue = &mut all[which];
        if let Send::Window(window) = send {
            dialogue.window = *window;
        }
        if let Send::Reset(_) = send {
            // For acknowledgements that are delayed.
            self.sim.advance(Duration::from_millis(20));
            self.settle(all);
        }
        let dialogue = &mut all[which];
        let segment = dialogue.segment(send);
        let by_engine = dialogue.way.engines >> dialogue.sent.min(63) & 1 == 1;
        self.sim.set_engine_only(by_engine);
        dialogue.sent += 1;
        if segment.flags & ACK != 0 {
            dialogue.ack_sent = dialogue.ack;
        }
        let frame = segment.frame((dialogue.way.version.client(), dialogue.way.version.server()));
        let before = Handled::read(&self.sim);
        let engines = self.sim.engines();
        self.oracle.delivered(&frame, self.sim.now());
        self.sim.peer().inject(&frame);
        self.settle(all);
        let after = Handled::read(&self.sim);
        let (direct, engine) = (
            after.direct - before.direct,
            after.by_engine - before.by_engine,
        );
        // If it was a connection's at all.
        if direct + engine > 0 {
            if by_engine {
                assert_eq!((direct, engine), (0, 1), "{send:?} is an engine's");
            } else if engines == 0 {
                assert_eq!(direct, 1, "{send:?} is no engine's at first");
                assert_eq!(after.asked, before.asked);
            }
            let ends = matches!(send, Send::Reset(0));
            if let Send::Reset(offset) = send {
                assert_eq!(after.closed - before.closed, u64::from(ends), "{offset}");
            }
            all[which].has_reset |= ends;
        }
    }

    fn settle(&mut self, all: &mut [Dialogue<'_>]) {
        loop {
            let worked = self.sim.turn();
            self.listen(all);
            if !worked && self.sim.run_jobs(64) == 0 {
                return;
            }
        }
    }

    /// Takes what the worker sent.
    fn listen(&mut self, all: &mut [Dialogue<'_>]) {
        while let Some(frame) = self.sim.peer().take() {
            self.oracle.emitted(&frame, self.sim.now());
            let packet = try_dissect(&frame).expect("the oracle let it through");
            assert_eq!(packet.protocol, TCP);
            let segment = packet.segment();
            let port = segment.destination_port;
            if let Some(dialogue) = all.iter_mut().find(|dialogue| dialogue.way.port == port) {
                dialogue.take(&segment);
            }
        }
        for dialogue in all {
            let arrived = dialogue.arrived();
            if dialogue.way.attention == Attention::Prompt || dialogue.has_sent_everything() {
                dialogue.ack = dialogue.ack.max(arrived);
            }
        }
    }

    /// Acknowledges what comes, and repeats what is not acknowledged, until both sides have closed.
    fn finish(&mut self, all: &mut [Dialogue<'_>]) {
        for dialogue in &mut *all {
            dialogue.window = u16::MAX;
        }
        for _ in 0..200 {
            let mut acknowledged = false;
            for which in 0..all.len() {
                let dialogue = &mut all[which];
                dialogue.ack = dialogue.arrived();
                if dialogue.ack > dialogue.ack_sent && !dialogue.reset {
                    self.send(all, which, &Send::Ack);
                    acknowledged = true;
                }
            }
            if acknowledged {
                continue;
            }
            if all.iter().all(Dialogue::is_over) {
                break;
            }
            self.sim.advance(Duration::from_millis(500));
            self.settle(all);
            for which in 0..all.len() {
                // A FIN that came with old or early data may have been left to us to repeat.
                let (from, whole) = (all[which].acknowledged, all[which].whole());
                if from < whole && !all[which].reset {
                    self.send(all, which, &Send::Data(from, whole.min(from + REPEATED)));
                }
            }
        }
        let history = self.oracle.history();
        for dialogue in &*all {
            let resets = dialogue.plan.resets || dialogue.has_reset;
            assert_eq!(dialogue.reset, resets, "{history}");
            if !dialogue.reset {
                assert_eq!(dialogue.acknowledged, dialogue.whole(), "{history}");
                let fin = dialogue.fin.map(|fin| fin + 1);
                assert_eq!(fin, Some(dialogue.ack), "{history}");
            }
        }
        // TIME-WAIT and whatever else may last.
        for _ in 0..14 {
            self.sim.advance(Duration::from_secs(5));
            self.settle(all);
        }
        assert_eq!(self.sim.flows(), 0, "{history}");
        assert_eq!(self.sim.engines(), 0);
        assert_at_rest(&mut self.sim);
    }
}

impl<'a> Dialogue<'a> {
    fn new(plan: &'a Plan, way: Way) -> Self {
        Self {
            plan,
            way,
            window: u16::MAX,
            sent: 0,
            acknowledged: 0,
            peer_isn: None,
            bytes: Vec::new(),
            fin: None,
            reset: false,
            has_reset: false,
            ack: 0,
            ack_sent: 0,
            largest: 0,
        }
    }

    fn heard(&self) -> Heard {
        Heard {
            bytes: self.bytes.iter().map_while(|byte| *byte).collect(),
            fin: self.fin.is_some(),
            reset: self.reset,
            isn: self.peer_isn.unwrap_or_default(),
        }
    }

    /// Bytes of the stream, and the FIN.
    fn whole(&self) -> usize {
        self.plan.stream.len() + 1
    }

    fn has_sent_everything(&self) -> bool {
        self.sent as usize > self.plan.sends.len()
    }

    /// Whether both sides have closed, or the worker has reset the connection.
    fn is_over(&self) -> bool {
        let closed = self.fin.is_some_and(|fin| self.ack > fin);
        self.reset || closed && self.acknowledged == self.whole()
    }

    fn segment(&self, send: &Send) -> Segment {
        let stream = &self.plan.stream;
        let (from, to) = match send {
            Send::Data(from, to) | Send::WithOptions(from, to) => (*from, *to),
            Send::KeepAlive | Send::Reset(_) => (self.acknowledged, self.acknowledged),
            _ => {
                let next = self.next();
                (next, next)
            }
        };
        let fin = to > stream.len() && to > from;
        let payload = stream[from.min(stream.len())..to.min(stream.len())].to_vec();
        let mut flags = match send {
            Send::Syn => SYN,
            Send::Reset(_) => RST,
            _ if payload.is_empty() => ACK,
            _ => ACK | PSH,
        };
        if fin {
            flags |= FIN;
        }
        let number = match send {
            Send::Syn => 0,
            Send::KeepAlive => from as u32,
            Send::Reset(offset) => (1 + from as u32).wrapping_add_signed(*offset),
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
                Send::Syn => [&[2, 4], &self.way.mss.to_be_bytes()[..]].concat(),
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
        if self.way.attention == Attention::Deaf && !self.has_sent_everything() {
            return;
        }
        let isn = self.peer_isn.expect("a SYN-ACK came first");
        let from = segment.seq.wrapping_sub(isn).wrapping_sub(1) as usize;
        let end = from + segment.payload.len();
        self.largest = self.largest.max(segment.payload.len());
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
}
