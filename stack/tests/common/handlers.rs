//! Handlers under test: echo, and a line-oriented one whose requests name their outcome.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use interruptlet::Duration;
use interruptlet::clock::VirtualClock;
use interruptlet::interruptlet::{
    DatagramInterruptlet, DatagramReply, DatagramRequest, StreamInterruptlet, StreamReply,
    StreamRequest,
};
use interruptlet::pool::{Body, BodySource, Deferred, Responder, Response, SlowPath};
use interruptlet::sim::SimConfig;

use super::pattern;

/// Sends everything back, in place.
pub struct Echo;

impl StreamInterruptlet for Echo {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let len = request.bytes().len();
        request.reply_in_place(len).send(len)
    }
}

impl DatagramInterruptlet for Echo {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        let len = request.bytes().len();
        request.reply_in_place().send(len)
    }
}

/// How a call takes virtual time.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    /// It works.
    Work(Duration),
    /// It waits for something.
    Wait(Duration),
    /// Its core is taken away during the call.
    Lose(Duration),
}

/// A handler that takes virtual time in every call, and leaves the rest to another handler.
pub struct Timed<H> {
    handler: H,
    clock: VirtualClock,
    takes: Arc<Mutex<Takes>>,
}

impl<H> Timed<H> {
    /// Makes a handler on the clock of `config`. The second value changes how calls take time from then on.
    pub fn new(handler: H, takes: Takes, config: &SimConfig) -> (Self, Arc<Mutex<Takes>>) {
        let takes = Arc::new(Mutex::new(takes));
        let timed = Self {
            handler,
            clock: config.clock.clone(),
            takes: Arc::clone(&takes),
        };
        (timed, takes)
    }

    fn take(&self) {
        match *self.takes.lock().unwrap() {
            Takes::Work(time) => self.clock.work(time),
            Takes::Wait(time) => self.clock.wait(time),
            Takes::Lose(time) => self.clock.pass(time),
        }
    }
}

impl<H: StreamInterruptlet> StreamInterruptlet for Timed<H> {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        self.take();
        self.handler.handle(request)
    }

    fn timed_out(&mut self, request: StreamRequest<'_>) -> StreamReply {
        self.handler.timed_out(request)
    }

    fn overloaded(&mut self, request: StreamRequest<'_>) -> StreamReply {
        self.handler.overloaded(request)
    }
}

impl<H: DatagramInterruptlet> DatagramInterruptlet for Timed<H> {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        self.take();
        self.handler.handle(request)
    }
}

/// Defers every datagram.
pub struct DeferDatagrams;

impl DatagramInterruptlet for DeferDatagrams {
    fn handle(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        request.defer()
    }

    fn overloaded(&mut self, request: DatagramRequest<'_>) -> DatagramReply {
        let shed = [b"busy:", request.bytes()].concat();
        request.reply(&shed)
    }
}

/// One request per line, answered by what its first word says (see [`answer`]); `defer ...` goes to
/// [`Lines`] as a slow path.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

/// What a line (with its line feed) is answered with, whoever answers it.
///
/// * `place TEXT`: TEXT upper-cased, in place.
/// * `reply TEXT`: `<TEXT>`, from bytes.
/// * `content N`: N bytes of shared content.
/// * `silence`: nothing.
/// * `defer LINE`: what LINE is answered with, by the slow path.
/// * `source N CHUNK`: N bytes in chunks of CHUNK (slow path only).
pub fn answer(line: &[u8]) -> Vec<u8> {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let (word, rest) = split(text);
    match word {
        b"place" => [&rest.to_ascii_uppercase()[..], b"\n"].concat(),
        b"reply" => [b"<", rest, b">\n"].concat(),
        b"content" | b"source" => pattern(number(split(rest).0)),
        b"defer" => answer(rest),
        b"close" => b"bye\n".to_vec(),
        _ => Vec::new(),
    }
}

fn split(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b' ') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

fn number(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).parse().unwrap_or(0)
}

