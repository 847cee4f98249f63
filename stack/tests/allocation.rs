//! A warm worker allocates nothing per packet or per request: counted by the global allocator of this
//! test binary, within turns of the worker only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A global allocator is unsafe by its trait; this one only counts and passes on.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use common::packets::*;
use common::pair::{server, source, sources};
use common::raw::Raw;
use common::*;
use interruptlet::Duration;
use interruptlet::client::{Client, Core, Datagram, Datagrams, End, Reach, Stream};
use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use interruptlet::sim::{Sim, SimConfig};

struct Counting;

thread_local! {
    /// Whether this thread is within a turn, and how often it allocated there.
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    if COUNTING.get() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
}

// SAFETY: every call is passed to the system's allocator unchanged, which keeps the contract; counting
// touches only constant-initialised thread-locals without destructors, so it neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A turn, with what it allocates counted.
fn counted_turn(sim: &mut Sim) {
    COUNTING.set(true);
    sim.turn();
    COUNTING.set(false);
}

/// Injects `frame`, takes a counted turn and gives what was sent to `look`; buffers go back to the wire.
fn exchange_counted(sim: &mut Sim, frame: &[u8], mut look: impl FnMut(&[u8])) {
    sim.peer().inject(frame);
    counted_turn(sim);
    while let Some(packet) = sim.peer().take() {
        look(&packet);
        sim.peer().recycle(packet);
    }
}

/// Runs `request` until everything is warm, then a thousand times more; returns what those allocated.
fn allocations_once_warm(mut request: impl FnMut()) -> u64 {
    for _ in 0..300 {
        request();
    }
    ALLOCATIONS.set(0);
    for _ in 0..1000 {
        request();
    }
    ALLOCATIONS.get()
}

#[test]
fn the_allocator_counts() {
    COUNTING.set(true);
    drop(std::hint::black_box(Box::new(1)));
    COUNTING.set(false);
    assert_eq!(ALLOCATIONS.get(), 1);
}

#[test]
fn pings_datagrams_and_errors_allocate_nothing() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        let ends = (version.client(), version.server());
        let frames = [
            udp(ends, (5000, PORT), &pattern(64)),
            udp(ends, (5000, PORT), &pattern(1400)),
            udp(ends, (5000, CLOSED_PORT), &pattern(64)),
            echo_request(ends, 1, 2, &pattern(56)),
            vec![0xff; 60],
        ];
        let mut answers = 0;
        let allocations = allocations_once_warm(|| {
            for frame in &frames {
                exchange_counted(&mut sim, frame, |_| answers += 1);
            }
            // For the rate limit of the errors.
            sim.advance(Duration::from_millis(10));
        });
        assert_eq!(answers, 1300 * 4, "all but the last are answered");
        assert_eq!(allocations, 0, "over {version:?}");
    }
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n";

/// Answers lines that look like HTTP with a head and shared content.
struct Site(Bytes);

impl StreamInterruptlet for Site {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let bytes = request.bytes();
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return request.need_more();
        };
        let content = self.0.clone();
        let mut writer = request.reply(end + 4);
        writer.write(HEAD);
        writer.send_with_content(content, false)
    }
}

/// Sends `request` over one connection again and again, each reply `len` bytes long; returns what the
/// turns allocated.
fn stream_allocations(sim: &mut Sim, version: Version, request: &[u8], len: usize) -> u64 {
    let mut raw = Raw::open(sim, version, 5000);
    allocations_once_warm(|| {
        let frame = raw.segment(ACK | PSH, request).frame(raw.ends);
        raw.seq = raw.seq.wrapping_add(request.len() as u32);
        let mut received = 0;
        exchange_counted(sim, &frame, |packet| {
            received += dissect(packet).segment().payload.len();
        });
        assert_eq!(received, len);
        raw.ack = raw.ack.wrapping_add(received as u32);
        sim.advance(Duration::from_micros(50));
    })
}

#[test]
fn stream_echo_allocates_nothing() {
    for version in BOTH {
        let mut sim = Sim::new(echo_config());
        let allocations = stream_allocations(&mut sim, version, &pattern(64), 64);
        assert_eq!(allocations, 0, "over {version:?}");
        assert_at_rest(&mut sim);
    }
}

#[test]
fn small_shared_content_allocates_nothing() {
    for version in BOTH {
        let mut sim = Sim::new(SimConfig {
            streams: vec![stream(Site(pattern(128).into()))],
            ..SimConfig::default()
        });
        let request = b"GET / HTTP/1.1\r\nHost: site\r\n\r\n";
        let len = HEAD.len() + 128;
        let allocations = stream_allocations(&mut sim, version, request, len);
        assert_eq!(allocations, 0, "over {version:?}");
        // Two requests in one segment, answered together.
        let allocations = {
            let mut raw = Raw::open(&mut sim, version, 5001);
            let request = request.repeat(2);
            allocations_once_warm(|| {
                let frame = raw.segment(ACK | PSH, &request).frame(raw.ends);
                raw.seq = raw.seq.wrapping_add(request.len() as u32);
                exchange_counted(&mut sim, &frame, |packet| {
                    let payload = dissect(packet).segment().payload.len() as u32;
                    raw.ack = raw.ack.wrapping_add(payload);
                });
            })
        };
        assert_eq!(allocations, 0, "pipelined over {version:?}");
        assert_at_rest(&mut sim);
    }
}

