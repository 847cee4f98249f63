//! Seeded simulation of whole conversations through loss, duplication, reordering, corruption and delay, with a
//! real client and with a worker's client side, while an oracle checks every segment that our stacks send.
//! See [`common::seeds`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::acts::{Ending, Script};
use common::handlers::Lines;
use common::pair::*;
use common::seeds::{PATIENCE, faults, for_seeds};
use common::world::{World, read};
use common::*;
use interruptlet::Duration;
use interruptlet::client::End;
use interruptlet::port::faulty::Faults;
use interruptlet::sim::{Sim, SimConfig};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

/// A server of lines in the world of a seed.
fn config(seed: u64, random: &mut SmallRng) -> SimConfig {
    let mut service = stream(Lines);
    service.slow = Some(Arc::new(Lines));
    // The incomplete line of a lossy client is no slow attack.
    service.request_timeout = PATIENCE;
    // A reset that gets lost leaves a connection behind.
    service.idle_timeout = Some(Duration::from_secs(600));
    let mut config = SimConfig {
        streams: vec![service],
        seed,
        ..SimConfig::default()
    };
    // Some worlds are short of frames too.
    config.limits.frames = *[24, 64, 512].get(random.random_range(0..3)).unwrap();
    config
}

/// Who handles segments in the world of a seed: the worker as it sees fit, engines, or engines every now and then.
struct Handling {
    random: SmallRng,
    kind: u32,
}

impl Handling {
    fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(!seed);
        let kind = random.random_range(0..4);
        Self { random, kind }
    }

    fn apply(&mut self, sim: &mut Sim) {
        match self.kind {
            0 | 1 => {}
            2 => sim.set_engine_only(true),
            _ => sim.set_engine_only(self.random.random_bool(0.2)),
        }
    }
}

fn assert_heard(received: &[u8], script: &Script, history: impl FnOnce() -> String) {
    let whole = received.len() == script.answer.len() || script.ending.aborts();
    assert!(
        whole && script.answer.starts_with(received),
        "{} of {} bytes, {:?}\n{}",
        received.len(),
        script.answer.len(),
        script.ending,
        history()
    );
}

/// A client of its own kind in conversation.
struct Talk {
    handle: SocketHandle,
    script: Script,
    /// Writes that were begun, and bytes of the last one that are left.
    begun: usize,
    left: Vec<u8>,
    received: Vec<u8>,
}

