//! Downloads over a simulated link: a server of generated content, a client side that opens connections when a plan says,
//! checks every byte and notes how many had come by when, and a [`Meter`] on the wire.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use interruptlet::client::{Client, Core, End, Reach, Stream};
use interruptlet::interruptlet::{StreamInterruptlet, StreamReply, StreamRequest};
use interruptlet::pool::{Body, BodySource, Deferred, Responder, Response, SlowPath};
use interruptlet::port::link::{Faults, LinkCounts};
use interruptlet::sim::SimConfig;
use interruptlet::{Duration, Instant};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::lane::Lane;
use super::meter::{Meter, Sent};
use super::pair::{Pair, server, source};
use super::{Version, assert_at_rest, stream};

/// Bytes after which the content repeats: a prime number, so that no part is where a multiple of a segment's size before
/// or after is the same.
const PERIOD: usize = 1_000_003;
/// Content up to this size is given to the stack at once; more comes from a source.
const AT_ONCE_MAX: u64 = 64 * 1024;
/// Bytes of a chunk of the source.
const CHUNK: usize = 256 * 1024;
/// The finest time between two notes of how much has come.
const NOTE_EVERY: u64 = 1_000_000;
/// Virtual time after which everything of a connection that was closed is gone.
const REST: Duration = Duration::from_secs(300);

/// The content, [`PERIOD`] bytes of it.
fn content() -> &'static Bytes {
    static CONTENT: OnceLock<Bytes> = OnceLock::new();
    CONTENT.get_or_init(|| {
        let mut bytes = vec![0; PERIOD];
        SmallRng::seed_from_u64(1).fill_bytes(&mut bytes);
        bytes.into()
    })
}

/// As many bytes of the content, from offset `at` on, as are in one piece; `most` at most.
fn piece(at: u64, most: usize) -> Bytes {
    let start = (at % PERIOD as u64) as usize;
    content().slice(start..(start + most).min(PERIOD))
}

/// A download of a plan.
#[derive(Debug, Clone, Copy)]
pub struct Download {
    pub bytes: u64,
    /// The time from the start to when its connection is opened.
    pub begins: Duration,
}

/// Downloads, and the network that they share.
#[derive(Debug, Clone)]
pub struct Plan {
    pub downloads: Vec<Download>,
    /// The way to the client: its rate and queue are the bottleneck. The delay is half of the round trip.
    pub link: Faults,
    /// The receive buffer of each connection.
    pub window: usize,
    pub seed: u64,
    /// The virtual time after which downloads that are not over are given up.
    pub patience: Duration,
}

/// The course of a download. Times are nanoseconds from the start.
#[derive(Debug, Clone, Default)]
pub struct Course {
    pub opened: u64,
    /// When everything had come and the server had closed.
    pub ended: Option<u64>,
    pub received: u64,
    /// The first thing that was not as it should be. Told at the end, because a stack may contain the panics of what it
    /// calls.
    wrong: Option<String>,
    /// How many bytes had come by when, at times apart.
    notes: Vec<(u64, u64)>,
}

/// What came of a plan.
#[derive(Debug, Clone)]
pub struct Report {
    pub courses: Vec<Course>,
    pub sent: Sent,
    /// The way to the client.
    pub link: LinkCounts,
    /// The virtual time that it took, from the start to the end of the last download.
    pub took: Duration,
}

impl Plan {
    /// One download from the start on.
    pub fn one(bytes: u64, link: Faults) -> Self {
        let download = Download {
            bytes,
            begins: Duration::ZERO,
        };
        Self {
            downloads: vec![download],
            link,
            window: 4 << 20,
            seed: 0,
            patience: Duration::from_secs(600),
        }
    }

    /// Carries it out. Every byte that came is the right one, and when all downloads are over, both sides are at rest.
    pub fn run(&self) -> Report {
        let mut service = stream(Server);
        service.slow = Some(Arc::new(Server));
        let mut config = SimConfig {
            streams: vec![service],
            seed: self.seed,
            ..SimConfig::default()
        };
        config.limits.frames = 2048;
        config.limits.held_frames = 512;
        let courses = Arc::new(Mutex::new(vec![Course::default(); self.downloads.len()]));
        let mut pair = Pair::new(config, |client| {
            client.limits.frames = 2048;
            client.limits.client_rx_bytes = self.window;
            client.client = Some(Box::new(Downloader {
                downloads: self.downloads.clone(),
                begun: 0,
                start: None,
                courses: Arc::clone(&courses),
            }));
        });
        // They judge segments one by one, and take longer for it than all the rest.
        (pair.server_oracle, pair.client_oracle) = (None, None);
        pair.runs_jobs = true;
        let back = Faults {
            delay: self.link.delay,
            ..Faults::default()
        };
        pair.to_client = Lane::new(self.link, self.seed);
        pair.to_server = Lane::new(back, !self.seed);
        let meter = Rc::new(RefCell::new(Meter::default()));
        let tapping = Rc::clone(&meter);
        pair.tap = Some(Box::new(move |frame, arrives, _: Instant| {
            tapping.borrow_mut().see(frame, arrives);
        }));
        let over = pair.run_until(self.patience, |_| {
            let courses = courses.lock().unwrap();
            courses.iter().all(|course| course.ended.is_some())
        });
        let took = pair.client.now() - Instant::ZERO;
        let (sent, link) = (meter.borrow().sent(), pair.to_client.counts());
        if over {
            pair.to_client.set_faults(back);
            let until = pair.client.now() + REST;
            while pair.client.flows() + pair.server.flows() > 0 {
                pair.run_until(Duration::from_secs(1), |_| false);
                assert!(pair.client.now() < until, "a connection is left");
            }
            assert_at_rest(&mut pair.client);
            assert_at_rest(&mut pair.server);
        }
        let courses = courses.lock().unwrap().clone();
        for (number, course) in courses.iter().enumerate() {
            assert_eq!(course.wrong, None, "download {number}");
        }
        Report {
            courses,
            sent,
            link,
            took,
        }
    }
}

