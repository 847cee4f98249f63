//! The end of a worker: every peer hears of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::packets::*;
use common::raw::{Raw, segments};
use common::*;
use interruptlet::sim::{Sim, SimConfig};

#[test]
fn every_connection_is_reset_however_few_frames_are_free() {
    for engine_only in [false, true] {
        let mut config = SimConfig {
            engine_only,
            ..echo_config()
        };
        config.limits.frames = 8;
        config.limits.held_frames = 4;
        let mut sim = Sim::new(config);
        let ports: Vec<u16> = (5000..5100).collect();
        for port in &ports {
            let mut raw = Raw::open(&mut sim, Version::V4, *port);
            // The first ones have answers in flight, as many as flows may hold.
            if *port < 5004 {
                assert_eq!(raw.send(&mut sim, ACK, b"x").len(), 1);
            }
        }
        assert_eq!(sim.flows(), ports.len());
        sim.stop();
        // What a turn that was begun would still send.
        sim.turn();
        let frames = sent(&sim);
        for port in ports {
            let resets = segments(&frames, port);
            assert_eq!(resets.len(), 1, "port {port}: {resets:?}");
            assert_eq!(resets[0].flags & RST, RST, "port {port}: {resets:?}");
        }
        assert_eq!(sim.flows(), 0);
        assert_eq!(counter(&sim, "tx_no_frame"), 0);
        assert_at_rest(&mut sim);
    }
}
