//! The least sender: so many UDP packets in flight; what comes back is turned around and sent again as it is.
//!
//! Each packet in flight has a slot. Its payload says which, and which generation of it, so that a packet
//! that comes late, after it was replaced, is known from the one that replaced it.

use std::io::{self, Write};
use std::net::SocketAddr;

use interruptlet::arena::{Frame, Owner};
use interruptlet::port::Port;
use interruptlet::{Attachment, Duration, Instant};
use serde_json::json;
use smoltcp::wire::{IpProtocol, UdpPacket};

use super::cli::{SendArgs, host};
use super::frame::{UDP, headers, turn_around};
use super::{Lane, Program, Turn, close, conserved, drive, mode};
use crate::cli::{Misuse, Poll};
use crate::ending::Ending;
use crate::serve::{Failure, log_to_stderr};

/// Bytes of a payload at least: slot and generation.
pub const SIZE_MIN: usize = 8;
/// Packets in flight at most: what the FILL ring has room for at a time.
pub const IN_FLIGHT_MAX: usize = 1024;
/// A packet that is not back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(100);
/// How often lost packets are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The port that packets come from.
const SOURCE_PORT: u16 = 40_000;

/// Sends as the command line says, and prints what came of it.
///
/// # Errors
/// When it cannot start, ends by itself, or nothing comes back.
pub fn run(args: &SendArgs) -> Result<(), Failure> {
    log_to_stderr();
    let ending = Ending::watch().map_err(Failure::Signals)?;
    let (from, to) = (args.source, args.target.ip());
    let config = args.queue.config(host(from), args.core, Poll::Busy);
    let (attachment, port, arena) = Attachment::open(&config, &[], &[])?;
    let headers = if from.is_ipv4() { 20 } else { 40 } + UDP;
    let most = attachment.mtu().saturating_sub(headers);
    if args.size > most {
        let size = args.size;
        return Err(Misuse::Size { size, most }.into());
    }
    let plan = Plan {
        links: (attachment.link_address(), args.peer_link.0),
        source: SocketAddr::new(from, SOURCE_PORT),
        target: args.target,
        in_flight: args.in_flight,
        size: args.size,
        duration: args.duration.into(),
    };
    let mut sender = Sender::new(plan).ok_or(Misuse::Versions {
        option: "--source",
        from,
        to,
    })?;
    let mut lane = Lane::new(port, arena);
    let mode = mode(&attachment);
    let ended = drive(&mut sender, &mut lane, &attachment, config.poll, &ending);
    let report = close(attachment, lane);
    let outcome = sender.outcome();
    let line = if args.json {
        outcome.json(mode)
    } else {
        outcome.text(mode)
    };
    // If nobody listens any more, the exit code is left.
    let _ = writeln!(io::stdout(), "{line}");
    ended?;
    conserved(&report)?;
    if outcome.requests == 0 {
        return Err(Failure::Silent(args.target));
    }
    Ok(())
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Link addresses: ours and the peer's.
    pub links: ([u8; 6], [u8; 6]),
    /// Where packets come from.
    pub source: SocketAddr,
    /// Where they go, an address of the same version.
    pub target: SocketAddr,
    /// Packets in flight, 1 to [`IN_FLIGHT_MAX`].
    pub in_flight: usize,
    /// Bytes of the payload, from [`SIZE_MIN`] to what the MTU leaves.
    pub size: usize,
    /// For how long.
    pub duration: Duration,
}

/// Sends, and counts what comes back.
#[derive(Debug)]
pub struct Sender {
    plan: Plan,
    /// A frame of slot 0 and generation 0.
    template: Vec<u8>,
    /// Where its payload begins.
    payload: usize,
    slots: Vec<Slot>,
    /// `None` before the first turn.
    started: Option<Instant>,
    look_at: Instant,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    generation: u32,
    /// `None` before it is sent for the first time, and if there was no frame for it.
    sent_at: Option<Instant>,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Packets that came back.
    pub requests: u64,
    /// Packets that did not come back in time and were replaced.
    pub lost: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Outcome {
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.requests as f64 / self.seconds
        } else {
            0.0
        }
    }

    fn json(&self, mode: &str) -> String {
        json!({
            "requests": self.requests,
            "seconds": self.seconds,
            "requests_per_second": self.per_second(),
            "lost": self.lost,
            "mode": mode,
        })
        .to_string()
    }

    fn text(&self, mode: &str) -> String {
        format!(
            "{:.0} packets per second and back ({} in {:.2} s), {} lost, {mode} mode",
            self.per_second(),
            self.requests,
            self.seconds,
            self.lost
        )
    }
}

