//! The relay as a link with a rate, a queue and a delay: what goes over it arrives as it was sent, and what does not fit
//! is dropped.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::time::Duration;

use interruptlet::port::link;
use interruptlet_tests::echo::{pattern, tcp_exchange};
use interruptlet_tests::lab::{Lab, Options, VERSIONS};
use interruptlet_tests::relay::{Faults, Passed, Relay};
use interruptlet_tests::server::{ECHO_PORT, Launch};
use interruptlet_tests::site::{Site, get};

/// How long a read may take: a segment that is lost again and again is repeated at ever longer intervals.
const PATIENCE: Duration = Duration::from_secs(60);

fn relayed() -> Options {
    Options {
        relay: true,
        ..Options::default()
    }
}

fn slow() -> link::Faults {
    link::Faults {
        delay: interruptlet::Duration::from_millis(5),
        rate: 20_000_000,
        queue_bytes: 200_000,
        ..link::Faults::default()
    }
}

/// Nothing but the link has lost anything.
fn assert_only_link(passed: [Passed; 2]) {
    for way in passed {
        assert_eq!(
            (way.missed, way.unsent, way.line_full),
            (0, 0, 0),
            "{way:?}"
        );
        assert!(way.link.frames > 0, "{way:?}");
    }
}

#[test]
fn a_delayed_and_slow_link_passes_everything() {
    let Some(lab) = Lab::new(relayed()) else {
        return;
    };
    let server = Launch::echo(&lab).start();
    let relay = Relay::start_with(&lab, Faults::none(7), slow());
    for version in VERSIONS {
        let to = lab.server_at(version, ECHO_PORT);
        tcp_exchange(lab.client(), to, &pattern(3, 100_000));
    }
    let passed = relay.stop();
    assert_only_link(passed);
    for way in passed {
        assert_eq!((way.link.lost, way.link.queue_drops), (0, 0), "{way:?}");
    }
    server.stop();
}

#[test]
fn a_full_queue_drops_and_tcp_repairs_it() {
    let Some(site) = Site::with(relayed()) else {
        return;
    };
    let server = site.serve();
    let link = link::Faults {
        queue_bytes: 10_000,
        ..slow()
    };
    let relay = Relay::start_with(site.lab(), Faults::none(7), link);
    let body = pattern(1, 300_000);
    let mut connection = site.connect();
    connection.set_read_limit(PATIENCE);
    connection.send(get("/medium.bin", ""));
    assert!(connection.response().body == body, "not what was sent");
    let [from_server, _] = relay.stop();
    assert!(from_server.link.queue_drops > 0, "{from_server:?}");
    server.stop();
}
