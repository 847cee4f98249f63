//! What RFC 9293 lets a stack emit: watches one stack's wire, and checks every TCP segment that it sends.
//!
//! The oracle is told, in the order in which they happen, what is [`delivered`](Oracle::delivered) to the stack and
//! what the stack [`emits`](Oracle::emitted). So faults belong between the oracle and the peer: it must see each
//! emission once, before anything is lost, and each delivery as it arrives, after everything that was. Frames
//! that arrive damaged are none to it, as they are to the stack.
//!
//! It knows upper bounds, not what the stack did: a delivery may have been dropped for want of a frame. What it
//! checks is in [`Rule`]. Numbers are counted from the initial ones (`rel`), so that nothing wraps here.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;

use interruptlet::Instant;

use super::packets::{ACK, FIN, PSH, RST, SYN, Segment, TCP, try_dissect};

/// Segments of a connection that a violation shows.
const HISTORY: usize = 20;
/// Deliveries of a connection that a reset may answer.
const UNANSWERED: usize = 4096;
/// RFC 9293 section 3.7.1: the MSS of a peer that announces none.
const DEFAULT_MSS_V4: usize = 536;
const DEFAULT_MSS_V6: usize = 1220;
/// RFC 7323 section 2.3: more counts as this.
const SCALE_MAX: u8 = 14;

/// What a segment may break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A length or a checksum is wrong.
    Malformed,
    /// It goes to nobody who sent anything, or to another link address.
    Addresses,
    /// More than the MTU, or than the peer's MSS (RFC 9293 section 3.7.1).
    Size,
    /// A combination of flags that is none, or no ACK where there must be one (section 3.10.7.4).
    Flags,
    /// A SYN after the handshake, one that answers none, or another number for the same connection.
    Syn,
    /// An option that was not negotiated or has no place here (RFC 7323, RFC 2018), or says what is not so.
    Options,
    /// A sequence number before the first or beyond SND.NXT (section 3.4); an acknowledgement without data that
    /// is not at SND.NXT, as far as the peer's window allows.
    Sequence,
    /// Other bytes at a sequence number than before.
    OtherBytes,
    /// Bytes beyond the peer's window (section 3.8.6), of which a probe may be one.
    BeyondWindow,
    /// Bytes behind our FIN, or a FIN in another place.
    AfterFin,
    /// An acknowledgement of what never arrived.
    AckUnsent,
    /// An acknowledgement of less than before.
    AckBack,
    /// The right edge of our window went back (section 3.8.6.2.1).
    Shrunk,
    /// A reset that neither answers a segment (section 3.10.7.1), each at most once, nor ends the connection.
    Reset,
    /// Something else than a reset after our reset.
    AfterReset,
}

/// A rule is broken.
#[derive(Debug, Clone)]
pub struct Violation {
    pub rule: Rule,
    /// What is wrong, and the connection's last segments.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

/// Our end and the peer's.
type Ends = (SocketAddr, SocketAddr);

/// Watches all connections of one stack.
pub struct Oracle {
    /// What the stack is called in a violation.
    name: &'static str,
    ip_mtu: usize,
    conversations: BTreeMap<Ends, Conversation>,
    /// Segments that were checked.
    checked: usize,
    /// The stack may probe idle connections with the byte before SND.NXT (RFC 9293 section 3.8.4).
    pub keep_alive: bool,
}

impl Oracle {
    /// For a stack whose IP packets have so many bytes at most.
    pub fn new(name: &'static str, ip_mtu: usize) -> Self {
        Self {
            name,
            ip_mtu,
            conversations: BTreeMap::new(),
            checked: 0,
            keep_alive: false,
        }
    }

    /// How many segments were checked.
    pub fn checked(&self) -> usize {
        self.checked
    }

    /// The initial sequence numbers that the stack chose.
    pub fn initial_numbers(&self) -> Vec<u32> {
        let offers = self.conversations.values().flat_map(|all| &all.offers);
        offers.map(|offer| offer.isn).collect()
    }

    /// The last segments of every connection.
    pub fn history(&self) -> String {
        let name = self.name;
        self.conversations
            .iter()
            .map(|((ours, peer), conversation)| {
                format!(
                    "the {name} at {ours}, with {peer}:\n{}",
                    conversation.history()
                )
            })
            .collect()
    }

