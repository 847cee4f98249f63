//! Owns a bad link: a relay between client and server that delays and doubles frames, and so reorders them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::{Lab, RELAY_CLIENT_IF, RELAY_SERVER_IF};
use crate::sys;

/// How long a delayed frame waits for others when none come.
const LULL: Duration = Duration::from_millis(3);

/// How many frames at most overtake a delayed one.
const OVERTAKING_MAX: u64 = 6;

/// What happens to frames of either way, each with a probability of its own.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Of a hundred frames, how many are overtaken by one to six others.
    pub delayed_percent: u64,
    /// Of a hundred frames, how many arrive a second time, at once or behind one to six others.
    pub doubled_percent: u64,
    /// Where the random numbers begin: neither zero nor all ones.
    pub seed: u64,
}

/// A running relay. Frames pass as long as it lives.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    directions: Vec<JoinHandle<()>>,
}

/// What a relay and its directions have in common.
#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    overtaken: AtomicU64,
    doubled: AtomicU64,
}

impl Relay {
    /// Starts it in a lab that was made with one.
    ///
    /// # Panics
    ///
    /// If the lab has none.
    pub fn start(lab: &Lab, faults: Faults) -> Self {
        let namespace = lab.relay().expect("a lab with a relay");
        let open = |interface| {
            let socket = namespace.inside(|| sys::packet_socket(interface, LULL));
            socket.expect("open a packet socket")
        };
        let (server, client) = (open(RELAY_SERVER_IF), open(RELAY_CLIENT_IF));
        let clone = |socket: &File| socket.try_clone().expect("a second handle");
        let ways = [
            (clone(&server), clone(&client), faults.seed),
            (client, server, !faults.seed),
        ];
        let shared = Arc::new(Shared::default());
        let directions = ways.map(|(from, to, seed)| {
            let direction = Direction {
                to,
                faults,
                random: seed,
                waiting: VecDeque::new(),
                shared: Arc::clone(&shared),
            };
            std::thread::spawn(move || direction.run(from))
        });
        Self {
            shared,
            directions: directions.into(),
        }
    }

    /// How many frames were overtaken by as many others as they had to wait for, so far.
    pub fn overtaken(&self) -> u64 {
        self.shared.overtaken.load(Ordering::Relaxed)
    }

    /// How many frames were sent twice so far.
    pub fn doubled(&self) -> u64 {
        self.shared.doubled.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            // It has nothing to say; a panic of its own is on standard error already.
            let _ = direction.join();
        }
    }
}

/// One way.
#[derive(Debug)]
struct Direction {
    to: File,
    faults: Faults,
    /// The state of a xorshift generator.
    random: u64,
    waiting: VecDeque<Waiting>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Waiting {
    /// How many frames are still to overtake it.
    overtaking: u64,
    frame: Vec<u8>,
}

impl Direction {
    fn run(mut self, mut from: File) {
        let mut frame = vec![0; 70_000];
        while !self.shared.end.load(Ordering::Relaxed) {
            match from.read(&mut frame) {
                Ok(length) => self.take(&frame[..length]),
                // Nothing comes that could overtake: what waits has waited long enough.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    while let Some(waiting) = self.waiting.pop_front() {
                        self.send(&waiting.frame);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("receive a frame: {error}"),
            }
        }
    }

    fn take(&mut self, frame: &[u8]) {
        if self.hits(self.faults.delayed_percent) {
            self.wait(frame);
            return;
        }
        self.send(frame);
        self.release_overtaken();
        if self.hits(self.faults.doubled_percent) {
            self.shared.doubled.fetch_add(1, Ordering::Relaxed);
            if self.hits(50) {
                self.send(frame);
            } else {
                self.wait(frame);
            }
        }
    }

    fn wait(&mut self, frame: &[u8]) {
        let overtaking = 1 + self.below(OVERTAKING_MAX);
        let frame = frame.to_vec();
        self.waiting.push_back(Waiting { overtaking, frame });
    }

    /// One more frame has passed those that wait.
    fn release_overtaken(&mut self) {
        for waiting in &mut self.waiting {
            waiting.overtaking -= 1;
        }
        while let Some(at) = self.waiting.iter().position(|w| w.overtaking == 0) {
            if let Some(waiting) = self.waiting.remove(at) {
                self.shared.overtaken.fetch_add(1, Ordering::Relaxed);
                self.send(&waiting.frame);
            }
        }
    }

    /// Sends a frame. One that cannot be sent is lost, as on any link.
    fn send(&mut self, frame: &[u8]) {
        let _ = self.to.write(frame);
    }

    fn hits(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}
