//! Downloads over simulated links: what the harness tells of runs whose figures are known beforehand, and short downloads
//! beside a long one.
//!
//! `cargo test -p interruptlet --test links -- --nocapture` prints the figures of every run. All times are virtual.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::downloads::{Course, Download, Plan, Report};
use common::meter::{Meter, Sent};
use common::packets::*;
use common::seeds::for_some_seeds;
use common::*;
use interruptlet::Duration;
use interruptlet::port::link::Faults;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Bytes of a full segment's payload, and of its frame.
const SEGMENT: u64 = 1460;
const FRAME: u64 = 1514;
/// Frames that a queue holds at least: an initial window (RFC 6928).
const QUEUE_FRAMES_MIN: u64 = 10;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

/// A bottleneck of so many Mbit/s, with a queue of one bandwidth-delay product.
fn bottleneck(mbits: u64, round_trip: Duration) -> Faults {
    let product = mbits * round_trip.total_micros() / 8;
    Faults {
        rate: mbits * 1_000_000,
        queue_bytes: product.max(QUEUE_FRAMES_MIN * FRAME) as usize,
        delay: round_trip / 2,
        ..Faults::default()
    }
}

/// The bytes of payload that a link of so many Mbit/s carries in that time.
fn capacity(mbits: u64, time: Duration) -> u64 {
    mbits * time.total_micros() / 8 * SEGMENT / FRAME
}

/// Prints the figures of one run.
fn print(name: &str, seed: u64, report: &Report, figures: &str) {
    let Sent {
        segments,
        bytes,
        again,
        ..
    } = report.sent;
    let over = if report.ended() { "" } else { ", NOT OVER" };
    println!(
        "{name:<34} seed {seed}: {figures}; {segments} segments, {:.2} % again, {:.3} % spurious, {} lost, {} dropped, \
         {:.2} s{over}",
        100.0 * again as f64 / (bytes as f64).max(1.0),
        100.0 * report.sent.spurious_share(),
        report.link.lost,
        report.link.queue_drops,
        report.took.total_micros() as f64 / 1e6,
    );
}

/// What the harness tells of a run whose figures are known beforehand.
#[test]
fn a_small_download_takes_two_round_trips() {
    let link = Faults {
        delay: Duration::from_millis(10),
        ..Faults::default()
    };
    let report = Plan::one(10_000, link).run();
    assert!(report.ended());
    let took = report.courses[0].took().unwrap().total_micros();
    print("10 KB, 20 ms", 0, &report, &format!("{took} us"));
    assert!((40_000..41_000).contains(&took), "{took} us");
    let sent = Sent {
        segments: 7,
        bytes: 10_000,
        ..Sent::default()
    };
    assert_eq!(report.sent, sent);
}

/// The rate and the queue of the lane are those of the link: here a bottleneck that the sender's window cannot fill.
#[test]
fn a_window_smaller_than_the_link_is_what_is_used() {
    let round_trip = Duration::from_millis(100);
    let mut plan = Plan::one(2_000_000, bottleneck(100, round_trip));
    plan.window = 20 * SEGMENT as usize;
    let report = plan.run();
    let windows = report.courses[0].rate_from(SECOND) * 0.1 / plan.window as f64;
    print(
        "20 segments, 100 ms",
        0,
        &report,
        &format!("{windows:.2} windows a round trip"),
    );
    assert!(
        report.ended() && (0.8..1.01).contains(&windows),
        "{windows}"
    );
    assert_eq!((report.sent.again, report.link.queue_drops), (0, 0));
}

/// A window that fills the link and fits its queue keeps it busy all the time, whoever sends.
#[test]
fn a_window_larger_than_the_link_fills_it() {
    let mut link = bottleneck(10, Duration::from_millis(20));
    link.queue_bytes = 64 * 1024;
    let mut plan = Plan::one(capacity(10, Duration::from_secs(5)), link);
    plan.window = 40_000;
    let report = plan.run();
    // In frames, because a sender may have made small ones; the handshake and the first windows are in the time.
    let seconds = report.took.total_micros() as f64 / 1e6;
    let utilisation = (8 * report.link.bytes) as f64 / (link.rate as f64 * seconds);
    print(
        "40 KB on 10 Mbit/s, 20 ms",
        0,
        &report,
        &format!("utilisation {utilisation:.3}, headers included"),
    );
    assert!(report.ended() && (0.95..1.0).contains(&utilisation));
    assert_eq!((report.sent.again, report.link.queue_drops), (0, 0));
}

#[test]
fn the_meter_knows_what_had_no_need_to_be_sent_again() {
    let mut meter = Meter::default();
    let mut see = |seq: u32, len: usize, flags: u8, arrives: bool| {
        let segment = Segment {
            seq,
            flags,
            payload: vec![0; len],
            ..Segment::default()
        };
        meter.see(
            &segment.frame((SERVER_V4.into(), CLIENT_V4.into())),
            arrives,
        );
        meter.sent()
    };
    // The numbers wrap.
    let first = u32::MAX - 150;
    see(first.wrapping_sub(1), 0, SYN | ACK, true);
    let at = |offset: u32| first.wrapping_add(offset);
    see(at(0), 100, ACK, true);
    see(at(100), 100, ACK, false);
    see(at(200), 100, ACK, true);
    see(at(300), 100, ACK, false);
    let sent = see(at(400), 100, ACK, true);
    assert_eq!((sent.bytes, sent.again, sent.spurious), (500, 0, 0));
    // Lost, and lost again.
    let sent = see(at(100), 100, ACK, false);
    assert_eq!((sent.again, sent.spurious), (100, 0));
    let sent = see(at(100), 100, ACK, true);
    assert_eq!((sent.again, sent.spurious), (200, 0));
    // Partly lost; then nothing of it is.
    let sent = see(at(250), 200, ACK, true);
    assert_eq!((sent.again, sent.spurious), (400, 100));
    let sent = see(at(0), 600, ACK, true);
    assert_eq!((sent.again, sent.spurious), (900, 600));
    assert_eq!(sent.segments, 9);
}

#[test]
fn short_downloads_end_beside_a_long_one() {
    for_some_seeds("short_downloads_end_beside_a_long_one", 1, |seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        let round_trip = Duration::from_millis(20);
        let mut plan = Plan::one(
            capacity(100, Duration::from_secs(8)),
            bottleneck(100, round_trip),
        );
        plan.seed = seed;
        plan.patience = Duration::from_secs(60);
        plan.downloads.extend((0..20).map(|number| Download {
            bytes: 10_000,
            begins: Duration::from_millis(2000 + 250 * number + random.random_range(0..200)),
        }));
        let report = plan.run();
        let mut times: Vec<f64> = report.courses[1..]
            .iter()
            .filter_map(Course::took)
            .map(|took| took.total_micros() as f64 / 1000.0)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            times
                .get((share * 20.0) as usize)
                .copied()
                .unwrap_or(f64::NAN)
        };
        let figures = format!(
            "10 KB in {:.0} to {:.0} ms, median {:.0} ms",
            at(0.0),
            at(0.95),
            at(0.5)
        );
        print("20 short, 100 Mbit/s, 20 ms", seed, &report, &figures);
        // Two round trips, each with a full queue, are 80 ms. A SYN|ACK that is dropped is sent again after a second.
        assert!(report.ended(), "not over");
        assert!(at(0.5) < 120.0 && at(0.95) < 3000.0, "{figures}");
    });
}
