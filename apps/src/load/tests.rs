//! The clients against servers in simulation: two workers on one wire and one virtual clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, bounded};
use interruptlet::Duration;
use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};
use interruptlet::port::faulty::Faults;
use interruptlet::sim::{Sim, SimConfig, SimDatagram, SimStream};

use super::course::{Course, EVENTS_MAX, Event, Fatal, Finished, Phase, Shared};
use super::plan::Plan;
use super::record::{ErrorKind, Record};
use super::run;
use crate::echo::{DatagramEcho, StreamEcho};

const MILLI: u64 = 1_000_000;
const PORT: u16 = 7;
/// How far time goes on with every step, and if nothing happens.
const STEP: Duration = Duration::from_micros(20);
const IDLE_STEP: Duration = Duration::from_micros(100);
/// No run takes longer.
const LIMIT: u64 = 60_000 * MILLI;

/// A stream handler from a function.
struct Stream<F>(F);

impl<F: FnMut(StreamRequest<'_>) -> StreamReply + Send> StreamInterruptlet for Stream<F> {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        if request.is_end_of_stream() && request.bytes().is_empty() {
            return request.close();
        }
        (self.0)(request)
    }
}

fn stream<F>(handle: F) -> Box<dyn StreamInterruptlet>
where
    F: FnMut(StreamRequest<'_>) -> StreamReply + Send + 'static,
{
    Box::new(Stream(handle))
}

/// A datagram handler from a function.
struct Datagram<F>(F);

impl<F: FnMut(DatagramRequest<'_>) -> DatagramReply + Send> DatagramInterruptlet for Datagram<F> {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        (self.0)(request)
    }
}

fn plan(target: &str) -> Plan {
    Plan {
        target: target.parse().unwrap(),
        connections: 4,
        idle: 0,
        depth: 1,
        size: 64,
        open_rate: 1e5,
        rate: None,
        duration: 40 * MILLI,
        warmup: 5 * MILLI,
        timeout: 100 * MILLI,
        slow: None,
        sources: "10.9.1.0/24".parse().unwrap(),
        seed: 3,
        body: None,
    }
}

fn tcp() -> Plan {
    plan("tcp-echo://192.0.2.1:7")
}

fn upload() -> Plan {
    plan("tcp-upload://192.0.2.1:7")
}

fn udp() -> Plan {
    plan("udp-echo://192.0.2.1:7")
}

fn http(scheme: &str) -> Plan {
    plan(&format!("{scheme}://192.0.2.1:7/x"))
}

struct World {
    client: Sim,
    server: Sim,
    events: Receiver<Event>,
    shared: Arc<Shared>,
    seen: Vec<&'static str>,
    finished: Option<Finished>,
    /// Nothing moves but the client.
    is_stalled: bool,
    /// Whether the server hears of a frame.
    passes: fn(&[u8]) -> bool,
}

impl World {
    fn new(plan: Plan, server: SimConfig) -> Self {
        let shared = Arc::new(Shared::default());
        let (to_main, events) = bounded(EVENTS_MAX);
        let record = Record::new().unwrap();
        let sources = vec![plan.sources];
        let client = run::client(Course::new(plan, record, Arc::clone(&shared), to_main));
        Self {
            client: Sim::new(SimConfig {
                addresses: Vec::new(),
                sources,
                link: [2, 0, 0, 0, 0, 2],
                client: Some(client),
                seed: 5,
                ..SimConfig::default()
            }),
            server: Sim::new(server),
            events,
            shared,
            seen: Vec::new(),
            finished: None,
            is_stalled: false,
            passes: |_| true,
        }
    }

    fn with_stream(plan: Plan, handler: Box<dyn StreamInterruptlet>) -> Self {
        let service = SimStream {
            port: PORT,
            interruptlet: handler,
            slow: None,
            request_timeout: Duration::from_secs(100),
            idle_timeout: None,
            keep_alive: None,
        };
        Self::new(
            plan,
            SimConfig {
                streams: vec![service],
                ..SimConfig::default()
            },
        )
    }