/// Content of any size is shared, not copied: only the queue of pieces may grow, once.
#[test]
fn large_shared_content_is_not_copied() {
    let mut sim = Sim::new(SimConfig {
        streams: vec![stream(Site(pattern(1 << 20).into()))],
        ..SimConfig::default()
    });
    let mut raw = Raw::open(&mut sim, Version::V4, 5000);
    let mut download = || {
        let request = b"GET / HTTP/1.1\r\n\r\n";
        let mut frame = raw.segment(ACK, request).frame(raw.ends);
        raw.seq = raw.seq.wrapping_add(request.len() as u32);
        let mut received = 0;
        while received < HEAD.len() + (1 << 20) {
            let before = received;
            exchange_counted(&mut sim, &frame, |packet| {
                received += dissect(packet).segment().payload.len();
            });
            raw.ack = raw.ack.wrapping_add((received - before) as u32);
            frame = raw.segment(ACK, b"").frame(raw.ends);
        }
    };
    download();
    download();
    ALLOCATIONS.set(0);
    download();
    assert_eq!(ALLOCATIONS.get(), 0);
}

/// A connection that comes and goes finds everything where the last one left it.
#[test]
fn connections_reuse_what_is_there() {
    let mut sim = Sim::new(echo_config());
    let mut port = 5000;
    let allocations = allocations_once_warm(|| {
        port += 1;
        let mut raw = Raw::new(Version::V4, port);
        let syn = Segment {
            ack: 0,
            ..raw.segment(SYN, b"")
        };
        exchange_counted(&mut sim, &syn.frame(raw.ends), |packet| {
            raw.ack = dissect(packet).segment().seq.wrapping_add(1);
        });
        raw.seq += 1;
        let hello = raw.segment(ACK, b"hello").frame(raw.ends);
        let mut echoed = 0;
        exchange_counted(&mut sim, &hello, |packet| {
            echoed += dissect(packet).segment().payload.len();
        });
        assert_eq!(echoed, 5);
        raw.seq += 5;
        raw.ack = raw.ack.wrapping_add(5);
        let reset = raw.segment(RST, b"").frame(raw.ends);
        exchange_counted(&mut sim, &reset, |_| {});
    });
    assert_eq!(sim.flows(), 0);
    assert_eq!(allocations, 0);
}

/// Has one message echoed over and over, over TCP and over UDP.
struct Pinger {
    is_open: bool,
}

impl Client for Pinger {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        let (local, peer) = (source(Version::V4, 1, 1024), server(Version::V4));
        if !self.is_open && core.reach(peer.ip()) == Reach::Ready {
            self.is_open = true;
            core.open(local, peer, 1).unwrap();
            assert!(core.datagrams().send(local, peer, &[7; 64]));
        }
        None
    }

    fn connected(&mut self, stream: &mut Stream<'_>) {
        stream.send(&[7; 64]);
    }

    fn received(&mut self, bytes: &[u8], stream: &mut Stream<'_>) -> usize {
        stream.send(bytes)
    }

    fn closed(&mut self, _token: u64, end: End) {
        panic!("closed: {end:?}");
    }

    fn datagram(&mut self, datagram: &Datagram<'_>, datagrams: &mut Datagrams<'_>) {
        assert!(datagrams.send(datagram.local, datagram.peer, datagram.payload));
    }
}

#[test]
fn a_clients_requests_allocate_nothing() {
    let mut server = Sim::new(echo_config());
    let mut client = Sim::new(SimConfig {
        addresses: Vec::new(),
        sources: sources(),
        link: CLIENT_LINK,
        client: Some(Box::new(Pinger { is_open: false })),
        ..SimConfig::default()
    });
    let allocated = allocations_once_warm(|| {
        counted_turn(&mut client);
        while let Some(frame) = client.peer().take() {
            server.peer().inject(&frame);
            client.peer().recycle(frame);
        }
        server.turn();
        while let Some(frame) = server.peer().take() {
            client.peer().inject(&frame);
            server.peer().recycle(frame);
        }
    });
    let segments = counter(&client, "rx_frames") - counter(&client, "client_datagrams");
    assert!(segments > 1000 && counter(&client, "client_datagrams") > 1000);
    assert_eq!(allocated, 0);
}
