//! What an engine must not be stopped by, whoever is its peer. Segments by hand, under the eyes of an oracle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::handlers::Lines;
use common::oracle::Oracle;
use common::packets::*;
use common::raw::{Raw, segments};
use common::*;
use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};

/// A worker of lines, a connection to it, and an oracle.
struct Scene {
    sim: Sim,
    oracle: Oracle,
    raw: Raw,
}

impl Scene {
    fn open(window: u16) -> Self {
        Self::open_with(window, true)
    }

    /// Handled by an engine from the first segment on, or from when it needs one.
    fn open_with(window: u16, engine_only: bool) -> Self {
        let config = SimConfig {
            streams: vec![stream(Lines)],
            ..SimConfig::default()
        };
        let mut scene = Self {
            oracle: Oracle::new("worker", config.mtu),
            sim: Sim::new(config),
            raw: Raw::new(Version::V4, 5000),
        };
        scene.sim.set_engine_only(engine_only);
        scene.raw.window = window;
        let syn = Segment {
            ack: 0,
            options: vec![2, 4, 0x05, 0xb4],
            ..scene.raw.segment(SYN, b"")
        };
        let answers = scene.exchange(&syn);
        scene.raw.seq = scene.raw.seq.wrapping_add(1);
        scene.raw.ack = answers[0].seq.wrapping_add(1);
        scene.send(ACK, b"");
        scene
    }

    fn exchange(&mut self, segment: &Segment) -> Vec<Segment> {
        let frame = segment.frame(self.raw.ends);
        self.oracle.delivered(&frame, self.sim.now());
        self.sim.peer().inject(&frame);
        self.turn()
    }

    fn turn(&mut self) -> Vec<Segment> {
        self.sim.turn();
        let frames = sent(&self.sim);
        for frame in &frames {
            self.oracle.emitted(frame, self.sim.now());
        }
        segments(&frames, self.raw.port)
    }

    /// Sends the next segment; returns what comes at once.
    fn send(&mut self, flags: u8, payload: &[u8]) -> Vec<Segment> {
        let segment = self.raw.segment(flags, payload);
        self.raw.seq = self.raw.seq.wrapping_add(payload.len() as u32);
        self.exchange(&segment)
    }

    /// What comes in so many seconds.
    fn wait(&mut self, seconds: u64) -> Vec<Segment> {
        let mut all = Vec::new();
        for _ in 0..seconds * 100 {
            self.sim.advance(Duration::from_millis(10));
            all.extend(self.turn());
        }
        all
    }
}

/// RFC 6298 section 5: the timer runs for as long as anything is unacknowledged, a FIN too.
#[test]
fn a_lost_fin_is_sent_again_after_duplicate_acknowledgements() {
    let mut scene = Scene::open(u16::MAX);
    let answers = scene.send(ACK | PSH, b"close\n");
    assert_eq!(answers.last().unwrap().flags & FIN, FIN);
    // The bytes came, the FIN did not.
    scene.raw.ack = scene.raw.ack.wrapping_add(4);
    for _ in 0..5 {
        scene.send(ACK, b"");
    }
    let again = scene.wait(10);
    assert!(
        again.iter().any(|segment| segment.flags & FIN != 0),
        "{again:?}"
    );
}

/// RFC 9293 section 3.8.6.1: a closed window is probed, also one that closes over what is under way: a window that
/// shrank, or the news of one that was overtaken.
#[test]
fn a_window_that_closes_over_bytes_under_way_is_probed() {
    let mut scene = Scene::open(3000);
    let answers = scene.send(ACK | PSH, b"content 9000\n");
    assert!(!answers.is_empty());
    scene.raw.window = 0;
    scene.send(ACK, b"");
    // Retransmission, then probes.
    let probes = scene.wait(20);
    assert!(probes.len() >= 2, "{probes:?}");
    scene.raw.window = 9000;
    assert!(!scene.send(ACK, b"").is_empty());
}

