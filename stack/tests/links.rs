//! Downloads over simulated links: how much of a bottleneck they use, how they share it, what loss and reordering cost.
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

/// One long download for each rate and round trip: once slow start is over, the bottleneck is used.
fn utilisation(name: &str, mbits: u64, round_trips: [(u64, u64, u64); 3]) {
    for_some_seeds(name, 1, |seed| {
        for (millis, warm_up, measured) in round_trips {
            let round_trip = Duration::from_millis(millis);
            let (warm_up, measured) = (
                Duration::from_millis(warm_up),
                Duration::from_millis(measured),
            );
            let link = bottleneck(mbits, round_trip);
            let mut plan = Plan::one(capacity(mbits, warm_up + measured), link);
            plan.seed = seed;
            plan.window = 64 << 20;
            plan.patience = (warm_up + measured) * 4;
            let report = plan.run();
            let rate = report.courses[0].rate_from(warm_up.total_micros() * 1000);
            let utilisation = rate / capacity(mbits, Duration::from_secs(1)) as f64;
            let title = format!("{mbits} Mbit/s, {millis} ms");
            print(
                &title,
                seed,
                &report,
                &format!("utilisation {utilisation:.3}"),
            );
        }
    });
}

#[test]
fn ten_megabits_are_used() {
    let round_trips = [(1, 500, 4000), (20, 1000, 8000), (200, 4000, 16_000)];
    utilisation("ten_megabits_are_used", 10, round_trips);
}

#[test]
fn a_hundred_megabits_are_used() {
    let round_trips = [(1, 500, 2000), (20, 1000, 4000), (200, 4000, 8000)];
    utilisation("a_hundred_megabits_are_used", 100, round_trips);
}

#[test]
fn a_thousand_megabits_are_used() {
    let round_trips = [(1, 250, 750), (20, 1000, 1000), (200, 4000, 3000)];
    utilisation("a_thousand_megabits_are_used", 1000, round_trips);
}

/// Jain's index of fairness: 1 if all have the same, 1/n if one has everything.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares == 0.0 {
        return 0.0;
    }
    sum * sum / (shares.len() as f64 * squares)
}

#[test]
fn two_and_eight_downloads_share_a_bottleneck() {
    assert!((jain(&[3.0, 3.0]) - 1.0).abs() < 1e-9 && (jain(&[1.0, 0.0]) - 0.5).abs() < 1e-9);
    for_some_seeds("two_and_eight_downloads_share_a_bottleneck", 1, |seed| {
        let mut random = SmallRng::seed_from_u64(seed);
        for flows in [2, 8] {
            let (warm_up, total) = (10 * SECOND, 30 * SECOND);
            let mut plan = Plan::one(
                capacity(100, Duration::from_micros(total / 1000)) / flows,
                bottleneck(100, Duration::from_millis(20)),
            );
            plan.seed = seed;
            plan.patience = Duration::from_secs(90);
            let bytes = plan.downloads[0].bytes;
            plan.downloads.extend((1..flows).map(|number| Download {
                bytes,
                begins: Duration::from_millis(number * 100 + random.random_range(0..100)),
            }));
            let report = plan.run();
            // As long as all of them are there.
            let ends = report.courses.iter().filter_map(|course| course.ended);
            let end = ends.min().unwrap_or(report.took.total_micros() * 1000);
            let share = |course: &Course| (course.by(end) - course.by(warm_up.min(end))) as f64;
            let shares: Vec<f64> = report.courses.iter().map(share).collect();
            let index = jain(&shares);
            let figures = format!(
                "Jain's index {index:.3} over {:.1} s",
                end.saturating_sub(warm_up) as f64 / 1e9
            );
            print(
                &format!("{flows} downloads, 100 Mbit/s, 20 ms"),
                seed,
                &report,
                &figures,
            );
        }
    });
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
    });
}

/// The average window of CUBIC in segments at a loss of `share` of the packets (RFC 9438 section 5.2, beta 0.7, C 0.4),
/// or that of Reno (section 4.3) where that one is larger.
fn average_window(share: f64, round_trip: Duration) -> f64 {
    let seconds = round_trip.total_micros() as f64 / 1e6;
    let cubic = 1.054 * (seconds / share).powf(0.75);
    let reno = (1.5 / share).sqrt();
    cubic.max(reno)
}

#[test]
fn random_loss_costs_what_the_formula_says() {
    // The table of RFC 9438 section 5.2, at 0.1 s: 1.054 * (0.1 / p)^0.75.
    let hundred = Duration::from_millis(100);
    assert!((average_window(1e-6, hundred) - 5926.0).abs() < 30.0);
    for_some_seeds("random_loss_costs_what_the_formula_says", 1, |seed| {
        for (share, segments) in [(0.001, 60_000), (0.01, 20_000), (0.05, 6000)] {
            for millis in [20, 100] {
                let round_trip = Duration::from_millis(millis);
                let link = Faults {
                    loss: share,
                    delay: round_trip / 2,
                    ..Faults::default()
                };
                let mut plan = Plan::one(segments * SEGMENT, link);
                plan.seed = seed;
                let expected = average_window(share, round_trip);
                let ideal = segments as f64 / expected * millis as f64 / 1000.0;
                plan.patience = Duration::from_secs(10 + 10 * ideal as u64);
                let report = plan.run();
                let seconds = millis as f64 / 1000.0;
                let window = report.courses[0].rate_from(SECOND) / SEGMENT as f64 * seconds;
                let figures = format!(
                    "window {window:.1}, {:.2} of the formula's",
                    window / expected
                );
                let title = format!("{} % loss, {millis} ms", 100.0 * share);
                print(&title, seed, &report, &figures);
            }
        }
    });
}

#[test]
fn reordering_is_no_loss() {
    for_some_seeds("reordering_is_no_loss", 1, |seed| {
        for reordering in [0.01, 0.1, 0.5] {
            let round_trip = Duration::from_millis(20);
            let link = Faults {
                reordering,
                delay_max: round_trip / 2,
                queue_bytes: 0,
                ..bottleneck(100, round_trip)
            };
            let mut plan = Plan::one(20_000_000, link);
            plan.seed = seed;
            // The queue has no bound, and this is one.
            plan.window = 512 * 1024;
            plan.patience = Duration::from_secs(60);
            let report = plan.run();
            let rate = report.courses[0].rate_from(SECOND / 2);
            let utilisation = rate / capacity(100, Duration::from_secs(1)) as f64;
            let title = format!("{} % reordered, 20 ms", 100.0 * reordering);
            print(
                &title,
                seed,
                &report,
                &format!("utilisation {utilisation:.3}"),
            );
        }
    });
}
