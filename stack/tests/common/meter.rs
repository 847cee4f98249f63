//! What a server's segments are, on the wire: how much of it is sent again, and how much of that had no need to be.

use std::collections::{BTreeMap, HashMap};

use super::packets::{SYN, TCP};

/// Bytes of the link header.
const ETHERNET: usize = 14;

/// What a server sent, in bytes of payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub segments: u64,
    pub bytes: u64,
    /// Bytes that had been sent before.
    pub again: u64,
    /// Those of them of which a copy had arrived, or was under way and did arrive.
    pub spurious: u64,
}

impl Sent {
    /// The share of all bytes that was sent again without need.
    pub fn spurious_share(&self) -> f64 {
        self.spurious as f64 / (self.bytes as f64).max(1.0)
    }
}

/// Counts the TCP segments over IPv4 of one server, by the client's port.
#[derive(Debug, Default)]
pub struct Meter {
    flows: HashMap<u16, Flow>,
    sent: Sent,
}

#[derive(Debug)]
struct Flow {
    /// The first number behind everything that was sent, without wrapping.
    next: u64,
    arriving: Ranges,
}

/// Ranges of sequence numbers without wrapping.
#[derive(Debug, Default)]
struct Ranges {
    /// Everything below is in it.
    below: u64,
    /// Start and end of what is above, apart from each other.
    above: BTreeMap<u64, u64>,
}

impl Meter {
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Takes a frame into account of which a copy `arrives`, or not. Others than TCP over IPv4 are ignored.
    pub fn see(&mut self, frame: &[u8], arrives: bool) {
        if frame.len() < ETHERNET + 40 || frame[12..14] != [8, 0] || frame[ETHERNET + 9] != TCP {
            return;
        }
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let transport = ETHERNET + 4 * usize::from(frame[ETHERNET] & 15);
        let port = word(transport + 2);
        let seq = u32::from(word(transport + 4)) << 16 | u32::from(word(transport + 6));
        let header = 4 * usize::from(frame[transport + 12] >> 4);
        let flags = frame[transport + 13];
        let end = ETHERNET + usize::from(word(ETHERNET + 2));
        let len = (end - transport - header) as u64;
        if flags & SYN != 0 {
            // Beyond zero, so that older numbers are positive too.
            let next = (1 << 32) + u64::from(seq) + 1;
            self.flows.entry(port).or_insert_with(|| Flow {
                next,
                arriving: Ranges {
                    below: next,
                    above: BTreeMap::new(),
                },
            });
            return;
        }
        let Some(flow) = self.flows.get_mut(&port).filter(|_| len > 0) else {
            return;
        };
        let ahead = seq.wrapping_sub(flow.next as u32) as i32;
        let start = flow.next.wrapping_add_signed(i64::from(ahead));
        let end = start + len;
        self.sent.segments += 1;
        self.sent.bytes += len;
        self.sent.again += flow.next.min(end).saturating_sub(start);
        self.sent.spurious += flow.arriving.common(start, end);
        flow.next = flow.next.max(end);
        if arrives {
            flow.arriving.add(start, end);
        }
    }
}

impl Ranges {
    /// Numbers that are in here and in the range.
    fn common(&self, start: u64, end: u64) -> u64 {
        let overlap = |from: u64, to: u64| to.min(end).saturating_sub(from.max(start));
        let above = self.above.range(..end).rev();
        let above = above.take_while(|(_, to)| **to > start);
        overlap(0, self.below) + above.map(|(from, to)| overlap(*from, *to)).sum::<u64>()
    }

    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((&from, &to)) = self.above.range(..=end).next_back()
            && to >= start
        {
            self.above.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        if start <= self.below {
            self.below = self.below.max(end);
        } else {
            self.above.insert(start, end);
        }
    }
}