/// RFC 9293 section 3.8.6.
#[test]
fn a_fast_retransmission_stays_in_the_window() {
    let mut scene = Scene::open(700);
    let answers = scene.send(ACK | PSH, b"content 9000\n");
    let sent: usize = answers.iter().map(|answer| answer.payload.len()).sum();
    assert_eq!(sent, 700);
    let mut again = Vec::new();
    for _ in 0..4 {
        again.extend(scene.send(ACK, b""));
    }
    again.extend(scene.wait(2));
    assert!(!again.is_empty());
}

/// The same where what is to be sent again has grown since it was found to be lost.
#[test]
fn a_fast_retransmission_of_more_than_was_lost_stays_in_the_window() {
    // As it comes, or with something missing before it.
    for (engine_only, ahead) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
        let mut scene = Scene::open_with(700, engine_only);
        assert_eq!(scene.send(ACK | PSH, b"reply you\n").len(), 1);
        let duplicate = Segment {
            seq: scene.raw.seq.wrapping_add(ahead),
            ..scene.raw.segment(ACK, b"")
        };
        for _ in 0..2 {
            scene.exchange(&duplicate);
        }
        // The third and another request, in one turn.
        let frame = duplicate.frame(scene.raw.ends);
        scene.oracle.delivered(&frame, scene.sim.now());
        scene.sim.peer().inject(&frame);
        let mut answers = scene.send(ACK | PSH, b"content 9000\n");
        answers.extend(scene.wait(3));
        let lost = |answer: &&Segment| answer.seq == scene.raw.ack;
        let again = answers.iter().find(lost);
        assert!(
            again.is_some_and(|again| again.payload.starts_with(b"<you>\n")),
            "{answers:?}"
        );
    }
}

/// RFC 9293 section 3.10.7.4, SND.WL1: the window of a segment that was overtaken is not the peer's.
#[test]
fn an_overtaken_window_does_not_stop_retransmission() {
    let mut scene = Scene::open(700);
    let answers = scene.send(ACK | PSH, b"content 3000\n");
    assert_eq!(answers[0].payload.len(), 700);
    scene.raw.ack = scene.raw.ack.wrapping_add(700);
    let later = Segment {
        seq: scene.raw.seq.wrapping_add(1),
        ..scene.raw.segment(ACK, b"")
    };
    let overtaken = Segment {
        window: 0,
        ..scene.raw.segment(FIN | ACK, b"")
    };
    for segment in [&later, &overtaken, &later] {
        scene.exchange(segment);
    }
    let again = scene.wait(4);
    let retransmitted = again.iter().filter(|again| again.payload.len() == 700);
    assert!(retransmitted.count() >= 2, "{again:?}");
}

/// RFC 9293 section 3.10.7.4: a window that opens is used at once, the peer's own side closed or not.
#[test]
fn a_window_opens_for_a_peer_that_has_closed_its_side() {
    for fin in [0, FIN] {
        let mut scene = Scene::open(700);
        let answers = scene.send(ACK | PSH | fin, b"content 3000\n");
        assert_eq!(answers[0].payload.len(), 700);
        scene.raw.seq = scene.raw.seq.wrapping_add(u32::from(fin));
        scene.raw.ack = scene.raw.ack.wrapping_add(700);
        scene.raw.window = 0;
        assert!(scene.send(ACK, b"").is_empty());
        scene.raw.window = 3000;
        let rest = scene.send(ACK, b"");
        let len: usize = rest.iter().map(|segment| segment.payload.len()).sum();
        assert_eq!(len, 2300, "{rest:?}");
        assert_eq!(rest.last().unwrap().flags & FIN, fin);
    }
}

/// A peer whose window is closed drops what is behind its edge, acknowledgements of its own bytes included
/// (RFC 9293 section 3.10.7.4, first step).
#[test]
fn acknowledgements_stay_in_a_closed_window() {
    let mut scene = Scene::open(0);
    scene.send(ACK | PSH, b"reply you\n");
    let probes = scene.wait(5);
    assert!(
        probes.iter().any(|probe| probe.payload == b"<"),
        "{probes:?}"
    );
    let mut answers = scene.send(ACK | PSH, b"silence\n");
    answers.extend(scene.wait(1));
    let next = scene.raw.seq;
    let acknowledges = |answer: &Segment| answer.ack == next && answer.payload.is_empty();
    assert!(answers.iter().any(acknowledges), "{answers:?}");
}
