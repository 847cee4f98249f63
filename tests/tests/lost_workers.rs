//! Workers that end by themselves, and workers that do not end: a stack of this process, in the lab's namespace, whose
//! clients and handlers misbehave.

// Clippy knows test functions, but not their helpers.
#![allow(clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use interruptlet::client::{Client, Core, End, Stream};
use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use interruptlet::{Config, Report, RunError, Stack, StreamService};
use interruptlet_tests::lab::{CLIENT_IF, Lab, Options, SERVER_IF, VERSIONS, Version};
use interruptlet_tests::wait;

const PORT: u16 = 7;
/// Longer than a refusal or an answer takes, and shorter than a SYN that nobody gets is repeated twice.
const SHORTLY: Duration = Duration::from_millis(2500);

/// Panics when it is told to, which ends its worker: a client's panics are not contained.
struct Fuse {
    burns: Arc<AtomicBool>,
}

impl Client for Fuse {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        assert!(!self.burns.load(Ordering::Relaxed), "as the test wants it");
        Some(core.nanos() + 1_000_000)
    }

    fn connected(&mut self, _: &mut Stream<'_>) {}

    fn received(&mut self, bytes: &[u8], _: &mut Stream<'_>) -> usize {
        bytes.len()
    }

    fn closed(&mut self, _: u64, _: End) {}
}

/// Sends everything back, and does not come back from a request that begins with `hang`.
struct Echo;

impl StreamInterruptlet for Echo {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        while request.bytes().starts_with(b"hang") {
            std::thread::park();
        }
        let len = request.bytes().len();
        request.reply_in_place(len).send(len)
    }
}

/// Starts an echo on `queues` queues, one worker each; the client of queue `fused` has the fuse.
fn start(
    lab: &Lab,
    queues: u32,
    fused: usize,
    shared_address: bool,
    burns: &Arc<AtomicBool>,
) -> Stack {
    let mut config = Config::new(SERVER_IF);
    config.addresses = VERSIONS
        .map(|version| lab.server_cidr(version).parse().expect("an address"))
        .to_vec();
    config.shared_address = shared_address;
    config.queues = (0..queues).collect();
    config.cores = vec![0; queues as usize];
    config.poll = interruptlet::Poll::Sleep;
    let service = StreamService {
        interruptlet: Box::new(|_| Box::new(Echo)),
        slow: None,
        request_timeout: interruptlet::Duration::from_secs(10),
        idle_timeout: None,
        keep_alive: None,
    };
    let burns = Arc::clone(burns);
    let builder = Stack::builder(config)
        .stream(PORT, service)
        .client(Box::new(move |worker| {
            let never = Arc::default();
            let burns = Arc::clone(if worker == fused { &burns } else { &never });
            Box::new(Fuse { burns })
        }));
    lab.server().inside(|| builder.start()).expect("start")
}

fn check(lab: &Lab, stack: &mut Stack) -> Result<(), RunError> {
    lab.server().inside(|| stack.check())
}

fn count(report: &Report, name: &str) -> u64 {
    let found = report.counters.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

fn connect(lab: &Lab, version: Version) -> std::io::Result<TcpStream> {
    let to = lab.server_at(version, PORT);
    lab.client()
        .inside(|| TcpStream::connect_timeout(&to, SHORTLY))
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 5];
    stream.set_read_timeout(Some(SHORTLY)).expect("set");
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut back).is_ok()
}

#[test]
fn the_kernel_gets_what_is_for_a_worker_that_died_and_the_others_go_on() {
    let Some(lab) = Lab::new(Options {
        queues: 2,
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let burns = Arc::default();
    let mut stack = start(&lab, 2, 1, true, &burns);
    check(&lab, &mut stack).expect("both run");
    burns.store(true, Ordering::Relaxed);
    wait::until("the worker to die", || {
        check(&lab, &mut stack).expect("one of two still runs");
        stack.report().queues_lost == [1]
    });
    // Connections are spread over both queues: each is served, or refused by the kernel, which has the port reserved.
    // None is left without an answer.
    let (mut served, mut refused) = (0, 0);
    for version in VERSIONS.repeat(24) {
        match connect(&lab, version) {
            Ok(mut stream) => {
                assert!(echoes(&mut stream));
                served += 1;
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
            Err(error) => panic!("after {served} and {refused}: {error}"),
        }
    }
    assert!(served > 0 && refused > 0, "{served} and {refused}");
    let report = stack.shutdown(Duration::from_secs(1));
    assert_eq!(report.queues_lost, [1]);
    assert_eq!(count(&report, "workers_lost"), 1);
    assert!(!report.conserved, "nobody knows where its frames are");
    assert!(!lab.xdp_attached());
}

#[test]
fn an_own_address_is_answered_for_on_the_queue_of_a_worker_that_died() {
    let Some(lab) = Lab::new(Options {
        queues: 2,
        ..Options::default()
    }) else {
        return;
    };
    // veth puts what comes out of transmit queue N of one end into receive queue N of the other: all of it into the first.
    lab.client()
        .run_ok("ethtool", &["-L", CLIENT_IF, "tx", "1"]);
    let burns = Arc::default();
    let mut stack = start(&lab, 2, 0, false, &burns);
    burns.store(true, Ordering::Relaxed);
    wait::until("the worker to die", || {
        check(&lab, &mut stack).expect("one of two still runs");
        stack.report().queues_lost == [0]
    });
    for version in VERSIONS {
        let address = lab.server_ip(version).to_string();
        lab.client().run_ok(
            "ping",
            &["-n", "-c", "3", "-i", "0.2", "-w", "10", &address],
        );
    }
    // One question and three pings of each version; fewer questions if the kernel knew the answer before the worker died.
    let answered = count(&stack.report(), "unserved_queue_answers");
    assert!(answered >= 6, "{answered}");
    stack.shutdown(Duration::from_secs(1));
}

#[test]
fn a_stack_whose_last_worker_died_says_so() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let burns = Arc::default();
    let mut stack = start(&lab, 1, 0, true, &burns);
    burns.store(true, Ordering::Relaxed);
    wait::until("the worker to die", || check(&lab, &mut stack).is_err());
    for _ in 0..2 {
        let error = check(&lab, &mut stack).expect_err("nothing runs any more");
        assert!(matches!(error, RunError::Panicked { queue: 0 }), "{error}");
    }
    let refused = connect(&lab, Version::V4).expect_err("nobody serves it");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    stack.shutdown(Duration::from_secs(1));
}

#[test]
fn a_stop_has_an_end_though_a_handler_has_none() {
    let Some(lab) = Lab::new(Options {
        kernel_address: true,
        ..Options::default()
    }) else {
        return;
    };
    let mut stack = start(&lab, 1, 0, true, &Arc::default());
    let mut stream = connect(&lab, Version::V4).expect("served");
    assert!(echoes(&mut stream));
    stream.write_all(b"hang").expect("sent");
    check(&lab, &mut stack).expect("a handler that hangs is no end");
    let (sender, reports) = mpsc::channel();
    std::thread::spawn(move || {
        // Fails only if the test has given up.
        let _ = sender.send(stack.shutdown(Duration::from_millis(100)));
    });
    let report = reports
        .recv_timeout(Duration::from_secs(30))
        .expect("a stop ends");
    assert_eq!(report.queues_left, [0]);
    assert!(
        !report.conserved,
        "its core may do anything with its frames"
    );
    assert_eq!(report.slow_threads_left, 0);
    assert!(!lab.xdp_attached());
    let refused = connect(&lab, Version::V4).expect_err("nobody serves it");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
}