impl Talk {
    fn begin(world: &mut World, windows: &[usize], random: &mut SmallRng) -> Self {
        let version = BOTH[random.random_range(0..2)];
        let window = windows[random.random_range(0..windows.len())];
        Self {
            handle: world.connect_with(version, window),
            script: Script::new(random),
            begun: 0,
            left: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Reads, writes or closes; returns whether the conversation is over.
    fn go_on(&mut self, world: &mut World) -> bool {
        let forgotten = world.sim.flows() == 0;
        let socket = world.socket(self.handle);
        read(socket, &mut self.received);
        if matches!(socket.state(), State::Closed | State::TimeWait) {
            return true;
        }
        if self.left.is_empty()
            && let Some(write) = self.script.writes.get(self.begun)
            && self.received.len() >= write.after
        {
            self.left.clone_from(&write.bytes);
            self.begun += 1;
        }
        if socket.may_send() && !self.left.is_empty() {
            let sent = socket.send_slice(&self.left).unwrap();
            self.left.drain(..sent);
        }
        let written = self.left.is_empty() && self.begun == self.script.writes.len();
        match self.script.ending {
            _ if socket.state() == State::SynSent => {}
            Ending::ClientAborts(at) if self.received.len() >= at => socket.abort(),
            // Its reset may have been lost.
            Ending::ServerAborts if written && forgotten => socket.close(),
            Ending::HalfClose if written => socket.close(),
            Ending::ClientFirst if self.received.len() == self.script.answer.len() && written => {
                socket.close();
            }
            Ending::ServerFirst if !socket.may_recv() => socket.close(),
            _ => {}
        }
        false
    }
}

/// A few conversations at a time, with clients whose receive buffers are of these sizes.
fn converse(seed: u64, windows: &[usize]) {
    let mut random = SmallRng::seed_from_u64(seed);
    let config = config(seed, &mut random);
    let mut world = World::with_faults(config, faults(&mut random));
    // For a client that waits for something else than a segment.
    world.step_max = Duration::from_secs(1);
    let mut talks: Vec<Talk> = (0..random.random_range(1..4))
        .map(|_| Talk::begin(&mut world, windows, &mut random))
        .collect();
    let mut handling = Handling::new(seed);
    let over = world.run_until(PATIENCE, |world| {
        handling.apply(&mut world.sim);
        let mut talking = false;
        for talk in &mut talks {
            talking |= !talk.go_on(world);
        }
        !talking
    });
    assert!(over, "it hangs\n{}", world.history());
    for talk in &talks {
        assert_heard(&talk.received, &talk.script, || world.history());
    }
    world.wire.set_faults(Faults::default());
    let gone = world.run_until(PATIENCE * 2, |world| world.sim.flows() == 0);
    assert!(gone, "a connection is left\n{}", world.history());
    world.run_for(Duration::from_secs(1));
    assert_at_rest(&mut world.sim);
    let checked = world.wire.oracle.as_ref().unwrap().checked();
    assert!(checked >= talks.len(), "{checked} segments");
}

#[test]
fn a_real_client_hears_every_byte_once_and_in_order() {
    // The last window has a scale.
    for_seeds("a_real_client_hears_every_byte_once_and_in_order", |seed| {
        converse(seed, &[16 * 1024, 64 * 1024, 200_000]);
    });
}

/// Windows of less than a segment, and of a few.
#[test]
fn a_real_client_with_a_small_window_hears_every_byte() {
    for_seeds(
        "a_real_client_with_a_small_window_hears_every_byte",
        |seed| {
            converse(seed, &[300, 700, 1400, 3000, 5000]);
        },
    );
}

/// A connection of a worker's client side in conversation, called `token`.
#[derive(Debug)]
struct Call {
    token: u64,
    script: Script,
    begun: usize,
    /// What ends it was asked for.
    ended: bool,
}

impl Call {
    fn begin(pair: &Pair, version: Version, token: u64, random: &mut SmallRng) -> Self {
        let local = source(version, token as u8, 1024);
        pair.wish(Wish::Open(local, server(version), token));
        Self {
            token,
            script: Script::new(random),
            begun: 0,
            ended: false,
        }
    }

    /// Writes or closes; returns whether the conversation is over.
    fn go_on(&mut self, pair: &Pair) -> bool {
        if pair.shared.lock().unwrap().is_closed(self.token) {
            return true;
        }
        if !pair.events().contains(&Event::Connected(self.token)) || self.ended {
            return false;
        }
        let received = pair.received(self.token).len();
        if let Some(write) = self.script.writes.get(self.begun)
            && received >= write.after
        {
            pair.wish(Wish::Send(self.token, write.bytes.clone()));
            self.begun += 1;
        }
        let written = self.begun == self.script.writes.len();
        let has_ended = pair.events().contains(&Event::Ended(self.token));
        let end = match self.script.ending {
            Ending::ClientAborts(at) => (received >= at).then_some(Wish::Abort(self.token)),
            // Its reset may have been lost.
            Ending::ServerAborts => {
                (written && pair.server.flows() == 0).then_some(Wish::Close(self.token))
            }
            Ending::HalfClose => written.then_some(Wish::Close(self.token)),
            Ending::ClientFirst => {
                (received == self.script.answer.len() && written).then_some(Wish::Close(self.token))
            }
            Ending::ServerFirst => has_ended.then_some(Wish::Close(self.token)),
        };
        if let Some(wish) = end {
            pair.wish(wish);
            self.ended = true;
        }
        false
    }

    /// What was told is what happened.
    fn assert_told(&self, pair: &Pair) {
        let received = pair.received(self.token);
        // What arrives after our close is dropped.
        if self.script.ending == Ending::HalfClose {
            assert!(self.script.answer.starts_with(&received));
        } else {
            assert_heard(&received, &self.script, || pair.history());
        }
        let expected = match self.script.ending {
            Ending::ClientAborts(_) => End::Aborted,
            Ending::ServerAborts => End::Reset,
            _ => End::Closed,
        };
        let of_call = |event: &&Event| match event {
            Event::Connected(token)
            | Event::Received(token, _)
            | Event::Ended(token)
            | Event::Closed(token, _) => *token == self.token,
            Event::Datagram(..) => false,
        };
        let events = pair.events();
        let events: Vec<&Event> = events.iter().filter(of_call).collect();
        assert_eq!(events[0], &Event::Connected(self.token));
        assert_eq!(
            events.last(),
            Some(&&Event::Closed(self.token, expected)),
            "{:?}\n{}",
            self.script.ending,
            pair.history()
        );
        let closed = |event: &&&Event| matches!(event, Event::Closed(..));
        assert_eq!(events.iter().filter(closed).count(), 1);
    }
}

#[test]
fn a_client_side_hears_every_byte_once_and_in_order() {
    for_seeds("a_client_side_hears_every_byte_once_and_in_order", |seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let config = config(seed, &mut random);
        let mut one_of = |numbers: [usize; 3]| numbers[random.random_range(0..3)];
        let frames = one_of([64, 128, 512]) as u32;
        // The last one has a scale.
        let (rx_bytes, tx_bytes) = (
            one_of([16_384, 20_000, 200_000]),
            one_of([1500, 5000, 20_000]),
        );
        let mut pair = Pair::new(config, |client| {
            client.limits.frames = frames;
            client.limits.client_rx_bytes = rx_bytes;
            client.limits.client_tx_bytes = tx_bytes;
        });
        pair.runs_jobs = true;
        pair.step_max = Duration::from_secs(1);
        let version = BOTH[random.random_range(0..2)];
        // Before there are faults: nothing guards ARP against corruption.
        pair.resolve(version);
        pair.set_faults(faults(&mut random), seed);
        {
            let mut shared = pair.shared.lock().unwrap();
            shared.tick = Some(Duration::from_millis(5));
            shared.stays_open = true;
        }
        let mut calls: Vec<Call> = (1..=random.random_range(1..4))
            .map(|token| Call::begin(&pair, version, token, &mut random))
            .collect();
        let mut server_handling = Handling::new(seed);
        let mut client_handling = Handling::new(seed + 1);
        let until = pair.client.now() + PATIENCE;
        loop {
            server_handling.apply(&mut pair.server);
            client_handling.apply(&mut pair.client);
            let calling = calls
                .iter_mut()
                .filter_map(|call| (!call.go_on(&pair)).then_some(()));
            if calling.count() == 0 {
                break;
            }
            let events = pair.events().len();
            pair.run_until(Duration::from_millis(50), |shared| {
                shared.events.len() > events
            });
            assert!(pair.client.now() < until, "{calls:?}\n{}", pair.history());
        }
        for call in &calls {
            call.assert_told(&pair);
        }
        pair.set_faults(Faults::default(), seed);
        pair.shared.lock().unwrap().tick = Some(Duration::from_secs(1));
        let until = pair.client.now() + PATIENCE * 2;
        while pair.client.flows() + pair.server.flows() > 0 {
            pair.run_until(Duration::from_secs(10), |_| false);
            assert!(pair.client.now() < until, "a connection is left");
        }
        pair.run_until(Duration::from_secs(1), |_| false);
        assert_at_rest(&mut pair.client);
        assert_at_rest(&mut pair.server);
        for oracle in [&pair.client_oracle, &pair.server_oracle] {
            assert!(oracle.as_ref().unwrap().checked() >= calls.len());
        }
    });
}
