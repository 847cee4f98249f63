//! What a client says to [`Lines`](super::handlers::Lines) in a simulation, and what it must hear.

use rand::Rng;
use rand::rngs::SmallRng;

use super::handlers::answer;

/// A conversation: what is written when, the answer, and the end.
#[derive(Debug)]
pub struct Script {
    pub writes: Vec<Write>,
    /// All that is answered, if nobody aborts.
    pub answer: Vec<u8>,
    pub ending: Ending,
}

/// Bytes that are written at once.
#[derive(Debug)]
pub struct Write {
    pub bytes: Vec<u8>,
    /// So many bytes of the answer come first.
    pub after: usize,
}

/// How a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client closes when it has the whole answer.
    ClientFirst,
    /// The client closes as soon as it has written everything.
    HalfClose,
    /// The last line has the server close.
    ServerFirst,
    /// The last line has the server reset.
    ServerAborts,
    /// The client resets when it has so many bytes of the answer.
    ClientAborts(usize),
}

impl Ending {
    /// Whether a part of the answer may be all that arrives.
    pub fn aborts(self) -> bool {
        matches!(self, Self::ServerAborts | Self::ClientAborts(_))
    }
}

impl Script {
    pub fn new(random: &mut SmallRng) -> Self {
        let mut script = Self {
            writes: Vec::new(),
            answer: Vec::new(),
            ending: Ending::ClientFirst,
        };
        for _ in 0..random.random_range(0..8) {
            match random.random_range(0..10) {
                0..3 => script.say(&line(random, 100), random),
                3..5 => {
                    let lines: Vec<_> = (0..8).map(|_| line(random, 100)).collect();
                    script.say(&lines.concat(), random);
                }
                5..8 => script.say(&line(random, 6000), random),
                _ => script.say(&download(random), random),
            }
        }
        script.ending = match random.random_range(0..8) {
            0..2 => Ending::HalfClose,
            2..4 => Ending::ServerFirst,
            4 => Ending::ServerAborts,
            5 => Ending::ClientAborts(random.random_range(0..=script.answer.len())),
            _ => Ending::ClientFirst,
        };
        match script.ending {
            Ending::ServerFirst => script.say(b"close\n", random),
            Ending::ServerAborts => script.say(b"abort\n", random),
            _ => {}
        }
        script
    }

    /// Adds whole lines, in one write or several, now or when what was asked before is answered.
    fn say(&mut self, lines: &[u8], random: &mut SmallRng) {
        let mut after = if random.random_bool(0.5) {
            self.answer.len()
        } else {
            0
        };
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.answer.extend(answer(line));
        }
        let mut rest = lines;
        while !rest.is_empty() {
            let len = if random.random_bool(0.5) {
                rest.len()
            } else {
                random.random_range(1..=rest.len())
            };
            let (bytes, left) = rest.split_at(len);
            self.writes.push(Write {
                bytes: bytes.to_vec(),
                after: std::mem::take(&mut after),
            });
            rest = left;
        }
    }
}

/// A line that is answered in place, from bytes, not at all, or by the slow path.
fn line(random: &mut SmallRng, len_max: usize) -> Vec<u8> {
    let len = random.random_range(0..len_max);
    let text: Vec<u8> = (0..len).map(|_| random.random_range(b'a'..=b'z')).collect();
    let commands = [&b"place "[..], b"reply ", b"silence ", b"defer place "];
    let command = commands[random.random_range(0..commands.len())];
    [command, &text, b"\n"].concat()
}

/// Shared content, from the handler or from the slow path, or chunk by chunk.
fn download(random: &mut SmallRng) -> Vec<u8> {
    let len = random.random_range(0..100_000);
    match random.random_range(0..3) {
        0 => format!("content {len}\n"),
        1 => format!("defer content {len}\n"),
        _ => format!("defer source {len} {}\n", random.random_range(1000..30_000)),
    }
    .into_bytes()
}