impl Course {
    fn fail(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// The bytes that had come by then.
    pub fn by(&self, nanos: u64) -> u64 {
        self.note_by(nanos).1
    }

    /// The last note by then.
    fn note_by(&self, nanos: u64) -> (u64, u64) {
        let next = self.notes.partition_point(|(at, _)| *at <= nanos);
        next.checked_sub(1).map_or((0, 0), |last| self.notes[last])
    }

    /// From the opening to the end; `None` if it did not end.
    pub fn took(&self) -> Option<Duration> {
        let nanos = self.ended?.checked_sub(self.opened)?;
        Some(Duration::from_micros(nanos / 1000))
    }

    /// The bytes per second between the last byte that came by `start` (nanoseconds) and the last of all.
    pub fn rate_from(&self, start: u64) -> f64 {
        let (begin, before) = self.note_by(start);
        let (end, received) = self.note_by(u64::MAX);
        (received - before) as f64 * 1e9 / (end - begin).max(1) as f64
    }
}

impl Report {
    /// Whether every download is over.
    pub fn ended(&self) -> bool {
        self.courses.iter().all(|course| course.ended.is_some())
    }
}

/// Answers `N` and a line feed with N bytes of the content, and closes.
struct Server;

fn number(line: &[u8]) -> u64 {
    std::str::from_utf8(line)
        .unwrap()
        .trim_end()
        .parse()
        .unwrap()
}

impl StreamInterruptlet for Server {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        if request.bytes().last() != Some(&b'\n') {
            return request.need_more();
        }
        let consumed = request.bytes().len();
        let bytes = number(request.bytes());
        if bytes > AT_ONCE_MAX {
            return request.defer(consumed);
        }
        let content = piece(0, bytes as usize);
        request.reply(consumed).send_with_content(content, true)
    }
}

impl SlowPath for Server {
    fn serve(&self, request: Deferred, responder: Responder) {
        let source = Source {
            at: 0,
            end: number(request.bytes()),
        };
        responder.send(Response {
            body: Body::Source(Box::new(source)),
            close: true,
            ..Response::default()
        });
    }
}

struct Source {
    at: u64,
    end: u64,
}

impl BodySource for Source {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let left = self.end - self.at;
        let chunk = piece(self.at, left.min(CHUNK as u64) as usize);
        self.at += chunk.len() as u64;
        Ok((left > 0).then_some(chunk))
    }
}

/// The client: opens the connections of the plan, in the order in which they begin.
struct Downloader {
    downloads: Vec<Download>,
    begun: usize,
    /// When the server's link address was known.
    start: Option<u64>,
    courses: Arc<Mutex<Vec<Course>>>,
}

impl Downloader {
    fn with<T>(&self, token: u64, act: impl FnOnce(&mut Course) -> T) -> T {
        act(&mut self.courses.lock().unwrap()[token as usize])
    }

    fn since_start(&self, nanos: u64) -> u64 {
        nanos - self.start.unwrap()
    }
}

impl Client for Downloader {
    fn turn(&mut self, core: &mut Core<'_>) -> Option<u64> {
        let now = core.nanos();
        let peer = server(Version::V4);
        if self.start.is_none() {
            if core.reach(peer.ip()) != Reach::Ready {
                return Some(now + 1_000_000);
            }
            self.start = Some(now);
        }
        let start = self.start.unwrap();
        while let Some(download) = self.downloads.get(self.begun) {
            let begins = start + download.begins.total_micros() * 1000;
            if begins > now {
                return Some(begins);
            }
            let token = self.begun as u64;
            let local = source(Version::V4, 1, 1024 + self.begun as u16);
            core.open(local, peer, token).unwrap();
            self.with(token, |course| course.opened = now - start);
            self.begun += 1;
        }
        None
    }

    fn connected(&mut self, stream: &mut Stream<'_>) {
        let bytes = self.downloads[stream.token() as usize].bytes;
        let line = format!("{bytes}\n");
        assert_eq!(stream.send(line.as_bytes()), line.len());
    }

    fn received(&mut self, bytes: &[u8], stream: &mut Stream<'_>) -> usize {
        let now = self.since_start(stream.nanos());
        self.with(stream.token(), |course| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let expected = piece(course.received, rest.len());
                let (part, behind) = rest.split_at(expected.len());
                if part != expected {
                    course.fail(format!("other bytes from {} on", course.received));
                }
                course.received += part.len() as u64;
                rest = behind;
            }
            // The time of a note is that of the last byte in it.
            match course.notes.last_mut() {
                Some(last) if now / NOTE_EVERY == last.0 / NOTE_EVERY => {
                    *last = (now, course.received);
                }
                _ => course.notes.push((now, course.received)),
            }
        });
        bytes.len()
    }

    fn ended(&mut self, stream: &mut Stream<'_>) {
        let now = self.since_start(stream.nanos());
        let expected = self.downloads[stream.token() as usize].bytes;
        self.with(stream.token(), |course| {
            if course.received != expected {
                course.fail(format!("{} of {expected} bytes", course.received));
            }
            course.ended = Some(now);
        });
        stream.close();
    }

    fn closed(&mut self, token: u64, end: End) {
        self.with(token, |course| {
            if course.ended.is_none() || end != End::Closed {
                course.fail(format!("{end:?} after {} bytes", course.received));
            }
        });
    }
}