    /// Notes a frame that arrives at the stack.
    pub fn delivered(&mut self, frame: &[u8], now: Instant) {
        let Ok(packet) = try_dissect(frame) else {
            return;
        };
        if packet.protocol != TCP {
            return;
        }
        let segment = packet.segment();
        let ours = SocketAddr::new(packet.destination, segment.destination_port);
        let peer = SocketAddr::new(packet.source, segment.source_port);
        let conversation = self.conversations.entry((ours, peer)).or_default();
        conversation.link = Some(packet.link_source);
        conversation.deliver(segment, now);
    }

    /// Checks a frame that the stack sends; panics if it breaks a rule.
    pub fn emitted(&mut self, frame: &[u8], now: Instant) {
        if let Err(violation) = self.check(frame, now) {
            panic!("{violation}");
        }
    }

    /// Checks a frame that the stack sends.
    pub fn check(&mut self, frame: &[u8], now: Instant) -> Result<(), Violation> {
        let is_ip = matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
        if !is_ip {
            return Ok(());
        }
        let name = self.name;
        let fail = |rule, what: String, history: String| {
            Err(Violation {
                rule,
                text: format!("the {name} sent {what}\n{history}"),
            })
        };
        let packet = match try_dissect(frame) {
            Ok(packet) => packet,
            Err(wrong) => return fail(Rule::Malformed, format!("a wrong {wrong}"), String::new()),
        };
        if packet.protocol != TCP {
            return Ok(());
        }
        self.checked += 1;
        let segment = packet.segment();
        let ours = SocketAddr::new(packet.source, segment.source_port);
        let peer = SocketAddr::new(packet.destination, segment.destination_port);
        let opens = segment.flags & (SYN | ACK | RST) == SYN;
        let known = self.conversations.contains_key(&(ours, peer));
        if !known && !opens {
            let what = format!("a segment from {ours} to {peer}, who sent nothing: {segment:?}");
            return fail(Rule::Addresses, what, String::new());
        }
        let conversation = self.conversations.entry((ours, peer)).or_default();
        conversation.note(&segment, now, true);
        let size = frame.len() - 14;
        let result = if conversation
            .link
            .is_some_and(|link| link != packet.link_destination)
        {
            broken(Rule::Addresses, "a frame to another link address")
        } else if size > self.ip_mtu {
            broken(Rule::Size, format!("a packet of {size} bytes"))
        } else {
            let header = size - segment.options.len() - segment.payload.len();
            let mss = self.ip_mtu - header;
            conversation.emit(&segment, mss, peer.is_ipv4(), self.keep_alive)
        };
        match result {
            Ok(()) => Ok(()),
            Err((rule, what)) => fail(
                rule,
                format!("{what}, from {ours} to {peer}:"),
                conversation.history(),
            ),
        }
    }
}

type Checked = Result<(), (Rule, String)>;

fn broken(rule: Rule, what: impl Into<String>) -> Checked {
    Err((rule, what.into()))
}

/// One pair of ends, through all its connections.
#[derive(Default)]
struct Conversation {
    /// Where the peer's frames come from.
    link: Option<[u8; 6]>,
    phase: Phase,
    /// What we sent in the handshake: SYNs or SYN-ACKs, each number once.
    offers: Vec<Offer>,
    /// SYNs and SYN-ACKs of the peer.
    syns: Vec<Segment>,
    /// What arrived before our first segment past the handshake: which of the offers was taken shows there.
    early: Vec<Segment>,
    /// What no reset has answered.
    unanswered: VecDeque<Stray>,
    history: VecDeque<Seen>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Handshake,
    Open(Box<Connection>),
    /// We answered a segment of the connection with a reset; the one that ends it may follow.
    Ending(Box<Connection>),
    /// We sent the reset that ends it.
    Over,
}

/// A SYN (without a peer's number) or SYN-ACK of ours.
#[derive(Debug, Clone)]
struct Offer {
    isn: u32,
    peer_isn: Option<u32>,
    options: Options,
    window: u16,
}

/// What a reset says of the segment that it answers.
struct Stray {
    ack: Option<u32>,
    /// The number behind it.
    end: u32,
}

/// A segment in the history.
struct Seen {
    at: Instant,
    ours: bool,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    len: usize,
}

/// A connection past the handshake. Numbers are relative to the initial ones: the SYN is 0, the first byte 1.
struct Connection {
    isn: u32,
    peer_isn: u32,
    /// Windows of ours and of the peer's are in units of two to the power of these.
    scale: u8,
    peer_scale: u8,
    mss: usize,
    sack: bool,
    timestamps: bool,
    /// Every byte that we sent: the first has number 1.
    stream: Vec<u8>,
    /// The number behind everything that we sent (SND.NXT, were nothing sent again).
    snd_max: u64,
    /// The number of our FIN.
    fin: Option<u64>,
    /// What the peer acknowledged (SND.UNA).
    una: u64,
    /// The number behind the peer's window, at its highest.
    right_edge: u64,
    /// What arrived, and the number of the peer's FIN.
    heard: Ranges,
    peer_fin: Option<u64>,
    /// A reset came that may have ended it.
    peer_reset: bool,
    /// Our last acknowledgement, and the highest right edge that we announced.
    acked: u64,
    our_edge: u64,
}

impl Conversation {
    fn note(&mut self, segment: &Segment, at: Instant, ours: bool) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Seen {
            at,
            ours,
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            window: segment.window,
            len: segment.payload.len(),
        });
    }

    fn deliver(&mut self, segment: Segment, now: Instant) {
        self.note(&segment, now, false);
        if segment.flags & RST == 0 {
            if self.unanswered.len() == UNANSWERED {
                self.unanswered.pop_front();
            }
            self.unanswered.push_back(Stray {
                ack: (segment.flags & ACK != 0).then_some(segment.ack),
                end: segment.seq.wrapping_add(length(&segment)),
            });
            if segment.flags & SYN != 0 && !self.syns.contains(&segment) {
                self.syns.push(segment.clone());
            }
        }
        match &mut self.phase {
            Phase::Handshake => self.early.push(segment),
            Phase::Open(connection) => connection.hear(&segment),
            Phase::Ending(_) | Phase::Over => {}
        }
    }

    /// Checks a segment of ours, which may carry `mss` bytes for all that we know ourselves.
    fn emit(&mut self, segment: &Segment, mss: usize, v4: bool, keep_alive: bool) -> Checked {
        let kinds = segment.flags & (SYN | FIN | RST);
        let unknown = segment.flags & !(FIN | SYN | RST | PSH | ACK);
        if kinds.count_ones() > 1 || unknown != 0 {
            return broken(Rule::Flags, "flags that do not go together");
        }
        if kinds & (SYN | RST) != 0 && !segment.payload.is_empty() {
            return broken(Rule::Flags, "data with a SYN or RST");
        }
        match kinds {
            RST => self.reset(segment, mss, v4),
            SYN => self.offer(segment, mss),
            _ if segment.flags & ACK == 0 => broken(Rule::Flags, "a segment without ACK"),
            _ => {
                match self.phase {
                    Phase::Handshake => {
                        let connection = self.establish(segment, mss, v4)?;
                        self.phase = Phase::Open(Box::new(connection));
                    }
                    Phase::Open(_) => {}
                    Phase::Ending(_) | Phase::Over => {
                        return broken(Rule::AfterReset, "more after its reset");
                    }
                }
                match &mut self.phase {
                    Phase::Open(connection) => connection.emit(segment, keep_alive),
                    _ => Ok(()),
                }
            }
        }
    }

    /// A reset of ours: the end of the connection, or the answer to a segment that has none.
    fn reset(&mut self, segment: &Segment, mss: usize, v4: bool) -> Checked {
        let has_ack = segment.flags & ACK != 0;
        let answers = |to: &Stray| match to.ack {
            Some(ack) => !has_ack && segment.seq == ack,
            None => has_ack && segment.seq == 0 && segment.ack == to.end,
        };
        if let Some(at) = self.unanswered.iter().position(answers) {
            self.unanswered.remove(at);
            self.phase = match std::mem::take(&mut self.phase) {
                Phase::Open(connection) => Phase::Ending(connection),
                other => other,
            };
            return Ok(());
        }
        if let Phase::Open(connection) | Phase::Ending(connection) = &self.phase
            && connection.may_reset(segment)
        {
            self.phase = Phase::Over;
            return Ok(());
        }
        if matches!(self.phase, Phase::Handshake) {
            let ends = self
                .establish(segment, mss, v4)
                .is_ok_and(|connection| connection.may_reset(segment));
            // Who has not heard from the peer can only give its own number.
            let unheard = |offer: &Offer| {
                offer.peer_isn.is_none() && segment.seq.wrapping_sub(offer.isn) <= 1
            };
            if ends || self.offers.iter().any(unheard) {
                self.phase = Phase::Over;
                return Ok(());
            }
        }
        broken(Rule::Reset, "a reset that answers nothing and ends nothing")
    }

    /// A SYN or SYN-ACK of ours.
    fn offer(&mut self, segment: &Segment, mss: usize) -> Checked {
        let anew = match &self.phase {
            Phase::Handshake => false,
            Phase::Open(connection) => connection.is_over(),
            Phase::Ending(_) | Phase::Over => true,
        };
        if anew {
            self.phase = Phase::Handshake;
            self.offers.clear();
            self.early.clear();
        } else if !matches!(self.phase, Phase::Handshake) {
            return broken(Rule::Syn, "a SYN on a connection");
        }
        let Some(options) = Options::read(&segment.options) else {
            return broken(Rule::Options, "options that are none");
        };
        if !options.sacks.is_empty() || options.unknown {
            return broken(Rule::Options, "options that have no place in a SYN");
        }
        if options
            .mss
            .is_none_or(|announced| usize::from(announced) > mss)
        {
            return broken(Rule::Options, "an MSS that the MTU does not allow");
        }
        let peer_isn = if segment.flags & ACK == 0 {
            None
        } else {
            let asks =
                |syn: &&Segment| syn.flags & ACK == 0 && syn.seq.wrapping_add(1) == segment.ack;
            let Some(syn) = self.syns.iter().rev().find(asks) else {
                return broken(Rule::Syn, "a SYN-ACK that answers no SYN");
            };
            let offered = Options::read(&syn.options).unwrap_or_default();
            if options.scale.is_some() && offered.scale.is_none()
                || options.sack && !offered.sack
                || options.timestamps && !offered.timestamps
            {
                return broken(Rule::Options, "options that the peer did not offer");
            }
            Some(syn.seq)
        };
        let known = self
            .offers
            .iter()
            .any(|offer| offer.isn == segment.seq && offer.peer_isn == peer_isn);
        // A cookie's number changes with time; who opens has one number.
        if !known && peer_isn.is_none() && !self.offers.is_empty() {
            return broken(Rule::Syn, "a SYN with another number than before");
        }
        if !known {
            self.offers.push(Offer {
                isn: segment.seq,
                peer_isn,
                options,
                window: segment.window,
            });
        }
        Ok(())
    }

    /// Our first segment past the handshake says which offer was taken.
    fn establish(
        &self,
        segment: &Segment,
        mss: usize,
        v4: bool,
    ) -> Result<Connection, (Rule, String)> {
        let wrong = |rule, what: &str| Err((rule, what.to_owned()));
        let ours = |offer: &&Offer| offer.isn.wrapping_add(1) == segment.seq;
        if !self.offers.iter().any(|offer| ours(&offer)) {
            return wrong(Rule::Sequence, "another first number than its SYN's");
        }
        // The peer's SYN that the segment acknowledges, and hardly anything more.
        let offers = self.offers.iter().rev().filter(ours);
        let pairs = offers.flat_map(|offer| self.syns.iter().map(move |syn| (offer, syn)));
        let nearest = pairs
            .filter(|(offer, syn)| match offer.peer_isn {
                Some(isn) => syn.flags & ACK == 0 && syn.seq == isn,
                None => syn.flags & ACK != 0 && syn.ack == offer.isn.wrapping_add(1),
            })
            .filter(|(_, syn)| segment.ack != syn.seq)
            .min_by_key(|(_, syn)| segment.ack.wrapping_sub(syn.seq));
        let Some((offer, syn)) = nearest else {
            return wrong(Rule::AckUnsent, "an acknowledgement of no SYN");
        };
        let theirs = Options::read(&syn.options).unwrap_or_default();
        let default_mss = if v4 { DEFAULT_MSS_V4 } else { DEFAULT_MSS_V6 };
        let peer_mss = theirs.mss.map_or(default_mss, usize::from);
        let (scale, peer_scale) = match (offer.options.scale, theirs.scale) {
            (Some(ours), Some(theirs)) => (ours.min(SCALE_MAX), theirs.min(SCALE_MAX)),
            _ => (0, 0),
        };
        let mut connection = Connection {
            isn: offer.isn,
            peer_isn: syn.seq,
            scale,
            peer_scale,
            mss: mss.min(peer_mss),
            sack: offer.options.sack && theirs.sack,
            timestamps: offer.options.timestamps && theirs.timestamps,
            stream: Vec::new(),
            snd_max: 1,
            fin: None,
            una: 1,
            right_edge: 1 + u64::from(syn.window),
            heard: Ranges::default(),
            peer_fin: None,
            peer_reset: false,
            acked: 1,
            our_edge: 1 + u64::from(offer.window),
        };
        connection.heard.add(0, 1);
        for early in &self.early {
            connection.hear(early);
        }
        Ok(connection)
    }

    /// The last segments, one per line.
    fn history(&self) -> String {
        let (isn, peer_isn) = match &self.phase {
            Phase::Open(connection) | Phase::Ending(connection) => {
                (connection.isn, connection.peer_isn)
            }
            _ => (
                self.offers.last().map_or(0, |offer| offer.isn),
                self.syns.last().map_or(0, |syn| syn.seq),
            ),
        };
        let mut text = format!("  numbers are relative to {isn} (its own) and {peer_isn}\n");
        for seen in &self.history {
            let (arrow, own, other) = if seen.ours {
                ("->", isn, peer_isn)
            } else {
                ("<-", peer_isn, isn)
            };
            let flags: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, '.')]
                .into_iter()
                .filter(|(flag, _)| seen.flags & flag != 0)
                .map(|(_, letter)| letter)
                .collect();
            text += &format!(
                "  {:>12} us {arrow} [{flags}] seq {} len {} ack {} window {}\n",
                seen.at.total_micros(),
                seen.seq.wrapping_sub(own) as i32,
                seen.len,
                seen.ack.wrapping_sub(other) as i32,
                seen.window
            );
        }
        if let Phase::Open(connection) = &self.phase {
            text += &format!("  {connection:?}\n");
        }
        text
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent to {} (FIN {:?}), acknowledged to {}, window to {}; arrived to {} (FIN {:?}), \
             we acknowledged to {}, our window to {}; MSS {}, scales {} and {}",
            self.snd_max,
            self.fin,
            self.una,
            self.right_edge,
            self.heard.contiguous(),
            self.peer_fin,
            self.acked,
            self.our_edge,
            self.mss,
            self.scale,
            self.peer_scale
        )
    }
}

