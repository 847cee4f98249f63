//! A peer that speaks TCP by hand: says exactly which segments are sent, right or wrong.

use interruptlet::sim::Sim;

use super::packets::{ACK, Ends, Packet, SYN, Segment, TCP, dissect};
use super::{PORT, Version, exchange, sent};

/// One connection of a raw peer.
#[derive(Debug, Clone)]
pub struct Raw {
    pub ends: Ends,
    pub port: u16,
    /// The next sequence number to send.
    pub seq: u32,
    /// The next sequence number that is expected.
    pub ack: u32,
    /// The window to announce.
    pub window: u16,
}

impl Raw {
    /// A peer that has sent nothing yet.
    pub fn new(version: Version, port: u16) -> Self {
        Self {
            ends: (version.client(), version.server()),
            port,
            seq: 1000,
            ack: 0,
            window: u16::MAX,
        }
    }

    /// Opens a connection from `port`; panics if it is not accepted.
    pub fn open(sim: &mut Sim, version: Version, port: u16) -> Self {
        let mut raw = Self::new(version, port);
        let answers = raw.syn(sim);
        assert_eq!(answers.len(), 1, "one SYN-ACK: {answers:?}");
        assert_eq!(answers[0].flags, SYN | ACK, "{answers:?}");
        raw.ack = answers[0].seq.wrapping_add(1);
        assert!(raw.send(sim, ACK, b"").is_empty());
        raw
    }

    /// Sends a SYN with an MSS option; returns the answers.
    pub fn syn(&mut self, sim: &mut Sim) -> Vec<Segment> {
        let syn = Segment {
            options: vec![2, 4, 0x05, 0xb4],
            ..self.segment(SYN, b"")
        };
        let answers = self.send_segment(sim, &Segment { ack: 0, ..syn });
        self.seq = self.seq.wrapping_add(1);
        answers
    }

    /// The segment that comes next.
    pub fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        Segment {
            source_port: self.port,
            destination_port: PORT,
            seq: self.seq,
            ack: self.ack,
            flags,
            window: self.window,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// Sends `segment` as it is; returns what the worker answers in this turn.
    pub fn send_segment(&self, sim: &mut Sim, segment: &Segment) -> Vec<Segment> {
        segments(&exchange(sim, &segment.frame(self.ends)), self.port)
    }

    /// Sends the next segment; returns what the worker answers in this turn.
    pub fn send(&mut self, sim: &mut Sim, flags: u8, payload: &[u8]) -> Vec<Segment> {
        let answers = self.send_segment(sim, &self.segment(flags, payload));
        self.seq = self.seq.wrapping_add(payload.len() as u32);
        if flags & 1 != 0 {
            self.seq = self.seq.wrapping_add(1);
        }
        answers
    }

    /// Sends `payload`, acknowledges what is answered, and returns its payload.
    pub fn request(&mut self, sim: &mut Sim, payload: &[u8]) -> Vec<u8> {
        let answers = self.send(sim, ACK, payload);
        self.take(sim, &answers)
    }

    /// Acknowledges the answers as far as they are in order; returns their payload.
    pub fn take(&mut self, sim: &mut Sim, answers: &[Segment]) -> Vec<u8> {
        let mut payload = Vec::new();
        for answer in answers {
            if answer.seq != self.ack {
                continue;
            }
            payload.extend(&answer.payload);
            self.ack = self.ack.wrapping_add(answer.payload.len() as u32);
            self.ack = self.ack.wrapping_add(u32::from(answer.flags & 1));
        }
        if !payload.is_empty() {
            let more = self.send(sim, ACK, b"");
            if !more.is_empty() {
                payload.extend(self.take(sim, &more));
            }
        }
        payload
    }

    /// What the worker sent to this connection meanwhile.
    pub fn received(&self, sim: &Sim) -> Vec<Segment> {
        segments(&sent(sim), self.port)
    }
}

/// The TCP segments to `port` among `frames`.
pub fn segments(frames: &[Vec<u8>], port: u16) -> Vec<Segment> {
    frames
        .iter()
        .map(|frame| dissect(frame))
        .filter(|packet| packet.protocol == TCP)
        .map(|packet: Packet| packet.segment())
        .filter(|segment| segment.destination_port == port)
        .collect()
}