impl StreamInterruptlet for Lines {
    fn handle(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let Some(end) = request.bytes().iter().position(|byte| *byte == b'\n') else {
            return request.need_more();
        };
        let consumed = end + 1;
        let line = request.bytes()[..consumed].to_vec();
        let (word, rest) = split(&line[..end]);
        match word {
            b"place" => {
                let len = rest.len();
                let mut reply = request.reply_in_place(consumed);
                let buffer = reply.buffer();
                buffer.copy_within(end - len..consumed, 0);
                buffer[..len].make_ascii_uppercase();
                reply.send(len + 1)
            }
            b"content" => {
                let content = Bytes::from(answer(&line));
                request.reply(consumed).send_with_content(content, false)
            }
            b"silence" => request.ignore(consumed),
            b"defer" => request.defer(consumed),
            b"abort" => request.abort(),
            b"close" => {
                let mut writer = request.reply(consumed);
                writer.write(&answer(&line));
                writer.send_and_close()
            }
            // A reply that consumes nothing: more bytes must come before the next call.
            b"nothing" => {
                let mut writer = request.reply(0);
                writer.write(b"?");
                writer.send()
            }
            _ => {
                let mut writer = request.reply(consumed);
                writer.write(&answer(&line));
                writer.send()
            }
        }
    }

    fn timed_out(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let shown = [b"timeout:", request.bytes()].concat();
        let consumed = request.bytes().len();
        let mut writer = request.reply(consumed);
        writer.write(&shown);
        writer.send_and_close()
    }

    fn overloaded(&mut self, request: StreamRequest<'_>) -> StreamReply {
        let shown = [b"busy:", request.bytes()].concat();
        let consumed = request.bytes().len();
        let mut writer = request.reply(consumed);
        writer.write(&shown);
        writer.send()
    }
}

impl SlowPath for Lines {
    fn serve(&self, request: Deferred, responder: Responder) {
        let line = request.bytes();
        let deferred = line.strip_prefix(b"defer ").unwrap_or(line);
        let (word, rest) = split(deferred.strip_suffix(b"\n").unwrap_or(deferred));
        match word {
            // Unanswered: the responder is dropped.
            b"drop" => {}
            b"content" => responder.send(Response {
                body: Body::Content(answer(deferred).into()),
                ..Response::default()
            }),
            b"source" => {
                let (len, chunk) = split(rest);
                let source = Chunks::new(pattern(number(len)), number(chunk));
                responder.send(Response {
                    body: Body::Source(Box::new(source)),
                    ..Response::default()
                });
            }
            b"fail" => responder.send(Response {
                head: b"begun\n".to_vec(),
                body: Body::Source(Box::new(Failing)),
                ..Response::default()
            }),
            b"close" => responder.send(Response {
                head: answer(deferred),
                close: true,
                ..Response::default()
            }),
            _ => responder.send(Response {
                head: answer(deferred),
                ..Response::default()
            }),
        }
    }
}

/// Answers every deferred datagram with `slow:` and its bytes.
pub struct SlowDatagrams;

impl SlowPath for SlowDatagrams {
    fn serve(&self, request: Deferred, responder: Responder) {
        responder.send(Response {
            head: b"slow:".to_vec(),
            body: Body::Content(Bytes::copy_from_slice(request.bytes())),
            ..Response::default()
        });
    }
}

/// A body in chunks; counts how many were made.
pub struct Chunks {
    body: Bytes,
    chunk: usize,
    made: Arc<AtomicUsize>,
}

impl Chunks {
    pub fn new(body: Vec<u8>, chunk: usize) -> Self {
        Self {
            body: body.into(),
            chunk,
            made: Arc::default(),
        }
    }

    /// How many chunks were made so far.
    pub fn made(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.made)
    }
}

impl BodySource for Chunks {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        if self.body.is_empty() {
            return Ok(None);
        }
        self.made.fetch_add(1, Ordering::Relaxed);
        let len = self.chunk.min(self.body.len());
        Ok(Some(self.body.split_to(len)))
    }
}

/// A body that cannot be read.
struct Failing;

impl BodySource for Failing {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        Err(io::Error::other("the disk is gone"))
    }
}