impl Connection {
    /// Notes what arrived, if it is of this connection.
    fn hear(&mut self, segment: &Segment) {
        let start = u64::from(segment.seq.wrapping_sub(self.peer_isn));
        let expected = self.acked..=self.heard.contiguous();
        self.peer_reset |= segment.flags & RST != 0 && expected.contains(&start);
        if segment.flags & (RST | SYN | ACK) != ACK {
            // A SYN's data counts from its own number on.
            if segment.flags & SYN != 0 && segment.seq == self.peer_isn {
                self.heard.add(1, 1 + segment.payload.len() as u64);
            }
            return;
        }
        let ack = u64::from(segment.ack.wrapping_sub(self.isn));
        if ack > self.snd_max {
            return;
        }
        if start >= 1 << 31 {
            return;
        }
        let end = start + segment.payload.len() as u64;
        self.heard.add(start, end);
        if segment.flags & FIN != 0 {
            self.heard.add(end, end + 1);
            self.peer_fin = Some(end);
        }
        self.una = self.una.max(ack);
        let window = u64::from(segment.window) << self.peer_scale;
        self.right_edge = self.right_edge.max(ack + window);
    }

    /// Whether both sides have closed, or the peer has reset it, so that a new connection may follow.
    fn is_over(&self) -> bool {
        let peer_has = self
            .peer_fin
            .is_some_and(|fin| fin < self.heard.contiguous());
        self.peer_reset || self.fin.is_some_and(|fin| fin < self.una) && peer_has
    }