    fn with_datagrams<F>(plan: Plan, handle: F) -> Self
    where
        F: FnMut(DatagramRequest<'_>) -> DatagramReply + Send + 'static,
    {
        let service = SimDatagram {
            port: PORT,
            interruptlet: Box::new(Datagram(handle)),
            slow: None,
        };
        Self::new(
            plan,
            SimConfig {
                datagrams: vec![service],
                ..SimConfig::default()
            },
        )
    }

    fn step(&mut self) {
        let mut worked = self.client.turn();
        if !self.is_stalled {
            while let Some(frame) = self.client.peer().take() {
                if (self.passes)(&frame) {
                    self.server.peer().inject(&frame);
                }
                self.client.peer().recycle(frame);
            }
            worked |= self.server.turn();
            while let Some(frame) = self.server.peer().take() {
                self.client.peer().inject(&frame);
                self.server.peer().recycle(frame);
            }
        }
        let step = if worked { STEP } else { IDLE_STEP };
        self.client.advance(step);
        self.server.advance(step);
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Begin => self.seen.push("begin"),
                Event::End => self.seen.push("end"),
                Event::Done(finished) => self.finished = Some(*finished),
            }
        }
    }

    fn now(&self) -> u64 {
        self.client.now().total_micros() as u64 * 1000
    }

    fn run_until(&mut self, time: u64) {
        while self.now() < time && self.finished.is_none() {
            self.step();
        }
    }

    /// Runs to the end, and checks what holds for every end.
    fn finish(mut self) -> Finished {
        self.run_until(LIMIT);
        let finished = self.finished.take().expect("the run ends");
        // The last resets are on their way.
        for _ in 0..1000 {
            self.step();
        }
        assert!(self.client.frames().is_conserved());
        let measured: &[&str] = if finished.is_measured {
            &["begin", "end"]
        } else {
            &[]
        };
        assert_eq!(self.seen, measured);
        finished
    }
}

