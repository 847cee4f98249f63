//! Queues: what the start line says of each, which are served, and by how many cores.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use interruptlet_tests::echo::{assert_serves, pattern, tcp_exchange};
use interruptlet_tests::lab::{Lab, Options, SERVER_IF, VERSIONS};
use interruptlet_tests::server::{ECHO_PORT, Launch};

/// What veth lacks, in the words of the start line and of the refusal.
const NO_ZERO_COPY: &str = "veth has no zero-copy in this kernel";

#[test]
fn the_start_line_says_why_a_queue_is_not_in_zero_copy_mode() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    for (mode, why) in [("auto", NO_ZERO_COPY), ("copy", "copy mode was asked for")] {
        let server = Launch::echo(&lab).with("--mode", mode).start();
        let line = server.expect_line("ready:");
        let end = format!("on {SERVER_IF}, XDP native, queue 0 copy ({why})");
        assert!(line.ends_with(&end), "{line}");
        server.stop();
    }
    let refusal = Launch::echo(&lab).with("--mode", "zero-copy").refuse();
    let [line] = refusal.stderr.as_slice() else {
        panic!("not one line: {refusal:?}")
    };
    assert!(line.contains(NO_ZERO_COPY), "{line}");
    assert!(line.contains("use --mode auto or copy"), "{line}");
    assert!(!lab.xdp_attached());
}

#[test]
fn copy_mode_needs_no_more_locked_memory_because_zero_copy_is_tried() {
    let Some(lab) = Lab::new(Options::default()) else {
        return;
    };
    let limited = |mebibytes: u32| {
        let limit = format!("--memlock={}", mebibytes << 20);
        let without = "-ipc_lock,-sys_admin,-sys_resource";
        Launch::echo(&lab).through(&["prlimit", &limit, "setpriv", "--bounding-set", without])
    };
    let server = limited(8).start();
    assert_serves(&lab);
    assert!(server.stderr().is_empty(), "{:?}", server.stderr());
    server.stop();
    let refusal = limited(7).refuse();
    assert!(
        refusal.stderr[0].contains("8 MiB") && refusal.stderr[0].contains("CAP_IPC_LOCK"),
        "{refusal:?}"
    );
}

#[test]
fn queues_that_nobody_serves_are_named_once() {
    let Some(lab) = Lab::new(Options {
        queues: 3,
        ..Options::default()
    }) else {
        return;
    };
    let server = Launch::echo(&lab).with("--queues", "1").start();
    let stderr = server.stderr();
    let [line] = stderr.as_slice() else {
        panic!("not one line: {stderr:?}")
    };
    let named = format!("{SERVER_IF} also has queue 0, 2:");
    assert!(
        line.starts_with("warn: ") && line.contains(&named),
        "{line}"
    );
    server.stop();
}

#[test]
fn one_core_serves_two_queues() {
    for poll in ["busy", "adaptive"] {
        let Some(lab) = Lab::new(Options {
            queues: 2,
            ..Options::default()
        }) else {
            return;
        };
        let server = Launch::echo(&lab)
            .with("--queues", "0,1")
            .with("--cores", "0,0")
            .with("--poll", poll)
            .start();
        for version in VERSIONS {
            let to = lab.server_at(version, ECHO_PORT);
            // The kernel spreads flows over its transmit queues: twenty use both for certain.
            for n in 0..20 {
                tcp_exchange(lab.client(), to, &pattern(n, 5000));
            }
        }
        let report = server.stop();
        assert_eq!(report.workers(), 2);
    }
}