    /// Whether a reset fits the connection, so that it ends it.
    fn may_reset(&self, segment: &Segment) -> bool {
        let seq = u64::from(segment.seq.wrapping_sub(self.isn));
        let ack = u64::from(segment.ack.wrapping_sub(self.peer_isn));
        (self.una..=self.snd_max).contains(&seq)
            && (segment.flags & ACK == 0 || (self.acked..=self.heard.contiguous()).contains(&ack))
    }

    /// Checks a segment of ours that has ACK and neither SYN nor RST.
    fn emit(&mut self, segment: &Segment, keep_alive: bool) -> Checked {
        let start = u64::from(segment.seq.wrapping_sub(self.isn));
        let is_probe = keep_alive
            && start + 1 == self.snd_max
            && segment.payload.len() <= 1
            && segment.flags & FIN == 0;
        if !is_probe {
            self.check_numbers(start, segment)?;
        }
        self.check_acknowledgement(segment)?;
        self.check_options(segment)
    }

    fn check_numbers(&mut self, start: u64, segment: &Segment) -> Checked {
        let len = segment.payload.len() as u64;
        let end = start + len;
        let fin = (segment.flags & FIN != 0).then_some(end);
        if start < 1 || start > self.snd_max {
            return broken(
                Rule::Sequence,
                format!(
                    "number {}, when it has sent to {}",
                    start as i32, self.snd_max
                ),
            );
        }
        if len == 0 && fin.is_none() {
            // A probe of a closed window may not have been taken: a peer with such a window takes nothing
            // behind its edge. A FIN is sent to the edge too, but it has nothing behind it.
            let inside = self.snd_max.min(self.right_edge);
            let behind_fin = self.fin.is_some() && start == self.snd_max;
            if start != inside && !behind_fin {
                return broken(
                    Rule::Sequence,
                    format!("an acknowledgement with number {start} instead of {inside}"),
                );
            }
            return Ok(());
        }
        if segment.payload.len() + segment.options.len() > self.mss {
            return broken(Rule::Size, format!("{len} bytes to an MSS of {}", self.mss));
        }
        let is_window_probe = len == 1 && start == self.right_edge;
        if len > 0 && end > self.right_edge && !is_window_probe {
            return broken(
                Rule::BeyondWindow,
                format!(
                    "bytes to {end}, when the window goes to {}",
                    self.right_edge
                ),
            );
        }
        if let Some(fin) = fin
            && fin > self.right_edge + u64::from(is_window_probe)
        {
            return broken(
                Rule::BeyondWindow,
                format!(
                    "a FIN at {fin}, when the window goes to {}",
                    self.right_edge
                ),
            );
        }
        if let Some(known) = self.fin
            && (end > known || fin.is_some_and(|fin| fin != known))
        {
            return broken(
                Rule::AfterFin,
                format!("bytes to {end}, its FIN was at {known}"),
            );
        }
        let sent_before = self.stream.len() as u64 + 1;
        if fin.is_some_and(|fin| fin < sent_before) {
            return broken(Rule::AfterFin, "a FIN before bytes that it sent");
        }
        let known = sent_before.min(end).saturating_sub(start) as usize;
        let at = (start - 1) as usize;
        let (again, new) = segment.payload.split_at(known);
        if self.stream[at..at + known] != *again {
            return broken(
                Rule::OtherBytes,
                format!("other bytes from {start} to {end} than before"),
            );
        }
        self.stream.extend_from_slice(new);
        self.fin = self.fin.or(fin);
        self.snd_max = self.snd_max.max(end + u64::from(fin.is_some()));
        Ok(())
    }