fn run_stream<F>(plan: Plan, handle: F) -> Finished
where
    F: FnMut(StreamRequest<'_>) -> StreamReply + Send + 'static,
{
    World::with_stream(plan, stream(handle)).finish()
}

fn run_datagrams<F>(plan: Plan, handle: F) -> Finished
where
    F: FnMut(DatagramRequest<'_>) -> DatagramReply + Send + 'static,
{
    World::with_datagrams(plan, handle).finish()
}

fn assert_right(finished: &Finished) {
    assert_eq!(finished.record.errors.listed(), "");
    assert_eq!(finished.fatal, None);
    assert!(finished.is_measured && finished.record.requests > 0);
}

/// There are errors, all of one kind.
fn assert_only(finished: &Finished, kind: ErrorKind) {
    let errors = finished.record.errors;
    let others = errors.total() - errors.of(kind);
    assert!(errors.of(kind) > 0 && others == 0, "{}", errors.listed());
}

fn echo(request: StreamRequest<'_>) -> StreamReply {
    StreamEcho.handle(request)
}

fn echo_datagram(request: DatagramRequest<'_>) -> DatagramReply {
    DatagramEcho.handle(request)
}

/// Answers the `n`th request, counted from zero over all connections, wrongly.
fn wrong_at<F>(n: u64, mut wrong: F) -> impl FnMut(StreamRequest<'_>) -> StreamReply + Send
where
    F: FnMut(StreamRequest<'_>) -> StreamReply + Send,
{
    let mut count = 0;
    move |request| {
        count += 1;
        if count == n + 1 {
            wrong(request)
        } else {
            echo(request)
        }
    }
}

fn changed(request: StreamRequest<'_>) -> StreamReply {
    let len = request.bytes().len();
    let mut reply = request.reply_in_place(len);
    reply.buffer()[len - 1] ^= 1;
    reply.send(len)
}

fn reply(request: StreamRequest<'_>, bytes: &[u8]) -> StreamReply {
    let consumed = request.bytes().len();
    let mut reply = request.reply(consumed);
    reply.write(bytes);
    reply.send()
}

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const LAST_RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

fn last_reply(request: StreamRequest<'_>, bytes: &[u8]) -> StreamReply {
    let consumed = request.bytes().len();
    let mut reply = request.reply(consumed);
    reply.write(bytes);
    reply.send_and_close()
}

#[test]
fn an_honest_echo_server_is_found_right() {
    for (connections, depth, size) in [(1, 1, 1), (4, 1, 64), (2, 3, 700), (2, 2, 20_000)] {
        let finished = run_stream(
            Plan {
                connections,
                depth,
                size,
                ..tcp()
            },
            echo,
        );
        assert_right(&finished);
        let record = &finished.record;
        assert_eq!(finished.open_at_end, u64::from(connections));
        assert_eq!(record.opened, u64::from(connections));
        assert_eq!(record.established, record.opened);
        assert!(!record.latencies.is_empty() && record.answered > record.requests);
        // What arrives is what was sent, but for what is on the way at either end.
        let size = u64::from(size);
        let on_the_way = u64::from(connections * depth) * size;
        assert!(record.bytes_received.abs_diff(record.requests * size) <= on_the_way);
    }
}

#[test]
fn wrong_echoes_are_caught_on_a_stream() {
    type Wrong = fn(StreamRequest<'_>) -> StreamReply;
    let cases: [(&str, ErrorKind, Wrong); 7] = [
        ("a changed byte", ErrorKind::Corrupt, changed),
        ("a lost byte", ErrorKind::Timeout, |request| {
            let len = request.bytes().len();
            request.reply_in_place(len).send(len - 1)
        }),
        ("a byte too many", ErrorKind::Unexpected, |request| {
            let bytes = [request.bytes(), b"x"].concat();
            reply(request, &bytes)
        }),
        ("twice", ErrorKind::Unexpected, |request| {
            let bytes = request.bytes().repeat(2);
            reply(request, &bytes)
        }),
        ("swapped", ErrorKind::Corrupt, |request| {
            let mut bytes = request.bytes().to_vec();
            bytes.rotate_left(32);
            reply(request, &bytes)
        }),
        ("an end", ErrorKind::ClosedEarly, |request| request.close()),
        ("a reset", ErrorKind::Reset, |request| request.abort()),
    ];
    for (name, kind, wrong) in cases {
        let finished = run_stream(tcp(), wrong_at(50, wrong));
        let listed = format!("1 {}", kind.name());
        assert_eq!(finished.record.errors.listed(), listed, "{name}");
        // The others went on, and another connection took its place.
        assert!(finished.record.requests > 100, "{name}");
        if kind != ErrorKind::Timeout {
            assert_eq!(finished.record.opened, 5, "{name}");
            assert_eq!(finished.open_at_end, 4, "{name}");
        }
    }
}

#[test]
fn pipelined_messages_in_the_wrong_order_are_caught() {
    let plan = Plan {
        depth: 8,
        connections: 1,
        ..tcp()
    };
    let finished = run_stream(
        plan,
        wrong_at(20, |request| {
            let mut bytes = request.bytes().to_vec();
            assert!(bytes.len() >= 128, "two messages at once");
            bytes.rotate_left(64);
            reply(request, &bytes)
        }),
    );
    let errors = finished.record.errors;
    assert_eq!(errors.of(ErrorKind::Corrupt), 1);
    assert_eq!(errors.of(ErrorKind::Lost), 7);
    assert_eq!(errors.total(), 8);
}

#[test]
fn a_server_that_stops_answering_ends_the_run() {
    let finished = run_stream(tcp(), |request| {
        if request.now().total_millis() < 20 {
            echo(request)
        } else {
            let all = request.bytes().len();
            request.ignore(all)
        }
    });
    assert_eq!(
        finished.fatal, None,
        "the interval is shorter than the timeout"
    );
    assert_only(&finished, ErrorKind::Timeout);
    assert_eq!(finished.record.errors.total(), 4);
    // Their waiting shows among the latencies.
    assert!(finished.record.latencies.max() >= 100 * MILLI);

    let plan = Plan {
        duration: 1000 * MILLI,
        ..tcp()
    };
    let finished = run_stream(plan, |request| {
        let all = request.bytes().len();
        request.ignore(all)
    });
    assert_eq!(finished.fatal, Some(Fatal::Silent));
    assert!(finished.record.errors.of(ErrorKind::Timeout) >= 4);
    assert!(finished.is_measured && finished.record.seconds() < 0.5);
}

#[test]
fn nobody_there() {
    // A host that does not serve the port.
    let finished = World::new(tcp(), SimConfig::default()).finish();
    assert_eq!(finished.fatal, Some(Fatal::Refused));
    assert_only(&finished, ErrorKind::Refused);
    assert!(!finished.is_measured);

    // No host.
    let finished = World::new(plan("tcp-echo://192.0.2.9:7"), SimConfig::default()).finish();
    assert_eq!(finished.fatal, Some(Fatal::Unreachable));
    assert_eq!(finished.record.opened, 0);

    // One that answers to ARP only.
    let mut world = World::with_stream(tcp(), stream(echo));
    world.passes = |frame| frame[12..14] == [8, 6];
    let finished = world.finish();
    assert_eq!(finished.fatal, Some(Fatal::Silent));
    assert_only(&finished, ErrorKind::ConnectTimeout);
}

#[test]
fn a_server_that_dies_ends_the_run() {
    let mut count = 0;
    let plan = Plan {
        duration: 5000 * MILLI,
        ..tcp()
    };
    let mut world = World::with_stream(plan.clone(), stream(echo));
    world.run_until(20 * MILLI);
    // Another worker at the same address: it knows nothing of the connections and serves nothing.
    world.server = Sim::new(SimConfig::default());
    let passed = world.client.now() - world.server.now();
    world.server.advance(passed);
    let finished = world.finish();
    assert_eq!(finished.fatal, Some(Fatal::Refused));
    let errors = finished.record.errors;
    // What the old one had taken in is not sent again before it is late.
    let missed = errors.of(ErrorKind::Reset) + errors.of(ErrorKind::Timeout);
    assert_eq!(missed, 4, "{}", errors.listed());
    assert!(errors.of(ErrorKind::Refused) >= 3);
    assert!(finished.record.seconds() < 1.0);

    // One that resets everything from some time on, and still accepts: no end, but errors.
    let finished = run_stream(tcp(), move |request| {
        count += 1;
        if count < 100 {
            echo(request)
        } else {
            request.abort()
        }
    });
    assert_only(&finished, ErrorKind::Reset);
    assert_eq!(finished.fatal, None);
}

#[test]
fn what_goes_wrong_on_the_wire_is_no_error_over_tcp() {
    let faults = Faults {
        loss: 0.01,
        duplication: 0.02,
        reordering: 0.05,
        corruption: 0.01,
        delay_max: Duration::from_micros(200),
        ..Faults::default()
    };
    let plan = Plan {
        duration: 2000 * MILLI,
        timeout: 20_000 * MILLI,
        depth: 4,
        size: 1000,
        ..tcp()
    };
    let mut world = World::with_stream(plan, stream(echo));
    world.client.set_faults(faults);
    let finished = world.finish();
    assert_right(&finished);
}

#[test]
fn idle_connections_do_one_request_and_stay() {
    let plan = Plan {
        idle: 20,
        connections: 2,
        ..tcp()
    };
    let finished = run_stream(plan.clone(), echo);
    assert_right(&finished);
    assert_eq!((finished.open_at_end, finished.record.opened), (22, 22));

    // One of them is closed by the server in the middle of it.
    let mut count = 0;
    let finished = run_stream(plan.clone(), move |request| {
        count += 1;
        if count == 5 {
            let bytes = request.bytes().to_vec();
            return last_reply(request, &bytes);
        }
        echo(request)
    });
    assert_only(&finished, ErrorKind::ClosedEarly);
    assert_eq!(
        (finished.record.errors.total(), finished.open_at_end),
        (1, 21)
    );
}

#[test]
fn connections_are_opened_at_the_rate_asked_for() {
    let plan = Plan {
        connections: 200,
        open_rate: 2000.0,
        duration: MILLI,
        warmup: 0,
        // Next to no requests: it is about the connections.
        rate: Some(1000.0),
        ..tcp()
    };
    let mut world = World::with_stream(plan, stream(echo));
    world.run_until(50 * MILLI);
    let opened = world.client.counters().active_opens.get();
    // A hundred in 50 ms, after a small burst at the beginning.
    assert!((90..=170).contains(&opened), "{opened} in 50 ms");
    let finished = world.finish();
    assert_eq!(finished.record.errors.total(), 0);
    assert_eq!(finished.open_at_end, 200);
}

#[test]
fn a_stall_shows_in_an_open_loop() {
    for target in ["tcp-echo", "udp-echo"] {
        let plan = Plan {
            rate: Some(20_000.0),
            duration: 200 * MILLI,
            timeout: 1000 * MILLI,
            ..plan(&format!("{target}://192.0.2.1:7"))
        };
        let service = SimConfig {
            streams: vec![SimStream {
                port: PORT,
                interruptlet: stream(echo),
                slow: None,
                request_timeout: Duration::from_secs(100),
                idle_timeout: None,
                keep_alive: None,
            }],
            datagrams: vec![SimDatagram {
                port: PORT,
                interruptlet: Box::new(DatagramEcho),
                slow: None,
            }],
            ..SimConfig::default()
        };
        let mut world = World::new(plan, service);
        world.run_until(60 * MILLI);
        world.is_stalled = true;
        world.run_until(110 * MILLI);
        world.is_stalled = false;
        let finished = world.finish();
        assert_right(&finished);
        let latencies = &finished.record.latencies;
        // Every request of the interval has a latency, also those that were due in the stall.
        assert!(
            (3999..=4000).contains(&latencies.len()),
            "{}",
            latencies.len()
        );
        assert!(latencies.max() >= 49 * MILLI);
        // A quarter of the time it stalled: so many requests were late, evenly from none to all of it.
        let late = latencies.count_between(10 * MILLI, 60 * MILLI);
        assert!((750..=900).contains(&late), "{late} of 4000 late");
        let very_late = latencies.count_between(40 * MILLI, 60 * MILLI);
        assert!((150..=260).contains(&very_late), "{very_late} very late");
    }
}

#[test]
fn what_an_open_loop_could_not_send_in_time_counts() {
    let plan = Plan {
        rate: Some(1000.0),
        duration: 100 * MILLI,
        timeout: 50 * MILLI,
        ..tcp()
    };
    // Answers for a while, then no more.
    let mut count = 0;
    let finished = run_stream(plan, move |request| {
        count += 1;
        if count < 60 {
            echo(request)
        } else {
            let all = request.bytes().len();
            request.ignore(all)
        }
    });
    let record = &finished.record;
    // Ended by itself or not, each request that was due has an answer or an error or was cut off with the end.
    assert!(
        record.errors.of(ErrorKind::Timeout) >= 4,
        "{}",
        record.errors.listed()
    );
    assert!(record.latencies.max() >= 50 * MILLI);

    // The server comes to a halt just before the end of the interval: everything due until then is missed.
    let plan = Plan {
        rate: Some(1000.0),
        duration: 100 * MILLI,
        timeout: 80 * MILLI,
        ..tcp()
    };
    let mut world = World::with_stream(plan, stream(echo));
    world.run_until(60 * MILLI);
    world.is_stalled = true;
    let finished = world.finish();
    assert_eq!(finished.fatal, None);
    let record = &finished.record;
    let late = record.errors.of(ErrorKind::Timeout);
    assert!((40..=50).contains(&late), "{}", record.errors.listed());
    assert_eq!(record.latencies.len(), 100);
}

#[test]
fn an_honest_http_server_is_found_right() {
    for (scheme, depth, rate) in [
        ("http", 1, None),
        ("http", 4, None),
        ("http", 2, Some(5000.0)),
        ("http-download", 1, None),
    ] {
        let plan = Plan {
            depth,
            rate,
            ..http(scheme)
        };
        let finished = run_stream(plan, |request| {
            let requests = request.bytes().windows(4).filter(|end| *end == b"\r\n\r\n");
            let count = requests.count();
            if !request.bytes().ends_with(b"\r\n\r\n") {
                return request.need_more();
            }
            assert!(
                request
                    .bytes()
                    .starts_with(b"GET /x HTTP/1.1\r\nHost: 192.0.2.1:7\r\n")
            );
            reply(request, &RESPONSE.repeat(count))
        });
        assert_right(&finished);
        assert_eq!(finished.open_at_end, 4);
    }
}

#[test]
fn wrong_responses_are_caught() {
    let wrong: [(&[u8], ErrorKind); 7] = [
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            ErrorKind::BadStatus,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
            ErrorKind::BadLength,
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellO",
            ErrorKind::BadBody,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ErrorKind::BadResponse,
        ),
        (b"220 mail.example ESMTP\r\n", ErrorKind::BadResponse),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            ErrorKind::Timeout,
        ),
        (b"", ErrorKind::Timeout),
    ];
    for (response, kind) in wrong {
        for scheme in ["http", "http-download"] {
            let mut count = 0;
            let finished = run_stream(http(scheme), move |request| {
                count += 1;
                reply(request, if count == 30 { response } else { RESPONSE })
            });
            assert_only(&finished, kind);
            assert_eq!(finished.record.errors.total(), 1, "{kind:?}");
        }
    }
    // Wrong by the file, though all are the same.
    let plan = Plan {
        body: Some(b"hullo".to_vec()),
        ..http("http")
    };
    let finished = run_stream(plan, |request| reply(request, RESPONSE));
    assert_only(&finished, ErrorKind::BadBody);
    assert_eq!(finished.record.answered, 0);
    // Half a response, then the end.
    let mut count = 0;
    let finished = run_stream(http("http"), move |request| {
        count += 1;
        if count == 30 {
            last_reply(request, &RESPONSE[..RESPONSE.len() - 1])
        } else {
            reply(request, RESPONSE)
        }
    });
    assert_only(&finished, ErrorKind::ClosedEarly);
    // One more than was asked for.
    let mut count = 0;
    let finished = run_stream(http("http"), move |request| {
        count += 1;
        reply(request, &RESPONSE.repeat(if count == 30 { 2 } else { 1 }))
    });
    assert_only(&finished, ErrorKind::Unexpected);
}

#[test]
fn one_request_per_connection() {
    for rate in [None, Some(3000.0)] {
        let plan = Plan {
            rate,
            idle: 3,
            open_rate: 100_000.0,
            ..http("http-connection")
        };
        let handle = |request: StreamRequest<'_>| {
            let close = memchr::memmem::find(request.bytes(), b"Connection: close").is_some();
            if close {
                last_reply(request, LAST_RESPONSE)
            } else {
                reply(request, RESPONSE)
            }
        };
        let finished = run_stream(plan, handle);
        assert_right(&finished);
        let record = &finished.record;
        // The idle ones had one request each, and all others had a connection of their own.
        assert!(record.opened >= record.answered && record.answered > 100);
        assert!(finished.open_at_end >= 3);
    }
    // A body that ends with the connection.
    let finished = run_stream(http("http-connection"), |request| {
        last_reply(
            request,
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        )
    });
    assert_right(&finished);
    // A server that does not close.
    let finished = run_stream(http("http-connection"), |request| reply(request, RESPONSE));
    assert!(finished.record.errors.of(ErrorKind::NotClosed) >= 4);
    assert_eq!(finished.record.answered, finished.record.errors.total());
}

#[test]
fn a_server_may_end_kept_connections_if_it_says_so() {
    let mut count = 0;
    let finished = run_stream(http("http"), move |request| {
        count += 1;
        if count % 10 == 0 {
            last_reply(request, LAST_RESPONSE)
        } else {
            reply(request, RESPONSE)
        }
    });
    assert_right(&finished);
    assert!(finished.record.opened > 10);
    assert_eq!(finished.record.opened, finished.record.established);
}

#[test]
fn slow_readers_read_slowly() {
    let body = vec![b'x'; 20_000];
    let plan = Plan {
        slow: Some(100_000),
        duration: 500 * MILLI,
        warmup: 50 * MILLI,
        timeout: 1000 * MILLI,
        body: Some(body.clone()),
        ..http("http-download")
    };
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n";
    let response = [&head[..], &body].concat();
    let finished = run_stream(plan, move |request| reply(request, &response));
    assert_right(&finished);
    // Four connections, half a second, 100 kB/s each: 200 kB, within the half second's worth of each.
    let read = finished.record.bytes_received;
    assert!((150_000..=250_000).contains(&read), "{read} bytes");
    assert_eq!(finished.record.unfinished, 4);
}

#[test]
fn uploads_end_when_the_server_has_taken_them() {
    let plan = Plan {
        size: 300_000,
        duration: 200 * MILLI,
        ..upload()
    };
    let taken = Arc::new(AtomicU64::new(0));
    let finished = run_stream(plan, {
        let taken = Arc::clone(&taken);
        move |request: StreamRequest<'_>| {
            let len = request.bytes().len();
            taken.fetch_add(len as u64, Ordering::Relaxed);
            request.ignore(len)
        }
    });
    assert_right(&finished);
    let record = &finished.record;
    // All that were begun, but for those that were under way at the end.
    let whole = record.answered * 300_000;
    let taken = taken.load(Ordering::Relaxed);
    assert!((whole..whole + 5 * 300_000).contains(&taken), "{taken}");
    assert!(record.requests > 4 && record.opened > 8, "{record:?}");
    assert!(record.bytes_sent >= (record.requests - 4) * 300_000);
    assert_eq!(record.bytes_received, 0);
}

#[test]
fn an_upload_may_take_longer_than_the_run() {
    let plan = Plan {
        size: 1 << 30,
        ..upload()
    };
    let finished = run_stream(plan, |request: StreamRequest<'_>| {
        let len = request.bytes().len();
        request.ignore(len)
    });
    assert!(finished.is_measured && finished.record.errors.total() == 0);
    let record = &finished.record;
    assert_eq!((record.answered, record.unfinished), (0, 4));
    assert!(record.bytes_sent > 0);
}

