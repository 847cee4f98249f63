//! Warnings of a worker about its neighbours. A test process has one log, so this file has one test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::IpAddr;
use std::sync::Mutex;

use common::packets::*;
use common::*;
use interruptlet::Duration;
use interruptlet::sim::{Sim, SimConfig};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Kept;

impl log::Log for Kept {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn checksums_left_to_a_card_are_told_with_the_way_out_and_not_all_the_time() {
    log::set_logger(&Kept).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let mut sim = Sim::new(SimConfig::default());
    let ends: Ends = (IpAddr::V4(CLIENT_V4), IpAddr::V4(SERVER_V4));

    // An arbitrary wrong checksum is taken for line noise: no warning.
    let mut noise = udp(ends, (5000, PORT), b"hello");
    let last = noise.len() - 1;
    noise[last] ^= 1;
    sim.peer().inject(&noise);
    sim.turn();
    assert_eq!(*LINES.lock().unwrap(), [""; 0]);

    let mut left = udp(ends, (5000, PORT), b"hello");
    let sum = pseudo_header_sum(ends, UDP, left.len() - 34);
    left[14 + 20 + 6..][..2].copy_from_slice(&sum.to_be_bytes());
    let link: Vec<String> = left[6..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    for millis in [0, 10, 59_000] {
        sim.advance(Duration::from_millis(millis));
        sim.peer().inject(&left);
        sim.turn();
        let lines = LINES.lock().unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        for word in [&link.join(":"), "ethtool -K", "tx off"] {
            assert!(lines[0].contains(word), "no {word:?} in: {}", lines[0]);
        }
    }
    sim.advance(Duration::from_secs(1));
    sim.peer().inject(&left);
    sim.turn();
    assert_eq!(LINES.lock().unwrap().len(), 2);
}