    fn check_acknowledgement(&mut self, segment: &Segment) -> Checked {
        let ack = u64::from(segment.ack.wrapping_sub(self.peer_isn));
        let arrived = self.heard.contiguous();
        if ack > arrived && ack < 1 << 31 {
            return broken(
                Rule::AckUnsent,
                format!("an acknowledgement of {ack}, of which {arrived} arrived"),
            );
        }
        if ack < self.acked || ack >= 1 << 31 {
            return broken(
                Rule::AckBack,
                format!("an acknowledgement of {} after {}", ack as i32, self.acked),
            );
        }
        self.acked = ack;
        // Behind the peer's FIN nothing comes, whatever the window.
        if self.peer_fin.is_some_and(|fin| ack > fin) {
            return Ok(());
        }
        let edge = ack + (u64::from(segment.window) << self.scale);
        let rounding = (1 << self.scale) - 1;
        if edge + rounding < self.our_edge {
            return broken(
                Rule::Shrunk,
                format!("a window to {edge} after one to {}", self.our_edge),
            );
        }
        self.our_edge = self.our_edge.max(edge);
        Ok(())
    }

    fn check_options(&self, segment: &Segment) -> Checked {
        let Some(options) = Options::read(&segment.options) else {
            return broken(Rule::Options, "options that are none");
        };
        let of_syn = options.mss.is_some() || options.scale.is_some() || options.sack;
        if of_syn || options.unknown {
            return broken(Rule::Options, "an option that has no place here");
        }
        if options.timestamps && !self.timestamps || !options.sacks.is_empty() && !self.sack {
            return broken(Rule::Options, "an option that was not negotiated");
        }
        for (left, right) in options.sacks {
            let left = u64::from(left.wrapping_sub(self.peer_isn));
            let right = u64::from(right.wrapping_sub(self.peer_isn));
            if left >= right || left <= self.acked || !self.heard.contains(left, right) {
                return broken(
                    Rule::Options,
                    format!("{left} to {right} selectively acknowledged"),
                );
            }
        }
        Ok(())
    }
}