impl Sender {
    /// A sender that has sent nothing yet. `None` if the two addresses are of two versions.
    pub fn new(plan: Plan) -> Option<Self> {
        let addresses = (plan.source.ip(), plan.target.ip());
        let len = UDP + plan.size.max(SIZE_MIN);
        let mut template = headers(plan.links, addresses, IpProtocol::Udp, len)?;
        let transport = template.len();
        template.resize(transport + len, 0);
        let mut packet = UdpPacket::new_unchecked(&mut template[transport..]);
        packet.set_src_port(plan.source.port());
        packet.set_dst_port(plan.target.port());
        packet.set_len(len as u16);
        let slot = Slot {
            generation: 0,
            sent_at: None,
        };
        Some(Self {
            payload: transport + UDP,
            template,
            slots: vec![slot; plan.in_flight.clamp(1, IN_FLIGHT_MAX)],
            started: None,
            look_at: Instant::ZERO,
            outcome: Outcome::default(),
            plan,
        })
    }

    /// What was counted so far.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The slot of a frame that came back as it was sent. The frame is turned around.
    fn slot_of(&self, frame: &mut [u8]) -> Option<usize> {
        if frame.len() != self.template.len() {
            return None;
        }
        let at = turn_around(frame, self.plan.source.port())?;
        let (slot, rest) = frame[at..].split_first_chunk()?;
        let slot = u32::from_be_bytes(*slot) as usize;
        let generation = u32::from_be_bytes(*rest.first_chunk()?);
        (self.slots.get(slot)?.generation == generation).then_some(slot)
    }

    /// Makes slot `slot`'s packet in `frame`.
    fn write(&mut self, slot: usize, frame: &mut [u8]) {
        let generation = self.slots[slot].generation;
        frame.copy_from_slice(&self.template);
        frame[self.payload..][..4].copy_from_slice(&(slot as u32).to_be_bytes());
        frame[self.payload + 4..][..4].copy_from_slice(&generation.to_be_bytes());
        let addresses = (self.plan.source.ip(), self.plan.target.ip());
        UdpPacket::new_unchecked(&mut frame[self.payload - UDP..])
            .fill_checksum(&addresses.0.into(), &addresses.1.into());
    }

    /// Sends a new packet in each slot that has none on its way.
    fn refill<P: Port>(&mut self, lane: &mut Lane<P>, now: Instant) {
        for slot in 0..self.slots.len() {
            match self.slots[slot].sent_at {
                Some(sent_at) if now - sent_at < LOST_AFTER => continue,
                Some(_) => {
                    self.outcome.lost += 1;
                    self.slots[slot].generation += 1;
                    self.slots[slot].sent_at = None;
                }
                None => {}
            }
            let Some(mut frame) = lane.arena.alloc(Owner::Tx) else {
                continue;
            };
            let len = self.template.len();
            self.write(slot, &mut lane.arena.buffer_mut(&mut frame)[..len]);
            lane.arena.set_len(&mut frame, len);
            lane.outgoing.push(frame);
            self.slots[slot].sent_at = Some(now);
        }
    }

    /// Counts what came back and sends it again.
    fn returned<P: Port>(&mut self, lane: &mut Lane<P>, mut frame: Frame, now: Instant) {
        let len = frame.len();
        match self.slot_of(&mut lane.arena.buffer_mut(&mut frame)[..len]) {
            Some(slot) => {
                self.outcome.requests += 1;
                self.slots[slot].sent_at = Some(now);
                lane.arena.hand_over(&frame, Owner::Tx);
                lane.outgoing.push(frame);
            }
            None => lane.arena.free(frame),
        }
    }
}

impl<P: Port> Program<P> for Sender {
    fn turn(&mut self, lane: &mut Lane<P>, now: Instant) -> io::Result<Turn> {
        let started = *self.started.get_or_insert(now);
        let received = lane.receive(now);
        let mut frames = std::mem::take(&mut lane.received);
        for frame in frames.drain(..) {
            self.returned(lane, frame, now);
        }
        lane.received = frames;
        self.outcome.seconds = (now - started).total_micros() as f64 / 1e6;
        if now - started >= self.plan.duration {
            return Ok(Turn::Done);
        }
        if now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            self.refill(lane, now);
        }
        Ok(Turn::from(lane.transmit(now)? | received))
    }
}

