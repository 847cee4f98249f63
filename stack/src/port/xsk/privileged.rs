//! Tests with real AF_XDP sockets, which need root, on the loopback interface of a network namespace of their own.
//!
//! `ILET_UNPRIVILEGED=1` skips them; else they fail without root. They are to run one at a time: a child process that
//! another test is just starting has a copy of this one's descriptors for a moment, and so keeps its queue bound.

use std::panic::resume_unwind;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;
use crate::clock::MonotonicClock;
use crate::port::settle;

/// Runs `body` in a thread with a network namespace of its own, in which the loopback interface is up.
fn in_namespace(body: impl FnOnce() + Send) {
    if std::env::var_os("ILET_UNPRIVILEGED").is_some_and(|value| value == "1") {
        return;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "needs root: run the tests as root, or set ILET_UNPRIVILEGED=1 to go without this one"
    );
    let enter = || {
        // SAFETY: the network namespace says which network system calls see. It holds no memory, and
        // file descriptors stay what they are.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        set_loopback("up");
        body();
    };
    let ended = std::thread::scope(|scope| scope.spawn(enter).join());
    ended.unwrap_or_else(|panic| resume_unwind(panic));
}

fn set_loopback(state: &str) {
    let arguments = ["link", "set", "lo", state];
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn open() -> io::Result<(XskPort, Arena)> {
    let limits = Limits::default();
    XskPort::open(&XskOptions::new("lo", 0, 1500, &limits), BindMode::Copy)
}

/// Returns a frame of zeros, with no address in it.
fn frame(arena: &mut Arena) -> Frame {
    let mut frame = arena.alloc(Owner::Tx).unwrap();
    arena.buffer_mut(&mut frame)[..60].fill(0);
    arena.set_len(&mut frame, 60);
    frame
}

#[test]
fn the_queue_is_free_when_the_port_is_gone_whoever_has_the_memory() {
    in_namespace(|| {
        let (port, mut arena) = open().unwrap();
        let mut kept = arena.alloc(Owner::Rx).unwrap();
        arena.buffer_mut(&mut kept)[..4].copy_from_slice(b"kept");
        arena.set_len(&mut kept, 4);
        let loan = arena.lend(kept, 0..4).unwrap();
        let error = open().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "while it is open");

        drop(port);
        // The kernel lets the queue go a moment later, by itself.
        let again = (0..300).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            open().ok()
        });
        assert!(again.is_some(), "the queue stays bound");
        assert_eq!(loan.bytes(), b"kept");
        drop(arena);
        assert_eq!(loan.bytes(), b"kept");
    });
}

#[test]
fn a_stop_takes_back_what_the_kernel_does_not_send() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        let mut clock = MonotonicClock::since(std::time::Instant::now());
        // A frame that was sent comes home by itself.
        let mut queue = vec![frame(&mut arena)];
        settle(&mut port, &mut arena, &mut queue, &mut clock, &counters);
        assert!(arena.is_at_rest(), "{:?}", arena.count());

        // Through an interface that is down nothing is sent.
        set_loopback("down");
        let held = frame(&mut arena);
        let index = held.index();
        arena.hold(&held);
        let mut queue = vec![frame(&mut arena), held];
        // More than the ring has room for.
        queue.extend((2..2050).map(|_| frame(&mut arena)));
        settle(&mut port, &mut arena, &mut queue, &mut clock, &counters);
        assert!(queue.is_empty());
        assert_eq!(arena.count().of(Owner::Tx), 2048, "they are the kernel's");
        assert_eq!(counters.tx_unsent.get(), 2);

        port.close(&mut arena, &counters);
        assert_eq!(counters.tx_unsent.get(), 2050);
        assert_eq!(
            arena.count().of(Owner::Flow),
            1,
            "a held frame is its flow's"
        );
        arena.release(index);
        assert!(arena.is_at_rest(), "{:?}", arena.count());
    });
}