/// Sequence numbers that a segment takes.
fn length(segment: &Segment) -> u32 {
    let flags = segment.flags & (SYN | FIN);
    segment.payload.len() as u32 + flags.count_ones()
}

/// The options of a segment.
#[derive(Debug, Clone, Default)]
struct Options {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    sacks: Vec<(u32, u32)>,
    timestamps: bool,
    unknown: bool,
}

impl Options {
    /// `None` if lengths are wrong.
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let be32 = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut options = Self::default();
        while let Some(kind) = bytes.first() {
            match kind {
                0 => break,
                1 => {
                    bytes = &bytes[1..];
                    continue;
                }
                _ => {}
            }
            let len = usize::from(*bytes.get(1)?);
            let value = bytes.get(2..len)?;
            match (kind, value) {
                (2, [high, low]) => options.mss = Some(u16::from_be_bytes([*high, *low])),
                (3, [shift]) => options.scale = Some(*shift),
                (4, []) => options.sack = true,
                (5, edges) if !edges.is_empty() && edges.len() % 8 == 0 => {
                    let block = |edge: &[u8]| (be32(edge), be32(&edge[4..]));
                    options.sacks = edges.chunks(8).map(block).collect();
                }
                (8, [_, _, _, _, _, _, _, _]) => options.timestamps = true,
                (2..=5 | 8, _) => return None,
                _ => options.unknown = true,
            }
            bytes = &bytes[len..];
        }
        Some(options)
    }
}

/// Numbers that arrived, as ranges without their ends, in order and apart from each other.
#[derive(Debug, Default)]
struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    fn add(&mut self, mut start: u64, mut end: u64) {
        if start == end {
            return;
        }
        self.0.retain(|(from, to)| {
            let touches = *from <= end && start <= *to;
            if touches {
                start = start.min(*from);
                end = end.max(*to);
            }
            !touches
        });
        let at = self.0.partition_point(|(from, _)| *from < start);
        self.0.insert(at, (start, end));
    }

    /// The number behind everything that arrived without a gap.
    fn contiguous(&self) -> u64 {
        match self.0.first() {
            Some((0, end)) => *end,
            _ => 0,
        }
    }

    fn contains(&self, start: u64, end: u64) -> bool {
        self.0.iter().any(|(from, to)| *from <= start && end <= *to)
    }
}