#[cfg(test)]
mod tests {
    use interruptlet::arena::Arena;
    use interruptlet::port::memory::{self, MemoryPeer, MemoryPort};

    use super::super::frame::tests::dissect;
    use super::*;

    const PLAN_MILLIS: u64 = 1000;

    fn sender(source: &str, target: &str) -> (Sender, Lane<MemoryPort>, MemoryPeer) {
        let (port, peer) = memory::pair();
        let lane = Lane::new(port, Arena::anonymous(128, 1792, 0));
        let plan = Plan {
            links: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            source: source.parse().unwrap(),
            target: target.parse().unwrap(),
            in_flight: 3,
            size: 20,
            duration: Duration::from_millis(PLAN_MILLIS),
        };
        (Sender::new(plan).unwrap(), lane, peer)
    }

    fn turn(sender: &mut Sender, lane: &mut Lane<MemoryPort>, millis: i64) -> Turn {
        sender.turn(lane, Instant::from_millis(millis)).unwrap()
    }

    fn taken(peer: &MemoryPeer) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| peer.take()).collect()
    }

    #[test]
    fn what_comes_back_goes_out_again() {
        for (source, target) in [
            ("192.0.2.1:4000", "192.0.2.2:9"),
            ("[2001:db8::1]:4000", "[2001:db8::2]:9"),
        ] {
            let (mut sender, mut lane, peer) = sender(source, target);
            assert_eq!(turn(&mut sender, &mut lane, 0), Turn::Worked);
            let first = taken(&peer);
            assert_eq!(first.len(), 3);
            for (slot, frame) in (0u32..).zip(&first) {
                let (from, to, payload) = dissect(frame);
                assert_eq!(
                    (from, to),
                    (source.parse().unwrap(), target.parse().unwrap())
                );
                assert_eq!(
                    (payload.len(), &payload[..4]),
                    (20, &slot.to_be_bytes()[..])
                );
                let mut back = frame.clone();
                turn_around(&mut back, 9).unwrap();
                peer.inject(&back);
            }
            assert_eq!(turn(&mut sender, &mut lane, 1), Turn::Worked);
            assert_eq!(taken(&peer), first);
            assert_eq!(sender.outcome().requests, 3);
            assert_eq!(turn(&mut sender, &mut lane, 2), Turn::Idle);
            assert_eq!(turn(&mut sender, &mut lane, PLAN_MILLIS as i64), Turn::Done);
            assert!(lane.arena.is_at_rest());
        }
    }

    #[test]
    fn what_is_lost_is_replaced_once_and_does_not_count_when_it_comes_late() {
        let (mut sender, mut lane, peer) = sender("192.0.2.1:4000", "192.0.2.2:9");
        turn(&mut sender, &mut lane, 0);
        let first = taken(&peer);
        turn(&mut sender, &mut lane, 99);
        assert!(taken(&peer).is_empty());
        turn(&mut sender, &mut lane, 120);
        let second = taken(&peer);
        assert_eq!((second.len(), sender.outcome().lost), (3, 3));
        for frame in first.iter().chain(&second) {
            dissect(frame);
            let mut back = frame.clone();
            turn_around(&mut back, 9).unwrap();
            peer.inject(&back);
        }
        turn(&mut sender, &mut lane, 121);
        assert_eq!(taken(&peer), second);
        let outcome = sender.outcome();
        assert_eq!((outcome.requests, outcome.lost), (3, 3));
    }

    #[test]
    fn foreign_and_damaged_frames_do_not_count() {
        let (mut sender, mut lane, peer) = sender("192.0.2.1:4000", "192.0.2.2:9");
        turn(&mut sender, &mut lane, 0);
        for (number, frame) in taken(&peer).into_iter().enumerate() {
            let mut back = frame.clone();
            turn_around(&mut back, 9).unwrap();
            match number {
                // Not turned around, a slot that is not there, a byte too many.
                0 => back = frame,
                1 => back[42] = 1,
                _ => back.push(0),
            }
            peer.inject(&back);
        }
        turn(&mut sender, &mut lane, 1);
        assert_eq!(sender.outcome().requests, 0);
        assert!(taken(&peer).is_empty());
        assert!(lane.arena.is_at_rest());
    }
}