#[test]
fn a_queue_without_a_link_sends_once_it_has_one() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        set_loopback("down");
        let mut queue = vec![frame(&mut arena)];
        for millis in (0..2000).step_by(10) {
            let now = Instant::from_millis(millis);
            port.transmit(&mut arena, &mut queue, now, &counters)
                .unwrap();
        }
        assert_eq!(arena.count().of(Owner::Tx), 1);
        assert_eq!((counters.tx_stalls.get(), counters.tx_stuck.get()), (0, 0));
        let kicks = counters.tx_kicks.get();
        assert!(kicks <= 2000 / 50 + 1, "told {kicks} times");
        set_loopback("up");
        for millis in (2000..2200).step_by(10) {
            let now = Instant::from_millis(millis);
            port.transmit(&mut arena, &mut queue, now, &counters)
                .unwrap();
        }
        assert!(arena.is_at_rest(), "{:?}", arena.count());
        assert_eq!(port.watch.way(), Way::Send);
    });
}

#[test]
fn each_way_of_telling_the_kernel_sends() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        for way in [Way::Send, Way::Poll, Way::SendUnpolled] {
            port.watch = Watch::using(way);
            port.follow_way();
            let mut queue = vec![frame(&mut arena)];
            for millis in 0..10 {
                let now = Instant::from_millis(millis);
                port.transmit(&mut arena, &mut queue, now, &counters)
                    .unwrap();
            }
            assert!(arena.is_at_rest(), "{way}: {:?}", arena.count());
        }
        assert_eq!(counters.tx_kicks.get(), 3);
    });
}

/// Kernels before 6.17 send 32 frames a call.
#[test]
fn a_turn_sends_everything_by_each_way_if_the_kernel_sends_a_few_a_call() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
        // Kernels that do not know the option have this budget.
        port.set_option(libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, 32);
        port.tx_budget = 32;
        for way in [Way::Send, Way::Poll, Way::SendUnpolled] {
            port.watch = Watch::using(way);
            port.follow_way();
            let kicks = counters.tx_kicks.get();
            let mut queue = (0..320).map(|_| frame(&mut arena)).collect();
            let now = Instant::from_millis(0);
            port.transmit(&mut arena, &mut queue, now, &counters)
                .unwrap();
            assert_eq!(port.untaken(), 0, "{way}");
            assert!(!port.has_backlog(), "{way}");
            let kicks = counters.tx_kicks.get() - kicks;
            assert!((10..=11).contains(&kicks), "{way}: {kicks} calls");
            port.reap(&mut arena, &counters);
            assert!(arena.is_at_rest(), "{way}: {:?}", arena.count());
        }
    });
}

/// A loop that polls must not take a queue that sends nothing for one that has something to go on with.
#[test]
fn a_poll_that_moves_nothing_is_not_repeated_at_once() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        set_loopback("down");
        port.watch = Watch::using(Way::Poll);
        let mut queue = (0..100).map(|_| frame(&mut arena)).collect();
        port.transmit(&mut arena, &mut queue, Instant::from_millis(0), &counters)
            .unwrap();
        assert_eq!(port.untaken(), 100);
        assert_eq!(counters.tx_kicks.get(), 1);
        assert!(!port.has_backlog());
    });
}

/// Whether the socket prefers busy polling, from the kernel.
fn prefers_busy_poll(port: &XskPort) -> bool {
    let (mut value, mut len): (libc::c_int, _) = (-1, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::getsockopt(
            port.rx.fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PREFER_BUSY_POLL,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value != 0
}

#[test]
fn busy_polling_that_was_taken_back_is_asked_for_again() {
    in_namespace(|| {
        let (mut port, mut arena) = open().unwrap();
        let counters = Counters::default();
        assert!(prefers_busy_poll(&port));
        port.watch = Watch::using(Way::SendUnpolled);
        port.follow_way();
        assert!(!prefers_busy_poll(&port));
        let mut queue = vec![frame(&mut arena)];
        for millis in (0..1100).step_by(10) {
            let now = Instant::from_millis(millis);
            port.transmit(&mut arena, &mut queue, now, &counters)
                .unwrap();
        }
        assert_eq!(port.watch.way(), Way::USUAL);
        assert!(prefers_busy_poll(&port));
    });
}