#[test]
fn uploads_that_are_cut_or_answered_are_caught() {
    // More than is sent before anything comes back.
    let plan = Plan {
        size: 1 << 24,
        ..upload()
    };
    let answered = run_stream(plan.clone(), |request: StreamRequest<'_>| {
        let len = request.bytes().len();
        request.reply_in_place(len).send(1)
    });
    assert_only(&answered, ErrorKind::Unexpected);
    let closed = run_stream(plan.clone(), |request: StreamRequest<'_>| request.close());
    assert!(
        closed.record.errors.of(ErrorKind::ClosedEarly) + closed.record.errors.of(ErrorKind::Reset)
            > 0
    );
    assert_eq!(closed.record.answered, 0);
    let stuck = run_stream(plan, |request: StreamRequest<'_>| request.need_more());
    assert!(stuck.record.errors.total() > 0);
    assert_eq!(stuck.record.answered, 0);
}

#[test]
fn honest_datagrams() {
    for (connections, size, rate) in [
        (1, 1, None),
        (4, 64, None),
        (30, 1400, None),
        (8, 64, Some(9000.0)),
    ] {
        let plan = Plan {
            connections,
            size,
            rate,
            ..udp()
        };
        let finished = run_datagrams(plan, echo_datagram);
        assert_right(&finished);
        if let Some(rate) = rate {
            assert_eq!(finished.record.latencies.len(), (rate * 0.04) as u64);
        }
    }
}

#[test]
fn wrong_datagrams_are_caught() {
    type Wrong = fn(DatagramRequest<'_>, &[u8]) -> DatagramReply;
    let cases: [(&str, ErrorKind, Wrong); 6] = [
        ("changed", ErrorKind::Corrupt, |request, _| {
            let len = request.bytes().len();
            let mut reply = request.reply_in_place();
            reply.buffer()[0] ^= 1;
            reply.send(len)
        }),
        ("cut off", ErrorKind::Corrupt, |request, _| {
            let len = request.bytes().len();
            request.reply_in_place().send(len - 1)
        }),
        ("empty", ErrorKind::Corrupt, |request, _| request.reply(b"")),
        ("lost", ErrorKind::Timeout, |request, _| request.ignore()),
        ("of somebody else", ErrorKind::Corrupt, |request, others| {
            request.reply(others)
        }),
        ("too long", ErrorKind::Corrupt, |request, _| {
            let bytes = [request.bytes(), b"x"].concat();
            request.reply(&bytes)
        }),
    ];
    for (name, kind, wrong) in cases {
        let mut count = 0;
        let mut last = Vec::new();
        let finished = run_datagrams(udp(), move |request| {
            count += 1;
            if count == 50 {
                return wrong(request, &last);
            }
            last = request.bytes().to_vec();
            echo_datagram(request)
        });
        assert_eq!(finished.record.errors.of(kind), 1, "{name}");
        assert_only(&finished, kind);
    }
}

#[test]
fn datagrams_that_come_twice_or_late_are_unexpected() {
    let mut world = World::with_datagrams(udp(), echo_datagram);
    world.client.set_faults(Faults {
        duplication: 0.02,
        ..Faults::default()
    });
    let finished = world.finish();
    assert_only(&finished, ErrorKind::Unexpected);
    assert!(finished.record.requests > 100);

    let mut world = World::with_datagrams(udp(), echo_datagram);
    world.client.set_faults(Faults {
        loss: 0.01,
        ..Faults::default()
    });
    let finished = world.finish();
    assert_only(&finished, ErrorKind::Timeout);
}

#[test]
fn datagrams_that_cannot_be_sent_end_the_run() {
    let plan = Plan {
        size: 1473,
        ..udp()
    };
    let finished = run_datagrams(plan, echo_datagram);
    assert_eq!(finished.fatal, Some(Fatal::NotSent));
    let finished = World::new(
        Plan {
            duration: 1000 * MILLI,
            ..udp()
        },
        SimConfig::default(),
    )
    .finish();
    assert_eq!(finished.fatal, Some(Fatal::Silent));
}

#[test]
fn a_run_can_be_stopped_at_any_time() {
    for (time, is_measured) in [(0, false), (3, false), (20, true)] {
        for target in ["tcp-echo", "udp-echo"] {
            let plan = Plan {
                duration: 10_000 * MILLI,
                connections: 600,
                ..plan(&format!("{target}://192.0.2.1:7"))
            };
            let service = SimDatagram {
                port: PORT,
                interruptlet: Box::new(DatagramEcho),
                slow: None,
            };
            let mut world = World::with_stream(plan, stream(echo));
            if target == "udp-echo" {
                world.server = Sim::new(SimConfig {
                    datagrams: vec![service],
                    ..SimConfig::default()
                });
            }
            world.run_until(time * MILLI);
            world.shared.stop.store(true, Ordering::Relaxed);
            let finished = world.finish();
            assert_eq!(finished.is_measured, is_measured, "{target} {time}");
            assert_eq!(finished.record.errors.total(), 0, "{target} {time}");
            assert!(finished.record.seconds() < 0.1);
        }
    }
}

#[test]
fn progress_is_published() {
    let mut world = World::with_stream(tcp(), stream(echo));
    world.run_until(30 * MILLI);
    let shared = &world.shared;
    assert_eq!(shared.phase.load(Ordering::Relaxed), Phase::Measuring as u8);
    assert_eq!(shared.open.load(Ordering::Relaxed), 4);
    assert!(shared.answered.load(Ordering::Relaxed) > 100);
    world.finish();
}
